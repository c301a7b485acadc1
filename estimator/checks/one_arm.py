"""Hide the top of one arm's ladder, predict its losses there by laws fitted to the rest, compare.

The laws are those of `ceg fit`: L(N, D) through all visible runs, asked for every hidden run at its own size and
tokens, and E + K C^-gamma through the visible rungs, asked for the hidden rungs. An interval holds what the resamples
predict and, on top, the scatter of what is visible about the law. Beside them stands a straight line of ln loss in ln C
through the last three rungs, which has no floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cegain.checks.backtest import CUTS, ENOUGH_POINTS
from cegain.common.arrays import Array
from cegain.common.scores import binomial_range
from cegain.ladders import frontier_ratio, ladder
from cegain.ladders.frontier_ratio import Laws
from cegain.ladders.ladder import RunTable
from cegain.ladders.scaling_law import Runs, fit

if TYPE_CHECKING:
    from rich.console import Console

LEAST_RUNGS = 5
"""Visible rungs: a law of three numbers through four shows no scatter worth the name."""
LINE_RUNGS = 3
PARAMETERS = 5
"""Of the law in N and D."""
LAWS = ("law in N and D", "frontier", "line")


class Point(NamedTuple):
    """One hidden rung, or run: arm, cut, which law; budget (FLOP), decades past the last visible rung; ln loss there,
    what the law says, and the ends of its 90% interval (NaN where it has none).
    """

    arm: str
    cut: float
    law: str
    flops: float
    decades: float
    actual: float
    predicted: float
    low: float
    high: float


def hold_out(
    table: RunTable, arms: Sequence[str], cuts: Sequence[float] = CUTS, resamples: int = 200, seed: int = 0
) -> list[Point]:
    """Every hidden rung of every arm and cut, by every law that can be fitted to what is left.

    Raises:
        EvidenceError: an arm selects no run.
    """
    points = []
    for arm in arms:
        whole = ladder.ladder(table, arm)
        for cut in cuts:
            if not len(whole.x):
                continue
            limit = math.exp(float(whole.x[-1])) / cut
            seen = whole.below(limit)
            hidden = whole.x > (seen.x[-1] if len(seen.x) else -math.inf)
            if len(seen.x) < LEAST_RUNGS or not hidden.any():
                continue
            points += _runs(table, arm, cut, limit, float(seen.x[-1]), resamples, seed)
            laws = {LAWS[1]: frontier_ratio.frontier(seen, resamples, seed), LAWS[2]: _line(seen)}
            for name, law in laws.items():
                if law is None:
                    continue
                ends = _predict(law, seen, whole.x[hidden], seed)
                for x, y, (low, middle, high) in zip(whole.x[hidden], whole.y[hidden], ends.T, strict=True):
                    past = float(x - seen.x[-1]) / math.log(10)
                    points.append(Point(arm, cut, name, math.exp(x), past, float(y), middle, low, high))
    return points


def _runs(table: RunTable, arm: str, cut: float, limit: float, last: float, resamples: int, seed: int) -> list[Point]:
    """Hidden runs of an arm at their own sizes and tokens, by the law in N and D of its runs up to a budget (FLOP)."""
    at, _ = ladder.representatives(table, arm)
    n, d, c, loss = table.N[at], table.D[at], table.C[at], table.loss[at]
    visible = c <= limit * (1 + 1e-9)
    if not (np.isfinite(n).all() and np.isfinite(d).all()) or visible.sum() <= PARAMETERS or visible.all():
        return []
    law = fit(Runs(loss=loss[visible], N=n[visible], D=d[visible]), resamples=resamples, seed=seed)
    if not law.answers or not len(law.samples):
        return []
    residuals = np.log(loss[visible]) - np.log(law.predict(N=n[visible], D=d[visible]).value)
    scatter = float(np.sqrt(residuals @ residuals / (len(residuals) - PARAMETERS)))
    shocks = scatter * np.random.default_rng(seed).standard_normal(len(law.samples))
    points = []
    for i in np.flatnonzero(~visible):
        a, b, e, alpha, beta = law.samples.T
        drawn = np.log(e + a / n[i] ** alpha + b / d[i] ** beta) + shocks
        low, high = np.nanquantile(drawn, (0.05, 0.95))
        middle = math.log(float(law.predict(N=n[i], D=d[i]).value))
        past = (math.log(c[i]) - last) / math.log(10)
        points.append(Point(arm, cut, LAWS[0], float(c[i]), past, math.log(loss[i]), middle, float(low), float(high)))
    return points


def _line(seen: ladder.Ladder) -> Laws:
    """ln L = a + b ln C through the last rungs, as a frontier without a floor."""
    slope, level = np.polyfit(seen.x[-LINE_RUNGS:], seen.y[-LINE_RUNGS:], 1)
    return Laws(np.zeros(1), np.array([level]), np.array([-slope]))


def _predict(law: Laws, seen: ladder.Ladder, x: Array, seed: int) -> Array:
    """5%, middle and 95% [3, p] of ln loss at ln C x [p]; the middle is the fit itself."""

    def log_loss(at: Array) -> Array:
        return np.asarray(np.log(law.E[:, None] + np.exp(law.log_k[:, None] - law.gamma[:, None] * at)))

    middle = log_loss(x)[0]
    if len(law.E) < 2:
        return np.stack([np.full_like(middle, np.nan), middle, np.full_like(middle, np.nan)])
    scatter = float(np.sqrt(np.mean((seen.y - log_loss(seen.x)[0]) ** 2) * len(seen.x) / (len(seen.x) - 3)))
    drawn = log_loss(x)[1:]
    drawn = drawn + scatter * np.random.default_rng(seed).standard_normal(drawn.shape)
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    return np.stack([low, middle, high])


class Summary(NamedTuple):
    """One law and cut: hidden rungs, arms, median and largest error in percent of the loss, share of intervals that
    hold with its 95% range, each arm one vote (None where there are none).
    """

    law: str
    cut: float
    points: int
    arms: int
    median_error: float
    largest_error: float
    coverage_90: float | None
    coverage_range: tuple[float, float] | None


def summarise(points: Sequence[Point]) -> list[Summary]:
    """By law and cut."""
    rows = []
    for law in LAWS:
        for cut in sorted({p.cut for p in points}):
            own = [p for p in points if p.law == law and p.cut == cut]
            if not own:
                continue
            errors = 100 * np.abs(np.expm1([p.predicted - p.actual for p in own]))
            arms = len({p.arm for p in own})
            inside = [p.low <= p.actual <= p.high for p in own if math.isfinite(p.low)]
            share = float(np.mean(inside)) if inside else None
            ends = binomial_range(share * arms, arms) if share is not None and arms > 1 else None
            rows.append(Summary(law, cut, len(own), arms, float(np.median(errors)), float(errors.max()), share, ends))
    return rows


def document(points: Sequence[Point]) -> dict[str, object]:
    """As JSON: losses in the table's unit, errors in percent."""
    rows = []
    for p in points:
        ends = [math.exp(p.low), math.exp(p.high)] if math.isfinite(p.low) else None
        row: dict[str, object] = {"arm": p.arm, "cut": p.cut, "law": p.law, "flops": p.flops, "decades": p.decades}
        rows.append(row | {"loss": math.exp(p.actual), "predicted": math.exp(p.predicted), "interval_90": ends})
    summary = [s._asdict() | {"too_few": s.points < ENOUGH_POINTS} for s in summarise(points)]
    return {"schema": "ceg.backtest_laws", "schema_version": 1, "summary": summary, "points": rows}


def print_report(console: Console, points: Sequence[Point]) -> None:
    """A table by law and cut."""
    from rich.table import Table

    if not points:
        console.print(
            f"No point could be scored. An arm needs {LEAST_RUNGS} rungs below its largest budget / cut and one above: "
            "try a smaller --cut, such as 2, or a longer ladder."
        )
        return
    table = Table(box=None, padding=(0, 1))
    for name in ("law", "cut", "arms", "points", "median error", "largest", "in 90%", "range"):
        table.add_column(name, justify="left" if name == "law" else "right")
    for s in summarise(points):
        share = "-" if s.coverage_90 is None else f"{s.coverage_90:.0%}"
        ends = "-" if s.coverage_range is None else "{:.0f}-{:.0f}%".format(*(100 * end for end in s.coverage_range))
        errors = f"{s.median_error:.2g}%", f"{s.largest_error:.2g}%"
        table.add_row(s.law, f"{s.cut:g}", str(s.arms), str(s.points), *errors, share, ends)
    console.print(table)
    console.print(
        "\nErrors of hidden losses, in percent: of runs at their own size and tokens by the law in N and D, of rungs "
        "by the others. range: 95%, each arm one vote. line: ln loss over ln C through the last three rungs, no floor."
    )
