"""Numbers and lines as people read them."""

from __future__ import annotations

import math
import re
import textwrap

WIDTH = 110


def as_number(text: str, kind: type[int] | type[float] = float) -> float:
    """The number that a text holds, NaN where it holds none."""
    try:
        return kind(text)
    except ValueError:
        return math.nan


_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_QUANTITY = re.compile(r"(?:(?P<factor>[-+.\d]+)\s*[x*\u00d7]\s*)?10\s*(?:\^|\*\*)\s*(?P<power>[-+]?\d+)", re.ASCII)


def quantity(text: str) -> float:
    """A number as people write large ones: 1e26, 10^26, 3x10^24, 7B, 2.5T, 125M.

    Raises:
        ValueError: it is none of these.
    """
    text = text.strip()
    if match := _QUANTITY.fullmatch(text):
        return float(f"{float(match['factor'] or 1)!r}e{match['power']}")
    if text[-1:].lower() in _SUFFIXES and not text[:-1].lower().endswith("e"):
        return float(text[:-1]) * _SUFFIXES[text[-1].lower()]
    return float(text)


def finite(value: float) -> float | None:
    """A number as JSON has it: None in place of NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def number(value: float) -> str:
    """A gain or a budget with two digits that matter: 5.8, 12, 0.93, 1.4e24."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 0.095 <= value < 1:
        return f"{value:.2f}"
    if 0.00095 <= value < 0.095:
        return f"{value:.2g}"
    if 1 <= value < 9.95:
        return f"{value:.1f}" if value >= 2 else f"{value:.2f}"
    if value < 1e4 and value >= 9.95:
        return f"{float(f'{value:.2g}'):.0f}"
    return f"{value:.2g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def span(ends: tuple[float, float], unit: str = "x") -> str:
    """An interval: 1.4x - 24x."""
    return f"{number(ends[0])}{unit} - {number(ends[1])}{unit}"


def budget(flops: float) -> str:
    """A budget as people write it: 1e25, 2.5e24."""
    return f"{flops:g}".replace("e+0", "e").replace("e+", "e")


def share(probability: float) -> str:
    """A probability in whole percent, never rounded to certainty."""
    probability = max(0.0, round(probability, 12))  # 1 - cdf may miss 0 in its last digit
    if 0 < probability < 0.01:
        return "<1%"
    if 0.99 < probability < 1:
        return ">99%"
    return f"{probability:.0%}"


def wrap(line: str, width: int = WIDTH) -> str:
    """A long line folded at spaces; what follows keeps the line's indentation."""
    indent = line[: len(line) - len(line.lstrip())]
    fold = textwrap.TextWrapper(
        width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(fold.wrap(line.strip())) if len(line) > width else line


def counted(n: int, what: str) -> str:
    """A number of things: 1 row, 2 rows."""
    return f"{n} {what}" + "s" * (n != 1)
