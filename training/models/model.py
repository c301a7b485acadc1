"""The models that are trained: a decoder-only Transformer with every switch of `ModelShape`, and an LSTM.

Both are one class with one interface, so that the training loop does not ask which one it has.

Symbols: B sequences, T tokens, M model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cegain.kernels.backend import Backend
from cegain.shapes.architecture import ModelShape
from cegain.training.models import attention
from cegain.training.models.feed_forward import FeedForward, Mixture
from cegain.training.models.lstm import LSTM

NORM_EPS = 1e-5
"""Of layer norm (torch's default, and GPT-2's) and RMS norm (Llama's: Touvron et al. 2023, arXiv 2302.13971)."""
WAVELENGTH = 10_000.0
"""Longest wavelength of sinusoidal positions over 2 pi, in tokens (Vaswani et al. 2017, arXiv 1706.03762)."""

# Initial weights are normal. Where normalisation is missing, the scale of what enters the first block matters most.
TABLE_GAIN = 1.0
"""Vocabulary tables, tied or not, have a standard deviation of TABLE_GAIN / sqrt(d_model), so that logits of normalised
states start at one whatever the width; 0.036 at 768 wide, where GPT-2 has 0.02 (openai/gpt-2 `model.py`)."""
POSITION_GAIN = 0.5
"""The same of learned positions: half of the tokens', as in GPT-2. Sinusoidal ones have this root mean square, so that
the two arms differ in the form of positions and not in their size."""
MATRIX_GAIN = 1.0
"""Matrices have a standard deviation of MATRIX_GAIN / sqrt(inputs), which keeps the scale (LeCun et al. 1998)."""
RESIDUAL_GAIN = 1.0
"""Matrices that end a branch have RESIDUAL_GAIN / sqrt(branches) times as much, so that the sum of all branches does
not grow with depth (Radford et al. 2019, section 2.3)."""
FORGET_BIAS = 1.0
"""First value of an LSTM's forget gate's bias, where it has biases (Jozefowicz et al. 2015, section 2.2)."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, shape: ModelShape, dropout: float, backend: Backend) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = _norm(shape), _norm(shape)
        self.attention = attention.Attention(shape, backend)
        self.feed_forward = Mixture(shape, backend) if shape.feed_forward == "moe" else FeedForward(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turn: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, T, M] and the auxiliary loss, if there is one."""
        x = x + self.dropout(self.attention(self.attention_norm(x), turn, mask))
        out, loss = self.feed_forward(self.feed_forward_norm(x))
        return x + self.dropout(out), loss


class LSTMBlock(nn.Module):
    """x + lstm(norm(x))."""

    def __init__(self, shape: ModelShape, dropout: float, backend: Backend) -> None:
        super().__init__()
        self.norm = _norm(shape)
        self.lstm = LSTM(shape.d_model, shape.biases, backend)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turn: None, mask: None) -> tuple[Tensor, None]:
        """[B, T, M], and no auxiliary loss."""
        return x + self.dropout(self.lstm(self.norm(x))), None


class LanguageModel(nn.Module):
    """Tokens [B, T] -> logits [B, T, V]; T is at most the shape's seq_len.

    Parameters are not initialised, see `build`. Dropout is on the embedding and at the end of every branch, not on
    attention's probabilities, which fused attention does not hold.
    """

    waves: Tensor | None
    turn: Tensor | None
    mask: Tensor | None

    def __init__(self, shape: ModelShape, *, dropout: float = 0.0, backend: Backend = "auto") -> None:
        super().__init__()
        self.shape = shape
        transformer = shape.kind == "transformer"
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        learned = transformer and shape.positions == "learned"
        self.positions = nn.Parameter(torch.empty(shape.seq_len, shape.d_model)) if learned else None
        # tables that every block reads; not part of a checkpoint, since the shape gives them
        sinusoidal = transformer and shape.positions == "sinusoidal"
        self.register_buffer("waves", _waves(shape) if sinusoidal else None, persistent=False)
        rope = transformer and shape.positions == "rope"
        self.register_buffer("turn", attention.rotation(shape) if rope else None, persistent=False)
        materialised = transformer and attention.is_materialised(shape, backend)
        self.register_buffer("mask", attention.score_mask(shape) if materialised else None, persistent=False)
        self.dropout = nn.Dropout(dropout)
        kind = Block if transformer else LSTMBlock
        self.blocks = nn.ModuleList(kind(shape, dropout, backend) for _ in range(shape.n_layers))
        self.norm = _norm(shape)
        self.head = None if shape.tied_head else nn.Parameter(torch.empty(shape.vocab_size, shape.d_model))

    @property
    def unembedding(self) -> nn.Parameter:
        """[V, M]: the vocabulary table, or a table of its own if the head is not tied."""
        return self.embedding.weight if self.head is None else self.head  # type: ignore[return-value]

    def hidden(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States after the last norm [B, T, M], and the auxiliary loss to add to the training loss: a scalar.

        Raises:
            ValueError: more tokens than the shape's seq_len.
        """
        length = tokens.shape[1]
        if length > self.shape.seq_len:
            raise ValueError(
                f"tokens must hold at most seq_len={self.shape.seq_len} per sequence, got {length}; "
                "cut them, or build a model with a longer seq_len"
            )
        x = self.embedding(tokens)
        tables: tuple[Tensor | None, ...] = (self.positions, self.waves)
        for table in tables:
            if table is not None:
                x = x + table[:length]
        x = self.dropout(x)
        auxiliary = x.new_zeros(())
        for block in self.blocks:
            x, loss = block(x, self.turn, self.mask)
            if loss is not None:
                auxiliary = auxiliary + loss
        return self.norm(x), auxiliary

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each."""
        return functional.linear(self.hidden(tokens)[0], self.unembedding)


def build(shape: ModelShape, *, seed: int, dropout: float = 0.0, backend: Backend = "auto") -> LanguageModel:
    """A model with its initial weights, on the CPU, in torch's default dtype.

    Args:
        shape: what is built.
        seed: of the initial weights. Every parameter is drawn by itself, from (seed, its name): two shapes have equal
            initial weights wherever name and size are equal.
        dropout: probability, see `LanguageModel`.
        backend: of attention, mixtures and LSTM, see `cegain.kernels.backend`; "reference" is the plain definition of
            each, which torch's FLOP counter sees through. Materialised attention is the same on every backend.

    Raises:
        ValueError: dropout outside [0, 1).
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout}; use 0 for none")
    model = LanguageModel(shape, dropout=dropout, backend=backend)
    branches = len(model.blocks) * (2 if shape.kind == "transformer" else 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialise(name, parameter, seed, branches)
    return model


def _initialise(name: str, parameter: Tensor, seed: int, branches: int) -> None:
    """First values of one parameter, by its name and size alone."""
    *_, last = parts = name.split(".")
    if last.endswith("bias") or "bias_" in last:
        parameter.zero_()
        if last == "bias_ih":
            parameter.chunk(4)[1].fill_(FORGET_BIAS)
        return
    if parameter.dim() == 1:  # what is left of vectors are weights of norms
        parameter.fill_(1.0)
        return
    if last in ("positions", "head") or parts[0] == "embedding":
        std = (POSITION_GAIN if last == "positions" else TABLE_GAIN) / math.sqrt(parameter.shape[-1])
    else:
        stacked = parameter.dim() == 3  # experts are [E, inputs, outputs], linear layers [outputs, inputs]
        std = MATRIX_GAIN / math.sqrt(parameter.shape[-2 if stacked else -1])
        if "out" in parts or "down" in parts:
            std *= RESIDUAL_GAIN / math.sqrt(branches)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * std)


def _norm(shape: ModelShape) -> nn.Module:
    if shape.norm == "layer":
        return nn.LayerNorm(shape.d_model, eps=NORM_EPS, bias=shape.biases)
    return nn.RMSNorm(shape.d_model, eps=NORM_EPS) if shape.norm == "rms" else nn.Identity()


def _waves(shape: ModelShape) -> Tensor:
    """Sinusoidal positions [seq_len, M]."""
    rates = WAVELENGTH ** (-torch.arange(0, shape.d_model, 2, dtype=torch.float64) / shape.d_model)
    angles = torch.arange(shape.seq_len, dtype=torch.float64)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)[:, : shape.d_model]
    return (POSITION_GAIN * math.sqrt(2 / shape.d_model) * waves).to(torch.get_default_dtype())
