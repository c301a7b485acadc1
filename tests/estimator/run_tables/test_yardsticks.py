"""Arms whose losses were measured unlike: compared in bits per byte, or never ok."""

from pathlib import Path

import pytest

from cegain.ladders import fit_report, ladder
from tests.estimator.run_tables.made_runs import Row, arm, write

GAIN = 1.5


def two(first: Row, second: Row, longer: float = 1.0, *, per_byte: bool = False) -> list[Row]:
    """Two arms, each with cells of its own; the second's tokens are `longer`, and hold more nats."""
    rows = []
    for name, gain, cells, scale in (("base", 1.0, first, 1.0), ("new", GAIN, second, longer)):
        for row in arm(name, gain):
            nats = float(str(row["loss"]))
            more: Row = {"val_bpb": f"{nats / 4.2:.6f}"} if per_byte else {}
            rows.append(row | {"loss": f"{nats * scale:.5f}", **more} | cells)
    return rows


def fit(path: Path) -> fit_report.TwoArms:
    return fit_report.two_arms(ladder.read_runs(path), "base", "new", [1e20], None)


UNLIKE: list[tuple[Row, Row]] = [
    ({"tokenizer": "gpt2"}, {"tokenizer": "llama"}),
    ({"vocab_size": "32768"}, {"vocab_size": "131072"}),
    ({"dataset": "web"}, {"dataset": "books"}),
    ({"seq_len": "1024"}, {"seq_len": "4096"}),
    ({"eval_set": "a"}, {"eval_set": "b"}),
    ({"config/data.tokenizer": "x"}, {"config/data.tokenizer": "y"}),
]


@pytest.mark.parametrize(("first", "second"), UNLIKE)
def test_unlike_yardsticks_are_never_ok(first: Row, second: Row, tmp_path: Path) -> None:
    found = fit(write(tmp_path / "runs.csv", two(first, second, 1.13))).forecast
    assert found.status == "unlike_yardsticks"
    assert all(at.status != "ok" for at in found.at)
    assert str(next(iter(first.values()))) in found.reason


def test_bits_per_byte_compare_tokenizers(tmp_path: Path) -> None:
    rows = two(
        {"tokenizer": "a", "vocab": 1, "corpus": "web@1"}, {"tokenizer": "b", "vocab": 2, "corpus": "web@2"}, 1.13
    )
    assert fit(write(tmp_path / "nats.csv", rows)).forecast.status == "unlike_yardsticks"
    rows = two(
        {"tokenizer": "a", "vocab": 1, "corpus": "web@1"},
        {"tokenizer": "b", "vocab": 2, "corpus": "web@2"},
        1.13,
        per_byte=True,
    )
    found = fit(write(tmp_path / "bytes.csv", rows)).forecast
    assert found.status == "ok"
    assert found.at[0].median == pytest.approx(GAIN, rel=0.1)
    assert any("bits per byte" in note for note in found.notes)


def test_bits_per_byte_do_not_compare_texts(tmp_path: Path) -> None:
    rows = two({"tokenizer": "a", "corpus": "web"}, {"tokenizer": "b", "corpus": "code"}, per_byte=True)
    assert fit(write(tmp_path / "runs.csv", rows)).forecast.status == "unlike_yardsticks"


@pytest.mark.parametrize("cells", [{"tokenizer": "gpt2", "seq_len": "1024"}, {}])
def test_like_yardsticks_change_nothing(cells: Row, tmp_path: Path) -> None:
    found = fit(write(tmp_path / "runs.csv", two(cells, cells, per_byte=True))).forecast
    assert found.status == "ok"
    assert not any("bits per byte" in note for note in found.notes)


def test_what_the_arms_are_told_apart_by_is_no_yardstick(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "variant"} | {"corpus": row["variant"]} for row in two({}, {})]
    assert fit(write(tmp_path / "runs.csv", rows)).forecast.status == "ok"
