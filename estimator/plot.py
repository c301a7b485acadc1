"""Pictures: CEG against scale, with bands that fade with the distance from the evidence, and the evidence by kind."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from estimator import algorithms
from estimator.contrasts import Used
from estimator.evidence import is_own
from estimator.gain import FAR_DECADES, Estimate

POINTS_PER_DECADE = 8
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "ceg"}
BLUE, GREY = "#0072B2", "#555555"
# Okabe & Ito's colours, which colour-blind readers can tell apart; the marker says the same in black and white.
OWN = "own"
_KINDS = {
    OWN: ("*", "#56B4E9"),
    "measured": ("o", "#000000"),
    "observational": ("s", "#009E73"),
    "derived": ("D", "#CC79A7"),
    "claimed": ("^", "#E69F00"),
    "extrapolated": ("v", "#D55E00"),
}
_INSIDE, _BEYOND, _FAR = "inside the evidence", "extrapolated", f"more than {FAR_DECADES:g} decades out"
# How a stretch of the curve looks: line style, line width, alpha of the 90% band, of the 50% band on top of it.
_STRETCHES: dict[str, tuple[Any, float, float, float]] = {
    _INSIDE: ("-", 2.2, 0.22, 0.30),
    _BEYOND: ((0, (4, 2)), 1.5, 0.13, 0.18),
    _FAR: ((0, (1, 2)), 1.3, 0.06, 0.08),
}
_MAX_DECADES = 10  # on the axis of gains: beyond, every second decade has its tick, and so on
_MIN_SPAN = 4.0  # the axis of gains shows at least this factor: a flat line should look flat


def grid(low: float, high: float) -> str:
    """Budgets (FLOP) between two ends, evenly spaced in their logarithm, in the form that `--flops` takes."""
    n = max(2, round(math.log10(high / low) * POINTS_PER_DECADE) + 1)
    return ",".join(f"{c:.6g}" for c in np.geomspace(low, high, n))


def draw(curves: Sequence[Sequence[Estimate]], ending: str) -> bytes:
    """Draw one panel per curve (estimates at rising budgets) and return the file's bytes.

    Args:
        curves: each the answers to one question at several budgets (FLOP).
        ending: ".png", ".svg" or ".pdf"; the bytes depend on nothing but the answers.
    """
    columns = min(len(curves), 3)
    rows = math.ceil(len(curves) / columns)
    width, height = (6.4, 4.6) if len(curves) == 1 else (4.5 * columns, 3.6 * rows + 0.9)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        stretches: set[str] = set()
        kinds: set[str] = set()
        for panel, curve in zip(panels, curves, strict=False):
            found = _panel(panel, curve)
            stretches |= found[0]
            kinds |= found[1]
        for panel in panels[len(curves) :]:
            panel.set_axis_off()
        _legend(figure, stretches, kinds, {1: 3, 2: 5, 3: 8}[columns], curves[0][0].evidence_sha256[:8])
        return encode(figure, ending)


def encode(figure: Figure, ending: str) -> bytes:
    """The bytes of a picture file (.png, .svg, .pdf), with no date in them."""
    target = io.BytesIO()
    stamp = {"Date": None} if ending == ".svg" else {"CreationDate": None} if ending == ".pdf" else {}
    figure.savefig(target, format=ending[1:], dpi=200, metadata=stamp)
    return target.getvalue()


def _panel(axes: Axes, curve: Sequence[Estimate]) -> tuple[set[str], set[str]]:
    """Draw one panel; returns the stretches and the kinds of evidence that stand in it."""
    first = curve[0]
    names = " + ".join(algorithms.get(name).title for name in first.algorithms)
    against = f"against {' + '.join(first.baselines).replace('_', ' ')}"
    title = "\n".join(textwrap.wrap(names, 52) + textwrap.wrap(against, 52))
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set_xscale("log")
    axes.set_xlim(curve[0].flops, curve[-1].flops)
    axes.set_xlabel("training compute spent with it (FLOP)")
    answered = [e for e in curve if e.status != "no_evidence"]
    if not answered:
        reason = "\n".join(textwrap.wrap(f"no evidence: {first.reason}", 48))
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        return set(), set()
    axes.set_yscale("log")
    words = {"flop": "FLOP", "usd": "US$", "decode": "decoding time"}
    axes.set_ylabel(f"compute-equivalent gain in {words.get(first.currency, first.currency)}")
    axes.axhline(1.0, color=GREY, linewidth=0.7, zorder=1)
    budgets = np.array([e.flops for e in answered])
    medians = np.array([e.median for e in answered], float)
    wide, narrow = (np.array([getattr(e, f"predictive_{p}") for e in answered], float) for p in (90, 50))
    stretches = set()
    for name, part in _stretches(answered):
        stretches.add(name)
        line, thickness, pale, dark = _STRETCHES[name]
        for ends, alpha in ((wide, pale), (narrow, dark)):
            axes.fill_between(budgets[part], *ends[part].T, color=BLUE, alpha=alpha, linewidth=0)
        axes.plot(budgets[part], medians[part], color=BLUE, linewidth=thickness, linestyle=line)
    used = [u for q in first.questions for u in q.used if u.fixes_level] if len(first.questions) == 1 else []
    kinds = _points(axes, used)
    gain_axis(axes)
    return stretches, kinds


def _stretches(curve: Sequence[Estimate]) -> Iterator[tuple[str, slice]]:
    """Runs of budgets that look alike, each reaching to the first budget of the next so that no gap is left."""
    looks = [
        _FAR if e.decades is None or not e.decades <= FAR_DECADES else _BEYOND if e.decades else _INSIDE for e in curve
    ]
    start = 0
    for i in range(1, len(looks) + 1):
        if i == len(looks) or looks[i] != looks[start]:
            # Between two budgets the paler look holds: the evidence ends somewhere in between.
            end = i if i == len(looks) or _paler(looks[i], looks[start]) else i + 1
            begin = start - 1 if start and _paler(looks[start], looks[start - 1]) else start
            yield looks[start], slice(begin, end)
            start = i


def _paler(a: str, b: str) -> bool:
    order = list(_STRETCHES)
    return order.index(a) > order.index(b)


def _points(axes: Axes, used: Sequence[Used]) -> set[str]:
    """The rows that fix the level, by kind, with their intervals; returns the kinds drawn."""
    left, right = axes.get_xlim()
    shown = [u for u in used if left <= u.row.flops <= right]
    kinds = {_kind(u) for u in shown}
    for kind in (k for k in _KINDS if k in kinds):
        rows = [u for u in shown if _kind(u) == kind]
        gains = np.array([[u.row.ceg, u.row.low, u.row.high] for u in rows])
        gains *= np.array([[u.conversion.factor] for u in rows])
        reach = np.abs(gains[:, 1:] - gains[:, :1]).T
        axes.errorbar(
            [u.row.flops for u in rows],
            gains[:, 0],
            yerr=np.nan_to_num(reach),
            linestyle="none",
            elinewidth=0.8,
            zorder=3,
            **look(kind),
        )
    if len(shown) < len(used):
        missing = f"{len(used) - len(shown)} of {len(used)} rows not shown: no compute stated, or out of range"
        axes.text(0.99, 0.01, missing, transform=axes.transAxes, ha="right", va="bottom", fontsize=6.5, color=GREY)
    return kinds


def _kind(used: Used) -> str:
    return OWN if is_own(used.row) else used.row.basis


def look(kind: str) -> dict[str, Any]:
    """How a row is drawn, by its kind of evidence: `OWN` or its basis."""
    marker, colour = _KINDS[kind]
    if kind == OWN:
        return {
            "color": colour,
            "marker": marker,
            "markersize": 8,
            "markeredgecolor": "#000000",
            "markeredgewidth": 0.5,
        }
    face = colour if kind == "measured" else "white"
    return {"color": colour, "marker": marker, "markersize": 4.5, "markerfacecolor": face, "markeredgecolor": colour}


def gain_axis(axes: Axes) -> None:
    """Ticks at round factors, as many as the span needs, and never fewer than a factor of `_MIN_SPAN`."""
    low, high = axes.get_ylim()
    widen = max(1.0, math.sqrt(_MIN_SPAN / (high / low)))
    low, high = low / widen, high * widen
    axes.set_ylim(low, high)
    span = math.log10(high / low)
    if span > _MAX_DECADES:
        axes.yaxis.set_major_locator(LogLocator(10, numticks=_MAX_DECADES))
    else:
        steps = (
            (1, 10) if span > 4 else (1, 3, 10) if span > 2 else (1, 2, 5, 10) if span > 1 else (1, 1.5, 2, 3, 5, 7, 10)
        )
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        axes.yaxis.set_major_locator(FixedLocator([10.0**d * s for d in decades for s in steps[:-1]]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}x")
    axes.set_ylim(low, high)


def _legend(figure: Figure, stretches: set[str], kinds: set[str], columns: int, evidence: str) -> None:
    """One legend below all panels, of what stands in them; its heading also says what the picture is made of."""
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
    reading = "Line: median. Bands: where 50% (dark) and 90% of new, independent studies would find the gain."
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=7.5,
        frameon=False,
        title=f"{reading}\nSource: ceg {metadata.version('ceg')}, evidence {evidence}",
        title_fontsize=7.5,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.2)},
        handlelength=4.0,
    ).get_title().set_multialignment("center")
