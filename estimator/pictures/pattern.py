"""An attention pattern as a picture: which keys each query sees, and the blocks that a kernel visits for it."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from cegain.kernels import patterns
from cegain.kernels.patterns import HeadPattern
from cegain.pictures import style
from cegain.pictures.style import BLUE, GREY, SMALL

_COLOURS = ("#FFFFFF", "#F0D9A8", BLUE)
_LABELS = ("block not visited", "visited and masked", "seen")
_COLUMNS = 4
_TITLE = 42
"""Characters of a panel's title."""


def draw(name: str, heads: tuple[HeadPattern, ...], tokens: int, block: int, ending: str) -> bytes:
    """Draw one panel per distinct head, tokens in their natural order, blocks of `block` tokens a side."""
    distinct = list(dict.fromkeys(heads))
    columns = min(len(distinct), _COLUMNS)
    rows = -(-len(distinct) // columns)
    title = f"{name} attention, {tokens} tokens, {len(heads)} heads, blocks of {block} tokens"
    with style.picture(max(5.2, 3.2 * columns), 3.5 * rows + 1.3, title) as page:
        panels = page.subplots(rows, columns, squeeze=False).ravel()
        for panel, head in zip(panels, distinct, strict=False):
            places = [str(i + 1) for i, other in enumerate(heads) if other == head]
            _panel(panel, head, places, tokens, block)
        for panel in panels[len(distinct) :]:
            panel.set_axis_off()
        reading = "A row for each query, a column for each key; a kernel visits whole blocks."
        colours = [Patch(facecolor=colour, edgecolor=GREY, linewidth=0.5) for colour in _COLOURS]
        made_from = style.source(style.table_hash("pattern", [heads, tokens, block]))
        style.below(page, reading, made_from, colours, _LABELS, columns=3)
        return style.encode(page, ending)


def _panel(axes: Axes, head: HeadPattern, places: list[str], tokens: int, block: int) -> None:
    seen = patterns.mask(head, tokens, tokens)
    visited = patterns.block_cover(head, tokens, tokens, block, block).visited
    cover = visited.repeat(block, axis=0).repeat(block, axis=1)[:tokens, :tokens]
    axes.imshow(cover.astype(int) + seen, cmap=ListedColormap(_COLOURS), vmin=0, vmax=2, interpolation="nearest")
    lengths = [f"{field} {getattr(head, field)}" for field in _FIELDS[head.kind]]
    named = places if len(places) < 5 else [*places[:2], "...", places[-1]]
    which = f"head{'s' if len(places) > 1 else ''} {', '.join(named)}"
    title = textwrap.wrap(f"{which}: {', '.join([head.kind, *lengths])}".replace("_", " "), _TITLE)
    axes.set_title("\n".join([*title, _counts(head, tokens, block)]), fontsize=SMALL)
    axes.set_xlabel("key (token)")
    axes.set_ylabel("query (token)")
    axes.set_xticks(np.arange(0, tokens + 1, block) - 0.5, minor=True)
    axes.set_yticks(np.arange(0, tokens + 1, block) - 0.5, minor=True)
    if tokens <= 32 * block:
        axes.grid(which="minor", color=GREY, linewidth=0.25, alpha=0.6)
    axes.tick_params(which="minor", length=0)


_FIELDS: dict[str, tuple[str, ...]] = {
    "full": (), "causal": (), "window": ("window", "n_global"), "column": ("stride",),
    "fixed": ("stride", "summary", "summary_start"),
}  # fmt: skip
"""Which lengths a head of a kind has."""


def _counts(head: HeadPattern, tokens: int, block: int) -> str:
    """Useful and visited pairs; for column heads also as they are run, one residue class after the other."""
    natural = patterns.visited_scores([head], tokens, tokens, block_q=block, block_kv=block, order="natural")
    text = f"{patterns.useful_scores([head], tokens, tokens):,} pairs seen, {natural:,} visited"
    if head.kind != "column":
        return text
    run = patterns.visited_scores([head], tokens, tokens, block_q=block, block_kv=block)
    return f"{text}\n({run:,} as run: residue classes brought together)"
