"""How close is close enough: by what the plain operation loses in the same dtype, not by a chosen tolerance."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Op = Callable[..., Tensor]


def results(op: Op, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Output of `op(*tensors)` and the gradients of all tensors for an output gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = op(*leaves)
    gradients = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True)
    return [
        out.detach(),
        *(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)),
    ]


def assert_close(
    fast: Op, plain: Op, tensors: Sequence[Tensor], names: Sequence[str], seed: int = 0, ulps: float = 1.0,
    cancelling: bool = False,
) -> None:  # fmt: skip
    """Outputs and gradients of `fast` err at most twice as much as those of `plain`, plus an ulp of the largest entry.

    Errors are the largest differences from `plain` in float64 on the same inputs. `ulps` is more than 1 where an
    operation by its nature rounds something that the plain one does not; with `cancelling` they are of the largest
    entry of all results, as what is rounded may be larger than a result in which it cancels. A result that is exactly
    zero because its terms cancel may keep a few roundings of the type that sums are held in.
    """
    exact_inputs = [tensor.double() for tensor in tensors]
    shape = plain(*exact_inputs).shape
    grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    grad = grad.to(tensors[0].dtype).to(tensors[0].device)  # the same gradient for all three
    exact = results(plain, exact_inputs, grad)
    rough = results(plain, tensors, grad)
    found = results(fast, tensors, grad)
    widest = max((float(want.abs().max()) for want in exact if want.numel()), default=0.0)
    for name, want, base, got in zip(
        ["output", *(f"gradient of {n}" for n in names)], exact, rough, found, strict=True
    ):
        assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
        assert got.dtype == base.dtype, f"{name}: dtype {got.dtype}, expected {base.dtype}"
        if not want.numel():
            continue
        assert torch.isfinite(got).all(), f"{name}: not finite"
        largest = float(want.abs().max())
        ulp = ulps * (widest if cancelling else largest) * torch.finfo(got.dtype).eps
        if not cancelling and largest <= widest * 2.0**-45:  # zero, but for what float64 makes of it
            ulp = 64 * widest * torch.finfo(torch.promote_types(got.dtype, torch.float32)).eps
        error, allowed = float((got.double() - want).abs().max()), 2 * float((base.double() - want).abs().max()) + ulp
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (largest entry {largest:.3g})"
