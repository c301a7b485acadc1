"""Pictures of kernel times: time and rate against length under the roofline, and all operations in one roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from cegain.pictures import style
from cegain.pictures.style import BLACK, BLUE, DASHED, GREEN, GREY, HEADING, ORANGE, PINK, RED, SKY, SMALL, Named
from cegain.tables.kernel_times import KernelTime
from cegain.views.kernel_families import FAMILIES, OURS, Ceilings, Family, Test, ceilings, choose, panel_title

# Every line also has its name at its end.
_COLOURS = {
    "materialised": BLACK, "every_expert": BLACK, "sdpa_math": PINK, "sdpa_flash": RED,
    "sdpa_efficient": ORANGE, "sdpa_cudnn": GREEN, "flex": SKY, "expert_loop": ORANGE,
    "grouped_mm": GREEN, "dense_ffn": PINK,
}  # fmt: skip
_MARKERS = {
    "materialised": "s", "every_expert": "s", "sdpa_math": "v", "sdpa_flash": "^", "sdpa_efficient": "<",
    "sdpa_cudnn": ">", "flex": "D", "expert_loop": "D", "grouped_mm": ">", "dense_ffn": "X",
}  # fmt: skip
_GAP = 0.068
"""Between two names at line ends, as a share of a panel's height."""


class End(NamedTuple):
    """The last point of a line, its name and colour."""

    x: float
    y: float
    name: str
    colour: str


def draw(rows: Sequence[KernelTime], family: str, device: str | None, ending: str) -> bytes:
    """Draw one of `FAMILIES`: time above, rate below, a column for each shape and pass.

    Raises:
        ValueError: `choose` finds no rows.
    """
    kind = FAMILIES[family]
    rows_drawn, session = choose(rows, device, kind.belongs)
    roof = ceilings(session)
    columns = _columns(family, rows_drawn, session)
    by_traffic = family == "decode"
    text = f"{kind.title}: times and rates on {rows_drawn[0].device}"
    with style.picture(max(5.2, 3.3 * len(columns)), 6.5, text) as page:
        panels = page.subplots(2, len(columns), squeeze=False, sharex="col")
        for (title, lines), above, below in zip(columns.items(), panels[0], panels[1], strict=True):
            _panel(above, lines, kind, roof, _milliseconds)
            _panel(below, lines, kind, roof, _gigabytes if by_traffic else _teraflops)
            above.set_title(title)
            below.set_xlabel(kind.label)
        panels[0, 0].set_ylabel("time (ms)")
        panels[1, 0].set_ylabel("cache and queries read (GB/s)" if by_traffic else "useful TFLOP/s")
        reading = "Lines: medians of rounds, ours bold; bands: 20% to 80%. Upper panels: less is better; lower: more. "
        style.below(page, reading + _ceilings("Dashed: roofline, ", roof), _source(rows_drawn))
        return style.encode(page, ending)


Lines = dict[str, list[KernelTime]]
_BESIDE = ("flash, all keys", "flash, own keys", "dense_ffn")
"""Lines of other operations, which count their own work."""


def _columns(family: str, rows_drawn: Sequence[KernelTime], session: Sequence[KernelTime]) -> dict[str, Lines]:
    """Panels by title, and in each the lines by name, points by rising length."""
    kind = FAMILIES[family]
    panels: dict[str, Lines] = {}
    widest = max(row.head_dim for row in rows_drawn)
    for row in sorted(rows_drawn, key=lambda row: _order(family, row)):
        if row.pass_ not in kind.passes or (family in ("sparse", "mqa") and row.head_dim != widest):
            continue
        lines = panels.setdefault(panel_title(family, row), {})
        lines.setdefault(row.implementation, []).append(row)
    for lines in panels.values():
        first = next(iter(lines.values()))[0]
        for name, test in _companions(family, first):
            others = [row for row in session if row.pass_ == first.pass_ and test(row)]
            if others:
                lines[name] = others
        for points in lines.values():
            points.sort(key=lambda row: getattr(row, kind.x))
    return panels


def _order(family: str, row: KernelTime) -> tuple[object, ...]:
    passes = FAMILIES[family].passes
    rank = passes.index(row.pass_) if row.pass_ in passes else 9
    return row.head_dim, row.heads_kv, row.experts, row.top_k, row.pattern, rank


def _companions(family: str, example: KernelTime) -> list[tuple[str, Test]]:
    """Lines of other operations that belong beside a panel's own: our dense kernel, the layer of equal active FLOP."""
    if family in ("sparse", "mqa"):

        def dense(row: KernelTime) -> bool:
            same = (row.heads_q, row.head_dim) == (example.heads_q, example.head_dim)
            return FAMILIES["flash"].belongs(row) and row.implementation == "flash" and same

        return [("flash, all keys" if family == "sparse" else "flash, own keys", dense)]
    if family == "moe":

        def active(row: KernelTime) -> bool:
            return row.op == "feed_forward" and (row.d_model, row.d_ff) == (
                example.d_model,
                example.top_k * example.d_ff,
            )

        return [("dense_ffn", active)]
    return []


def _milliseconds(row: KernelTime, seconds: float) -> float:
    return 1e3 * seconds


def _teraflops(row: KernelTime, seconds: float) -> float:
    return row.flops / seconds / 1e12


def _gigabytes(row: KernelTime, seconds: float) -> float:
    """What must be read at least, whatever an implementation reads."""
    return row.bytes / seconds / 1e9


def _panel(
    axes: Axes, lines: Lines, kind: Family, roof: Ceilings | None, value: Callable[[KernelTime, float], float]
) -> None:
    """One line per implementation, with its name at its end, and the roofline."""
    is_time = value is _milliseconds

    def at(row: KernelTime) -> int:
        return int(getattr(row, kind.x))

    axes.set_xscale("log", base=2)
    if is_time:
        axes.set_yscale("log")
    # The least traffic of any of them is what the operation needs; copies of keys, say, are an implementation's own.
    least: dict[int, KernelTime] = {}
    for row in (row for name, points in lines.items() if name not in _BESIDE for row in points):
        least[at(row)] = min(least.get(at(row), row), row, key=lambda row: row.bytes)
    ends: list[End] = []
    for name, points in lines.items():
        if name == "flash, all keys" and not is_time:
            continue  # it does other work: only times compare
        style, colour = _look(name, kind.main)
        # Rates count what the operation needs, so that equal times are equal rates.
        counted = [row if name in _BESIDE else least[at(row)] for row in points]
        x = [at(row) for row in points]
        middle, low, high = (
            [value(counts, getattr(row, q)) for counts, row in zip(counted, points, strict=True)]
            for q in ("median_s", "p20_s", "p80_s")
        )
        axes.plot(x, middle, color=colour, markersize=3.5, **style)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append(End(x[-1], middle[-1], name, colour))
    if roof is not None:
        x = sorted(least)
        best = [value(least[i], roof.least_seconds(least[i])) for i in x]
        axes.plot(x, best, color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
        ends.append(End(x[-1], best[-1], "roofline", GREY))
    ticks = sorted({at(row) for points in lines.values() for row in points})
    # Room for the names: a part of the axis, or an octave where there is one length only.
    axes.set_xlim(ticks[0] / 1.15, ticks[-1] * max(2.0, ticks[-1] / ticks[0]) ** 0.55)
    axes.spines["bottom"].set_bounds(ticks[0] / 1.15, ticks[-1])
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: _tokens(tokens)))
    if is_time:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, None)
        axes.yaxis.set_major_locator(MaxNLocator(6))
    _name_ends(axes, ends, ticks[-1])


def _tokens(count: float) -> str:
    return f"{count / 1024:g}k" if count >= 1024 and count % 1024 == 0 else f"{count:g}"


def _look(name: str, main: str) -> tuple[dict[str, Any], str]:
    """Line and colour of an implementation; ours are thick, the family's own blue."""
    if name == main:
        return {"marker": "o", "linewidth": 2.2, "zorder": 4}, BLUE
    if name in OURS:
        return {"marker": "o", "linewidth": 2.0, "zorder": 3}, GREY
    if "," in name:
        return {"marker": "o", "linewidth": 1.2, "linestyle": (0, (1, 1)), "markerfacecolor": "white"}, GREY
    return {"marker": _MARKERS.get(name, "P"), "linewidth": 1.1}, _COLOURS.get(name, GREY)


def _name_ends(axes: Axes, ends: Sequence[End], last: float) -> None:
    """Write names right of the last points, moved apart where they would touch, with a hair line to their point."""
    low, high = axes.get_ylim()
    is_log = axes.get_yscale() == "log"

    def height(y: float) -> float:
        return float(np.log(y / low) / np.log(high / low)) if is_log else (y - low) / (high - low)

    order = sorted(ends, key=lambda end: end.y)
    places = [height(end.y) for end in order]
    for _ in range(100):  # push neighbours apart, half each
        for i in range(len(places) - 1):
            missing = _GAP - (places[i + 1] - places[i])
            if missing > 0:
                places[i] -= missing / 2
                places[i + 1] += missing / 2
    shift = max(0.0, 0.01 - places[0]) - max(0.0, places[-1] - 0.99)
    left, right = axes.get_xlim()
    start = np.log(last / left) / np.log(right / left)
    for (x, y, name, colour), place in zip(order, places, strict=True):
        at = np.log(x / left) / np.log(right / left)
        axes.plot([at, start + 0.05], [height(y), place + shift], color=colour, linewidth=0.5, alpha=0.6,
                  transform=axes.transAxes, clip_on=False)  # fmt: skip
        axes.text(start + 0.06, place + shift, name.replace("_", " "), color=colour, fontsize=SMALL, va="center",
                  transform=axes.transAxes, fontweight="bold" if name in OURS else "normal")  # fmt: skip


def _ceilings(begin: str, roof: Ceilings | None) -> str:
    """The sentence about the ceilings of a session."""
    if roof is None:
        return "No ceilings were measured in this session."
    product, copy = _rate(roof.flops_per_s, "FLOP/s"), _rate(roof.bytes_per_s, "B/s")
    return f"{begin}a matrix product at {product} and a copy at {copy}, measured in the session."


def _source(rows: Sequence[KernelTime]) -> str:
    """What a picture is made of: the table's rows, and how they were measured."""
    row = max(rows, key=lambda row: row.date)
    versions = f"torch {row.torch}" + (f", triton {row.triton}" if row.triton else "")
    versions += f", driver {row.driver}" if row.driver else ""
    measured = f"measured {row.date[:10]} at commit {row.commit} ({row.dtype}, {versions})"
    return style.source(style.table_hash("kernel times", rows), measured)


def _rate(value: float, unit: str) -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.3g}\N{NO-BREAK SPACE}{prefix}{unit}"
    return f"{value / 1e6:.3g}\N{NO-BREAK SPACE}M{unit}"


_ROOFLINE = {
    "flash": (BLUE, "o"), "sparse": (GREEN, "s"), "mqa": (RED, "^"), "decode": (PINK, "D"), "moe": (ORANGE, "v"),
}  # fmt: skip


def draw_roofline(rows: Sequence[KernelTime], device: str | None, ending: str) -> bytes:
    """Draw all operations of a device by intensity and rate under its ceilings.

    Raises:
        ValueError: `choose` finds no rows, or there are no ceilings.
    """

    def spot(row: KernelTime) -> tuple[float, float]:
        return row.flops / row.bytes, row.flops / row.median_s / 1e12

    rows_drawn, session = choose(rows, device, lambda row: row.op not in ("gemm", "copy"))
    roof = ceilings(session)
    if roof is None:
        raise ValueError("gemm and copy rows of the same session are there (found none). Measure test_ceilings too")
    text = f"All operations under the roofline of {rows_drawn[0].device}: forward and backward, and decoding"
    with style.picture(8.6, 6.0, text) as page:
        axes = page.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        shown = [row for row in rows_drawn if row.pass_ in ("fwd_bwd", "decode") and row.flops]
        points = [spot(row) for row in shown]
        x = np.array([intensity for intensity, _ in points])
        ridge = roof.flops_per_s / roof.bytes_per_s
        left, right = min(x.min(), ridge) / 2, max(x.max(), ridge) * 6
        line = np.geomspace(left, right, 200)
        axes.plot(line, np.minimum(roof.flops_per_s, line * roof.bytes_per_s) / 1e12, color=GREY, linewidth=1.4)
        axes.set_xlim(left, right)
        names: list[Named] = []
        for family, (colour, marker) in _ROOFLINE.items():
            part = [row for row in shown if FAMILIES[family].belongs(row)]
            for ours in (False, True):
                chosen = [row for row in part if (row.implementation in OURS) == ours]
                at, rates = [spot(row)[0] for row in chosen], [spot(row)[1] for row in chosen]
                face, size, alpha = (colour, 5.0, 1.0) if ours else ("none", 4.0, 0.55)
                axes.plot(at, rates, marker, color=colour, markerfacecolor=face, markersize=size,
                          alpha=alpha, markeredgewidth=0.8)  # fmt: skip
                if ours and chosen:
                    best = max(range(len(chosen)), key=rates.__getitem__)
                    names.append(Named(family, at[best], rates[best], colour))
        of_products = [spot(row) for row in session if row.op == "gemm"]
        axes.plot(*zip(*of_products, strict=True), "*", color=BLACK, markersize=8)
        looks = [*_ROOFLINE.values(), (BLACK, "*"), (GREY, "o"), (GREY, "o")]
        handles = [Line2D([], [], color=colour, marker=marker, linestyle="none") for colour, marker in looks]
        handles[-1].set_markerfacecolor("none")
        labels = [*_ROOFLINE, "matrix product", "filled: ours", "hollow: others"]
        axes.set_xlabel("useful FLOP per byte that the implementation moves at least")
        axes.set_ylabel("useful TFLOP/s")
        reading = f"Points: medians of rounds; named: the fastest of ours. {_ceilings('Line: ', roof)}"
        style.below(page, reading, _source(rows_drawn), handles, labels, columns=8)
        page.draw_without_rendering()
        page.set_layout_engine("none")  # names must not move the axes that they are placed in
        style.place(axes, names, [*points, *of_products], size=HEADING)
        return style.encode(page, ending)
