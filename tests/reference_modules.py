"""Plain torch models and a plain Muon, written without our formulas, for FLOP and parameter counts to meet.

Attention is materialised: every score is computed, then masked. That is what FlopCounterMode counts.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from cegain.kernels import patterns
from cegain.shapes.architecture import ModelShape


def make_norm(shape: ModelShape) -> nn.Module:
    if shape.norm == "layer":
        return nn.LayerNorm(shape.d_model, bias=shape.biases)
    return nn.RMSNorm(shape.d_model) if shape.norm == "rms" else nn.Identity()


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding of `x: [B, H, T, D]`."""
    first, second = x.chunk(2, dim=-1)
    half = first.shape[-1]
    angle = torch.arange(x.shape[2])[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, shape: ModelShape, head_dim: int, n_kv_heads: int) -> None:
        super().__init__()
        d, bias = shape.d_model, shape.biases
        self.shape, self.head_dim, self.n_kv_heads = shape, head_dim, n_kv_heads
        self.query = nn.Linear(d, shape.n_heads * head_dim, bias=bias)
        self.key = nn.Linear(d, n_kv_heads * head_dim, bias=bias)
        self.value = nn.Linear(d, n_kv_heads * head_dim, bias=bias)
        self.out = nn.Linear(shape.n_heads * head_dim, d, bias=bias)
        self.query_norm = nn.RMSNorm(head_dim) if shape.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(head_dim) if shape.qk_norm else nn.Identity()
        heads = patterns.head_patterns(
            shape.pattern, shape.n_heads, shape.seq_len, window=shape.window, stride=shape.stride, summary=shape.summary
        )
        seen = [torch.from_numpy(patterns.mask(head, shape.seq_len, shape.seq_len)) for head in heads]
        self.register_buffer("mask", torch.stack(seen))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            linear(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        q, k = self.query_norm(q), self.key_norm(k)
        if self.shape.positions == "rope":
            q, k = rotate(q), rotate(k)
        group = self.shape.n_heads // self.n_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        probabilities = scores.masked_fill(~self.mask, -math.inf).softmax(-1)
        return self.out((probabilities @ v).transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    def __init__(self, d_model: int, width: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(d_model, width, bias=bias)
        self.gate = nn.Linear(d_model, width, bias=bias) if activation == "swiglu" else None
        self.down = nn.Linear(width, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(functional.silu(self.gate(x)) * self.up(x))
        hidden = self.up(x)
        return self.down(functional.gelu(hidden) if self.activation == "gelu" else functional.relu(hidden).square())


class MixtureOfExperts(nn.Module):
    def __init__(self, shape: ModelShape, width: int) -> None:
        super().__init__()
        self.top_k = shape.top_k
        self.router = nn.Linear(shape.d_model, shape.n_experts, bias=False)

        def experts(count: int) -> nn.ModuleList:
            args = (shape.d_model, width, shape.expert_activation, shape.biases)
            return nn.ModuleList(FeedForward(*args) for _ in range(count))

        self.routed, self.shared = experts(shape.n_experts), experts(shape.n_shared_experts)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(rows).softmax(-1).topk(self.top_k, dim=-1)
        out = torch.zeros_like(rows)
        for index, expert in enumerate(self.routed):
            row, slot = torch.where(chosen == index)
            out = out.index_add(0, row, expert(rows[row]) * weights[row, slot, None])
        for expert in self.shared:
            out = out + expert(rows)
        return out.view_as(x)


class Block(nn.Module):
    def __init__(self, shape: ModelShape, widths: dict[str, int]) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = make_norm(shape), make_norm(shape)
        self.attention = Attention(shape, widths["head_dim"], widths["n_kv_heads"])
        self.feed_forward: nn.Module
        if shape.feed_forward == "moe":
            self.feed_forward = MixtureOfExperts(shape, widths["d_expert"])
        else:
            self.feed_forward = FeedForward(shape.d_model, widths["d_ff"], shape.feed_forward, shape.biases)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class LSTMBlock(nn.Module):
    """One unfused cell per time step."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.norm = make_norm(shape)
        self.cell = nn.LSTMCell(shape.d_model, shape.d_model, bias=shape.biases)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        hidden = cell = torch.zeros_like(x[:, 0])
        outputs = []
        for step in range(x.shape[1]):
            gates = functional.linear(normed[:, step], self.cell.weight_ih, self.cell.bias_ih)
            gates = gates + functional.linear(hidden, self.cell.weight_hh, self.cell.bias_hh)
            write, keep, new, show = gates.chunk(4, dim=-1)
            cell = keep.sigmoid() * cell + write.sigmoid() * new.tanh()
            hidden = show.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return x + torch.stack(outputs, dim=1)


class ReferenceModel(nn.Module):
    """The model that `shape` describes; `widths` holds the derived ones, as the test expects them."""

    def __init__(self, shape: ModelShape, widths: dict[str, int]) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        transformer = shape.kind == "transformer"
        learned = transformer and shape.positions == "learned"
        self.positions = nn.Embedding(shape.seq_len, shape.d_model) if learned else None
        self.blocks = nn.Sequential(
            *(Block(shape, widths) if transformer else LSTMBlock(shape) for _ in range(shape.n_layers))
        )
        self.norm = make_norm(shape)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        if shape.tied_head:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight
        elif self.shape.kind == "transformer" and self.shape.positions == "sinusoidal":
            rates = 10_000.0 ** (-torch.arange(0, self.shape.d_model, 2) / self.shape.d_model)
            angle = torch.arange(tokens.shape[1])[:, None] * rates
            x = x + torch.cat([angle.sin(), angle.cos()], dim=-1)
        return self.head(self.norm(self.blocks(x)))


class ReferenceMuon(torch.optim.Optimizer):
    """Muon of Jordan et al. 2024 for matrices, in fp32."""

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        super().__init__(matrices, {"lr": 0.02, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(momentum, group["momentum"])
                tall = update.shape[0] > update.shape[1]
                x = update.T if tall else update
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
                weight.add_(x.T if tall else x, alpha=-group["lr"])


def counted_flops(model: ReferenceModel, batch: int) -> tuple[int, int]:
    """FLOP that FlopCounterMode sees in the forward and in the backward pass of `batch` full sequences."""
    tokens = torch.randint(model.shape.vocab_size, (batch, model.shape.seq_len))
    with FlopCounterMode(display=False) as forward:
        logits = model(tokens)
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()
