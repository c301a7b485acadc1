"""The LSTM that came before: blocks x + lstm(norm(x)) with a state as wide as the model.

Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; weights and gate order (input, forget, new,
output) as in torch.nn.LSTM.

Symbols: B sequences, T tokens, M model and state width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cegain.kernels.backend import Backend


class LSTM(nn.Module):
    """One layer [B, T, M] -> [B, T, M], its state zero at the start of every sequence."""

    def __init__(self, width: int, biases: bool, backend: Backend) -> None:
        super().__init__()
        self.unfused = backend == "reference"
        self.weight_ih, self.weight_hh = (nn.Parameter(torch.empty(4 * width, width)) for _ in range(2))
        self.bias_ih = nn.Parameter(torch.empty(4 * width)) if biases else None
        self.bias_hh = nn.Parameter(torch.empty(4 * width)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        """States after every token."""
        if self.unfused:
            return self._plain(x)
        # the compiler unrolls torch's own, token by token, and not every CPU has it in half precision
        if not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu"):
            zeros = x.new_zeros(1, x.shape[0], x.shape[2])
            weights: list[Tensor] = [
                w for w in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh) if w is not None
            ]
            keep = torch.is_grad_enabled()
            out: Tensor = torch.lstm(x, (zeros, zeros), weights, len(weights) == 4, 1, 0.0, keep, False, True)[0]
            return out
        gates = functional.linear(x, self.weight_ih, self.bias_ih)
        if self.bias_hh is not None:
            gates = gates + self.bias_hh
        states: Tensor = recurrence(gates.transpose(0, 1), self.weight_hh.to(gates.dtype))[0]
        return states.transpose(0, 1)

    def _plain(self, x: Tensor) -> Tensor:
        """One cell per token, in operations that any FLOP counter knows."""
        hidden = cell = torch.zeros_like(x[:, 0])
        states = []
        for now in x.unbind(1):
            gates = functional.linear(now, self.weight_ih, self.bias_ih)
            gates = gates + functional.linear(hidden, self.weight_hh, self.bias_hh)
            write, keep, new, show = gates.chunk(4, dim=-1)
            cell = keep.sigmoid() * cell + write.sigmoid() * new.tanh()
            hidden = show.sigmoid() * cell.tanh()
            states.append(hidden)
        return torch.stack(states, dim=1)


@torch.library.custom_op("ceg::lstm_recurrence", mutates_args=())
def recurrence(gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Everything after the product with the inputs, as one operation: the compiler would unroll a loop over tokens.

    Args:
        gates: [T, B, 4 M], inputs times their weights, with all biases.
        weight: [4 M, M], of the state.

    Returns:
        States [T, B, M]; for the backward pass activated gates [T, B, 4 M] and cells [T, B, M].
    """
    steps, batch, width = gates.shape[0], gates.shape[1], weight.shape[1]
    states, cells = (gates.new_empty(steps, batch, width) for _ in range(2))
    active = gates.new_empty(gates.shape)
    hidden = cell = gates.new_zeros(batch, width)
    for t in range(steps):
        now = torch.addmm(gates[t], hidden, weight.T, out=active[t])
        now[:, : 2 * width].sigmoid_()
        now[:, 2 * width : 3 * width].tanh_()
        now[:, 3 * width :].sigmoid_()
        write, keep, new, show = now.chunk(4, dim=-1)
        cell = torch.addcmul(keep * cell, write, new, out=cells[t])
        hidden = torch.mul(cell.tanh(), show, out=states[t])
    return states, active, cells


@torch.library.custom_op("ceg::lstm_recurrence_backward", mutates_args=())
def recurrence_backward(grad: Tensor, weight: Tensor, states: Tensor, active: Tensor, cells: Tensor) -> list[Tensor]:
    """Gradients of gates [T, B, 4 M] and weight [4 M, M], from that of the states [T, B, M]."""
    width = weight.shape[1]
    d_gates = torch.empty_like(active)
    tanhs = cells.tanh()
    d_hidden, d_cell = grad.new_zeros(grad.shape[1:]), grad.new_zeros(grad.shape[1:])
    for t in reversed(range(len(grad))):
        write, keep, new, show = active[t].chunk(4, dim=-1)
        d_hidden = d_hidden + grad[t]
        d_cell = d_cell + d_hidden * show * (1 - tanhs[t].square())
        before = cells[t - 1] if t else torch.zeros_like(d_cell)
        now = d_gates[t]
        torch.mul(d_cell * new, write * (1 - write), out=now[:, :width])
        torch.mul(d_cell * before, keep * (1 - keep), out=now[:, width : 2 * width])
        torch.mul(d_cell * write, 1 - new.square(), out=now[:, 2 * width : 3 * width])
        torch.mul(d_hidden * tanhs[t], show * (1 - show), out=now[:, 3 * width :])
        d_hidden, d_cell = now @ weight, d_cell * keep
    # the first state is zero: it adds nothing
    d_weight = d_gates[1:].flatten(0, 1).T @ states[:-1].flatten(0, 1)
    return [d_gates, d_weight]


@recurrence.register_fake
def _(gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    states = gates.new_empty(*gates.shape[:2], weight.shape[1])
    return states, gates.new_empty(gates.shape), torch.empty_like(states)


@recurrence_backward.register_fake
def _(grad: Tensor, weight: Tensor, states: Tensor, active: Tensor, cells: Tensor) -> list[Tensor]:
    return [torch.empty_like(active), weight.new_empty(weight.shape)]


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[1], *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None]:
    if grad is None:
        return None, None
    d_gates, d_weight = recurrence_backward(grad, *ctx.saved_tensors)
    return d_gates, d_weight


recurrence.register_autograd(_differentiate, setup_context=_save)
