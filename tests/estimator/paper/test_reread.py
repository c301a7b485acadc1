"""The source paper re-read: the figures that follow from its columns, the loaders, and the output."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cegain.paper import reread, tables
from cegain.paper.findings import Finding, findings
from cegain.paper.tables import load_table2, load_table3

TABLE = load_table3()
FOUND: Mapping[str, Finding] = {finding.key: finding for finding in findings(TABLE)}
ARMS = ("layernorm", "rope", "flash_attention", "mqa", "stack")


def ours(algorithm: str, *, flops: float, currency: str) -> SimpleNamespace:
    """An estimate with every status, and with text that rich would read as markup."""
    assert currency == "flop"
    if algorithm == "mqa":
        return SimpleNamespace(status="no_evidence", median=None, predictive=None, reason="[red]no rows[/red]")
    if flops > 1e20:
        return SimpleNamespace(status="far_extrapolation", median=2.5, predictive=(0.125, 512.0), reason="far")
    return SimpleNamespace(status="ok", median=2.5, predictive=(1.25, 5.0), reason="")


def rendered(width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    reread.render(console, ours)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("arm", "checkpoint", "iterations"),
    [
        ("layernorm", "25k", 2.29),
        ("layernorm", "50k", 2.18),
        ("rope", "25k", 1.32),
        ("rope", "50k", 1.43),
        ("flash_attention", "25k", 0.94),
        ("flash_attention", "50k", 1.08),
        ("mqa", "25k", 0.92),
        ("stack", "25k", 3.58),
        ("stack", "50k", 3.46),
    ],
)
def test_iteration_gains(arm: str, checkpoint: str, iterations: float) -> None:
    assert round(TABLE.require(arm, checkpoint).iterations, 2) == iterations


@pytest.mark.parametrize(("checkpoint", "gain"), [("25k", 4.09), ("50k", 3.94)])
def test_time_gain_of_the_stack(checkpoint: str, gain: float) -> None:
    assert round(TABLE.require("stack", checkpoint).time, 2) == gain


def test_gain_that_the_paper_does_not_print_is_none() -> None:
    assert TABLE.gain("mqa", "50k") is None
    assert math.isnan(TABLE.first_reached("mqa", "50k"))
    with pytest.raises(KeyError, match="prints no gain for mqa at 50k"):
        TABLE.require("mqa", "50k")


def test_currencies_are_consistent() -> None:
    """At equal FLOP per iteration time goes as 1 / MFU, so the time gain is CEG x MFU ratio squared."""
    base = TABLE.baseline
    for arm in TABLE.treated:
        gain = TABLE.require(arm.key, "25k")
        assert gain.time == pytest.approx(gain.ceg * (arm.mfu_percent / base.mfu_percent) ** 2, rel=0.01)


def test_every_finding_holds_and_says_how() -> None:
    assert [finding.key for finding in FOUND.values() if not finding.holds] == []
    assert all(finding.claim and finding.how and finding.values for finding in FOUND.values())


@pytest.mark.parametrize(
    ("key", "value", "expected", "digits"),
    [
        ("equal_flop", "worst_printed", 0.007, 3),
        ("equal_flop", "worst_notebook", 0.002, 3),
        ("time_gains", "flash_attention_run", 1.32, 2),
        ("abstract", "largest_printed", 3.17, 2),
        ("peak", "factor", 2.0, 6),
        ("cooperation", "product_25k", 2.37, 2),
        ("cooperation", "product_50k", 2.79, 2),
        ("cooperation", "product_without_flash_25k", 3.34, 2),
        ("cooperation", "product_without_flash_50k", 3.45, 2),
        ("cooperation", "iterations_ratio_25k", 1.19, 2),
        ("cooperation", "iterations_ratio_50k", 1.11, 2),
        ("late_clock", "baseline_over_itself", 1.064, 3),
        ("late_clock", "flash_attention_50k", 1.0, 12),
        ("late_clock", "stack_50k", 3.24, 2),
        ("late_clock", "stack_over_product_50k", 1.18, 2),
        ("mqa_arm", "counted_flop_ratio", 1.000, 3),
        ("mqa_arm", "expected_flop_ratio", 0.933, 3),
        ("resolution", "spread", 0.10, 2),
        ("sparse_attention", "product", 6.94, 2),
        ("moe", "hours_ratio", 11.06, 2),
        ("unrecoverable", "stack_matches", 0, 0),
        ("unrecoverable", "mqa_matches", 0, 0),
        ("unrecoverable", "flash_attention_matches", 0, 0),
        ("unrecoverable", "layernorm_matches", 1, 0),
        ("second_version", "baseline_share", 0.26, 6),
        ("second_version", "stack_full", 1.8, 3),
        ("second_version", "layernorm_without_lag", 1.55, 2),
        ("second_version", "stack_without_lag", 2.14, 2),
        ("second_version", "layernorm_in_iterations", 1.44, 2),
        ("second_version", "stack_in_iterations", 1.86, 2),
    ],
)
def test_figures(key: str, value: str, expected: float, digits: int) -> None:
    assert round(FOUND[key].values[value], digits) == expected


def test_a_finding_fails_when_the_column_that_it_rests_on_changes(tmp_path: Path) -> None:
    """An MFU of 13.0 instead of 15.0 leaves FlashAttention's arm with less FLOP than the others."""
    text = (tables.DATA / "paper_table3.csv").read_text(encoding="utf-8")
    path = tmp_path / "table3.csv"
    path.write_text(text.replace("250.34,15.0", "250.34,13.0"), encoding="utf-8")
    failed = {finding.key for finding in findings(load_table3(path)) if not finding.holds}
    assert {"equal_flop", "peak"} <= failed


def test_table3_follows_from_the_notebook() -> None:
    """Evaluations and four-digit MFU give every printed CEG; one is truncated instead of rounded."""
    base = TABLE.baseline
    off = {}
    for arm in TABLE.treated:
        for checkpoint, evaluations in tables.CHECKPOINTS.items():
            if checkpoint in arm.ceg:
                mfu = base.mfu_of_a100_percent / arm.mfu_of_a100_percent
                ceg = evaluations / arm.reached[checkpoint] * mfu
                if round(ceg, 2) != arm.ceg[checkpoint]:
                    off[arm.key, checkpoint] = math.floor(ceg * 100) / 100
    assert off == {("layernorm", "50k"): 2.24}


def test_dimensions() -> None:
    """FLOP / time is FLOP/s: counted FLOP over the time of an arm, over the peak, is its MFU."""
    assert tables.paper_flops() == pytest.approx(1.98e18, rel=0.001)
    flops = tables.counter_flops_per_token() * tables.BATCH_TOKENS * tables.ITERATIONS
    for arm in TABLE.arms.values():
        assert flops / (arm.time_min * 60) / tables.PAPER_PEAK == pytest.approx(arm.mfu_percent / 100, rel=0.04)
    for run in (tables.DEEPSEEK_V3, tables.LLAMA_405B):
        assert run.flops == pytest.approx(6 * run.active_params * run.tokens, rel=0.01)
        assert run.flops_per_second * 3600 * run.gpu_hours == pytest.approx(run.flops)


def test_hours_are_flop_over_the_rate() -> None:
    figures = tables.hours_against_flops()
    assert round(figures["hours_ratio"], 2) == 11.06
    assert round(figures["flops_ratio"], 1) == 11.5
    assert figures["hours_ratio"] == pytest.approx(figures["flops_ratio"] / figures["rate_ratio"])
    assert figures["flops_ratio"] == pytest.approx(figures["active_params_ratio"] * figures["tokens_ratio"], rel=0.01)
    assert round(figures["deepseek_flops_per_second"] / 1e12) == 329
    assert round(figures["llama_flops_per_second"] / 1e12) == 342


def test_table2_rows() -> None:
    rows = {claim.algorithm: claim for claim in load_table2()}
    assert {name: claim.ceg for name, claim in rows.items() if not math.isnan(claim.ceg)} == {
        "sparse_attention": 4.84,
        "moe": 11,
        "mqa": 1.0,
        "rope": 1.7,
        "flash_attention": 3,
        "layernorm": 1.67,
    }
    assert rows["transformer"].low == 10
    assert {claim.currency for claim in rows.values()} <= set(reread.CURRENCY_WORDS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("250.34", "-250.34", r"time_min: must be a positive number or empty, got '-250.34'"),
        ("250.34", "fast", r"time_min: must be a positive number or empty, got 'fast'"),
        (",15.0,", ",,", r"table.csv:5: mfu_percent must be given"),
        ("time_min", "minutes", r"columns must be arm,label"),
        ("baseline,baseline", "none,none", r"one row must be the arm 'baseline', got none"),
    ],
)
def test_bad_table3_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (tables.DATA / "paper_table3.csv").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "table.csv"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_table3(path)


def test_table2_row_without_a_figure_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table2.csv"
    path.write_text("label,algorithm,ceg,low,high,currency,note\nMQA,mqa,,,,time,\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"table2.csv:2: ceg or low must be given"):
        load_table2(path)


def test_as_dict_is_json_with_documented_keys() -> None:
    data = reread.as_dict(ours)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data) == {"schema_version", "paper", "paper_flops", "table3", "findings", "table2", "deepseek"}
    rows = {row["arm"]: row for row in data["table3"]}
    assert tuple(rows) == ("baseline", *ARMS)
    assert rows["baseline"]["ours"] == []
    assert rows["baseline"]["gains"] == {"25k": None, "50k": None, "final": None}
    assert rows["baseline"]["mfu_dense_percent"] == pytest.approx(22.6)
    assert rows["mqa"]["gains"]["50k"] is None
    assert rows["stack"]["algorithm"] == "layernorm+rope+flash_attention"
    assert [answer["flops"] for answer in rows["rope"]["ours"]] == [data["paper_flops"], 1e24]
    assert rows["rope"]["ours"][0]["predictive"] == [1.25, 5.0]
    assert rows["mqa"]["ours"][0]["median"] is None
    assert next(row for row in data["table2"] if row["algorithm"] == "transformer")["ceg"] is None


def test_not_finite_answers_become_null() -> None:
    answer = SimpleNamespace(status="far_extrapolation", median=2.0, predictive=(0.5, math.inf), reason=None)
    plain = reread.beside("moe", 1e24, lambda *_, **__: answer)
    assert (plain["median"], plain["predictive"]) == (2.0, None)


@pytest.mark.parametrize("width", [80, 100])
def test_render_fits(width: int) -> None:
    text = rendered(width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    for title in ("Table III in three currencies", "What the numbers say", "Table II beside ours", "DeepSeek-V3"):
        assert title in text.splitlines()


def test_render_shows_the_computed_figures_and_every_kind_of_answer() -> None:
    text = rendered()
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "LN+RoPE+FA 289.51 12.9 25.8 3.14 3.03 3.17 3.58 3.46 4.09 3.94 2.5 [1.25, 5]" in lines
    assert "MQA 329.17 11.4 22.8 0.91 none 0.98 0.92 none 0.92 none no evidence" in lines
    assert "baseline 330.01 11.3 22.6" in lines
    assert "Transformer >= 10 FLOP 2.5 [1.25, 5] [0.125, 512] far; 2.5" in lines
    assert "In hours the ratio is 11.06, in FLOP 11.5." in text
    assert f"{len(FOUND)}. " in text


def test_text_from_data_is_not_markup() -> None:
    assert "No answer of ours for MQA: [red]no rows[/red]" in rendered()
