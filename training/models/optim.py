"""AdamW and Muon, and which parameters each of them trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)
"""Of AdamW, as GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix B)."""
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, five times (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""
RMS_OF_ADAMW = 0.2
"""Muon's updates are scaled to this root mean square, about that of AdamW's, so that both take the same learning rate
and weight decay (Liu et al. 2025, arXiv 2502.16982, equation 4)."""


def orthogonalise(update: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values in about 0.7 - 1.2. update [..., rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised matrix by matrix. Parameters [..., rows, columns]; leading ones are separate matrices.

    torch's own takes no stacks of matrices, which experts are.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": MUON_MOMENTUM})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(momentum, group["momentum"]))
                scale = RMS_OF_ADAMW * max(weight.shape[-2:]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * scale)


def optimizers(model: nn.Module, name: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """What trains `model`: AdamW, or Muon for the matrices of its blocks and AdamW for the rest.

    Matrices decay, vectors (norms, biases) do not. Vocabulary and position tables are AdamW's (Jordan et al. 2024).
    """
    # Biases of stacked experts have two dimensions, and stay vectors.
    is_matrix = {id(p): p.ndim >= 2 and not path.endswith("bias") for path, p in model.named_parameters()}
    matrices = [p for path, p in model.named_parameters() if is_matrix[id(p)] and path.startswith("blocks.")]
    of_blocks = set(map(id, matrices))
    tables = [p for p in model.parameters() if is_matrix[id(p)] and id(p) not in of_blocks]
    vectors = [p for p in model.parameters() if not is_matrix[id(p)]]
    decayed = tables if name == "muon" else [*matrices, *tables]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)
    return [Muon(matrices, lr, weight_decay), adamw] if name == "muon" else [adamw]
