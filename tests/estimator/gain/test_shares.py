"""Which kind of evidence an answer rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from cegain.gain import method, prior
from cegain.tables.published_gains import PublishedGain


def row(
    study: str, basis: str = "measured", flops: float = 1e20, ceg: float = 1.5, algorithm: str = "rope"
) -> PublishedGain:
    baseline = {"rope": "learned_positions", "flash_attention": "materialised_attention"}[algorithm]
    return PublishedGain(
        algorithm, "t", baseline, study, flops, "useful", ceg, math.nan, math.nan, math.nan, "flop",
        math.nan, basis, "s", "", "", "bare" if study == "own bare ladder" else "",
    )  # fmt: skip


def of(
    rows: Sequence[PublishedGain], flops: float = 1e20, name: str = "rope", given: Sequence[PublishedGain] = ()
) -> dict[str, float]:
    baseline = {"rope": "learned_positions", "flash_attention": "materialised_attention"}[name]
    shipped = frozenset(rows)
    (found,) = method.shares(
        [*rows, *given], [name], [baseline], [flops], currency="flop", spread=prior.frozen(), shipped=shipped
    )
    return found


def test_one_kind_has_all_of_it() -> None:
    assert of([row("a"), row("b")]) == {"published measured": 1.0}
    assert of([row("own bare ladder")]) == {"own runs": 1.0}


def test_equal_witnesses_share_alike() -> None:
    found = of([row("a"), row("own bare ladder")], given=[row("c")])
    assert found == pytest.approx(
        {"given by --evidence": 1 / 3, "own runs": 1 / 3, "published measured": 1 / 3}, rel=1e-6
    )


def test_a_surer_kind_has_more_and_they_add_up() -> None:
    found = of([row("a"), row("b", "claimed"), row("c", "derived"), row("d", "extrapolated")])
    order = ["published measured", "published derived", "published claimed", "published extrapolated"]
    assert list(found) == order
    assert math.fsum(found.values()) == pytest.approx(1.0)


def test_readings_of_one_thing_have_the_share_of_one() -> None:
    """However often they are told: in one contrast, or under other names of the treatment."""
    one = row("b", "derived")._replace(same_as="a law")
    told = [one, one._replace(note="again"), one._replace(treatment="t2"), one._replace(treatment="t3", flops=1e20)]
    assert of([row("a"), *told]) == pytest.approx(of([row("a"), one]), rel=1e-6)
    apart = [r._replace(same_as="") for r in told]
    assert of([row("a"), *apart])["published derived"] > 1.01 * of([row("a"), one])["published derived"]


def test_what_is_nearer_tells_more_of_the_level() -> None:
    rows = [row("own bare ladder", flops=1e12), row("a", flops=1e22)]
    near, far = of(rows, 1e12), of(rows, 1e22)
    assert near["own runs"] > 0.5 > far["own runs"]


def test_rows_of_other_algorithms_take_no_part() -> None:
    assert of([row("a"), row("own bare ladder", algorithm="flash_attention")]) == {"published measured": 1.0}


def test_an_answer_by_construction_rests_on_no_rows() -> None:
    assert of([row("a", algorithm="flash_attention")], name="flash_attention") == {}


def test_long_tables_get_no_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "MAX_ROWS", 2)
    assert of([row("a"), row("own bare ladder"), row("c")]) == {}
