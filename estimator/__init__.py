"""How much compute is an algorithm worth? Compute-equivalent gains (CEG) with honest intervals.

>>> from cegain import estimate
>>> print(estimate("moe", flops=1e24))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cegain.gain.question import estimate as estimate

__all__ = ["estimate"]


def __getattr__(name: str) -> object:
    # `import cegain.tables.published_gains` must not pay for scipy; the API is loaded when it is used.
    if name == "estimate":
        from cegain.gain.question import estimate

        return estimate
    raise AttributeError(name)
