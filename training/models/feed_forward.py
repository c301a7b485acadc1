"""Feed-forward layers: dense ones, and a mixture of experts that drops no token.

Symbols: N tokens, M model width, F layer or expert width, E experts, K experts per token.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from cegain.kernels import reference
from cegain.kernels.backend import Backend, choose
from cegain.kernels.costs import Activation
from cegain.kernels.moe_dispatch import moe_experts, route, triton_unfit
from cegain.kernels.transforms import call
from cegain.shapes.architecture import ModelShape

BALANCE_COEFFICIENT = 0.01
"""Of every mixture's balance loss (Fedus et al. 2021, arXiv 2101.03961, section 2.2)."""
BIAS_COLUMNS = 8
"""Columns, one of them ones, that carry a bias through grouped products; in half precision rows need 16 bytes."""


def activate(hidden: Tensor, gate: Tensor | None, activation: Activation) -> Tensor:
    """The hidden layer [..., F] of "swiglu" (which alone has a gate), "gelu" or "relu2"."""
    if gate is not None:
        return functional.silu(gate) * hidden
    return functional.gelu(hidden) if activation == "gelu" else functional.relu(hidden).square()


class FeedForward(nn.Module):
    """Dense layer [..., M] -> [..., M]."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width, self.activation = shape.feed_forward_width, shape.activation
        self.up = nn.Linear(shape.d_model, width, bias=shape.biases)
        self.gate = nn.Linear(shape.d_model, width, bias=shape.biases) if self.activation == "swiglu" else None
        self.down = nn.Linear(width, shape.d_model, bias=shape.biases)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """The output, and no auxiliary loss."""
        gate = None if self.gate is None else self.gate(x)
        return self.down(activate(self.up(x), gate, self.activation)), None


class Experts(nn.Module):
    """E feed-forward layers as stacked weights: `up` and `gate` [E, M, F], `down` [E, F, M], biases [E, F], [E, M]."""

    def __init__(self, count: int, model: int, width: int, activation: Activation, biases: bool) -> None:
        super().__init__()
        self.activation = activation

        def empty(there: bool, *sizes: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(sizes)) if there else None

        gated = activation == "swiglu"
        self.up, self.down = (
            nn.Parameter(torch.empty(count, model, width)),
            nn.Parameter(torch.empty(count, width, model)),
        )
        self.gate = empty(gated, count, model, width)
        self.up_bias, self.down_bias = empty(biases, count, width), empty(biases, count, model)
        self.gate_bias = empty(gated and biases, count, width)

    def every(self, x: Tensor) -> Tensor:
        """Sum of all experts' outputs for rows x [N, M]: one layer, E times as wide."""
        hidden = [
            None
            if weight is None
            else self._linear(x, weight.transpose(0, 1).flatten(1), None if bias is None else bias.flatten())
            for weight, bias in ((self.up, self.up_bias), (self.gate, self.gate_bias))
        ]
        assert hidden[0] is not None
        out = activate(hidden[0], hidden[1], self.activation) @ self.down.flatten(0, 1)
        return out if self.down_bias is None else out + self.down_bias.sum(0)

    def grouped(self, x: Tensor, routing: reference.Routing, backend: str) -> Tensor:
        """Weighted sum of the chosen experts' outputs for rows x [N, M], in grouped products."""
        up: Tensor = self.up
        down: Tensor = self.down
        gate: Tensor | None = self.gate
        width = x.shape[1]
        if self.up_bias is not None:
            one = x.new_zeros(BIAS_COLUMNS)
            one[0] = 1.0
            x = torch.cat([x, one.expand(len(x), -1)], dim=1)
            up, down = self._with_bias(up, self.up_bias), functional.pad(down, (0, BIAS_COLUMNS))
            gate = None if gate is None or self.gate_bias is None else self._with_bias(gate, self.gate_bias)
        if _autocast(x):  # which knows torch's own products only
            dtype = torch.get_autocast_dtype(x.device.type)
            x, up, down = x.to(dtype), up.to(dtype), down.to(dtype)
            gate = None if gate is None else gate.to(dtype)
        keep = torch.is_grad_enabled()
        arguments = (x, routing.weights, routing.experts, up, down, gate, self.activation, backend, keep)
        out: Tensor = call(moe_experts, *arguments)[0]
        if self.down_bias is None:
            return out
        biases = (routing.weights[..., None] * self.down_bias[routing.experts]).sum(1)
        return out[:, :width] + biases.to(out.dtype)

    def plain(self, x: Tensor, routing: reference.Routing) -> Tensor:
        """The same, one expert after the other on its own rows, in operations that any FLOP counter knows."""
        out = torch.zeros_like(x)
        for e in range(len(self.up)):
            row, slot = self._rows(routing.experts, e)
            mine = x[row]
            hidden = self._linear(mine, self.up[e], None if self.up_bias is None else self.up_bias[e])
            gate = None
            if self.gate is not None:
                gate = self._linear(mine, self.gate[e], None if self.gate_bias is None else self.gate_bias[e])
            mine = activate(hidden, gate, self.activation)
            mine = self._linear(mine, self.down[e], None if self.down_bias is None else self.down_bias[e])
            out = out.index_add(0, row, (mine * routing.weights[row, slot, None]).to(out.dtype))
        return out

    def _rows(self, experts: Tensor, e: int) -> tuple[Tensor, Tensor]:
        """Tokens that chose expert e, and as which of their choices; on the meta device even shares, as much work."""
        if not experts.is_meta:
            row, slot = torch.where(experts == e)
            return row, slot
        share, rest = divmod(int(experts.numel()), len(self.up))  # a tensor, while fvcore traces
        row = experts.new_empty(share + (e < rest))
        return row, torch.empty_like(row)

    @staticmethod
    def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x @ weight if bias is None else x @ weight + bias

    @staticmethod
    def _with_bias(weight: Tensor, bias: Tensor) -> Tensor:
        """[E, M + BIAS_COLUMNS, F]: a row for the bias, and rows of zeros."""
        return torch.cat([weight, functional.pad(bias[:, None], (0, 0, 0, BIAS_COLUMNS - 1))], dim=1)


class Mixture(nn.Module):
    """Top-K of E experts with softmax scores that sum to 1 over the chosen, and experts that every token uses."""

    def __init__(self, shape: ModelShape, backend: Backend) -> None:
        super().__init__()
        self.top_k, self.backend = shape.top_k, backend
        sizes = (shape.d_model, shape.expert_width, shape.activation, shape.biases)
        self.router = nn.Linear(shape.d_model, shape.n_experts, bias=False)
        self.routed = Experts(shape.n_experts, *sizes)
        self.shared = Experts(shape.n_shared_experts, *sizes) if shape.n_shared_experts else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and BALANCE_COEFFICIENT times the balance loss."""
        rows = x.reshape(-1, x.shape[-1])
        unfit = triton_unfit(rows, self.routed.up, self.top_k)
        backend, _ = choose("moe_feed_forward", self.backend, x.device, unfit)
        routing = route(self._logits(rows), self.top_k, backend=backend)
        if backend == "reference":
            out = self.routed.plain(rows, routing)
        else:
            out = self.routed.grouped(rows, routing, backend)
        if self.shared is not None:
            out = out + self.shared.every(rows)
        return out.view(x.shape), BALANCE_COEFFICIENT * balance_loss(routing)

    def _logits(self, rows: Tensor) -> Tensor:
        """[N, E], in the weights' precision under autocast too (Fedus et al. 2021, section 2.4)."""
        if not _autocast(rows):
            return functional.linear(rows, self.router.weight)
        with torch.autocast(rows.device.type, enabled=False):
            return functional.linear(rows.to(self.router.weight.dtype), self.router.weight)


def _autocast(x: Tensor) -> bool:
    """Whether autocast is on where x is; the meta device has none."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def balance_loss(routing: reference.Routing) -> Tensor:
    """`cegain.kernels.reference.balance_loss`, with the experts' shares of the tokens of all processes.

    E sum_e f_e P_e is linear in P, and f has no gradient: the mean over processes with equally many tokens is then
    the loss of one process that holds all of their tokens, and so are its gradients.
    """
    n_experts = routing.scores.shape[1]
    chosen = routing.experts.flatten()
    counts = torch.zeros(n_experts, dtype=torch.int64, device=chosen.device)
    counts = counts.scatter_add(0, chosen, torch.ones_like(chosen))
    if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized():  # evaluation needs no exchange
        dist.all_reduce(counts)
    share = counts.to(routing.scores.dtype) / counts.sum()
    return n_experts * (share * routing.scores.mean(0)).sum()
