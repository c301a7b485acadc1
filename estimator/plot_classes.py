"""Picture of `ceg classify`: gain at low compute against gain at high compute, one point per algorithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.stats import chi2

from estimator import algorithms
from estimator.classify import Verdict
from estimator.gain import CLASS_SLOPE
from estimator.hierarchy import Array
from estimator.plot import GREY, STYLE, encode
from estimator.text import budget

# Okabe & Ito's colours; the marker says the same in black and white.
_LOOKS = {
    "dependent": ("#D55E00", "^"),
    "independent": ("#0072B2", "o"),
    "fading": ("#009E73", "v"),
    "undetermined": ("#666666", "s"),
}
_CONTENTS = ((0.9, 0.0, 0.4), (0.5, 0.16, 0.9))
"""Content of the ellipses, alpha of their faces, width of their edges."""
_NEAR = 20.0  # gains up to this factor have a panel of their own where some are larger
_EDGES = 240

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def ellipse(mean: Array, covariance: Array, content: float, n: int = _EDGES) -> Array:
    """Edge [n, 2] of the ellipse that holds `content` of a normal with these moments."""
    values, vectors = np.linalg.eigh(covariance)
    angles = np.linspace(0, 2 * np.pi, n)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    reach = np.sqrt(np.maximum(values, 0.0) * chi2.ppf(content, 2))
    return np.asarray(mean + (vectors @ (reach[:, None] * circle)).T)


def draw(verdicts: Sequence[Verdict], ending: str) -> bytes:
    """Draw all algorithms with an answer and return the file's bytes.

    Args:
        verdicts: `classify.classify`.
        ending: ".png", ".svg" or ".pdf".
    """
    shown = [v for v in verdicts if v.mean is not None]
    near = [v for v in shown if v.mean is not None and float(np.abs(v.mean).max()) < math.log(_NEAR)]
    panels = [shown, near] if near and len(near) < len(shown) else [shown]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.9 * len(panels), 6.5), layout="constrained")
        FigureCanvasAgg(figure)  # sizes of labels are known only with a canvas
        _legend(figure, shown)
        found = np.atleast_1d(figure.subplots(1, len(panels)))
        for axes, part in zip(found, panels, strict=True):
            _panel(axes, shown, part)
        found[0].set_title("Does the gain depend on compute?", loc="left", fontsize=10.5)
        if len(panels) > 1:
            found[1].set_title("The same, near 1x", loc="left", fontsize=10.5)
            low, high = found[1].get_xlim()
            found[0].add_patch(Rectangle((low, low), high - low, high - low, fill=False, color=GREY, linewidth=0.8))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels must not move the axes that they are placed in
        _label(found[0], [v for v in shown if len(panels) == 1 or v not in near])
        if len(panels) > 1:
            _label(found[1], near)
        return encode(figure, ending)


def _panel(axes: Axes, shown: Sequence[Verdict], within: Sequence[Verdict]) -> None:
    """All algorithms on axes that hold some of them."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_aspect("equal", adjustable="box")
    limits = _limits(within)
    _reference(axes, limits, math.log10(shown[0].high.flops / shown[0].low.flops))
    for v in shown:
        _one(axes, v)
    span = math.log10(limits[1] / limits[0])
    steps = (1,) if span > 3.5 else (1, 3) if span > 2.2 else (1, 2, 5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([10.0**d * k for d in range(-4, 9) for k in steps]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:.6g}x")
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_xlabel(f"compute-equivalent gain at {budget(shown[0].low.flops)} FLOP")
    axes.set_ylabel(f"compute-equivalent gain at {budget(shown[0].high.flops)} FLOP")


def _limits(shown: Sequence[Verdict]) -> tuple[float, float]:
    """All points and the half of each ellipse, on both axes alike."""
    edges = [ellipse(v.mean, v.covariance, 0.7) for v in shown if v.mean is not None and v.covariance is not None]
    every = np.concatenate([*edges, np.zeros((1, 2))])
    return math.exp(float(every.min()) - 0.2), math.exp(float(every.max()) + 0.2)


def _reference(axes: Axes, limits: tuple[float, float], decades: float) -> None:
    """The diagonal, and the band in which a slope is `independent`."""
    ends = np.array(limits)
    factor = math.exp(CLASS_SLOPE * decades)
    axes.fill_between(ends, ends / factor, ends * factor, color="#0072B2", alpha=0.06, linewidth=0, zorder=0)
    axes.plot(ends, ends, color=GREY, linewidth=0.9, zorder=1)
    axes.axhline(1.0, color=GREY, linewidth=0.5, linestyle=(0, (1, 3)), zorder=1)
    axes.axvline(1.0, color=GREY, linewidth=0.5, linestyle=(0, (1, 3)), zorder=1)
    said: Any = {"transform": axes.transAxes, "fontsize": 7.5, "color": GREY}
    axes.text(0.03, 0.97, "larger at high compute", va="top", **said)
    axes.text(0.97, 0.03, "smaller at high compute", ha="right", **said)
    turned: Any = {"rotation": 45, "rotation_mode": "anchor", "ha": "right", "va": "bottom"}
    axes.text(0.97, 0.98, "same at both", **said, **turned)


def _one(axes: Axes, v: Verdict) -> None:
    assert v.mean is not None
    assert v.covariance is not None
    colour, marker = _LOOKS[v.label]
    for content, alpha, width in _CONTENTS:
        edge = np.exp(ellipse(v.mean, v.covariance, content))
        axes.fill(*edge.T, facecolor=colour, alpha=alpha, linewidth=0, zorder=2)
        axes.plot(*edge.T, color=colour, linewidth=width, zorder=2, alpha=0.8)
    look: Any = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.7, "zorder": 4}
    axes.plot(*np.exp(v.mean), color=colour, marker=marker, **look)


def _label(axes: Axes, named: Sequence[Verdict]) -> None:
    """Name points where no other name or point is, the most crowded first; lengths are in points of the figure."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    pixel = figure.dpi / 72
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    spots = {v.name: axes.transData.transform(np.exp(v.mean)) / pixel for v in named if v.mean is not None}
    centre = np.median(list(spots.values()), axis=0) if spots else np.zeros(2)
    taken: list[Box] = [(x - 5.0, y - 5.0, x + 5.0, y + 5.0) for x, y in (spot.tolist() for spot in spots.values())]
    for v in sorted(named, key=lambda v: (float(np.hypot(*(spots[v.name] - centre))), v.name)):
        x, y = spots[v.name].tolist()
        colour = _LOOKS[v.label][0]
        assert v.mean is not None
        text = axes.annotate(
            _short(v.name), tuple(np.exp(v.mean)), (0, 0), textcoords="offset points", fontsize=8.5, color=colour,
            zorder=6, ha="left", va="bottom", arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6},
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )  # fmt: skip
        size = Text.get_window_extent(text, renderer)
        wide, high = size.width / pixel, size.height / pixel
        best = (math.inf, 0.0, 0.0)
        for reach in (8.0, 18.0, 30.0, 45.0, 62.0, 80.0, 100.0):
            for angle in range(0, 360, 15):
                across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                left, bottom = x + reach * across - wide * (1 - across) / 2, y + reach * up - high * (1 - up) / 2
                box = (left, bottom, left + wide, bottom + high)
                cost = reach + sum(_overlap(box, other) for other in taken)
                outside = left < frame.x0 / pixel or box[2] > frame.x1 / pixel
                outside |= bottom < frame.y0 / pixel or box[3] > frame.y1 / pixel
                best = min(best, (cost + 1e4 * outside, left, bottom))
        _, left, bottom = best
        text.set_position((left - x, bottom - y))
        taken.append((left, bottom, left + wide, bottom + high))


def _overlap(a: Box, b: Box) -> float:
    """Shared area of two boxes, with a margin."""
    wide = min(a[2], b[2]) - max(a[0], b[0]) + 2.0
    high = min(a[3], b[3]) - max(a[1], b[1]) + 2.0
    return wide * high if wide > 0 and high > 0 else 0.0


def _short(name: str) -> str:
    """The abbreviation that a title ends with, or the title."""
    title = algorithms.get(name).title
    return title[title.rindex("(") + 1 : -1] if title.endswith(")") else title


def _legend(figure: Figure, shown: Sequence[Verdict]) -> None:
    labels = {v.label for v in shown}
    handles = [
        Line2D([], [], linestyle="none", color=colour, marker=marker, label=label)
        for label, (colour, marker) in _LOOKS.items()
        if label in labels
    ]
    reading = "Ellipses: 50% and 90% of the average setting at both budgets together. Band: an independent slope."
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=8,
        frameon=False,
        title=f"{reading}\nSource: ceg {metadata.version('ceg')}, evidence {shown[0].low.evidence_sha256[:8]}",
        title_fontsize=7.5,
    ).get_title().set_multialignment("center")
