"""A table of runs as evidence: the gains that its ladders show, one row per budget.

Arms are found by name, each stack by itself where the table names stacks. The baseline of an algorithm is the arm
called like its default baseline ("dense", "lstm"), else the arm called "baseline"; every other arm whose name is an
algorithm's is a treatment. Where the stack itself has the algorithm, the arm called "baseline" is the treatment and the
arm without it ("no_rope"; "lstm" for the Transformer) the baseline. The gain at each budget is the forecast's
(`forecast.forecast`) inside the runs, with its 90% interval; past the runs the estimate extrapolates, as it does for
every study.
"""

from __future__ import annotations

import math
from pathlib import Path

from estimator import algorithms, forecast, ladder
from estimator.evidence import EvidenceError, Problem, PublishedGain

BASELINE = "baseline"
WITHOUT = "no_"


def gains(path: Path) -> list[PublishedGain]:
    """Rows of gains read off a table of runs; the study is the file's name.

    Raises:
        EvidenceError: bad runs, no arm named after an algorithm, no baseline for one, or ladders that share no loss.
    """
    whole = ladder.read_runs(path)
    rows: list[PublishedGain] = []
    problems: list[Problem] = []
    for stack in dict.fromkeys(whole.cells.get("stack", ("",))):
        table = whole.only("stack", stack) if stack else whole
        arms = {variant: ladder.ladder(table, variant) for variant in table.variants()}
        for name, treatment, against in _pairs(path, list(arms), problems):
            found = forecast.forecast(arms[against], arms[treatment], _budgets(arms[against], arms[treatment]))
            if not found.at:
                rule = f"the gain of {treatment!r} over {against!r} can be read off"
                problems.append(
                    Problem(str(path), rule, f"{found.status}: {found.reason}", "Add runs at more budgets.")
                )
            note = f"read off ladders against {against}" + (f" on the {stack} stack" if stack else "")
            label = name if treatment == BASELINE else treatment
            rows += [
                PublishedGain(
                    name, label, algorithms.get(name).replaces[0], path.stem, at.flops, "reported", at.median,
                    *at.interval_90, 0.9, "flop", math.nan, "measured", path.name, note,
                )
                for at in found.at
            ]  # fmt: skip
    if not rows and not problems:
        rule = "a table of runs has an arm named after an algorithm"
        found_arms = ", ".join(whole.variants())
        problems.append(Problem(str(path), rule, found_arms, "Rename the arm (`ceg list`), or use `ceg fit`."))
    if problems:
        raise EvidenceError(problems)
    return rows


def _pairs(path: Path, variants: list[str], problems: list[Problem]) -> list[tuple[str, str, str]]:
    """(algorithm, arm with it, arm without it) for every contrast that the names of a stack's arms tell."""
    names = {variant: _algorithm(variant) for variant in variants}
    serves = {algorithms.get(name).replaces[0] for name in names.values() if name}
    pairs = []
    for variant, name in names.items():
        if name is None:
            continue
        default = algorithms.get(name).replaces[0]
        against = next((v for v in names if v.lower() in (default, BASELINE) and v != variant), None)
        if against is not None:
            pairs.append((name, variant, against))
        elif name not in serves:  # else it is there as the baseline of another arm
            rule = f"a table with the arm {variant!r} has its baseline, called {default!r} or {BASELINE!r}"
            problems.append(Problem(str(path), rule, ", ".join(names), "Add the baseline's runs, or rename its arm."))
    if BASELINE in variants:
        replaced = {algorithms.get(n).replaces[0]: n for n in algorithms.names() if algorithms.get(n).baseline_arm}
        for variant in variants:
            name = replaced.get(variant) or _algorithm(variant.removeprefix(WITHOUT))
            undone = variant in replaced or variant.startswith(WITHOUT)
            if undone and name is not None and names.get(variant) is None and name not in names.values():
                pairs.append((name, BASELINE, variant))
    return pairs


def _budgets(baseline: ladder.Ladder, treatment: ladder.Ladder) -> list[float]:
    """Budgets (FLOP) of the treatment's rungs at which the baseline's ladder reaches the loss."""
    inside = (treatment.y <= baseline.y[0]) & (treatment.y >= baseline.y[-1]) if len(baseline.y) else treatment.y < 0
    return [float(f"{math.exp(x):.6g}") for x in treatment.x[inside]]


def _algorithm(variant: str) -> str | None:
    try:
        return algorithms.resolve(variant)
    except algorithms.UnknownAlgorithm:
        return None
