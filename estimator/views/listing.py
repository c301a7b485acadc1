"""`ceg list` and `ceg show`: which algorithms there are, and every row behind one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from cegain import algorithms
from cegain.common.console import empty_table
from cegain.common.text import finite, number, span, wrap
from cegain.gain import contrasts, method, prior, sensitivity
from cegain.tables import studies
from cegain.tables.published_gains import Evidence, is_own

if TYPE_CHECKING:
    from rich.console import Console


class Overview(NamedTuple):
    """One line of `ceg list`; `label` is the class of the gain in FLOP, empty without an answer; `own` of the `usable`
    rows are read off our own runs."""

    name: str
    title: str
    baseline: str
    paper_class: str
    label: str
    rows: int
    usable: int
    own: int
    studies: int
    flops_low: float
    flops_high: float
    gaps: tuple[str, ...]


def overview(evidence: Evidence) -> list[Overview]:
    """Every algorithm of the registry with what the evidence says about it in FLOP."""
    lines = []
    for name in algorithms.names():
        entry = algorithms.get(name)
        question = contrasts.question(evidence.rows, name, entry.replaces[0], "flop")
        if entry.exact_in_flop:
            question = contrasts.unused(question, "exact by construction")
        fixing = [u for u in question.used if u.fixes_level]
        flops = contrasts.budgets(fixing)
        label = "unlocking"
        if not entry.unlocking:
            asked = method.prepare(evidence.rows, [name], [entry.replaces[0]], currency="flop", spread=prior.frozen())
            label = "" if asked.missing else method.label_of(asked)
        lines.append(
            Overview(
                name, entry.title, entry.replaces[0], entry.paper_class, label,
                rows=len(question.used),
                usable=len(fixing),
                own=sum(is_own(u.row) for u in fixing),
                studies=len({contrasts.laboratory(u.row) for u in fixing}),
                flops_low=min(flops, default=math.nan),
                flops_high=max(flops, default=math.nan),
                gaps=entry.gaps,
            )
        )  # fmt: skip
    return lines


def overview_document(evidence: Evidence) -> dict[str, object]:
    """`ceg list --json`; flops in FLOP, null where the evidence states none."""
    entries = [
        line._asdict() | {end: finite(getattr(line, end)) for end in ("flops_low", "flops_high")}
        for line in overview(evidence)
    ]
    return {"schema": "ceg.list", "schema_version": 1, "evidence_sha256": evidence.sha256, "algorithms": entries}


def print_overview(console: Console, evidence: Evidence) -> None:
    """The table of `ceg list`, the gaps below it."""
    words, counts = ("name", "against", "class", "source paper"), ("rows", "used", "own", "studies")
    shown = empty_table((*words, *counts, "FLOP of those"), left=(*words, "FLOP of those"), padding=(0, 1))
    lines = overview(evidence)
    for line in lines:
        shown.add_row(
            line.name, line.baseline, line.label or "no answer", line.paper_class.replace("_", " "),
            str(line.rows), str(line.usable), str(line.own) if line.own else "", str(line.studies),
            "" if math.isnan(line.flops_low) else span((line.flops_low, line.flops_high), ""),
        )  # fmt: skip
    console.print(shown)
    console.print("\nclass: of the gain in FLOP. used: rows that set its level; the others tell of growth, or are in")
    console.print("another currency. own: used rows that are read off our own runs. Gaps:")
    for line in lines:
        for gap in line.gaps:
            console.print(wrap(f"  {line.name}: {gap}", console.width))


WEIGHED_AT = 1e24
"""FLOP of the answer whose rows are weighed."""


class Line(NamedTuple):
    """One row of `ceg show`: `weight`, how far ln CEG at `WEIGHED_AT` moves with its ln gain."""

    used: contrasts.UsedRow
    weight: float


def weighed_rows(evidence: Evidence, name: str, currency: str) -> list[Line]:
    """Every row of an algorithm, with its weight; a row that is not used has weight 0."""
    question = contrasts.question(evidence.rows, name, algorithms.get(name).replaces[0], currency)
    weights: Iterable[float] = ()
    baseline = algorithms.get(name).replaces[0]
    curve = method.fit_curve(question, prior.frozen(), prior.scenario_weights(name, baseline, currency))
    if curve is not None:
        weights = sensitivity.row_influences(question, curve, prior.frozen(), WEIGHED_AT)
    remaining = iter(weights)
    return [Line(u, float(next(remaining, 0.0)) if u.contrast >= 0 else 0.0) for u in question.used]


def rows_document(evidence: Evidence, name: str, currency: str) -> dict[str, object]:
    """`ceg show --json`: the rows in the columns of their table, with `weight`, `conversion`, `not_used` and `own`."""
    rows = []
    for line in weighed_rows(evidence, name, currency):
        cells = {k: finite(v) if isinstance(v, float) else v for k, v in line.used.row._asdict().items()}
        rows.append(
            cells
            | {
                "weight": line.weight,
                f"ceg_{currency}": finite(line.used.row.ceg * line.used.conversion.factor),
                "conversion": line.used.conversion.how if line.used.contrast >= 0 else "",
                "not_used": line.used.why,
                "own": is_own(line.used.row),
                "by_proposers": studies.proposes(line.used.row.study, line.used.row.algorithm),
            }
        )
    return {
        "schema": "ceg.show",
        "schema_version": 1,
        "algorithm": name,
        "currency": currency,
        "evidence_sha256": evidence.sha256,
        "rows": rows,
    }


def print_rows(console: Console, evidence: Evidence, name: str, currency: str) -> None:
    """What is known of an algorithm, and its rows, heaviest first."""
    text: list[str] = []

    def say(line: str) -> None:
        text.append(wrap(line, console.width))

    entry = algorithms.get(name)
    say(f"{entry.title} ({name}): {entry.summary}")
    say(f"Paper: {entry.paper}. Replaces: {', '.join(entry.replaces)}. Costs: {entry.costs}")
    for gap in (entry.unlocking, *entry.gaps):
        if gap:
            say(f"Gap: {gap}" if gap != entry.unlocking else gap)
    if entry.exact_in_flop and currency == "flop":
        say("In FLOP its gain is 1.0 by construction: the rows below are shown as a check of their noise.")
    lines = weighed_rows(evidence, name, currency)
    for line in sorted(lines, key=lambda line: -abs(line.weight)):
        row, used = line.used.row, line.used
        place = (
            f"at {number(row.flops)} FLOP ({row.flops_convention})" if row.flops == row.flops else "compute not stated"
        )
        say("")
        say(
            f"{line.weight:7.3f}  {row.treatment}, against {row.baseline}: "
            f"{number(row.ceg)}x in {row.currency}, {place}"
        )
        kind = f"{row.basis} in our own runs" if is_own(row) else row.basis
        whose = ", by its proposers" * studies.proposes(row.study, row.algorithm)
        say(f"         {kind}, study {row.study}{whose}. Source: {row.source}")
        if row.same_as:
            say(f"         counts once with all rows of the key {row.same_as}")
        if used.contrast < 0:
            say(f"         not used: {used.why}")
        elif not used.fixes_level:
            say("         another baseline: tells of growth only")
        if used.contrast >= 0 and used.conversion.how:
            gain_there = number(row.ceg * used.conversion.factor)
            say(f"         converted to {gain_there}x in {currency}: {used.conversion.how}")
        elif row.note:
            say(f"         note: {row.note}")
    if any(line.weight for line in lines):
        say("")
        say(f"First column: how far ln CEG at {WEIGHED_AT:g} FLOP moves with the row's. Negative: through growth that")
        say("the row implies. What the rows leave to 1 is the prior's.")
    elif not lines:
        say("")
        say("No rows.")
    console.out("\n".join(text), highlight=False)  # at once: a table may have many thousand rows
