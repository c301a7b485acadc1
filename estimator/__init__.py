"""How much compute is an algorithm worth? Compute-equivalent gains (CEG) with honest intervals.

>>> from cegain import estimate
>>> print(estimate("moe", flops=1e24))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cegain.api.answers import estimate as estimate
    from cegain.api.runs import backtest as backtest
    from cegain.api.runs import compare as compare
    from cegain.api.runs import fit as fit
    from cegain.api.runs import forecast as forecast
    from cegain.api.runs import speedup as speedup
    from cegain.api.steps import step_time as step_time
    from cegain.run_tables.run_import import ReadOptions as ReadOptions

_WHERE = {
    "estimate": "answers", "fit": "runs", "forecast": "runs", "backtest": "runs", "compare": "runs",
    "speedup": "runs", "step_time": "steps",
}  # fmt: skip
__all__ = ["ReadOptions", "backtest", "compare", "estimate", "fit", "forecast", "speedup", "step_time"]


def __getattr__(name: str) -> object:
    # A function is loaded when it is used: `import cegain` must not pay for scipy.
    if name in _WHERE:
        return getattr(importlib.import_module(f"cegain.api.{_WHERE[name]}"), name)
    if name == "ReadOptions":
        return importlib.import_module("cegain.run_tables.run_import").ReadOptions
    raise AttributeError(name)
