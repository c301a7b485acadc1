"""The shipped table of published gains: what its cells say about each other and about our own FLOP counts."""

import csv
import math
from itertools import groupby

import pytest

from cegain.shapes.architecture import ModelShape, flops_per_token
from cegain.tables.files import DATA
from cegain.tables.published_gains import PUBLISHED_GAINS, PublishedGain, read_published_gains

ROWS = read_published_gains(PUBLISHED_GAINS)


def test_compute_is_unknown_exactly_where_it_is_empty() -> None:
    wrong = [r for r in ROWS if math.isnan(r.flops) != (r.flops_convention == "unknown")]
    assert not wrong


def test_a_study_stands_together_within_its_algorithm() -> None:
    blocks = [key for key, _ in groupby(ROWS, key=lambda r: (r.algorithm, r.study))]
    assert len(blocks) == len(set(blocks))


def test_readme_names_every_study_and_no_other() -> None:
    text = (DATA / "README.md").read_text(encoding="utf-8")
    section = text.split("### Studies")[1].split("###")[0]
    named = {
        name.strip(" `")
        for line in section.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    }
    assert named == {r.study for r in ROWS}


@pytest.mark.parametrize("arm", ["layernorm", "rope", "flash_attention", "mqa", "stack"])
def test_table_iii_rows_are_the_printed_gains_with_the_mfu_undone(arm: str) -> None:
    with (DATA / "paper_table3.csv").open(newline="", encoding="utf-8") as stream:
        printed = {row["arm"]: row for row in csv.DictReader(stream)}
    expected = sorted(float(printed[arm][c]) for c in ("ceg_25k", "ceg_50k") if printed[arm][c])
    rows = [r for r in ROWS if r.currency == "iters_mfu" and r.algorithm == printed[arm]["algorithm"]]
    assert sorted(r.ceg for r in rows) == expected
    factor = float(printed[arm]["mfu_percent"]) / float(printed["baseline"]["mfu_percent"])
    assert [r.flop_factor for r in rows] == pytest.approx([factor] * len(rows), rel=1e-3)


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        ("compact: ", {"n_layers": 6, "d_model": 384, "n_heads": 6, "seq_len": 512}),
        ("full: ", {"n_layers": 10, "d_model": 768, "n_heads": 12, "seq_len": 1024}),
    ],
)
def test_mqa_factor_is_our_flop_ratio(words: str, shape: dict[str, int]) -> None:
    (row,) = _find("mqa", words)
    assert row.flop_factor == pytest.approx(_mqa_ratio(**shape), rel=1e-3)


def test_sparse_transformer_factor_is_our_flop_ratio() -> None:
    (row,) = [r for r in _find("sparse_attention", "stride 128 c 32") if r.currency == "steps"]
    dense = ModelShape(n_layers=30, d_model=512, n_heads=8, vocab_size=256, seq_len=12288)
    sparse = ModelShape(
        n_layers=30, d_model=512, n_heads=8, vocab_size=256, seq_len=12288,
        pattern="fixed", stride=128, summary=32,
    )  # fmt: skip
    assert row.flop_factor == pytest.approx(flops_per_token(dense) / flops_per_token(sparse), rel=1e-3)


def _mqa_ratio(**shape: int) -> float:
    own, shared = (ModelShape(**shape, heads=heads) for heads in ("mha", "mqa"))  # type: ignore[arg-type]
    return flops_per_token(own) / flops_per_token(shared)


def _find(algorithm: str, words: str) -> list[PublishedGain]:
    return [r for r in ROWS if r.algorithm == algorithm and words in r.note]
