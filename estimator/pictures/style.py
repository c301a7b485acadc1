"""One style for all pictures: colours, axes, what stands below them, and the bytes of the file.

Every picture says in its title what it shows, below it how to read it, and on its last line what it is made of: this
version, the last commit that changed the code (`provenance.code_commit`), and a hash of the evidence or the table.
The same inputs at the same commit give the same bytes: every `draw` takes the `ending` of a file (".svg", ".pdf" or
".png") and returns its content. Colours are Okabe & Ito's (2008), which colour-blind readers
can tell apart; a marker, a line style or a hatch always says the same in black and white.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from cegain.tables import provenance

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PINK, GREY = "#0072B2", "#D55E00", "#CC79A7", "#555555"
TITLE, HEADING, LABEL, SMALL, TINY = 10.5, 9.0, 9.0, 7.5, 6.5
"""Sizes of text, in points: a picture's title, a panel's, axes, legends and what stands below, remarks in a panel."""
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": LABEL, "axes.titlesize": HEADING, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.labelsize": LABEL,
    "legend.fontsize": SMALL, "legend.frameon": False, "hatch.linewidth": 0.6,
    "svg.hashsalt": "ceg", "pdf.fonttype": 42,
}  # fmt: skip
DASHED, DOTTED, DASH_DOT = (0, (4, 2)), (0, (1, 2)), (0, (5, 1.5, 1, 1.5))
SERIES: tuple[tuple[str, str, Any], ...] = (
    (BLACK, "o", "-"), (RED, "D", DASHED), (GREEN, "s", DASH_DOT), (PINK, "^", DOTTED), (ORANGE, "v", (0, (6, 2))),
    (SKY, "P", (0, (3, 1, 1, 1, 1, 1))), (BLUE, "X", (0, (2, 1))),
)  # fmt: skip
"""Colour, marker and line style of things of one kind, in turn."""
WIDE_PALE, NARROW_DARK = 0.20, 0.30
"""Alpha of a 90% band, and of the 50% band on top of it."""

_MAX_DECADES = 10  # on the axis of gains: beyond, every second decade has its tick, and so on
_MIN_SPAN = 4.0  # the axis of gains shows at least this factor: a flat line should look flat
_PER_INCH = 17.5  # characters of small text
_LINE = SMALL * 1.35 / 72  # inches
_MARGIN = 0.05  # inches


def figure(width: float, height: float) -> Figure:
    """An empty picture (inches) on which sizes of text can be measured; draw it within `mpl.rc_context(STYLE)`."""
    page = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(page)
    return page


@contextlib.contextmanager
def picture(width: float, height: float, text: str = "") -> Iterator[Figure]:
    """An empty picture (inches) with its title, to be drawn and encoded in this style."""
    with mpl.rc_context(STYLE):
        page = figure(width, height)
        if text:
            title(page, text)
        yield page


def title(page: Figure, text: str) -> None:
    """What the picture shows, at its top left."""
    width = int(_PER_INCH * page.get_figwidth() * SMALL / TITLE)
    page.suptitle("\n".join(textwrap.wrap(text, width)), x=0.01, ha="left", fontsize=TITLE)


def source(*made_from: str) -> str:
    """The last line of a picture: `ceg VERSION, commit COMMIT, ...`; the commit only in a checkout."""
    commit = provenance.code_commit()
    parts = [f"ceg {provenance.version('cegain')}", *([f"commit {commit}"] if commit else []), *made_from]
    return f"Source: {', '.join(parts)}"


def table_hash(name: str, rows: Iterable[object]) -> str:
    """A table's name and the first digits of the SHA-256 of the rows that are drawn."""
    return f"{name} {hashlib.sha256(repr(list(rows)).encode()).hexdigest()[:8]}"


def below(
    page: Figure,
    reading: str,
    made_from: str,
    handles: Sequence[Any] = (),
    labels: Sequence[str] = (),
    columns: int = 4,
) -> None:
    """Put a legend, how to read the picture, and its source below all panels, which make room, from top to bottom.

    A handle of the legend is an artist, or a tuple of them for one beside the other; there is no legend without any.
    """
    width, height = page.get_size_inches()
    fits = int(_PER_INCH * (width - 2 * _MARGIN))
    lines = textwrap.wrap(reading, fits)
    sources = textwrap.wrap(made_from, fits)
    x = _MARGIN / width
    text: Any = {"ha": "left", "va": "bottom", "fontsize": SMALL, "linespacing": 1.2}
    page.text(x, _MARGIN / height, "\n".join(sources), color=GREY, **text)
    page.text(x, (_MARGIN + len(sources) * _LINE) / height, "\n".join(lines), **text)
    foot = (2 * _MARGIN + (len(sources) + len(lines)) * _LINE) / height
    if handles:
        wide = any(isinstance(handle, tuple) for handle in handles)
        legend = page.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, foot), borderaxespad=0.2, ncols=columns,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.2)}, handlelength=3.4 if wide else 2.6,
        )  # fmt: skip
        renderer = page.canvas.get_renderer()  # type: ignore[attr-defined]
        foot += legend.get_window_extent(renderer).height / page.bbox.height + _MARGIN / height
    engine: Any = page.get_layout_engine()
    engine.set(rect=(0, foot, 1, 1 - foot))


def encode(page: Figure, ending: str) -> bytes:
    """The bytes of a picture file (.svg, .pdf, .png), with no date in them."""
    target = io.BytesIO()
    stamp = {"Date": None} if ending == ".svg" else {"CreationDate": None} if ending == ".pdf" else {}
    page.savefig(target, format=ending[1:], dpi=200, metadata=stamp)
    return target.getvalue()


def compute_axis(axis: Axis, low: float, high: float) -> None:
    """Ticks of an axis of FLOP at powers of ten, at 3 between them where there is room; few enough to be read."""
    axis.axes.set_xscale("log")
    axis.axes.set_xlim(low, high)
    span = math.log10(high / low)
    steps = (1, 3) if span <= 2.2 else (1,)
    every = max(1, math.ceil(span / 7))
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [k * 10.0**d for d in decades if d % every == 0 for k in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda flops, _: f"{flops:.0e}".replace("e+", "e"))


def gain_axis(axes: Axes) -> None:
    """Ticks at round factors, as many as the span needs, and never fewer than a factor of `_MIN_SPAN`."""
    axes.set_yscale("log")
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


def loss_axis(axes: Axes) -> None:
    """A log axis of losses with five ticks or so: a ladder rarely spans a factor of two."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    step = next(s * 10.0**d for d in range(-6, 6) for s in (1, 2, 5) if (high - low) / (s * 10.0**d) <= 6)
    axes.yaxis.set_major_locator(FixedLocator(list(np.arange(math.ceil(low / step), high / step) * step)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.6g}")
    axes.set_ylim(low, high)


def one_line(axes: Axes, at: float = 1.0) -> None:
    """The gain of nothing."""
    axes.axhline(at, color=GREY, linewidth=0.7, zorder=1)


def remark(axes: Axes, text: str, width: int = 60) -> None:
    """Small print in a panel's lower right corner: what is not shown."""
    lines = "\n".join(textwrap.wrap(text, width))
    axes.text(0.99, 0.01, lines, transform=axes.transAxes, ha="right", va="bottom", fontsize=TINY, color=GREY, zorder=6)


Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


class Named(NamedTuple):
    """A point in data coordinates, its name and colour."""

    name: str
    x: float
    y: float
    colour: str


def place(axes: Axes, named: Sequence[Named], others: Sequence[tuple[float, float]] = (), size: float = 8.5) -> None:
    """Name points, the most crowded first, with a hair line to each; call it last, with a fixed layout.

    No name hides another, one of the points, or one of the `others`. The figure must have a canvas, without which sizes
    of text are not known.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    pixel = figure.dpi / 72
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    spots = [(axes.transData.transform((p.x, p.y)) / pixel).tolist() for p in named]
    hidden = [(axes.transData.transform(spot) / pixel).tolist() for spot in others]
    centre = np.median(spots, axis=0) if spots else np.zeros(2)
    taken: list[Box] = [(x - 5.0, y - 5.0, x + 5.0, y + 5.0) for x, y in (*spots, *hidden)]
    order = sorted(range(len(named)), key=lambda i: (math.dist(spots[i], centre), named[i].name))
    for x, y, point in ((*spots[i], named[i]) for i in order):
        text = axes.annotate(
            point.name, (point.x, point.y), (0, 0), textcoords="offset points", fontsize=size, color=point.colour,
            zorder=6, ha="left", va="bottom", arrowprops={"arrowstyle": "-", "color": point.colour, "linewidth": 0.6},
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )  # fmt: skip
        extent = Text.get_window_extent(text, renderer)
        wide, high = extent.width / pixel, extent.height / pixel
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
