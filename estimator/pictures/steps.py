"""Where the time of one step goes, as bars."""

from __future__ import annotations

from collections.abc import Mapping

from cegain.pictures import style
from cegain.pictures.style import BLUE

_LEAST = 0.0005  # a smaller part of the step has no bar


def draw(title: str, parts: Mapping[str, float], ending: str) -> bytes:
    """Draw seconds by part, the longest on top."""
    whole = sum(parts.values())
    shown = sorted((seconds, name) for name, seconds in parts.items() if seconds > _LEAST * whole)
    with style.picture(7.0, 1.6 + 0.32 * len(shown), title) as page:
        axes = page.subplots()
        axes.barh([name.replace("_", " ") for _, name in shown], [seconds for seconds, _ in shown], color=BLUE)
        axes.set_xlabel("seconds")
        style.below(page, "Modelled, not measured: each part is counted work over a ceiling.", style.source())
        return style.encode(page, ending)
