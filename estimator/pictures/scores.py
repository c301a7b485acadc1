"""Pictures of how good forecasts were: one study left out at a time, and ladders whose top was hidden."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from cegain.checks.backtest import ENOUGH_POINTS
from cegain.common.arrays import Array
from cegain.pictures import style
from cegain.pictures.style import BLACK, BLUE, DASHED, DOTTED, GREEN, GREY, ORANGE, PINK, RED, TINY

_CONTENT = 0.9
"""Of the intervals of a backtest."""
_SETS = ((BLACK, "o"), (RED, "D"), (GREEN, "s"), (PINK, "^"), (ORANGE, "v"), (BLUE, "X"))
_BIN = 0.5
"""Width of a bin of distances, in decades of compute."""
_ROW, _GAP = 0.115, 0.09
"""Inches between rows of a study, and between studies."""
_CUT = 3.0
"""Axes of gains reach this factor beyond the gains: intervals that leave them are cut off."""


def draw_coverage(document: Mapping[str, Any], ending: str) -> bytes:
    """Draw every published gain of a `coverage.document` beside the interval predicted without its study."""
    key = operator.itemgetter("study", "algorithm", "currency")
    rows = sorted(document["rows"], key=key)
    groups = [(names, list(group)) for names, group in itertools.groupby(rows, key=key)]
    percent = f"{100 * document['interval_probability']:g}%"
    summary = document["summary"]["all"]
    low, high = summary["coverage_range"]
    title = (
        f"One study left out at a time: {summary['votes']:.1f} of {summary['studies']} studies lie inside the "
        f"{percent} intervals (95% range of the share: {low:.2f} - {high:.2f})"
    )
    with style.picture(7.6, len(rows) * _ROW + len(groups) * _GAP + 1.9, title) as page:
        axes = page.subplots()
        top = 0.0
        for (study, algorithm, currency), group in groups:
            axes.text(-0.01, top - (len(group) - 1) * _ROW / 2, f"{study}: {algorithm.replace('_', ' ')} ({currency})",
                      transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=TINY)  # fmt: skip
            for row in sorted(group, key=lambda row: -row["value"]):
                _one(axes, row, top)
                top -= _ROW
            top -= _GAP
            axes.axhline(top + (_ROW + _GAP) / 2 - _ROW / 2, color=GREY, linewidth=0.2)
        axes.set_ylim(top + _ROW / 2, _ROW)
        axes.set_yticks([])
        axes.axvline(1.0, color=GREY, linewidth=0.7, zorder=1)
        ends = [row[end] for row in rows for end in ("low", "high", "value")]
        _gain_ticks(axes, "x", min(ends) / 1.1, max(ends) * 1.1)
        axes.set_xlabel("compute-equivalent gain")
        handles = [
            Line2D([], [], color=BLUE, linewidth=2.5, alpha=0.45),
            Line2D([], [], color=BLACK, marker="o", markersize=4, linestyle="none"),
            Line2D([], [], color=RED, marker="X", markersize=5, linestyle="none"),
        ]
        labels = [f"{percent} interval predicted from the other studies", "published, inside", "published, outside"]
        reading = "A line for each published row; in brackets the currency. A study has one vote, split over its rows."
        made_from = [f"evidence {document['evidence_sha256'][:8]}"] if "evidence_sha256" in document else []
        style.below(page, reading, style.source(*made_from), handles, labels, columns=3)
        return style.encode(page, ending)


def _one(axes: Axes, row: Mapping[str, Any], y: float) -> None:
    """A predicted interval and what was published."""
    axes.plot([row["low"], row["high"]], [y, y], color=BLUE, linewidth=2.5, alpha=0.45, solid_capstyle="butt")
    inside = row["low"] <= row["value"] <= row["high"]
    look: Any = {"marker": "o", "color": BLACK, "markersize": 3.2} if inside else {"marker": "X", "color": RED}
    axes.plot([row["value"]], [y], **({"markersize": 4.5, "zorder": 3, "markeredgewidth": 0} | look))


def draw_backtest(entries: Sequence[Mapping[str, Any]], ending: str) -> bytes:
    """Draw forecasts of hidden gains against what was found, and how they fare with the distance.

    `entries` are those of `backtest_scores.load`.

    Raises:
        ValueError: no point was stored.
    """
    points: dict[str, dict[str, Array]] = {}
    for entry in entries:
        stored = {name: np.array(values) for name, values in entry.get("points", {}).items()}
        for name in dict.fromkeys(stored.get("set", np.array([])).tolist()):
            points[name] = {k: v[stored["set"] == name].astype(float) for k, v in stored.items() if k != "set"}
    if not points:
        raise ValueError("points are stored (found none). Run `ceg backtest RUNS.csv --scores` first")
    total = sum(len(of_set["actual"]) for of_set in points.values())
    title = f"The top of ladders hidden and predicted: {total} gains, none seen by its forecast"
    with style.picture(11.4, 5.0, title) as page:
        against, inside, off = page.subplots(1, 3, width_ratios=(1.25, 1, 1))
        handles = []
        for of_set, (colour, marker) in zip(points.values(), itertools.cycle(_SETS)):
            actual, median = of_set["actual"], of_set["median"]
            errors = [median - of_set["low"], of_set["high"] - median]
            look: Any = {"color": colour, "marker": marker, "markersize": 3, "linestyle": "none", "zorder": 3}
            against.errorbar(actual, median, errors, elinewidth=0.4, ecolor=to_rgba(colour, 0.3), **look)
            x, share, factor = _by_distance(of_set)
            line: Any = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1}
            inside.plot(x, share, **line)
            off.plot(x, factor, **line)
            handles.append(Line2D([], [], **line))
        _against(against, points)
        inside.axhline(_CONTENT, color=GREY, linewidth=1, linestyle=DASHED)
        inside.set_ylim(0, 1.03)
        inside.set_ylabel("share of gains inside the 90% interval")
        inside.set_title("Coverage by distance (dashed: promised)")
        style.gain_axis(off)
        off.set_ylim(1.0, None)
        off.set_ylabel("median error of the forecast (a factor)")
        off.set_title("Error by distance")
        for axes in (inside, off):
            axes.set_xlim(0, None)
            axes.set_xlabel("decades of compute past the last read")
        labels = [f"{name.replace('_', ' ')} ({len(of_set['actual'])} gains)" for name, of_set in points.items()]
        reading = (
            "Left: error bars are 90% intervals, cut off at the frame; on the diagonal a forecast is right. Middle and "
            f"right: bins of {_BIN:g} decades with {ENOUGH_POINTS} gains or more. Gains of one table share arms: they "
            "are not independent."
        )
        tables = [f"{table['name']} {table['sha256'][:8]}" for entry in entries for table in entry["tables"]]
        style.below(page, reading, style.source(*tables), handles, labels, columns=5)
        return style.encode(page, ending)


def _by_distance(points: Mapping[str, Array]) -> tuple[list[float], list[float], list[float]]:
    """Middle of each bin with enough points (decades), share inside the interval, median error factor."""
    bins = np.floor(points["decades"] / _BIN)
    inside = (points["low"] <= points["actual"]) & (points["actual"] <= points["high"])
    error = np.abs(np.log(points["median"] / points["actual"]))
    kept = [b for b in np.unique(bins) if (bins == b).sum() >= ENOUGH_POINTS]
    return (
        [float((b + 0.5) * _BIN) for b in kept],
        [float(inside[bins == b].mean()) for b in kept],
        [math.exp(float(np.median(error[bins == b]))) for b in kept],
    )


def _against(axes: Axes, points: Mapping[str, Mapping[str, Array]]) -> None:
    """The diagonal, and axes that hold all gains, on both alike."""
    gains = np.concatenate([of_set[key] for of_set in points.values() for key in ("actual", "median")])
    low, high = float(gains.min()) / _CUT, float(gains.max()) * _CUT
    for which in ("x", "y"):
        _gain_ticks(axes, which, low, high)
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle=DOTTED, zorder=1)
    axes.set_xlabel("gain found when the top was shown")
    axes.set_ylabel("gain predicted (median)")
    axes.set_title("Predicted against found")


def _gain_ticks(axes: Axes, which: str, low: float, high: float) -> None:
    """A log axis of gains between two ends."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    span = math.log10(high / low)
    steps = (1,) if span > 4 else (1, 3) if span > 2 else (1, 2, 5)
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    ticks = [s * 10.0**d for d in range(math.floor(math.log10(low)), math.ceil(math.log10(high))) for s in steps]
    axis.set_ticks([tick for tick in ticks if low <= tick <= high])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(lambda value, _: f"{value:.6g}x")
