"""Pictures: CEG against scale, with bands that fade with the distance from the evidence, and the evidence by kind."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cegain import algorithms
from cegain.common.arrays import Array
from cegain.common.verdict import FAR_DECADES, NEAR_DECADES
from cegain.gain.answer import Estimate
from cegain.gain.contrasts import convert
from cegain.pictures import style
from cegain.pictures.style import (
    BLACK,
    BLUE,
    DASH_DOT,
    DASHED,
    DOTTED,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    SMALL,
    TINY,
)
from cegain.tables.published_gains import OWN, PublishedGain, kind_of

POINTS_PER_DECADE = 8
_KINDS = {
    OWN: ("*", SKY),
    "measured": ("o", BLACK),
    "observational": ("s", GREEN),
    "derived": ("D", PINK),
    "claimed": ("^", ORANGE),
    "extrapolated": ("v", RED),
}
_MODELLED = "modelled"  # no evidence to be far from
_INSIDE, _BEYOND, _FAR = "near a run", "extrapolated", f"more than {FAR_DECADES:g} decades out"
# How a stretch of the curve looks: line style, line width, alpha of the 90% band, of the 50% band on top of it.
_STRETCHES: dict[str, tuple[Any, float, float, float]] = {
    _MODELLED: ("-", 2.2, 0.22, 0.30),
    _INSIDE: ("-", 2.2, 0.22, 0.30),
    _BEYOND: (DASHED, 1.5, 0.13, 0.18),
    _FAR: (DOTTED, 1.3, 0.06, 0.08),
}
_PARTS: tuple[tuple[str, Any], ...] = (
    (RED, DASH_DOT), (GREEN, (0, (3, 1, 1, 1, 1, 1))), (PINK, (0, (8, 2))), (ORANGE, (0, (1, 1))),
)  # fmt: skip
"""Colour and line style of the parts of a stack, in turn."""
_PRODUCT: tuple[str, Any] = (BLACK, (0, (2, 1.2)))

Curve = Sequence[Estimate]


def grid(low: float, high: float) -> str:
    """Budgets (FLOP) between two ends, evenly spaced in their logarithm, in the form that `--flops` takes."""
    n = max(2, round(math.log10(high / low) * POINTS_PER_DECADE) + 1)
    return ",".join(f"{c:.6g}" for c in np.geomspace(low, high, n))


def draw(curves: Sequence[Curve], ending: str, parts: Sequence[Sequence[Curve]] = ()) -> bytes:
    """Draw one panel per curve: the answers to one question at rising budgets (FLOP).

    `parts` are, for each curve of a stack, the curves of its parts at the same budgets; empty for others.
    """
    columns = min(len(curves), 3)
    rows = math.ceil(len(curves) / columns)
    width, height = (6.4, 5.0) if len(curves) == 1 else (4.5 * columns, 3.6 * rows + 1.1)
    with style.picture(width, height) as page:
        panels = page.subplots(rows, columns, squeeze=False).ravel()
        stretches: set[str] = set()
        kinds: set[str] = set()
        for i, (panel, curve) in enumerate(zip(panels, curves, strict=False)):
            of_panel = _panel(panel, curve, parts[i] if parts else ())
            stretches |= of_panel[0]
            kinds |= of_panel[1]
        for panel in panels[len(curves) :]:
            panel.set_axis_off()
        reading = "Line: median. Bands: where 50% (dark) and 90% of new, independent studies would find the gain."
        if curves[0][0].currency != "flop":
            reading += " Steps and jags: modelled shapes and numbers of devices are whole numbers."
        made_from = style.source(f"evidence {curves[0][0].evidence_sha256[:8]}")
        style.below(page, reading, made_from, *_legend(stretches, kinds), columns={1: 3, 2: 4, 3: 8}[columns])
        return style.encode(page, ending)


def _panel(axes: Axes, curve: Curve, parts: Sequence[Curve]) -> tuple[set[str], set[str]]:
    """Draw one panel; returns the stretches and the kinds of evidence that stand in it."""
    first = curve[0]
    with algorithms.beside(first.own_algorithms):
        names = " + ".join(algorithms.get(name).title for name in first.algorithms)
    against = f"against {' + '.join(first.baselines).replace('_', ' ')}"
    axes.set_title("\n".join(textwrap.wrap(names, 52) + textwrap.wrap(against + _setting(first), 52)))
    style.compute_axis(axes.xaxis, curve[0].flops, curve[-1].flops)
    axes.set_xlabel("training compute spent with it (FLOP)")
    answered = [e for e in curve if e.status != "no_evidence"]
    if not answered:
        reason = "\n".join(textwrap.wrap(f"no evidence: {first.reason}", 48))
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=SMALL)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        return set(), set()
    axes.set_yscale("log")
    words = {"flop": "FLOP", "usd": "US$", "decode": "decoding time"}
    axes.set_ylabel(f"compute-equivalent gain in {words.get(first.currency, first.currency)}")
    style.one_line(axes)
    budgets = np.array([e.flops for e in answered])
    medians = _medians(answered)
    wide, narrow = (np.array([getattr(e, f"predictive_{p}") for e in answered], float) for p in (90, 50))
    stretches = set()
    for name, part in _stretches(answered):
        stretches.add(name)
        line, thickness, pale, dark = _STRETCHES[name]
        for ends, alpha in ((wide, pale), (narrow, dark)):
            axes.fill_between(budgets[part], *ends[part].T, color=BLUE, alpha=alpha, linewidth=0)
        axes.plot(budgets[part], medians[part], color=BLUE, linewidth=thickness, linestyle=line)
    if parts:
        _draw_parts(axes, answered, parts)
    kinds = _points(axes, _rows(first))
    style.gain_axis(axes)
    return stretches, kinds


def _stretches(curve: Sequence[Estimate]) -> Iterator[tuple[str, slice]]:
    """Runs of budgets that look alike, each reaching to the first budget of the next so that no gap is left."""
    looks = [_look_of(e.decades) for e in curve]
    start = 0
    for i in range(1, len(looks) + 1):
        if i == len(looks) or looks[i] != looks[start]:
            # Between two budgets the paler look holds: the evidence ends somewhere in between.
            end = i if i == len(looks) or _paler(looks[i], looks[start]) else i + 1
            begin = start - 1 if start and _paler(looks[start], looks[start - 1]) else start
            yield looks[start], slice(begin, end)
            start = i


def _look_of(decades: float | None) -> str:
    """How a budget looks: `decades` is None where nothing but models answers, NaN where the distance is unknown."""
    if decades is None:
        return _MODELLED
    return _FAR if not decades <= FAR_DECADES else _BEYOND if decades > NEAR_DECADES else _INSIDE


def _paler(a: str, b: str) -> bool:
    order = list(_STRETCHES)
    return order.index(a) > order.index(b)


def _setting(e: Estimate) -> str:
    """Where both models run, in other currencies than flop; empty in flop."""
    if e.speeds is None:
        return ""
    devices = list(dict.fromkeys(side.time.device.name for side in (e.speeds.treatment, e.speeds.baseline)))
    return f", on {' against '.join(devices)}, {e.speeds.treatment.shape.seq_len} tokens"


class Point(NamedTuple):
    """A row to draw: FLOP (NaN where none are stated), its kind, its gain and the ends of its interval (NaN: none)."""

    flops: float
    kind: str
    gain: float
    low: float
    high: float


def _point(row: PublishedGain, factor: float) -> Point:
    return Point(row.flops, kind_of(row), row.ceg * factor, row.low * factor, row.high * factor)


def _rows(e: Estimate) -> list[Point]:
    """The rows that fix the level; of a stack those in which all of it was measured at once."""
    if len(e.questions) == 1:
        return [_point(u.row, u.conversion.factor) for u in e.questions[0].used if u.fixes_level]
    stack = set(zip(e.algorithms, e.baselines, strict=True))
    observations = e.interaction.observations if e.interaction is not None else ()
    rows = [o.sources[0][0] for o in observations if set(o.members) == stack and not o.context]
    return [_point(row, convert(row, e.currency).factor) for row in dict.fromkeys(rows)]


def _points(axes: Axes, points: Sequence[Point]) -> set[str]:
    """Rows by kind, with their intervals; returns the kinds drawn."""
    left, right = axes.get_xlim()
    shown = [p for p in points if left <= p.flops <= right]
    kinds = {p.kind for p in shown}
    for kind in (k for k in _KINDS if k in kinds):
        part = [p for p in shown if p.kind == kind]
        reach = [[p.gain - p.low for p in part], [p.high - p.gain for p in part]]
        bars: Any = {"yerr": np.nan_to_num(reach), "linestyle": "none", "elinewidth": 0.8, "zorder": 3}
        axes.errorbar([p.flops for p in part], [p.gain for p in part], **bars, **look(kind))
    if len(shown) < len(points):
        missing = f"{len(points) - len(shown)} of {len(points)} rows not shown: no compute stated, or out of range"
        axes.set_xlabel(f"{axes.get_xlabel()}\n({missing})")  # in the panel it may hide something
    return kinds


def _medians(curve: Curve) -> Array:
    return np.array([e.median for e in curve], float)


def _draw_parts(axes: Axes, curve: Curve, parts: Sequence[Curve]) -> None:
    """Medians of a stack's parts, and their product: what the stack would bring if its parts did not interact."""
    known = [[e for e in part if e.median is not None] for part in parts]
    for part, (colour, line) in zip(known, itertools.cycle(_PARTS)):
        if part:
            name = f"{part[0].algorithms[0]} alone".replace("_", " ")
            budgets = [e.flops for e in part]
            axes.plot(budgets, _medians(part), color=colour, linestyle=line, linewidth=1.2, label=name)
    if known and all(len(part) == len(curve) for part in known):
        product = np.prod([_medians(part) for part in known], axis=0)
        colour, line = _PRODUCT
        budgets = [e.flops for e in curve]
        axes.plot(budgets, product, color=colour, linestyle=line, linewidth=1.2, label="product of these")
    axes.legend(loc="best", fontsize=TINY, title="medians", title_fontsize=TINY, alignment="left", handlelength=3.5)


def look(kind: str) -> dict[str, Any]:
    """How a row is drawn, by its kind of evidence: `OWN` or its basis."""
    marker, colour = _KINDS[kind]
    of_kind = {"color": colour, "marker": marker}
    if kind == OWN:
        return of_kind | {"markersize": 8, "markeredgecolor": "#000000", "markeredgewidth": 0.5}
    face = colour if kind == "measured" else "white"
    return of_kind | {"markersize": 4.5, "markerfacecolor": face, "markeredgecolor": colour}


def _legend(stretches: set[str], kinds: set[str]) -> tuple[list[Any], list[str]]:
    """Handles and labels of what stands in the panels."""
    handles: list[Any] = []
    labels: list[str] = []
    for name, (line, thickness, pale, dark) in _STRETCHES.items():
        if name in stretches:
            bands = tuple(Patch(facecolor=BLUE, alpha=a, linewidth=0) for a in (pale, 1 - (1 - pale) * (1 - dark)))
            handles.append((*bands, Line2D([], [], color=BLUE, linewidth=thickness, linestyle=line)))
            labels.append(f"curve, {name}")
    for kind in _KINDS:
        if kind in kinds:
            handles.append(Line2D([], [], linestyle="none", **look(kind)))
            labels.append("own run" if kind == OWN else f"{kind} row")
    return handles, labels
