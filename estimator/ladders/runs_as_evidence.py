"""A table of runs as evidence: the gains that its ladders show, one row per budget.

Arms are found by name, each stack by itself where the table names stacks. The baseline of an algorithm is the arm
called like its default baseline ("dense", "lstm"), else the arm called "baseline"; every other arm whose name is an
algorithm's, or several joined by "+", is a treatment. Where the stack itself has the algorithm, the arm called
"baseline" is the treatment and the arm without it ("no_rope"; "lstm" for the Transformer) the baseline: what the bare
stack has there, which for RMSNorm is no norm and not its default LayerNorm. The gain at each budget is the forecast's
(`forecast.forecast`) inside the runs, with its 90% interval; past the runs the estimate extrapolates, as it does for
every study.
"""

from __future__ import annotations

import math
from pathlib import Path

from cegain.ladders import forecast, ladder
from cegain.ladders.arm_names import BASELINE, baseline_of, pairs
from cegain.tables.problems import EvidenceError, Problem
from cegain.tables.published_gains import PublishedGain


def gains(path: Path) -> list[PublishedGain]:
    """Rows of gains read off a table of runs; the study is the file's name.

    Raises:
        EvidenceError: bad runs, no arm named after an algorithm, no baseline for one, or ladders that share no loss.
    """
    try:
        whole = ladder.read_runs(path)
    except EvidenceError as error:  # options stand with `ceg import`, not with a question
        raise EvidenceError(
            [
                p._replace(remedy=p.remedy.replace("Try --columns", "Try `ceg import` with --columns"))
                for p in error.problems
            ]
        ) from None
    rows: list[PublishedGain] = []
    problems: list[Problem] = []
    for stack in dict.fromkeys(whole.cells.get("stack", ("",))):
        table = whole.only("stack", stack) if stack else whole
        for name, treatment, against in pairs(path, table.variants(), problems, stack):
            lower, upper = ladder.pair(table, against, treatment)
            gain = forecast.forecast(lower, upper, _budgets(lower, upper))
            doubt = lower.doubt or upper.doubt
            if doubt is not None:
                rule = f"the gain of {treatment!r} over {against!r} is evidence"
                remedy = "Write a clear table: `ceg import` with --repeats seeds or --repeats sweep."
                problems.append(Problem(str(path), rule, f"{doubt[0]}: {doubt[1]}", remedy))
                continue
            if not gain.at:
                rule = f"the gain of {treatment!r} over {against!r} can be read off"
                problems.append(Problem(str(path), rule, f"{gain.status}: {gain.reason}", "Add runs at more budgets."))
            note = f"read off ladders against {against}" + (f" on the {stack} stack" if stack else "")
            rungs = len(upper.x)
            if len(gain.at) < rungs:
                note += f"; {rungs - len(gain.at)} of {rungs} budgets not read: the loss is outside the other's ladder"
            label = name if treatment == BASELINE else treatment
            rows += [
                PublishedGain(
                    name, label, baseline_of(name, against, stack), path.stem, at.flops, "reported", at.median,
                    *at.interval_90, 0.9, "flop", math.nan, "measured", path.name, note,
                )
                for at in gain.at
            ]  # fmt: skip
    if not rows and not problems:
        rule = "a table of runs has an arm named after an algorithm"
        variants = ", ".join(whole.variants())
        problems.append(Problem(str(path), rule, variants, "Rename the arm (`ceg list`), or use `ceg fit`."))
    if problems:
        raise EvidenceError(problems)
    return rows


def _budgets(baseline: ladder.Ladder, treatment: ladder.Ladder) -> list[float]:
    """Budgets (FLOP) of the treatment's rungs at which the baseline's ladder reaches the loss."""
    inside = (treatment.y <= baseline.y[0]) & (treatment.y >= baseline.y[-1]) if len(baseline.y) else treatment.y < 0
    return [float(f"{math.exp(x):.6g}") for x in treatment.x[inside]]
