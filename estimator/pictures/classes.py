"""Picture of `ceg classify`: gain at low compute against gain at high compute, one point per algorithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.stats import chi2

from cegain import algorithms
from cegain.common.arrays import Array
from cegain.common.text import budget
from cegain.common.verdict import CLASS_SLOPE
from cegain.pictures import style
from cegain.pictures.style import BLUE, DASH_DOT, DOTTED, GREEN, GREY, RED, SMALL, Named
from cegain.views.classify import Verdict

_LOOKS: dict[str, tuple[str, str, Any]] = {
    "dependent": (RED, "^", (0, (6, 2))),
    "independent": (BLUE, "o", "-"),
    "fading": (GREEN, "v", DASH_DOT),
    "undetermined": (GREY, "s", DOTTED),
}
"""Colour, marker, and the line style of the ellipses' edges."""
_CONTENTS = ((0.9, 0.0, 0.4), (0.5, 0.16, 0.9))
"""Content of the ellipses, alpha of their faces, width of their edges."""
_NEAR = 20.0  # gains up to this factor have a panel of their own where some are larger
_EDGES = 240


def ellipse(mean: Array, covariance: Array, content: float, n: int = _EDGES) -> Array:
    """Edge [n, 2] of the ellipse that holds `content` of a normal with these moments."""
    values, vectors = np.linalg.eigh(covariance)
    angles = np.linspace(0, 2 * np.pi, n)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    reach = np.sqrt(np.maximum(values, 0.0) * chi2.ppf(content, 2))
    return np.asarray(mean + (vectors @ (reach[:, None] * circle)).T)


def draw(verdicts: Sequence[Verdict], ending: str) -> bytes:
    """Draw all algorithms that have an answer."""
    shown = [v for v in verdicts if v.mean is not None]
    near = [v for v in shown if _reaches(v) < math.log(_NEAR)]
    groups = [shown, near] if near and len(near) < len(shown) else [shown]
    with style.picture(5.9 * len(groups), 6.9) as page:
        _legend(page, shown)
        low, high = (budget(end.flops) for end in (shown[0].low, shown[0].high))
        style.title(page, f"Does a gain depend on compute? The gain at {low} FLOP against that at {high}")
        panels = np.atleast_1d(page.subplots(1, len(groups)))
        for axes, group in zip(panels, groups, strict=True):
            _panel(axes, shown, group)
        if len(groups) > 1:
            panels[0].set_title("All algorithms with a gain in FLOP")
            panels[1].set_title("The same, near 1x (the box on the left)")
            left, right = panels[1].get_xlim()
            panels[0].add_patch(Rectangle((left, left), right - left, right - left, fill=False, color=GREY, lw=0.8))
        page.draw_without_rendering()
        page.set_layout_engine("none")  # labels must not move the axes that they are placed in
        _label(panels[0], [v for v in shown if len(groups) == 1 or v not in near])
        if len(groups) > 1:
            _label(panels[1], near)
        return style.encode(page, ending)


def _reaches(v: Verdict) -> float:
    """How far from a gain of 1 (ln) two standard deviations of either gain reach."""
    assert v.mean is not None
    assert v.covariance is not None
    return float((np.abs(v.mean) + 2 * np.sqrt(np.diag(v.covariance))).max())


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
    axes.fill_between(ends, ends / factor, ends * factor, color=BLUE, alpha=0.06, linewidth=0, zorder=0)
    axes.plot(ends, ends, color=GREY, linewidth=0.9, zorder=1)
    axes.axhline(1.0, color=GREY, linewidth=0.5, linestyle=(0, (1, 3)), zorder=1)
    axes.axvline(1.0, color=GREY, linewidth=0.5, linestyle=(0, (1, 3)), zorder=1)
    look: Any = {"transform": axes.transAxes, "fontsize": SMALL, "color": GREY}
    axes.text(0.03, 0.97, "larger at high compute", va="top", **look)
    axes.text(0.97, 0.03, "smaller at high compute", ha="right", **look)
    rotated: Any = {"rotation": 45, "rotation_mode": "anchor", "ha": "right", "va": "bottom"}
    axes.text(0.97, 0.98, "same at both", **look, **rotated)


def far(v: Verdict) -> bool:
    """Whether the gain at either budget is too far from the evidence for its median, which the table leaves out."""
    return "far_extrapolation" in (v.low.status, v.high.status)


def _one(axes: Axes, v: Verdict) -> None:
    """The ellipses, and the medians where the table has them."""
    assert v.mean is not None
    assert v.covariance is not None
    colour, marker, line = _LOOKS[v.label]
    for content, alpha, width in _CONTENTS:
        edge = np.exp(ellipse(v.mean, v.covariance, content))
        axes.fill(*edge.T, facecolor=colour, alpha=alpha * (0.5 if far(v) else 1.0), linewidth=0, zorder=2)
        axes.plot(*edge.T, color=colour, linewidth=width, linestyle=line, zorder=2, alpha=0.8)
    if not far(v):
        look: Any = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.7, "zorder": 4}
        axes.plot(*np.exp(v.mean), color=colour, marker=marker, **look)


def _label(axes: Axes, shown: Sequence[Verdict]) -> None:
    spots = [(v, *np.exp(v.mean).tolist()) for v in shown if v.mean is not None]
    style.place(axes, [Named(_short(v.name), x, y, _LOOKS[v.label][0]) for v, x, y in spots])


def _short(name: str) -> str:
    """The abbreviation that a title ends with, or the title."""
    title = algorithms.get(name).title
    return title[title.rindex("(") + 1 : -1] if title.endswith(")") else title


def _legend(page: Figure, shown: Sequence[Verdict]) -> None:
    labels = [label for label in _LOOKS if label in {v.label for v in shown}]
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=line, markersize=6.5)
        for colour, marker, line in (_LOOKS[label] for label in labels)
    ]
    reading = (
        "Ellipses: 50% (filled) and 90% of the average setting, at both budgets together; a name points at the centre. "
        "A point is the median at both; where a budget is more than three decades past the evidence the median is left "
        "out, as in the table. Colour, marker, edge: the class. Band along the diagonal: slopes that are `independent`."
    )
    made_from = style.source(f"evidence {shown[0].low.evidence_sha256[:8]}")
    style.below(page, reading, made_from, handles, labels, columns=len(handles))
