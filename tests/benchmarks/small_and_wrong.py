"""A pytest plugin for runs of the benchmarks inside tests: tiny ceilings, and an implementation that is wrong."""

from typing import Any

import pytest
from torch import Tensor

from cegain.benchmarks import attention, clock, suite
from cegain.benchmarks.cases import Implementation
from cegain.kernels.flash import flash_attention


def wrong(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention whose scale is off by a thousandth."""
    return flash_attention(q, k, v, scale=1.001 / q.shape[-1] ** 0.5)


def pytest_configure(config: pytest.Config) -> None:
    suite.CEILINGS["cpu"] = ((64,), (2**16,))
    clock._cpu_cache = lambda: 2**16
    known = attention.Attention.implementations

    def implementations(self: Any) -> list[Implementation]:
        found = known(self)
        return [*found, Implementation("wrong", wrong, found[-1].cost, ours=True)]

    attention.Attention.implementations = implementations  # type: ignore[method-assign]
