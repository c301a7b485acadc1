"""`ceg paper`: the source paper's Tables II and III beside what our tables give, on screen and as plain data.

Columns and arithmetic are in `cegain.paper.tables`, what they say is in `cegain.paper.findings`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cegain.paper.findings import findings
from cegain.paper.tables import (
    DEEPSEEK_V3,
    GAINS,
    H100_DENSE_PEAK,
    LLAMA_405B,
    PAPER_PEAK,
    Arm,
    hours_against_flops,
    load_table2,
    load_table3,
    paper_flops,
)

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
FRONTIER_FLOPS = 1e24
CURRENCY_WORDS = {
    "flop": "FLOP", "time": "time", "steps": "steps", "params": "parameters", "time_params": "time x parameters"
}  # fmt: skip
Estimate = Callable[..., Any]
"""`cegain.estimate`, handed in: `estimate(algorithm, flops=C, currency="flop")`; a stack is names joined by `+`."""


def beside(algorithm: str, flops: float, estimate: Estimate) -> dict[str, Any]:
    """Our answer in FLOP at a compute (FLOP), as plain data: None where there is no finite number."""
    answer = estimate(algorithm, flops=flops, currency="flop")
    median, interval = answer.median, answer.predictive
    known = median is not None and math.isfinite(median)
    bounded = known and interval is not None and all(math.isfinite(end) for end in interval)
    return {
        "flops": flops,
        "status": answer.status,
        "median": median if known else None,
        "predictive": list(interval) if bounded and interval is not None else None,
        "reason": answer.reason,
    }


def as_dict(estimate: Estimate) -> dict[str, Any]:
    """Everything that `render` shows, as plain data for JSON.

    Keys:
        schema_version, paper (arXiv id), paper_flops (FLOP of a 50k-iteration run: 6 N D, no embeddings);
        table3: per arm time_min (minutes), mfu_percent (% of 1,979 TFLOP/s, as printed), mfu_dense_percent
            (% of the dense peak), ours, and gains: per 25k, 50k and final the ratios ceg (iterations x MFU,
            as printed), iterations (which is FLOP) and time, or null where the paper prints none;
        findings: key, claim, values, how, holds;
        table2: ceg, low, high (as printed, ratios in `currency`; null where not given), note, ours;
        deepseek: runs (GPU-hours, parameters, tokens, FLOP) and figures (ratios, and FLOP/s of one GPU).
        `ours` lists our answers in FLOP at paper_flops and 1e24: flops, status, median, predictive (90%),
        reason.
    """
    table = load_table3()

    def ours(algorithm: str) -> list[dict[str, Any]]:
        return [beside(algorithm, flops, estimate) for flops in (paper_flops(), FRONTIER_FLOPS)] if algorithm else []

    def gains(arm: Arm) -> dict[str, dict[str, float] | None]:
        printed = {which: table.gain(arm.key, which) for which in GAINS}
        return {which: asdict(gain) if gain else None for which, gain in printed.items()}

    return {
        "schema_version": SCHEMA_VERSION,
        "paper": "arXiv 2505.04075v1",
        "paper_flops": paper_flops(),
        "table3": [
            {
                "arm": arm.key,
                "label": arm.label,
                "algorithm": arm.algorithm or None,
                "time_min": arm.time_min,
                "mfu_percent": arm.mfu_percent,
                "mfu_dense_percent": arm.mfu_percent * PAPER_PEAK / H100_DENSE_PEAK,
                "gains": gains(arm),
                "ours": ours(arm.algorithm),
            }
            for arm in table.arms.values()
        ],
        "findings": [asdict(finding) for finding in findings(table)],
        "table2": [
            asdict(claim)
            | {key: None if math.isnan(value := getattr(claim, key)) else value for key in ("ceg", "low", "high")}
            | {"ours": ours(claim.algorithm)}
            for claim in load_table2()
        ],
        "deepseek": {"runs": [asdict(DEEPSEEK_V3), asdict(LLAMA_405B)], "figures": hours_against_flops()},
    }


def render(console: Console, estimate: Estimate) -> None:
    """Print the paper's tables, what they say, and our answers; readable in 100 columns and without colour."""
    from rich.table import Table
    from rich.text import Text

    data = as_dict(estimate)

    def heading(text: str) -> None:
        console.print()
        console.print(Text(text, style="bold"))

    def say(text: str) -> None:
        # Text, not str: nothing from a table may be read as markup.
        console.print(Text(text))

    at = _flop(data["paper_flops"])
    say(f"LLM-e Guess ({data['paper']}), re-read. A gain is baseline compute / compute with the algorithm.")
    heading("Table III in three currencies")
    say(
        "Gains at 25k, 50k and the end. Time, MFU and CEG (iterations x MFU) are the paper's; the rest is "
        "computed. The gain in FLOP is the ratio of iterations."
    )
    _print_rows(
        console,
        ("arm", "min", "MFU %", "dense %", "CEG as printed", "in FLOP", "in time", f"ours in FLOP, {at}"),
        [
            (
                arm["label"],
                f"{arm['time_min']:.2f}",
                f"{arm['mfu_percent']:.1f}",
                f"{arm['mfu_dense_percent']:.1f}",
                _gains(arm["gains"], "ceg", GAINS),
                _gains(arm["gains"], "iterations", GAINS[:2]),
                _gains(arm["gains"], "time", GAINS[:2]),
                _ours(arm["ours"][0]) if arm["ours"] else "",
            )
            for arm in data["table3"]
        ],
        right=(1, 2, 3),
    )
    heading("What the numbers say")
    numbered = Table.grid(padding=(0, 1, 0, 0))
    for number, finding in enumerate(data["findings"], start=1):
        mark = "" if finding["holds"] else "[check fails] "
        numbered.add_row(Text(f"{number}."), Text(f"{mark}{finding['claim']}"))
    console.print(numbered)
    heading("Table II beside ours")
    say(
        f"The paper's figures are in the currency named. Ours are in FLOP, at the paper's compute ({at}) "
        "and at 1e24: median [90% interval for a new study], interval first where far beyond the "
        "evidence. Only rows in FLOP compare directly, and Table III is among our evidence."
    )
    rows = data["table2"]
    _print_rows(
        console,
        ("algorithm", "paper", "in", f"ours at {at}", "ours at 1e24"),
        [(row["label"], _printed(row), CURRENCY_WORDS[row["currency"]], *map(_ours, row["ours"])) for row in rows],
    )
    for row in rows:
        say(f"{row['label']}: {row['note']}.")
    reasons = dict.fromkeys(
        (row["label"], answer["reason"])
        for row in (*data["table3"], *rows)
        for answer in row["ours"]
        if answer["median"] is None and answer["reason"]
    )
    for label, reason in reasons:
        say(f"No answer of ours for {label}: {reason}")
    heading("DeepSeek-V3")
    for paragraph in _deepseek(data["deepseek"]["figures"]):
        say(paragraph)
    say(f"Sources: {DEEPSEEK_V3.source}; {LLAMA_405B.source}.")


def _print_rows(
    console: Console, header: tuple[str, ...], rows: list[tuple[str, ...]], right: tuple[int, ...] = ()
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for i, title in enumerate(header):
        table.add_column(Text(title), justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _gains(gains: Mapping[str, Mapping[str, float] | None], key: str, which: tuple[str, ...]) -> str:
    if not any(gains.values()):
        return ""
    return " ".join(f"{gain[key]:.2f}" if (gain := gains[name]) else "none" for name in which)


def _ours(answer: Mapping[str, Any]) -> str:
    if answer["median"] is None:
        return str(answer["status"]).replace("_", " ")
    interval = answer["predictive"]
    median = f"{answer['median']:.3g}"
    if interval is None:
        return median
    bounds = f"[{interval[0]:.3g}, {interval[1]:.3g}]"
    # An interval this wide is the answer; the median only goes with it.
    return f"{median} {bounds}" if answer["status"] == "ok" else f"{bounds} far; {median}"


def _flop(flops: float, digits: int = 1) -> str:
    return f"{flops:.{digits}e}".replace("e+", "e")


def _printed(row: Mapping[str, Any]) -> str:
    if row["ceg"] is None:
        return f">= {row['low']:g}"
    return f"{row['ceg']:g}" + (f" ({row['low']:g} to {row['high']:g})" if row["low"] is not None else "")


def _deepseek(figures: Mapping[str, float]) -> tuple[str, ...]:
    ours, theirs = DEEPSEEK_V3, LLAMA_405B
    return (
        f"{ours.label}: {ours.gpu_hours / 1e6:.3f}M {ours.device}-hours, {_flop(ours.flops)} FLOP: "
        f"{_flop(ours.flops_per_gpu_hour, 2)} FLOP per GPU-hour, "
        f"{figures['deepseek_flops_per_second'] / 1e12:.0f} TFLOP/s.",
        f"{theirs.label}: {theirs.gpu_hours / 1e6:.2f}M {theirs.device}-hours, {_flop(theirs.flops)} FLOP: "
        f"{_flop(theirs.flops_per_gpu_hour, 2)} FLOP per GPU-hour, "
        f"{figures['llama_flops_per_second'] / 1e12:.0f} TFLOP/s.",
        f"In hours the ratio is {figures['hours_ratio']:.2f}, in FLOP {figures['flops_ratio']:.1f}. Hours "
        "are FLOP only at one achieved rate: hours ratio = FLOP ratio / rate ratio. An H800 has less "
        "interconnect, FP8 twice the peak of BF16. Here the rates happen to be "
        f"{figures['rate_ratio'] - 1:.0%} apart, so the two nearly agree; that is luck, not a conversion.",
        "Neither is a gain: no loss was reached twice. The FLOP ratio is "
        f"{figures['active_params_ratio']:.1f} in active parameters x {figures['tokens_ratio']:.2f} in "
        "tokens, both choices of the laboratories, and the two models also differ in data, attention, "
        "prediction target and precision.",
    )
