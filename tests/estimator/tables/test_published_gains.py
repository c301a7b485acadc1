"""The shipped table of published gains: what its cells say about each other and about our own FLOP counts."""

import csv
import math
import re
from collections import Counter
from itertools import groupby

import pytest

from cegain.paper import second_version
from cegain.paper.second_version import COMPACT, FULL, Curves, first_crossing
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


@pytest.mark.parametrize(
    ("losses", "target", "at"),
    [
        ([5.0, 4.0, 3.0], 4.0, 2),
        ([5.0, 4.0, 3.0], 3.5, 3),
        ([5.0, 4.0, 3.0], 2.9, None),
        ([5.0, 3.5, 4.0, 3.5, 3.6], 3.6, 2),  # falls below its last loss and rises again: first, not last
        ([5.0], 6.0, 1),
        ([], 1.0, None),
    ],
)
def test_first_crossing(losses: list[float], target: float, at: int | None) -> None:
    assert first_crossing(losses, target) == at


_CROSSING = re.compile(r"first passes at evaluation (\d+) of (\d+) \(([\d,]+) iterations; .*this arm at (\d+)")
_MQA_PARAMS = FULL.params - 2 * FULL.layers * FULL.d_model * 64 * 11
_NSA_PARAMS = FULL.params - 2 * FULL.layers * FULL.d_model * 48 * 15
"""One key-value head of 12 of width 64, and of 16 of width 48 (its gates, half a percent, left out)."""


def test_a_rows_compute_is_the_cost_at_the_first_crossing() -> None:
    """The six gains of the second version's large model, whose baseline passes its target at a quarter of its run."""
    params = {"mqa": _MQA_PARAMS, "sparse_attention": _NSA_PARAMS}
    rows = {r.algorithm if "+" not in r.algorithm else "stack": r for r in ROWS if r.note.startswith("full: ")}
    assert set(rows) == set(FULL.arms)
    for arm, row in rows.items():
        found = _CROSSING.search(row.note)
        assert found, arm
        baseline, evaluations, iterations, at = (int(number.replace(",", "")) for number in found.groups())
        assert (baseline, evaluations, at) == (FULL.baseline, second_version.EVALUATIONS, FULL.arms[arm])
        assert iterations == second_version.iterations(baseline) == 500 * (27 - 1)
        assert row.flops == pytest.approx(second_version.flops(FULL, at, params.get(arm)), rel=0.006)
        assert row.ceg == pytest.approx(second_version.gain(baseline, at), abs=6e-4)
        _printed_is_noted(row, baseline / at)


def test_the_small_models_rows_are_clocked_at_its_last_evaluation() -> None:
    rows = {r.algorithm if "+" not in r.algorithm else "stack": r for r in ROWS if r.note.startswith("compact: ")}
    for arm, at in COMPACT.arms.items():
        assert rows[arm].ceg == pytest.approx(second_version.gain(COMPACT.baseline, at), abs=6e-4)
        _printed_is_noted(rows[arm], COMPACT.baseline / at)
        # Half as many tokens an iteration as the large model has.
        assert rows[arm].flops == pytest.approx(second_version.flops(COMPACT, at) / 2, rel=0.006)


def _printed_is_noted(row: PublishedGain, printed: float) -> None:
    """Gains are ratios of iterations; where the source's ratio of evaluations differs, the note says so."""
    found = re.search(r"printed as ([\d.]+),", row.note)
    assert (found is None) == (row.ceg == 1)
    assert found is None or float(found[1]) == pytest.approx(printed, abs=6e-4)


@pytest.mark.parametrize(("words", "curves"), [("full: ", FULL), ("compact: ", COMPACT)])
def test_a_baseline_whose_best_loss_lies_below_its_target_is_noted(words: str, curves: Curves) -> None:
    rows = [r for r in ROWS if r.note.startswith(words)]
    assert len(rows) == 6
    below = curves.lowest < curves.last
    assert below == (words == "full: ")
    for row in rows:
        assert (f"it falls to {curves.lowest:.3f}" in row.note and "rises again" in row.note) == below
        assert (f"target: baseline last loss {curves.last:.3f}" in row.note) == below


NOT_RUNS = re.compile(
    r"\babout\b|~|\bapproximately\b|\broughly\b|\bfit\b|\bfitted\b|\blaws?\b|\beq\. |\bextrapolat\w+|"
    r"\bpredicted\b|\bconverted\b|\brounded\b|\brounding\b|\bactive parameters\b|\bratio of\b|\btext says\b|"
    r"\babstract\b|\bread off curves\b",
    re.IGNORECASE,
)
"""Words of a gain that comes from a fit, from an author's own rounding, or from a ratio of parameters."""
NOT_OF_THE_GAIN = {
    ("wen_2025", "predicted"): "of learning rates at 1.21B, set from smaller sizes; the losses are those of runs",
    ("zhang_2019", "abstract"): "gives another algorithm's figure as well; the row has the table's",
}


def test_measured_rows_are_read_off_runs() -> None:
    measured = [r for r in ROWS if r.basis == "measured"]
    assert len(measured) > 80
    found = {
        (r.study, word.lower()) for r in measured for word in NOT_RUNS.findall(f"{r.treatment} | {r.source} | {r.note}")
    }
    assert found == set(NOT_OF_THE_GAIN)


def test_other_bases_show_that_the_words_find_something() -> None:
    others = [r for r in ROWS if r.basis in ("derived", "extrapolated", "claimed")]
    assert sum(bool(NOT_RUNS.search(f"{r.treatment} | {r.source} | {r.note}")) for r in others) > 0.75 * len(others)


def test_laws_beyond_their_runs_are_extrapolated() -> None:
    """Runs of both arms end at 49M x 66B tokens."""
    rows = [r for r in ROWS if r.study == "krajewski_2024"]
    assert len(rows) == 6
    for row in rows:
        assert (row.basis == "extrapolated") == (row.flops > 6 * 49e6 * 66e9)


def test_a_gain_over_an_arm_that_never_got_there_is_a_bound() -> None:
    """The notebook reads the LSTM at its lowest loss, 5.360, where the Transformers are at 5.277."""
    (row,) = [r for r in ROWS if r.study == "gundlach_2025" and r.ceg == 4.99]
    assert row.low == row.ceg
    assert math.isnan(row.high)
    assert "a lower bound" in row.note


def test_compute_is_that_of_the_run_with_the_algorithm() -> None:
    """Ratios of the notebook have the modern arm's 787 or 718 TFLOP below the line, and the 2017 arm's 998."""
    rows = [r for r in ROWS if r.study == "gundlach_2025" and r.source.endswith("main_ablation.ipynb")]
    by_flops = {flops: sorted(r.ceg for r in rows if r.flops == flops) for flops in {r.flops for r in rows}}
    assert by_flops == {7.87e14: [1.086, 1.151, 1.26, 1.436, 1.868, 1.97, 4.99], 7.18e14: [1.169], 9.98e14: [3.94]}


def test_a_key_joins_several_rows_of_one_study() -> None:
    keyed = [r for r in ROWS if r.same_as]
    assert {key for key, n in Counter(r.same_as for r in keyed).items() if n == 1} == set()
    assert len({(r.same_as, r.study) for r in keyed}) == len({r.same_as for r in keyed})


def test_two_rows_of_one_treatment_at_one_budget_are_one_reading() -> None:
    at: dict[tuple[object, ...], set[str]] = {}
    for i, r in enumerate(ROWS):
        if not math.isnan(r.flops):
            place = (r.algorithm, r.treatment, r.baseline, r.study, r.flops, r.currency)
            at.setdefault(place, set()).add(r.same_as or str(i))
    assert [place for place, readings in at.items() if len(readings) > 1] == []


def _mqa_ratio(**shape: int) -> float:
    own, shared = (ModelShape(**shape, heads=heads) for heads in ("mha", "mqa"))  # type: ignore[arg-type]
    return flops_per_token(own) / flops_per_token(shared)


def _find(algorithm: str, words: str) -> list[PublishedGain]:
    return [r for r in ROWS if r.algorithm == algorithm and words in r.note]
