"""What `ceg compare` prints, and its JSON."""

from __future__ import annotations

import math

import numpy as np

from cegain.common.text import budget, counted, finite, number, span, wrap
from cegain.comparison import difference as tests
from cegain.comparison import worth
from cegain.comparison.compare import BETTER, NOT_SHOWN, POWER, WIDE, WORSE, AtBudget, Comparison, Gain

MOST_LINES = 12
"""Budgets that are shown one by one; JSON has all."""
EXIT = {BETTER: 0, NOT_SHOWN: 3, WORSE: 4}
"""Exit codes of `--check`; bad input has 2, as everywhere."""


def text(c: Comparison) -> str:
    """One screen."""
    baseline, treatment = c.arms.names
    factor = "" if c.at_least == 1.0 else f" (of a gain of {number(c.at_least)}x)"
    lines = [f"{treatment} against {baseline}: {c.verdict}{factor}"]
    lines.append(f"  {_claim(c)}")
    if c.status != "ok":
        lines.append(f"  status: {c.status} - {c.reason}")
    lines += ["", *_table(c)]
    lines += ["", f"  loss {_signed(c.relative)} (95%: {_signed(c.relative_95[0])} to {_signed(c.relative_95[1])})"]
    lines += [f"  {line}" for line in _worth(c)]
    lines.append(f"  {_noise(c)}")
    if c.verdict == NOT_SHOWN and c.status == "ok":
        lines.append(f"  {_more(c)}")
    lines += [f"  note: {note}" for note in c.notes]
    return "\n".join(wrap(line) for line in lines)


def _claim(c: Comparison) -> str:
    than = number(c.at_least) if c.at_least != 1 else "1"
    side = f"{c.level / 2:.3g}"
    p = min(c.p_better, c.p_worse)
    claim = f"CEG {'>' if c.p_better <= c.p_worse else '<'} {than}"
    what = "is shown" if c.verdict != NOT_SHOWN else "is not shown"
    return (
        f"{claim} {what}: one-sided p = {_p(p)}, claimed at {side} (two-sided p = {_p(c.p_value)}, level {c.level:g})"
    )


def _table(c: Comparison) -> list[str]:
    head = ("FLOP", "seeds", "test", "loss", "", "difference", "p", "CEG", "90%")
    rows = [head]
    for at in c.budgets[-MOST_LINES:]:
        losses = at.losses
        flops = [budget(float(f"{sample.flops:.3g}")) for sample in (at.pair.baseline, at.pair.treatment)]
        same = abs(math.log(at.pair.baseline.flops / at.pair.treatment.flops)) <= worth.NEAR
        a, b = at.difference.runs
        rows.append((
            flops[1] if same else f"{flops[0]} / {flops[1]}",
            f"{a}" if a == b else f"{a} + {b}", at.difference.test,
            f"{losses[0]:.5g}", f"{losses[1]:.5g}", _signed(at.difference.value), _p(at.p_value),
            _factor(at.gain.median), span(at.gain.interval_90) if math.isfinite(at.gain.median) else "",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(c.budgets) > MOST_LINES:
        lines.insert(1, f"  ({counted(len(c.budgets) - MOST_LINES, 'smaller budget')} in --json)")
    return lines


def _worth(c: Comparison) -> list[str]:
    if c.curve is None or not math.isfinite(c.gain.median):
        return []
    top = c.budgets[-1]
    ends = c.gain.interval_90
    headline = f"CEG {number(c.gain.median)}x    50%: {span(c.gain.interval_50)}    90%: {span(ends)}"
    if ends[1] / ends[0] > WIDE:
        headline = f"CEG 90%: {span(ends)}    (median {number(c.gain.median)}x; read the interval)"
    spent, gain = top.pair.treatment.flops, top.gain
    needed = spent * gain.interval_90[0], spent * gain.interval_90[1]
    reach = (
        f"To the loss of {c.arms.names[1]} at {number(spent)} FLOP, {c.arms.names[0]} would need "
        f"{number(spent * gain.median)} FLOP (90%: {span(needed, '')})"
    )
    others = [f"{number(value)} {what}" for what, value in equals(c, top).items() if value is not None]
    if others:
        reach += f", or {' and '.join(others)}{' at its size' if len(c.budgets) == 1 else ''}"
    return [headline, f"{reach}.", f"Slope: {worth.words_of(c.curve)}."]


def equals(c: Comparison, at: AtBudget) -> dict[str, float | None]:
    """Tokens and steps at which the baseline would reach the treatment's loss, as its budgets grow them with compute.

    With one budget all further compute goes into tokens, at the baseline's size.
    """
    answer: dict[str, float | None] = {}
    log_flops = math.log(at.gain.median * at.pair.treatment.flops / at.pair.baseline.flops)
    x = np.array([math.log(each.pair.baseline.flops) for each in c.budgets])
    for what in ("tokens", "steps"):
        values = np.array([getattr(each.pair.baseline, what) for each in c.budgets])
        if not (np.isfinite(values).all() and (values > 0).all() and math.isfinite(log_flops)):
            answer[what] = None
            continue
        power = float(np.polyfit(x, np.log(values), 1)[0]) if np.ptp(x) > math.log(1.2) else 1.0
        answer[what] = float(getattr(at.pair.baseline, what)) * math.exp(power * log_flops)
    return answer


def _noise(c: Comparison) -> str:
    levels = [at.difference.noise for at in c.budgets]
    low, high = min(levels), max(levels)
    shown = f"{low:.2g}" if high < 1.05 * low else f"{low:.2g} to {high:.2g}"
    kinds = dict.fromkeys(at.difference.test for at in c.budgets)
    how = {
        tests.PAIRED: "measured on pairs of one seed", tests.WELCH: "measured on each arm's seeds",
        tests.LONE: "measured on the arm that has seeds", tests.POOLED: "measured at other budgets",
        tests.ASSUMED: "assumed", tests.GIVEN: "as given",
    }  # fmt: skip
    return f"Seed noise of one run: {shown} of the loss, {', '.join(how[kind] for kind in kinds)}."


def _more(c: Comparison) -> str:
    if c.seeds is None:
        return "More seeds would hardly settle it: there is next to nothing to see."
    here = further(c)
    cases = f"in {POWER:.0%} of cases"
    if not here:
        return f"{counted(c.seeds, 'seed')} per arm and budget show such a difference {cases} (about)."
    return (
        f"About {here} more per arm and budget ({c.seeds} in all) would show it {cases}, were difference and noise "
        "what they are here."
    )


def further(c: Comparison) -> int | None:
    """Further seeds per arm and budget, about; None where that is not known, or nothing is left to settle."""
    if c.seeds is None:
        return None
    return max(0, c.seeds - min(min(at.difference.runs) for at in c.budgets))


def document(c: Comparison) -> dict[str, object]:
    """`ceg compare --json`: gains are factors, flops in FLOP, differences as shares of the loss (above 0: better)."""
    return {
        "schema": "ceg.compare",
        "schema_version": 1,
        "baseline": c.arms.names[0],
        "treatment": c.arms.names[1],
        "verdict": c.verdict,
        "status": c.status,
        "reason": c.reason,
        "at_least": c.at_least,
        "level": c.level,
        "p_value": c.p_value,
        "p_better": c.p_better,
        "p_worse": c.p_worse,
        "relative_difference": c.relative,
        "relative_difference_interval_95": c.relative_95,
        **_gain(c.gain),
        "slope": None if c.curve is None else {
            "source": c.curve.source, "ln_loss_per_ln_flops": (-c.curve.slopes).tolist(),
            "relative_sd": float(np.log(c.curve.scales).std()),
        },
        "seeds_needed_per_arm": c.seeds,
        "further_seeds_per_arm": further(c),
        "power": POWER,
        "runs_without_result": list(c.arms.lost),
        "budgets": [_at(c, at) for at in c.budgets],
        "notes": list(c.notes),
    }  # fmt: skip


def _at(c: Comparison, at: AtBudget) -> dict[str, object]:
    losses, gain = at.losses, at.gain
    spent = at.pair.treatment.flops
    other = equals(c, at)
    return {
        "flops_baseline": at.pair.baseline.flops,
        "flops": spent,
        "runs": list(at.difference.runs),
        "test": at.difference.test,
        "loss_baseline": losses[0],
        "loss": losses[1],
        "difference": losses[0] - losses[1],
        "relative_difference": at.difference.value,
        "relative_standard_error": at.difference.se,
        "degrees_of_freedom": finite(at.difference.freedom),
        "seed_noise": at.difference.noise,
        "p_value": at.p_value,
        **_gain(gain),
        "equal_loss_flops": finite(spent * gain.median),
        "equal_loss_flops_interval_90": [finite(spent * end) for end in gain.interval_90],
        "equal_loss_tokens": other["tokens"],
        "equal_loss_steps": other["steps"],
    }


def _gain(gain: Gain) -> dict[str, object]:
    return {
        "ceg_median": finite(gain.median),
        "ceg_interval_50": [finite(end) for end in gain.interval_50],
        "ceg_interval_90": [finite(end) for end in gain.interval_90],
    }


def _signed(relative: float) -> str:
    """A difference of ln loss as the change of the loss in percent: -0.4% is better."""
    percent = 100 * math.expm1(-relative)
    return f"{percent:+.2g}%" if abs(percent) > 1e-6 else "0%"


def _p(value: float) -> str:
    return f"{value:.1g}" if value < 0.0095 else f"{value:.2g}"


def _factor(value: float) -> str:
    return f"{number(value)}x" if math.isfinite(value) else ""
