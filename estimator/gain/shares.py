"""Which kind of evidence an answer rests on: our own runs, measured by others, derived, claimed, and so on.

The information about the level at a budget is 1 / (width of the 90% interval of ln CEG in the average setting)^2. What
an answer would lose of it without the rows of one kind, over the sum of these losses, is that kind's share. Rows of
other kinds keep the settings that all rows gave them. A kind that only repeats what others say loses little, and has a
small share; where nothing would be lost, or the answer rests on no rows, there are no shares.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from cegain.gain import method
from cegain.gain.answer import GIVEN, OWN
from cegain.gain.study import Spread
from cegain.tables.published_gains import PublishedGain, is_own

MAX_ROWS = 20_000
"""Of an algorithm; with more, leaving out each kind in turn would take seconds, and no share is given."""
_CONTENT = 0.9


def kind(row: PublishedGain, shipped: Collection[PublishedGain] | None = None) -> str:
    """`own runs`, `given by --evidence` (rows that are not `shipped`; None: all are), or `published` and the basis."""
    if is_own(row):
        return OWN
    return GIVEN if shipped is not None and row not in shipped else f"published {row.basis}"


def shares(
    rows: Sequence[PublishedGain],
    names: Sequence[str],
    baselines: Sequence[str],
    budgets: Sequence[float],
    *,
    currency: str,
    spread: Spread,
    shipped: Collection[PublishedGain] | None,
) -> list[dict[str, float]]:
    """Share of each kind that has one at every budget (FLOP), the largest first; sum 1, or empty.

    Args:
        rows: all evidence.
        names, baselines, currency, spread: of the question, as in `method.prepare`.
        budgets: FLOP.
        shipped: rows that come with the package; None: all of them do.
    """
    asked = set(names)
    about = [row for row in rows if asked.intersection(row.algorithm.split("+"))]
    kinds = sorted({kind(row, shipped) for row in about})
    empty: list[dict[str, float]] = [{} for _ in budgets]
    if not kinds or len(about) > MAX_ROWS:
        return empty

    def information(without: str | None) -> list[float]:
        kept = [row for row in about if kind(row, shipped) != without]
        prepared = method.prepare(kept, names, baselines, currency=currency, spread=spread)
        return [_information(prepared, budget) for budget in budgets]

    whole = information(None)
    if len(kinds) == 1:
        return [{kinds[0]: 1.0} if total else {} for total in whole]
    left = {name: information(name) for name in kinds}
    found = []
    for i, total in enumerate(whole):
        lost = {name: max(0.0, total - left[name][i]) for name in kinds}
        together = math.fsum(lost.values())
        shared = {name: value / together for name, value in lost.items() if value > 0}
        found.append(dict(sorted(shared.items(), key=lambda item: (-item[1], item[0]))))
    return found


def _information(prepared: method.Prepared, budget: float) -> float:
    """1 / width^2; 0 without an answer, and where the answer is exact and rests on no rows."""
    answer = method.evaluate(prepared, budget, interval=_CONTENT, thresholds=())
    if answer.mean_interval is None:
        return 0.0
    width = math.log(answer.mean_interval[1] / answer.mean_interval[0])
    return width**-2.0 if width > 0 else 0.0
