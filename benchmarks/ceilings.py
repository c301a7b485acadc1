"""The device's ceilings: what matrix products and copies reach. Everything else is compared with them."""

from __future__ import annotations

import torch
from torch import Tensor

from cegain.benchmarks.cases import Implementation, OnDevice, PassName
from cegain.benchmarks.mixture import random_leaves
from cegain.kernels import costs
from cegain.kernels.costs import Cost

_CHECKED = 64
"""Rows or entries that are compared with the same operation on them alone."""


class Gemm(OnDevice):
    """A square matrix product: what it reaches is the ceiling of FLOP/s."""

    passes: tuple[PassName, ...] = ("fwd",)

    def leaves(self, seed: int) -> list[Tensor]:
        """[T, M] and [M, F]."""
        c = self.case
        shapes = [(c.seq_q, c.d_model), (c.d_model, c.d_ff)]
        made = random_leaves(shapes, (1, c.d_model), seed, self.device, self.dtype)
        return [x.detach() for x in made]

    def selected(self, output: Tensor) -> Tensor:
        """Some rows."""
        return output[:_CHECKED]

    def plain(self, leaves: list[Tensor]) -> Tensor:
        """Those, by themselves."""
        return leaves[0][:_CHECKED] @ leaves[1]

    def implementations(self) -> list[Implementation]:
        """Torch's."""
        c = self.case
        cost = costs.linear(c.seq_q, c.d_model, c.d_ff, bytes_per_element=self.dtype.itemsize)
        return [Implementation("torch", torch.matmul, lambda _: cost)]


class Copy(OnDevice):
    """A copy of [T] entries: what it reaches is the ceiling of bytes/s, read and written."""

    passes: tuple[PassName, ...] = ("fwd",)

    def leaves(self, seed: int) -> list[Tensor]:
        """Source and target."""
        return list(torch.ones(2, self.case.seq_q, device=self.device, dtype=self.dtype))

    def selected(self, output: Tensor) -> Tensor:
        """The first entries."""
        return output[:_CHECKED]

    def plain(self, leaves: list[Tensor]) -> Tensor:
        """Those, by themselves."""
        return leaves[0][:_CHECKED].clone()

    def implementations(self) -> list[Implementation]:
        """Torch's."""
        cost = Cost(bytes=2 * self.case.seq_q * self.dtype.itemsize)
        return [Implementation("torch", lambda source, target: target.copy_(source), lambda _: cost)]
