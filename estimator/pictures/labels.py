"""Names beside the points of a picture, where no other name or point is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

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

    Args:
        axes: its figure has a canvas, without which sizes of text are not known.
        named: what to name.
        others: points that no name may hide.
        size: of the names, in points.
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
