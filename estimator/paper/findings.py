"""What the source paper's numbers say: each finding computes its values, checks them and words them.

A finding whose check fails (because a column was edited) says so in `holds`; its wording still shows the new
values. Paper and columns: `cegain.paper.tables`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from cegain.paper import second_version
from cegain.paper.tables import (
    A100_PEAK,
    ABSTRACT_CEG,
    CHECKPOINTS,
    CHILD_PARAMS_RATIO,
    CHILD_TIME_RATIO,
    H100_DENSE_PEAK,
    PAPER_PEAK,
    Table3,
    counter_flops_per_token,
    hours_against_flops,
    implied_peak,
    load_table2,
)

PARTS = ("layernorm", "rope", "flash_attention")
"""The arms which the stack combines."""
REPEATS = ("baseline", "flash_attention", "mqa")
"""Arms that trained the same function: FlashAttention is exact, and the MQA arm shows the baseline's FLOP."""


@dataclass(frozen=True)
class Finding:
    """One statement about the paper with the numbers that it rests on and the outcome of its check."""

    key: str
    claim: str
    values: Mapping[str, float]
    how: str
    holds: bool


def findings(table: Table3) -> tuple[Finding, ...]:
    """All findings, in the order in which they build on each other."""
    order = (
        _equal_flop, _iteration_gains, _time_gains, _abstract, _peak, _cooperation, _late_clock, _mqa_arm,
        _resolution, _sparse_attention, _moe, _unrecoverable, _second_version,
    )  # fmt: skip
    return tuple(finding(table) for finding in order)


def _pair(early: float, late: float) -> str:
    return f"{early:.2f}/{late:.2f}"


def _equal_flop(table: Table3) -> Finding:
    base = table.baseline
    printed = {arm.key: arm.time_min * arm.mfu_percent / (base.time_min * base.mfu_percent) for arm in table.treated}
    exact = {
        arm.key: arm.time_min * arm.mfu_of_a100_percent / (base.time_min * base.mfu_of_a100_percent)
        for arm in table.treated
    }
    worst = max(abs(ratio - 1) for ratio in printed.values())
    worst_exact = max(abs(ratio - 1) for ratio in exact.values())
    return Finding(
        "equal_flop",
        f"MFU x time is the same in every arm: within {worst:.1%} with the printed MFU, within "
        f"{worst_exact:.1%} with the notebook's four digits. So every arm counted the same FLOP per "
        "iteration, and a gain in iterations is a gain in FLOP.",
        {f"{arm}_mfu_time_ratio": ratio for arm, ratio in printed.items()}
        | {"worst_printed": worst, "worst_notebook": worst_exact},
        "time x MFU of the arm / time x MFU of the baseline; check: all within 1% of 1",
        worst < 0.01 and worst_exact < 0.01,
    )


def _iteration_gains(table: Table3) -> Finding:
    values = {
        f"{arm.key}_{checkpoint}": gain.iterations
        for arm in table.treated
        for checkpoint in CHECKPOINTS
        if (gain := table.gain(arm.key, checkpoint))
    }
    worded = ", ".join(
        f"{arm.label} " + "/".join(f"{values[k]:.2f}" for c in CHECKPOINTS if (k := f"{arm.key}_{c}") in values)
        for arm in table.treated
    )
    flash = table.require("flash_attention", "25k"), table.require("flash_attention", "50k")
    return Finding(
        "iteration_gains",
        f"In iterations, and so in FLOP, at 25k/50k: {worded}. The paper's CEG divides by MFU and so "
        "charges an arm for using the device better: FlashAttention computes the same function (1.00 in "
        f"FLOP) and is printed as {_pair(flash[0].ceg, flash[1].ceg)}.",
        values,
        "CEG x MFU of the arm / MFU of the baseline; check: FlashAttention is below 1 as printed and "
        "within 10% of 1 in iterations",
        all(gain.ceg < 1 and abs(gain.iterations - 1) < 0.1 for gain in flash),
    )


def _time_gains(table: Table3) -> Finding:
    stack = table.require("stack", "25k"), table.require("stack", "50k")
    flash = table.arms["flash_attention"]
    pure = table.baseline.time_min / flash.time_min
    return Finding(
        "time_gains",
        f"In time the stack gains {_pair(stack[0].time, stack[1].time)} at 25k/50k, more than the printed "
        f"{_pair(stack[0].ceg, stack[1].ceg)}: it also runs faster. FlashAttention alone makes a run "
        f"{pure:.2f}x shorter at the same FLOP.",
        {"stack_25k": stack[0].time, "stack_50k": stack[1].time, "flash_attention_run": pure},
        "iteration gain x time of the baseline / time of the arm, runs of equal length; check: time > "
        "iterations > printed, for the stack",
        all(gain.time > gain.iterations > gain.ceg for gain in stack),
    )


def _abstract(table: Table3) -> Finding:
    largest = max(ceg for arm in table.treated for ceg in arm.ceg.values())
    early, late = table.require("stack", "25k").iterations, table.require("stack", "50k").iterations
    return Finding(
        "abstract",
        f'The abstract\'s "up to {ABSTRACT_CEG}x" is not in the table, whose largest CEG is '
        f"{largest:.2f}. Only the stack's iteration gain is of that size: {_pair(early, late)} at "
        f"25k/50k, mean {(early + late) / 2:.2f}. The abstract and the table are in different currencies.",
        {"abstract": ABSTRACT_CEG, "largest_printed": largest, "stack_25k": early, "stack_50k": late},
        "largest printed CEG against the stack's iteration gains; check: 3.5 is above the former and "
        "between the latter",
        largest < ABSTRACT_CEG - 0.05 and late <= ABSTRACT_CEG <= early,
    )


def _peak(table: Table3) -> Finding:
    base = table.baseline
    rescaled = [arm.mfu_of_a100_percent * A100_PEAK / PAPER_PEAK for arm in table.arms.values()]
    same = all(abs(value - arm.mfu_percent) <= 0.05 for value, arm in zip(rescaled, table.arms.values(), strict=True))
    implied, factor = implied_peak(base), PAPER_PEAK / H100_DENSE_PEAK
    return Finding(
        "peak",
        f"MFU is taken of {PAPER_PEAK / 1e12:,.0f} TFLOP/s, the H100's figure with 2:4 sparsity, which no "
        f"arm used. Of the dense {H100_DENSE_PEAK / 1e12:,.1f} it is {factor:.0f}x as high: "
        f"{base.mfu_percent * factor:.1f}% and not {base.mfu_percent}% for the baseline. The table itself "
        f"implies {implied / 1e12:,.0f} TFLOP/s. The ratios do not depend on it.",
        {"paper_peak": PAPER_PEAK, "dense_peak": H100_DENSE_PEAK, "implied_peak": implied, "factor": factor},
        "notebook MFU x 312 / 1979 gives the printed MFU in every arm; counted FLOP / (time x MFU) gives "
        "the peak; check: both, the latter within 5%",
        same and abs(implied / PAPER_PEAK - 1) < 0.05,
    )


def _cooperation(table: Table3) -> Finding:
    values: dict[str, float] = {}
    for checkpoint in CHECKPOINTS:
        gains = {arm: table.require(arm, checkpoint) for arm in (*PARTS, "stack")}
        without = [gains[arm] for arm in PARTS if arm != "flash_attention"]
        values[f"product_{checkpoint}"] = prod(gains[arm].ceg for arm in PARTS)
        values[f"product_without_flash_{checkpoint}"] = prod(gain.ceg for gain in without)
        values[f"stack_{checkpoint}"] = gains["stack"].ceg
        values[f"iterations_ratio_{checkpoint}"] = gains["stack"].iterations / prod(g.iterations for g in without)
    v = values
    flash = table.arms["flash_attention"].ceg
    return Finding(
        "cooperation",
        f"The stack's {_pair(v['stack_25k'], v['stack_50k'])} exceeds the naive product "
        f"{_pair(v['product_25k'], v['product_50k'])} of its parts only because that product contains "
        f"FlashAttention's {_pair(flash['25k'], flash['50k'])}. Without it the product is "
        f"{_pair(v['product_without_flash_25k'], v['product_without_flash_50k'])} and the sign reverses; "
        f"in iterations the stack is {_pair(v['iterations_ratio_25k'], v['iterations_ratio_50k'])} times "
        "the product of LayerNorm and RoPE.",
        values,
        "product of the parts' CEG with and without FlashAttention; the same in iterations; check: stack "
        "above the first, below the second, and above the product in iterations",
        all(
            v[f"product_{c}"] < v[f"stack_{c}"] < v[f"product_without_flash_{c}"] and v[f"iterations_ratio_{c}"] > 1
            for c in CHECKPOINTS
        ),
    )


def _late_clock(table: Table3) -> Finding:
    total = CHECKPOINTS["50k"]
    own = total / table.baseline.reached["50k"]
    late = {arm: table.first_reached(arm, "50k") for arm in (*PARTS, "stack")}
    early = {arm: table.first_reached(arm, "25k") for arm in (*PARTS, "stack")}
    ratios = [gain["stack"] / (gain["layernorm"] * gain["rope"]) for gain in (early, late)]
    return Finding(
        "late_clock",
        "At 50k the arms are read at the first evaluation that reaches the baseline's last loss, but the "
        f"baseline at the end of its run, evaluation {total}, although it first got there at "
        f"{table.baseline.reached['50k']}: its gain over itself is {own:.2f}. With one clock for all, the "
        f"50k gains in iterations are LayerNorm {late['layernorm']:.2f}, RoPE {late['rope']:.2f}, "
        f"FlashAttention {late['flash_attention']:.2f}, stack {late['stack']:.2f}, and the stack over "
        f"LayerNorm x RoPE is {_pair(ratios[0], ratios[1])} at 25k/50k: it does not shrink.",
        {f"{arm}_50k": gain for arm, gain in late.items()}
        | {"baseline_over_itself": own, "stack_over_product_25k": ratios[0], "stack_over_product_50k": ratios[1]},
        "baseline's first evaluation at the loss / the arm's (notebook); check: the paper's own clock "
        "(evaluations at the checkpoint / arm's, over the MFU ratio) gives every printed CEG to 0.01, "
        "and the two ratios are within 5%",
        _notebook_gives_table(table) and abs(ratios[1] / ratios[0] - 1) < 0.05,
    )


def _notebook_gives_table(table: Table3) -> bool:
    base = table.baseline
    return all(
        abs(CHECKPOINTS[c] / arm.reached[c] * base.mfu_of_a100_percent / arm.mfu_of_a100_percent - arm.ceg[c])
        < 0.01  # one figure is truncated: LayerNorm at 50k is 2.246 in the notebook and 2.24 in the table
        for arm in table.treated
        for c in CHECKPOINTS
        if c in arm.ceg
    )


def _mqa_arm(table: Table3) -> Finding:
    base, mqa = table.baseline, table.arms["mqa"]
    measured = mqa.time_min * mqa.mfu_of_a100_percent / (base.time_min * base.mfu_of_a100_percent)
    expected = counter_flops_per_token(kv_heads=1) / counter_flops_per_token()
    return Finding(
        "mqa_arm",
        "The MQA arm probably trained the baseline. With one key-value head the code would count "
        f"{expected:.3f} of the baseline's FLOP per iteration; time x MFU gives {measured:.3f}. In the "
        "repository's first commit, which holds the notebook, train.py does not pass use_mqa to the "
        f"model (added in 1954876). Its {mqa.ceg['25k']:.2f} would then be run-to-run noise, not a cost "
        "of MQA.",
        {"counted_flop_ratio": measured, "expected_flop_ratio": expected},
        "6 N + 12 L d T with 1 and 8 key-value heads against time x MFU; check: within 1% of 1 and over "
        "5% from expected",
        abs(measured - 1) < 0.01 and measured / expected - 1 > 0.05,
    )


def _resolution(table: Table3) -> Finding:
    repeats = [table.arms[arm].reached["25k"] for arm in REPEATS]
    spread = max(repeats) / min(repeats) - 1
    first = table.arms["stack"].reached["25k"]
    step = first / (first - 1) - 1
    return Finding(
        "resolution",
        "One seed, losses read every 500 iterations. Arms that train the same function (baseline, "
        "FlashAttention and, it seems, MQA) reach the 25k loss at evaluations "
        f"{', '.join(map(str, repeats))}: {spread:.0%} apart. The stack reaches it at {first}, so one "
        f"evaluation is {step:.0%}. Second decimals carry no information.",
        {"spread": spread, "stack_step_25k": step},
        "largest / smallest first evaluation among the three; n / (n - 1) for the stack; check: both above 5%",
        spread > 0.05 and step > 0.05,
    )


def _sparse_attention(table: Table3) -> Finding:
    claimed = next(claim.ceg for claim in load_table2() if claim.algorithm == "sparse_attention")
    product = CHILD_PARAMS_RATIO * CHILD_TIME_RATIO
    return Finding(
        "sparse_attention",
        f"Sparse attention's {claimed} multiplies a ratio of parameters by a ratio of time. Time already "
        "contains the cost of parameters, and the two come from different comparisons, so the product is "
        f"in no currency. Nor can it be recovered: Child et al. give {CHILD_PARAMS_RATIO:.2f} and "
        f"{CHILD_TIME_RATIO:.2f} on EnWik8, product {product:.2f}.",
        {"claimed": claimed, "params": CHILD_PARAMS_RATIO, "time": CHILD_TIME_RATIO, "product": product},
        "277M / 95M parameters and 1.31 / 0.55 per iteration (arXiv 1904.10509); check: the claim is none of the three",
        all(abs(value / claimed - 1) > 0.05 for value in (CHILD_PARAMS_RATIO, CHILD_TIME_RATIO, product)),
    )


def _moe(table: Table3) -> Finding:
    claimed = next(claim.ceg for claim in load_table2() if claim.algorithm == "moe")
    figures = hours_against_flops()
    return Finding(
        "moe",
        f"MoE's {claimed:.0f} is the ratio of GPU-hours of Llama 3.1 405B and DeepSeek-V3, "
        f"{figures['hours_ratio']:.2f}: two laboratories' choices of size, not one loss reached twice.",
        {"claimed": claimed, "hours_ratio": figures["hours_ratio"], "flops_ratio": figures["flops_ratio"]},
        "30.84M / 2.788M hours; check: rounds to the claim",
        round(figures["hours_ratio"]) == claimed,
    )


def _candidates(table: Table3, arm: str) -> Iterator[tuple[str, float, float]]:
    """Rules that might give the column of final gains: name, value, slack from rounding of its inputs."""
    row, base = table.arms[arm], table.baseline
    mfu = 0.05 / row.mfu_percent + 0.05 / base.mfu_percent
    for checkpoint in CHECKPOINTS:
        gain = table.gain(arm, checkpoint)
        if gain:
            yield f"ceg_{checkpoint}", gain.ceg, 0.005
            yield f"iterations_{checkpoint}", gain.iterations, gain.iterations * (mfu + 0.005 / gain.ceg)
            yield f"time_{checkpoint}", gain.time, gain.time * (mfu + 0.005 / gain.ceg)
        yield f"first_reached_{checkpoint}", table.first_reached(arm, checkpoint), 0.0
    yield "run_time", base.time_min / row.time_min, 0.0
    yield "mfu", row.mfu_percent / base.mfu_percent, mfu * row.mfu_percent / base.mfu_percent


def _unrecoverable(table: Table3) -> Finding:
    matches = {
        arm.key: [
            rule for rule, value, slack in _candidates(table, arm.key) if abs(value - arm.ceg["final"]) <= slack + 0.005
        ]
        for arm in table.treated
    }
    lost = [arm for arm in table.treated if not matches[arm.key]]
    rules = [rule for of_arm in matches.values() for rule in of_arm]
    most = max((rules.count(rule) for rule in rules), default=0)
    words = {"ceg": "CEG", "iterations": "iteration gain", "time": "time gain", "first_reached": "one-clock gain"}
    unmet = ", ".join(f"{arm.label} ({arm.ceg['final']:.2f})" for arm in lost)
    met = "; ".join(
        f"{arm.label} {arm.ceg['final']:.2f} is within rounding of its "
        + " and its ".join(_worded(rule, words) for rule in matches[arm.key])
        for arm in table.treated
        if matches[arm.key]
    )
    return Finding(
        "unrecoverable",
        f"Not recoverable from the printed columns: the final gains of {unmet}; no rule gives more than "
        f"{most} of the {len(matches)} ({met}). Nor the abstract's {ABSTRACT_CEG}, nor any iterations, "
        "losses or FLOP: the table prints none.",
        {f"{arm}_matches": float(len(of_arm)) for arm, of_arm in matches.items()} | {"most_by_one_rule": float(most)},
        "each final gain against CEG, iterations, time, one-clock gain at 25k and 50k, run time and MFU "
        "ratios, within rounding; check: at least one arm matches none, and no rule gives two arms",
        bool(lost) and most < 2,
    )


def _second_version(_: Table3) -> Finding:
    full, compact = second_version.FULL, second_version.COMPACT
    gains = {arm: full.baseline / at for arm, at in full.arms.items()}
    names = {
        "layernorm": "LayerNorm", "rope": "RoPE", "stack": "the stack", "sparse_attention": "NSA", "mqa": "MQA",
        "flash_attention": "FlashAttention",
    }  # fmt: skip
    printed = ", ".join(f"{names[arm]} {full.baseline}/{at} = {gains[arm]:.2f}" for arm, at in full.arms.items())
    free = {arm: second_version.without_lag(full.baseline, full.arms[arm]) for arm in ("layernorm", "stack")}
    iterated = {arm: second_version.gain(full.baseline, full.arms[arm]) for arm in ("layernorm", "stack")}
    done = second_version.iterations(full.baseline)
    return Finding(
        "second_version",
        f"The repository's later runs do not say what they seem to. The target is the baseline's last loss, "
        f"{full.last:.3f}, but its large curve falls to {full.lowest:.3f} near {full.lowest_at:,} iterations and rises "
        f"again: it first passes the target at evaluation {full.baseline} of {second_version.EVALUATIONS}, after "
        f"{done:,} of {second_version.iterations(second_version.EVALUATIONS):,} iterations. The printed gains are "
        f"{printed}: gains at a quarter of the compute that the runs had. An evaluation before training is counted: in "
        f"iterations LayerNorm is {iterated['layernorm']:.2f} and the stack {iterated['stack']:.2f}. RoPE's and MQA's "
        "curves were shifted by the difference of LayerNorm and baseline before they were compared. Losses are means "
        f"of the last {second_version.WINDOW} evaluations, which lag and pull gains towards 1: without the lag "
        f"LayerNorm is {free['layernorm']:.2f} and the stack {free['stack']:.2f}. The small baseline falls to its last "
        "evaluation.",
        {f"{arm}_full": gain for arm, gain in gains.items()}
        | {f"{arm}_without_lag": gain for arm, gain in free.items()}
        | {f"{arm}_in_iterations": gain for arm, gain in iterated.items()}
        | {"baseline_last": full.last, "baseline_lowest": full.lowest, "baseline_share": done / 50_000},
        "baseline's first evaluation at its last loss / the arm's; check: these are the printed gains to three "
        "decimals, at both sizes, and the large baseline's lowest loss lies below its last",
        full.lowest < full.last
        and all(
            abs(curves.baseline / at - curves.printed[arm]) < 6e-4
            for curves in (full, compact)
            for arm, at in curves.arms.items()
        ),
    )


def _worded(rule: str, words: Mapping[str, str]) -> str:
    name, _, checkpoint = rule.rpartition("_")
    return f"{words[name]} at {checkpoint}" if name in words else f"ratio of {rule}"
