"""`ceg ladder -o`: every run's loss on the left; on the right the gain by rung, its forecast, and what others found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cegain.common.verdict import FAR_DECADES
from cegain.ladders import forecast, ladder, seed_ladder
from cegain.ladders.reading import compute_at
from cegain.ladders.seed_ladder import Rung
from cegain.pictures import style
from cegain.pictures.curves import look
from cegain.pictures.style import BLACK, BLUE, DASHED, GREY, HEADING, RED
from cegain.tables.published_gains import OWN, is_own
from cegain.views.ladder_report import Report

_ARMS = ((BLACK, "o"), (RED, "D"))
_POINTS = 60
_MARGIN = 1.6
"""Factor of compute left free beside the outermost points."""
_TALLEST = 4.0
"""The axis of gains reaches this factor beyond its points at most: bands that leave it are cut off."""


def draw(report: Report, ending: str) -> bytes:
    """Draw what `ceg ladder` reports of two arms."""
    arms = report.runs.arms[report.against], report.runs.arms[report.treatment]
    flops = [rung.flops for rungs in arms for rung in rungs]
    published = [used.row.flops for used in report.literature if used.row.flops == used.row.flops]
    with style.picture(10.4, 5.2, f"{report.title}: {report.treatment} against {report.against}") as page:
        left, right = page.subplots(1, 2, width_ratios=(1, 1.25))
        for axes, ends in ((left, flops), (right, [*flops, 100 * max(flops), *published])):
            style.compute_axis(axes.xaxis, min(ends) / _MARGIN, max(ends) * _MARGIN)
        left.set_xlabel("training compute (FLOP)")
        right.set_xlabel("training compute spent with it (FLOP)")
        _losses(left, report)
        _gains(right, report)
        reading = (
            "Left: a faint point is a run (one seed), a solid one the mean of a rung. The gain of a rung is how far to "
            f"the right the curve through {report.against} has the same loss. Right: error bars are 90% intervals; "
            "bands hold 50% (dark) and 90% of the forecast, made from both arms' runs alone."
        )
        counted = sum(len(rung.losses) for rungs in arms for rung in rungs)
        rows = style.table_hash(f"{counted} runs of {report.runs.table.name}.csv", arms)
        style.below(page, reading, style.source(rows))
        return style.encode(page, ending)


def _losses(axes: Axes, report: Report) -> None:
    """Every seed's loss, the means, the curve that gains are read off, and how each is read."""
    for name, (colour, marker) in zip((report.against, report.treatment), _ARMS, strict=True):
        rungs = report.runs.arms[name]
        x = [rung.flops for rung in rungs for _ in rung.losses]
        y = [loss for rung in rungs for loss in rung.losses.values()]
        axes.plot(x, y, marker, color=colour, markersize=3.5, alpha=0.4, markeredgewidth=0)
        mean: Any = {"color": colour, "marker": marker, "markersize": 4.5, "zorder": 4, "linestyle": "none"}
        axes.plot([rung.flops for rung in rungs], [rung.loss for rung in rungs], label=name, **mean)
    _curve(axes, report.against, report.runs.arms[report.against])
    shown = [(at.rung, at.read) for at in report.gains if at.read is not None]
    for i, (rung, read) in enumerate(shown):
        ends = [rung.flops, rung.flops * math.exp(read.log_gain)]
        line: Any = {"color": GREY, "linewidth": 1.0, "linestyle": (0, (1, 1)), "zorder": 2}
        axes.plot(ends, [rung.loss, rung.loss], label="gain: compute at equal loss" if i == 0 else None, **line)
    axes.set_ylabel("held-out loss (nats per token)")
    axes.set_title("Losses")
    style.loss_axis(axes)
    axes.legend()


def _curve(axes: Axes, name: str, rungs: Sequence[Rung]) -> None:
    """The curve through an arm's means, where it falls throughout; a thin line through them where gains have none."""
    arm = seed_ladder.means(name, rungs)
    if len(arm.x) > 1 and bool(np.all(np.diff(arm.y) < 0)):
        y = np.linspace(arm.y[0], arm.y[-1], _POINTS)
        label = f"curve through {name}, read off"
        axes.plot(np.exp(compute_at(arm, y)), np.exp(y), color=BLACK, linewidth=1.2, zorder=3, label=label)
    else:
        axes.plot(np.exp(arm.x), np.exp(arm.y), color=GREY, linewidth=0.8, linestyle=DASHED, label="no curve: it rises")


def _gains(axes: Axes, report: Report) -> None:
    """The gain at each rung, the forecast with its bands, and the published rows by kind."""
    axes.set_yscale("log")
    axes.set_ylabel("compute-equivalent gain in FLOP")
    style.one_line(axes)
    spans = [_forecast(axes, report), _rungs(axes, report), *_literature(axes, report)]
    ends = [end for span in spans for end in span]
    if ends:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, min(ends) / _TALLEST), min(high, max(ends) * _TALLEST))
    style.gain_axis(axes)
    unread = [at for at in report.gains if at.read is None]
    heading = "Gain by rung, and beyond"
    if unread:
        heading += f"; {len(unread)} of {len(report.gains)} rungs give no gain"
    axes.set_title(heading, fontsize=HEADING)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def _forecast(axes: Axes, report: Report) -> list[float]:
    """The curve and its bands, up to `FAR_DECADES` past the runs; returns the gains that must be seen."""
    arms = ladder.pair(report.runs.table, report.against, report.treatment)
    flops = [rung.flops for rung in report.runs.arms[report.treatment]]
    budgets = np.geomspace(min(flops), max(flops) * 10**FAR_DECADES, _POINTS)
    curve = forecast.forecast(arms[0], arms[1], budgets.tolist(), loss_noise=report.runs.run_noise())
    if not curve.at:
        style.remark(axes, f"no forecast: {curve.reason}")
        return []
    inside = np.array([at.decades == 0 for at in curve.at])
    medians = np.array([at.median for at in curve.at])
    # The budget next to the reads belongs to both stretches, so that no gap is left.
    near = inside | np.roll(inside, 1) if not inside.all() else inside
    for stretch, pale, dark, line, width, label in (
        (near, 0.22, 0.30, "-", 2.2, "forecast, inside the runs"),
        (~inside, 0.10, 0.14, DASHED, 1.4, "forecast, extrapolated"),
    ):
        if not stretch.any():
            continue
        for field, alpha in (("interval_90", pale), ("interval_50", dark)):
            ends = np.array([getattr(at, field) for at in curve.at])
            axes.fill_between(budgets, ends[:, 0], ends[:, 1], where=stretch, color=BLUE, alpha=alpha, linewidth=0)
        shown = np.where(stretch, medians, math.nan)
        axes.plot(budgets, shown, color=BLUE, linewidth=width, linestyle=line, label=label)
    return [float(medians.min()), float(medians.max())]


def _rungs(axes: Axes, report: Report) -> list[float]:
    """Gains read off, with error bars where seeds tell them; hollow where a lone seed does not."""
    read = [(at, at.read) for at in report.gains if at.read is not None]
    known = [(at.rung.flops, math.exp(r.log_gain), r.interval()) for at, r in read if not at.why]
    alone = [(at.rung.flops, math.exp(r.log_gain)) for at, r in read if at.why]
    if known:
        x, y, ends = (np.array(part) for part in zip(*known, strict=True))
        errors = np.abs(ends.T - y)
        bars: Any = {"yerr": errors, "linestyle": "none", "elinewidth": 1, "capsize": 2, "zorder": 4}
        axes.errorbar(x, y, label="own run", **bars, **look(OWN))
    if alone:
        x, y = (np.array(part) for part in zip(*alone, strict=True))
        hollow = look(OWN) | {"markerfacecolor": "none"}
        axes.plot(x, y, linestyle="none", zorder=4, label="own run, error not known", **hollow)
    return [end for _, _, interval in known for end in interval] + [gain for _, gain in alone]


def _literature(axes: Axes, report: Report) -> list[list[float]]:
    """Published gains at their own budgets, by kind of evidence."""
    kinds = dict.fromkeys(used.row.basis for used in report.literature)
    silent = sum(used.row.flops != used.row.flops for used in report.literature)
    for kind in kinds:
        rows = [u for u in report.literature if u.row.basis == kind and u.row.flops == u.row.flops]
        assert not any(is_own(used.row) for used in rows)
        gains = [used.row.ceg * used.conversion.factor for used in rows]
        if rows:
            axes.plot([u.row.flops for u in rows], gains, linestyle="none", label=f"published, {kind}", **look(kind))
    if silent:
        style.remark(axes, f"{silent} published rows state no compute")
    return [[u.row.ceg * u.conversion.factor] for u in report.literature if u.row.flops == u.row.flops]
