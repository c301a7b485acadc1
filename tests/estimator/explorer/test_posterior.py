"""The posterior as data: all of it, exact, and small enough for a page."""

import base64
import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cegain import algorithms
from cegain.common.arrays import Array
from cegain.explorer import posterior
from cegain.gain import chain, combinations, interaction, method, prior, question
from cegain.gain.chain import Curve
from cegain.gain.evidence import load
from cegain.tables.published_gains import Evidence, PublishedGain
from tests.estimator.gain.test_contrasts import published

PAGE = Path(posterior.__file__).with_name("scripts")
SHIPPED = load()
QUESTIONS = [(name, currency) for currency in question.CURRENCIES for name in algorithms.names()]
NORM = {"algorithm": "layernorm", "treatment": "LayerNorm", "baseline": "no_norm"}
BOTH = {"algorithm": "layernorm+rope", "treatment": "both", "baseline": "no_norm+learned_positions"}


@functools.cache
def document() -> dict[str, Any]:
    return as_read(SHIPPED)


def as_read(tables: Evidence, ours: frozenset[PublishedGain] | None = None) -> dict[str, Any]:
    """The document as a page reads it."""
    text = json.dumps(posterior.document(tables, ours, prior.frozen()), allow_nan=False)
    found: dict[str, Any] = json.loads(text)
    return found


def numbers(packed: str, *shape: int) -> Array:
    return np.frombuffer(base64.b64decode(packed), "<f8").reshape(shape)


def curve_of(data: dict[str, Any]) -> Curve:
    """The curve that a document's data are of."""
    if data["exact"]:
        return method.exact_curve()
    said, weights = data["chain"], np.array(data["weights"])
    triangles = numbers(said["precision"], len(weights), len(said["low"]), 3)
    studies = chain.Chain(
        np.array(said["low"]),
        np.array(said["high"]),
        triangles[:, :, [0, 1, 1, 2]].reshape(len(weights), -1, 2, 2),
        numbers(said["score"], len(weights), len(said["low"]), 2),
        np.zeros(len(weights)),  # of likelihoods, which the weights hold already
        tuple(said["core"]),
        said["slope_mean"],
        np.array(said["slope_sds"]),
    )
    return Curve(weights, studies, np.array(data["new_study_sds"]), np.array(data["reach"]))


def prepared(name: str, currency: str, tables: Evidence = SHIPPED) -> method.Prepared:
    baselines = [algorithms.get(name).replaces[0]]
    return method.prepare(
        tables.rows, [name], baselines, currency=currency, spread=prior.frozen(), remarks=tables.remarks
    )


@pytest.mark.parametrize(("name", "currency"), QUESTIONS)
def test_every_question_has_its_curve_or_what_is_missing(name: str, currency: str) -> None:
    part, want = document()["parts"][currency][name], prepared(name, currency)
    assert part["missing"] == want.missing
    assert [*document()["remarks"], *part["notes"]] == list(want.notes)
    assert (part["curve"] is None) == bool(want.missing)
    if want.missing:
        return
    curve, fitted = curve_of(part["curve"]), want.curves[0]
    assert curve.exact == fitted.exact
    for flops in 10 ** np.random.default_rng(3).uniform(10, 32, 40):
        for mine, theirs in (
            (curve.mean(flops), fitted.mean(flops)),
            (curve.predictive(flops), fitted.predictive(flops)),
        ):
            for field in mine._fields:
                np.testing.assert_array_equal(getattr(mine, field), getattr(theirs, field))
        np.testing.assert_equal(curve.decades(flops), fitted.decades(flops))
    if not curve.exact:
        slope = part["curve"]["slope"]
        np.testing.assert_array_equal(slope["means"], fitted.slope().means)
        np.testing.assert_array_equal(slope["sds"], fitted.slope().sds)
        assert part["curve"]["chain"]["centre"] == fitted.studies.centre


def inverses(data: dict[str, Any]) -> list[Array]:
    """Of the observations' covariance at every sd."""
    n = len(data["seen"])
    rotation = numbers(data["rotation"], n, n)
    return [rotation.T / (1 + sd**2 * np.array(data["spread"])) @ rotation for sd in data["sds"]]


@pytest.mark.parametrize("currency", question.CURRENCIES)
def test_the_interaction_of_any_stack_can_be_had(currency: str) -> None:
    data = document()["interaction"][currency]
    members = [(name, algorithms.get(name).replaces[0]) for name in ("layernorm", "rope", "swiglu")]
    joint = interaction.estimate(SHIPPED.rows, members, currency)
    assert data["weights"] == joint.weights.tolist()
    assert data["sds"] == joint.sds.tolist()
    values = np.array([o["value"] for o in data["seen"]])
    for found, (inverse, solved) in zip(inverses(data), joint.solved, strict=True):
        np.testing.assert_allclose(found, inverse, rtol=1e-9, atol=1e-9 * np.abs(inverse).max(initial=0.0))
        np.testing.assert_allclose(found @ values, solved, rtol=1e-9, atol=1e-9)
    for o, want in zip(data["seen"], joint.observations, strict=True):
        named = {tuple(map(tuple, data["pairs"][i])): coefficient for i, coefficient in o["pairs"]}
        assert named == dict(want.pairs)
        assert (o["what"], o["study"], o["flops"], o["x"]) == (want.label, want.study, want.flops, want.x)


def test_combinations_were_measured() -> None:
    assert len(document()["interaction"]["flop"]["seen"]) > 9


def test_budgets_and_thresholds_are_in_flop() -> None:
    budgets = document()["budgets"]
    assert budgets[0] == pytest.approx(1e15)
    assert budgets[-1] == pytest.approx(1e28)
    assert np.diff(np.log10(budgets)) == pytest.approx(0.1)
    assert document()["thresholds"] == {"1e+25": 1e25, "1e+26": 1e26}


def test_scripts_use_each_constant_that_travels_and_no_other() -> None:
    code = "".join((PAGE / name).read_text(encoding="utf-8") for name in ("chain.js", "posterior.js"))
    groups = re.findall(r"\{([^{}]*)\} = (?:this|chain)?\.?constants;", code)
    used = {part.split(":")[0].strip() for group in groups for part in group.split(",")}
    used |= set(re.findall(r"\bconstants\.(\w+)", code))
    assert used == set(document()["constants"])


def test_a_users_own_table_alone_leaves_the_shipped_settings_out(tmp_path: Path) -> None:
    rows = (published(study="mine", ceg=3.0), published(study="mine too", flops=1e21, ceg=2.5))
    alone = Evidence(rows, "", ("remark",))
    part = as_read(alone, frozenset(SHIPPED.rows))["parts"]["flop"]["rope"]
    kept = [w for w in prior.prior_weights() if w > 1e-3]
    np.testing.assert_allclose(part["curve"]["weights"], np.array(kept) / sum(kept))
    assert part["curve"]["reach"] == [20.0, 21.0]
    assert part["curve"]["weights"] != document()["parts"]["flop"]["rope"]["curve"]["weights"]
    assert part["notes"] == []  # remarks are everybody's


def test_contradictions_are_noted() -> None:
    far = [published(study=f"study {i}", ceg=100.0 if i % 2 else 0.01) for i in range(10)]
    notes = as_read(Evidence(tuple(far), "", ()))["parts"]["flop"]["rope"]["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("the rows of rope contradict each other")


def ladder_of_stacks(n: int) -> Sequence[PublishedGain]:
    """n combinations of two parts, each beside its parts, in one study of that many budgets."""
    noise = np.random.default_rng(1).lognormal(0.0, 0.1, (n, 3))
    cells: tuple[dict[str, Any], ...] = ({}, NORM, BOTH)
    return [
        published(**kind, study=f"study {i % 7}", flops=10 ** (18 + i / 60), ceg=float(2 * gains[k]))
        for i, gains in enumerate(noise)
        for k, kind in enumerate(cells)
    ]


def test_many_measured_combinations_stay_small_and_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, most = interaction.MAX_OBSERVATIONS, 100
    monkeypatch.setattr(interaction, "MAX_OBSERVATIONS", most)  # a quarter of the usual takes a fiftieth of the time
    rows = ladder_of_stacks(most + 20)
    members = [("layernorm", "no_norm"), ("rope", "learned_positions")]
    data = posterior._interaction(Evidence(tuple(rows), "", ()), members, "flop")
    assert len(combinations.observations(rows, "flop")) > most
    assert len(data["seen"]) == most  # type: ignore[arg-type]
    assert len(json.dumps(data)) * (usual / most) ** 2 < 2e6
    joint = interaction.estimate(rows, members, "flop")
    for found, (inverse, _) in zip(inverses(data), joint.solved, strict=True):
        np.testing.assert_allclose(found, inverse, rtol=1e-7, atol=1e-7 * np.abs(inverse).max())


def test_the_shipped_document_is_small() -> None:
    assert len(json.dumps(document())) < 300_000
    assert math.isfinite(sum(document()["interaction"]["flop"]["spread"]))
