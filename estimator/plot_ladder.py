"""`ceg ladder -o`: every run's loss on the left; on the right the gain by rung, its forecast, and what others found."""

from __future__ import annotations

import math
import textwrap
from importlib import metadata

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from estimator import forecast, ladder, scaling_law
from estimator.evidence import is_own
from estimator.gain import FAR_DECADES
from estimator.hierarchy import Array
from estimator.ladder_report import Report
from estimator.plot import BLUE, GREY, OWN, STYLE, encode, gain_axis, look
from estimator.scaling_law import Runs
from estimator.seed_ladder import Rung

_ARMS = (("#000000", "o"), ("#D55E00", "D"))
_POINTS = 60
_DRAWN = ("converged", "bound_hit")
_MARGIN = 1.6
"""Factor of compute left free beside the outermost points."""
_TALLEST = 4.0
"""The axis of gains reaches this factor beyond its points at most: bands that leave it are cut off."""


def draw(found: Report, ending: str) -> bytes:
    """The picture's bytes (".png", ".svg" or ".pdf")."""
    arms = found.runs.arms[found.against], found.runs.arms[found.treatment]
    flops = [rung.flops for rungs in arms for rung in rungs]
    published = [used.row.flops for used in found.literature if used.row.flops == used.row.flops]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        for axes, ends in ((left, flops), (right, [*flops, 100 * max(flops), *published])):
            axes.set_xscale("log")
            axes.set_xlim(min(ends) / _MARGIN, max(ends) * _MARGIN)
        left.set_xlabel("training compute (FLOP)")
        right.set_xlabel("training compute spent with it (FLOP)")
        _losses(left, (found.against, found.treatment), arms)
        _gains(right, found)
        title = f"{found.title}: {found.treatment} against {found.against}"
        figure.suptitle("\n".join(textwrap.wrap(title, 110)), x=0.01, ha="left", fontsize=10)
        counted = sum(len(rung.losses) for rungs in arms for rung in rungs)
        source = f"Source: ceg {metadata.version('ceg')}, {counted} runs of {found.runs.table.name}.csv"
        figure.supxlabel(source, fontsize=7, color=GREY)
        return encode(figure, ending)


def _losses(axes: Axes, names: tuple[str, str], arms: tuple[tuple[Rung, ...], ...]) -> None:
    """Every seed's loss, and a frontier through each arm's means."""
    grid = np.geomspace(*axes.get_xlim(), _POINTS)
    fitted, short = _frontiers(arms, grid)
    for name, rungs, curve, (colour, marker) in zip(names, arms, fitted, _ARMS, strict=True):
        x = [rung.flops for rung in rungs for _ in rung.losses]
        y = [loss for rung in rungs for loss in rung.losses.values()]
        axes.plot(x, y, marker, color=colour, markersize=4, alpha=0.55, markeredgewidth=0, label=name)
        if curve is not None:
            axes.plot(grid, curve, color=colour, linewidth=1, linestyle=(0, (4, 2)))
        else:  # two rungs, or noise
            means = [rung.loss for rung in rungs]
            axes.plot([rung.flops for rung in rungs], means, color=colour, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_yscale("log")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    law = "L = E + K C^-gamma" + (f" (fewer than 4 rungs: with {short})" if short else "")
    axes.set_title(f"a point per seed\ndashed: {law}", fontsize=8.5, loc="left")
    axes.legend(frameon=False, fontsize=8)


def _frontiers(arms: tuple[tuple[Rung, ...], ...], grid: Array) -> tuple[list[Array | None], str]:
    """The frontier of each arm on a grid of FLOP [p] (None where there is none); what was assumed of short ladders.

    Three rungs cannot tell a floor: theirs is that of the longer arm, or 0 where that is as short.
    """
    longest = max(arms, key=len)
    floor, assumed = 0.0, "E = 0"
    if len(longest) > 3:
        law = _fit(longest, None)
        if law is not None:
            floor, assumed = law.parameters["E"], "the other arm's E"
    laws = [_fit(rungs, None if len(rungs) > 3 else floor) for rungs in arms]
    short = any(len(rungs) < 4 for rungs in arms)
    return [None if law is None else np.asarray(law.predict(C=grid).value) for law in laws], assumed if short else ""


def _fit(rungs: tuple[Rung, ...], floor: float | None) -> scaling_law.FitResult | None:
    if len(rungs) < 2 or (floor is not None and floor >= min(rung.loss for rung in rungs)):
        return None
    points = Runs(loss=[rung.loss for rung in rungs], C=[rung.flops for rung in rungs])
    fixed = {} if floor is None else {"E": floor}
    law = scaling_law.fit(points, form="frontier", fixed=fixed, resamples=0)
    return law if law.status in _DRAWN else None


def _gains(axes: Axes, found: Report) -> None:
    """The gain at each rung, the forecast with its bands, and the published rows by kind."""
    axes.set_yscale("log")
    axes.set_ylabel("compute-equivalent gain in FLOP")
    axes.axhline(1.0, color=GREY, linewidth=0.7, zorder=1)
    spans = [_forecast(axes, found), _rungs(axes, found), *_literature(axes, found)]
    ends = [end for span in spans for end in span]
    if ends:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, min(ends) / _TALLEST), min(high, max(ends) * _TALLEST))
    gain_axis(axes)
    unread = [at for at in found.gains if at.read is None]
    heading = "gain by rung with its 90% interval; curve: forecast from the runs"
    if unread:
        heading += f"\n{len(unread)} of {len(found.gains)} rungs give no gain"
    axes.set_title(heading, fontsize=8.5, loc="left")
    axes.legend(frameon=False, fontsize=7.5, loc="best")


def _forecast(axes: Axes, found: Report) -> list[float]:
    """The curve and its bands, up to `FAR_DECADES` past the runs; returns the gains that must be seen."""
    arms = [ladder.ladder(found.runs.table, arm) for arm in (found.against, found.treatment)]
    flops = [rung.flops for rung in found.runs.arms[found.treatment]]
    budgets = np.geomspace(min(flops), max(flops) * 10**FAR_DECADES, _POINTS)
    curve = forecast.forecast(arms[0], arms[1], budgets.tolist(), loss_noise=found.runs.run_noise())
    if not curve.at:
        said = "\n".join(textwrap.wrap(f"no forecast: {curve.reason}", 60))
        axes.text(0.98, 0.02, said, transform=axes.transAxes, ha="right", va="bottom", fontsize=7.5, color=GREY)
        return []
    inside = np.array([at.decades == 0 for at in curve.at])
    medians = np.array([at.median for at in curve.at])
    # The budget next to the reads belongs to both stretches, so that no gap is left.
    near = inside | np.roll(inside, 1) if not inside.all() else inside
    for stretch, pale, dark, line, width, label in (
        (near, 0.22, 0.30, "-", 2.2, "forecast, inside the runs"),
        (~inside, 0.10, 0.14, (0, (4, 2)), 1.4, "forecast, extrapolated"),
    ):
        if not stretch.any():
            continue
        for field, alpha in (("interval_90", pale), ("interval_50", dark)):
            ends = np.array([getattr(at, field) for at in curve.at])
            axes.fill_between(budgets, ends[:, 0], ends[:, 1], where=stretch, color=BLUE, alpha=alpha, linewidth=0)
        axes.plot(
            budgets, np.where(stretch, medians, math.nan), color=BLUE, linewidth=width, linestyle=line, label=label
        )
    return [float(medians.min()), float(medians.max())]


def _rungs(axes: Axes, found: Report) -> list[float]:
    """Gains read off, with error bars where seeds tell them; hollow where a lone seed does not."""
    read = [(at, at.read) for at in found.gains if at.read is not None]
    known = [(at.rung.flops, math.exp(r.log_gain), r.interval()) for at, r in read if not at.why]
    alone = [(at.rung.flops, math.exp(r.log_gain)) for at, r in read if at.why]
    if known:
        x, y, ends = (np.array(part) for part in zip(*known, strict=True))
        errors = np.abs(ends.T - y)
        axes.errorbar(
            x, y, yerr=errors, linestyle="none", elinewidth=1, capsize=2, zorder=4, label="own run", **look(OWN)
        )
    if alone:
        x, y = (np.array(part) for part in zip(*alone, strict=True))
        hollow = look(OWN) | {"markerfacecolor": "none"}
        axes.plot(x, y, linestyle="none", zorder=4, label="own run, error not known", **hollow)
    return [end for _, _, interval in known for end in interval] + [gain for _, gain in alone]


def _literature(axes: Axes, found: Report) -> list[list[float]]:
    """Published gains at their own budgets, by kind of evidence."""
    kinds = dict.fromkeys(used.row.basis for used in found.literature)
    silent = sum(used.row.flops != used.row.flops for used in found.literature)
    for kind in kinds:
        rows = [u for u in found.literature if u.row.basis == kind and u.row.flops == u.row.flops]
        assert not any(is_own(used.row) for used in rows)
        gains = [used.row.ceg * used.conversion.factor for used in rows]
        if rows:
            axes.plot([u.row.flops for u in rows], gains, linestyle="none", label=f"published, {kind}", **look(kind))
    if silent:
        said = f"{silent} published rows state no compute"
        axes.text(0.99, 0.01, said, transform=axes.transAxes, ha="right", va="bottom", fontsize=6.5, color=GREY)
    return [[u.row.ceg * u.conversion.factor] for u in found.literature if u.row.flops == u.row.flops]
