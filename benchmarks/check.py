"""Whether an implementation computes the definition, at the very shape that is timed. Nothing wrong is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cegain.benchmarks.cases import Implementation, Operation

ULPS = {torch.float32: (8.0, 64.0), torch.float16: (2.0, 2.0), torch.bfloat16: (2.0, 2.0)}
"""Roundings of the largest entry that an output and a gradient may err by beside twice the plain operation's error, by
dtype. In float32 eight are too few for the gradients of torch's own fused attention on a CPU at 4,096 tokens."""


class WrongResultError(AssertionError):
    """An implementation that is not what the definition says."""


class Truth:
    """What the definition gives for an operation's leaves, and how far it is from that in the leaves' own dtype.

    The definition would hold all scores, or every expert's output for every token. So it computes a part of the output
    (`Operation.plain`), and the output's gradient is 0 elsewhere: all gradients then follow from that part alone.
    """

    def __init__(self, operation: Operation, leaves: Sequence[Tensor]) -> None:
        self.operation, self.leaves = operation, list(leaves)
        double = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
        with torch.no_grad():
            shape = operation.plain(double).shape
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.grad = grad.to(leaves[0].dtype).to(leaves[0].device)
        self.exact = _results(operation.plain, double, self.grad.double())
        self.rough = _results(operation.plain, self.leaves, self.grad)

    def check(self, implementation: Implementation) -> None:
        """Compare outputs, and gradients where the implementation has any.

        Raises:
            WrongResultError: an error above twice the plain operation's in the same dtype plus `ULPS` roundings; or a
                wrong shape, or numbers that are not finite.
        """
        gradients = "bwd" in self.operation.passes and "bwd" not in implementation.skips

        where = f"{implementation.name}, {self.operation.case}"

        def part(leaves: list[Tensor]) -> Tensor:
            got = self.operation.selected(implementation.run(*leaves))
            if got.shape != self.grad.shape:
                shapes = f"{list(got.shape)}, expected {list(self.grad.shape)}"
                raise WrongResultError(f"{where}, output: shape {shapes} (in the part that is compared)")
            return got

        given = self.leaves if gradients else [leaf.detach() for leaf in self.leaves]
        found = _results(part, given, self.grad)
        names = ["output", *(f"gradient {i}" for i in range(1, len(self.exact)))][: len(found)]
        for name, want, base, got in zip(names, self.exact, self.rough, found, strict=False):
            if not torch.isfinite(got).all():
                raise WrongResultError(f"{where}, {name}: not finite")
            largest = float(want.abs().max())
            error, plain = (float((x.double() - want).abs().max()) for x in (got, base))
            roundings = ULPS[got.dtype][name != "output"]
            allowed = 2 * plain + roundings * largest * torch.finfo(got.dtype).eps
            if error > allowed:
                said = f"error {error:.3g}, allowed {allowed:.3g} (largest entry {largest:.3g})"
                raise WrongResultError(f"{where}, {name}: {said}")


def _results(function: Callable[[list[Tensor]], Tensor], leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Output, and the gradients of the leaves that want one."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted:
        with torch.no_grad():
            return [function(leaves)]
    out = function(leaves)
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]
