"""What runs tell: two ladders and the gain between them, one arm's law, one pair of losses."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from scipy.special import stdtrit

from cegain.common.text import number
from cegain.comparison.compare import Comparison
from cegain.ladders import forecast, reading
from cegain.ladders.ladder import Ladder
from cegain.ladders.one_pair import Speedup
from cegain.ladders.scaling_law import FitResult
from cegain.pictures import style
from cegain.pictures.style import BLACK, BLUE, DASHED, DOTTED, GREY, RED, SMALL

_ARMS = ((BLACK, "o", "-"), (RED, "D", DASHED))
_POINTS = 60


def draw(baseline: Ladder, treatment: Ladder, low: float, high: float, ending: str) -> bytes:
    """Draw both ladders and the forecast of the gain between two budgets (FLOP)."""
    budgets = np.geomspace(low, high, _POINTS)
    prediction = forecast.forecast(baseline, treatment, budgets.tolist())
    title = f"{treatment.name} against {baseline.name}: losses, and the compute-equivalent gain"
    with style.picture(9.6, 4.9, title) as page:
        left, right = page.subplots(1, 2)
        for axes in (left, right):
            style.compute_axis(axes.xaxis, low, high)
        left.set_xlabel("training compute (FLOP)")
        right.set_xlabel("training compute spent with it (FLOP)")
        _losses(left, (baseline, treatment))
        _gain(right, prediction)
        reading_it = (
            "Left: a point per budget; lines: the smooth curves that gains are read off, one arm's compute over the "
            "other's at equal loss. Right: points stand at the geometric mean of both computes; bands hold 50% (dark) "
            "and 90% of the forecast."
        )
        rungs = f"{len(baseline.x)} + {len(treatment.x)} rungs"
        rows = [(arm.name, arm.x.tolist(), arm.y.tolist()) for arm in (baseline, treatment)]
        style.below(page, reading_it, style.source(style.table_hash(rungs, rows)))
        return style.encode(page, ending)


def draw_law(rungs: Ladder, frontier: FitResult, ending: str) -> bytes:
    """Draw one arm's losses and the frontier that was fitted to them."""
    low, high = math.exp(rungs.x[0]), math.exp(rungs.x[-1])
    with style.picture(6.4, 4.9, f"{rungs.name}: losses and the law through them") as page:
        axes = page.subplots()
        style.compute_axis(axes.xaxis, low, high)
        axes.set_xlabel("training compute (FLOP)")
        axes.plot(np.exp(rungs.x), np.exp(rungs.y), "o", color=BLACK, markersize=4.5, label=rungs.name)
        if frontier.answers:
            x = np.geomspace(low, high, _POINTS)
            axes.plot(x, frontier.predict(C=x).value, color=BLUE, linewidth=1.4, label=f"fit, {frontier.status}")
        axes.set_ylabel("loss (as in the table)")
        style.loss_axis(axes)
        axes.legend()
        rows = [(rungs.name, rungs.x.tolist(), rungs.y.tolist())]
        reading_it = "A point per budget; the line is E + K C^-gamma."
        style.below(page, reading_it, style.source(style.table_hash(f"{len(rungs.x)} rungs", rows)))
        return style.encode(page, ending)


def draw_pair(pair: Speedup, ending: str) -> bytes:
    """Draw the gain behind one pair of losses by the floor that is assumed."""
    with style.picture(
        6.4, 4.4, f"Loss {pair.loss:g} instead of {pair.baseline_loss:g} at {number(pair.flops)} FLOP"
    ) as page:
        axes = page.subplots()
        floors, gains = zip(*pair.sensitivity, strict=True)
        axes.fill_between(floors, *pair.interval, color=BLUE, alpha=0.18, linewidth=0, label="90%, all uncertainty")
        axes.plot(floors, gains, "o-", color=BLUE, linewidth=1.4, label="the rest at its median")
        axes.set_yscale("log")
        axes.set_xlabel("assumed floor (unit of the losses)")
        axes.set_ylabel("compute-equivalent gain in FLOP")
        style.gain_axis(axes)
        style.one_line(axes)
        axes.legend()
        style.below(page, "Points: the floor at its 5%, 50% and 95% point.", style.source())
        return style.encode(page, ending)


def draw_comparison(compared: Comparison, ending: str) -> bytes:
    """Draw the difference of two arms' losses at every budget."""
    baseline, treatment = compared.arms.names
    with style.picture(6.4, 4.4, f"{treatment} against {baseline}: {compared.verdict}") as page:
        axes = page.subplots()
        flops = [at.pair.treatment.flops for at in compared.budgets]
        style.compute_axis(axes.xaxis, min(flops) / 2, 2 * max(flops))
        axes.set_xlabel("training compute (FLOP)")
        axes.set_ylabel("loss against the baseline's (%)")
        values = [100 * math.expm1(-at.difference.value) for at in compared.budgets]
        freedoms = [min(at.difference.freedom, 1e6) for at in compared.budgets]
        halves = [
            100 * float(stdtrit(freedom, 0.975)) * at.difference.se
            for freedom, at in zip(freedoms, compared.budgets, strict=True)
        ]
        axes.errorbar(flops, values, halves, fmt="o", color=BLACK, markersize=4.5, linewidth=1, capsize=3)
        low, high = (100 * math.expm1(-end) for end in compared.relative_95[::-1])
        axes.axhspan(low, high, color=BLUE, alpha=0.18, linewidth=0, label="all budgets together, 95%")
        axes.axhline(0.0, color=GREY, linewidth=0.8)
        axes.legend()
        style.below(page, "Below 0 the treatment's loss is lower. Bars hold 95% of each budget alone.", style.source())
        return style.encode(page, ending)


def _losses(axes: Axes, arms: tuple[Ladder, Ladder]) -> None:
    for arm, (colour, marker, line) in zip(arms, _ARMS, strict=True):
        axes.plot(np.exp(arm.x), np.exp(arm.y), marker, color=colour, markersize=4.5, label=arm.name)
        smooth = arm._replace(y=reading.smooth(arm))
        if len(arm.x) > 1:
            y = np.linspace(smooth.y[0], smooth.y[-1], _POINTS)
            x = np.exp(reading.compute_at(smooth, y))
            axes.plot(x, np.exp(y), color=colour, linewidth=1, linestyle=line, label=f"{arm.name}, read off")
    axes.set_ylabel("loss (as in the table)")
    axes.set_title("Ladders")
    style.loss_axis(axes)
    axes.legend()


def _gain(axes: Axes, prediction: forecast.Forecast) -> None:
    axes.set_title(f"Gain; {prediction.reads} reads")
    if not prediction.at:
        reason = f"{prediction.status}\n{prediction.reason}"
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", wrap=True, fontsize=SMALL)
        axes.set_yticks([])
        return
    axes.set_yscale("log")
    axes.set_ylabel("compute-equivalent gain in FLOP")
    style.one_line(axes)
    budgets = np.array([a.flops for a in prediction.at])
    for field, alpha, label in (("interval_90", 0.18, "90%"), ("interval_50", 0.28, "50%")):
        ends = np.array([getattr(a, field) for a in prediction.at])
        axes.fill_between(budgets, ends[:, 0], ends[:, 1], color=BLUE, alpha=alpha, linewidth=0, label=label)
    medians = np.array([a.median for a in prediction.at])
    inside = np.array([a.decades == 0 for a in prediction.at])
    axes.plot(budgets, medians, color=BLUE, linewidth=1.4, linestyle=DASHED, label="median, extrapolated")
    axes.plot(budgets, np.where(inside, medians, math.nan), color=BLUE, linewidth=2.2, label="median, inside the reads")
    last = np.array([a.last for a in prediction.at])
    axes.plot(budgets, last, color=GREY, linewidth=0.9, linestyle=DOTTED, label="last gain, kept")
    reads = np.array(prediction.read_gains)
    axes.plot(reads[:, 0], reads[:, 1], "o", color=BLACK, markersize=4, label="reads")
    style.gain_axis(axes)
    axes.legend()
