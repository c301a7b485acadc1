"""Model shape -> parameters, FLOP and bytes.

FLOP conventions, by name (`Convention`); all count 2 per multiply-add and backward = 2 x forward:

* `useful`: unmasked scores only, active experts and router, unembedding, Muon's matrix products; embedding
  look-up 0, element-wise work 0. This is the `flops` of every record.
* `executed`: what the hardware does: scores in visited blocks (all of them if materialised), and those that
  flash attention computes again in the backward pass.
* `full`: like useful, but with every score counted, T_q x T_kv, as torch's FlopCounterMode sees materialised
  attention.
* `6nd_non_embedding`, `6nd_total`: 6 FLOP per active parameter and token, without or with the vocabulary
  and position tables; no score term (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Hoffmann et al. 2022,
  arXiv 2203.15556).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cegain.kernels import costs, patterns

Kind = Literal["transformer", "lstm"]
Heads = Literal["mha", "gqa", "mqa"]
FeedForward = Literal["gelu", "relu2", "swiglu", "moe"]
ExpertActivation = Literal["gelu", "swiglu"]
Norm = Literal["none", "layer", "rms"]
Positions = Literal["learned", "sinusoidal", "rope"]
Attention = Literal["materialised", "flash"]
Pattern = Literal["causal", "window", "strided", "fixed"]
Optimizer = Literal["adamw", "muon"]
Stack = Literal["bare", "modern"]
Convention = Literal["useful", "executed", "full", "6nd_non_embedding", "6nd_total"]
Passes = Literal["training", "forward"]

DEFAULT_BATCH_TOKENS = 2**19
"""Tokens per optimizer step when none is given: the half million of GPT-2 (124M) in nanoGPT and of Muon's
speed runs (Jordan et al. 2024)."""

STACKS: Mapping[Stack, Mapping[str, object]] = {
    "bare": {
        "norm": "none", "positions": "learned", "attention": "materialised", "feed_forward": "gelu",
        "optimizer": "adamw",
    },
    "modern": {
        "norm": "rms", "positions": "rope", "attention": "flash", "feed_forward": "swiglu", "optimizer": "adamw",
    },
}  # fmt: skip
"""What every arm of an ablation shares; everything else is a default of ModelShape. `bare` is GPT-2 without
normalisation (the baseline of Sanderson et al. 2025, arXiv 2505.04075); `modern` is Llama's block (Touvron et
al. 2023, arXiv 2302.13971)."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only language model; the defaults are the `bare` stack in the size of GPT-2 small.

    One block is x + attention(norm(x)), then x + feed_forward(norm(x)); a last norm comes before the
    unembedding. An LSTM block is x + lstm(norm(x)) with a state of d_model; it has no use for the fields on
    heads, feed-forward layers, positions and patterns. Lengths are in tokens.
    """

    kind: Kind = "transformer"
    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    head_dim: int | None = None
    """None: d_model / n_heads."""
    heads: Heads = "mha"
    gqa_group: int = 4
    """Query heads per key-value head, if heads is "gqa"."""
    d_ff: int | None = None
    """None: equal parameters for every activation; 4 d_model, or with a gate 8/3 d_model rounded up to a
    multiple of 8 (Shazeer 2020, arXiv 2002.05202, section 2)."""
    feed_forward: FeedForward = "gelu"
    n_experts: int = 8
    top_k: int = 2
    n_shared_experts: int = 0
    d_expert: int | None = None
    """None: the active experts (top_k and shared) are together as wide as the dense layer, each rounded up to
    a multiple of 8."""
    expert_activation: ExpertActivation = "gelu"
    norm: Norm = "none"
    positions: Positions = "learned"
    attention: Attention = "materialised"
    pattern: Pattern = "causal"
    """`causal` is the dense pattern; see `cegain.kernels.patterns` for the others and their default lengths."""
    window: int | None = None
    stride: int | None = None
    summary: int | None = None
    """Summary columns per block of the fixed pattern."""
    qk_norm: bool = False
    """RMS norm of queries and keys, with one weight of head_dim for each."""
    tied_head: bool = True
    vocab_size: int = 50304
    seq_len: int = 1024
    biases: bool = False
    """On every linear layer but the router and the unembedding, and on layer norms; an LSTM has two per gate,
    as in torch."""
    optimizer: Optimizer = "adamw"

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError("\n".join([f"ModelShape has {len(problems)} problem(s):", *problems]))

    @property
    def width_per_head(self) -> int:
        """`head_dim`, given or derived."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def n_kv_heads(self) -> int:
        """Key and value heads: as many as query heads, one per group of them, or one."""
        return {"mha": self.n_heads, "gqa": self.n_heads // self.gqa_group, "mqa": 1}[self.heads]

    @property
    def activation(self) -> costs.Activation:
        """Activation of the feed-forward layer or of its experts."""
        return self.expert_activation if self.feed_forward == "moe" else self.feed_forward

    @property
    def feed_forward_width(self) -> int:
        """Hidden width of the dense layer, or of the dense layer that a mixture replaces."""
        if self.d_ff is not None:
            return self.d_ff
        return _multiple_of_8(8 * self.d_model, 3) if self.activation == "swiglu" else 4 * self.d_model

    @property
    def expert_width(self) -> int:
        """Hidden width of one expert."""
        if self.d_expert is not None:
            return self.d_expert
        return _multiple_of_8(self.feed_forward_width, self.top_k + self.n_shared_experts)


def stack(name: Stack, **fields: Any) -> ModelShape:
    """A shape of the named stack, with sizes and interventions as fields of ModelShape.

    Raises:
        ValueError: unknown stack or field (with the nearest name), or a bad shape.
    """
    if name not in STACKS:
        raise ValueError(f"stack must be one of {', '.join(STACKS)}, got {name!r}; use one of these")
    known = [field.name for field in dataclasses.fields(ModelShape)]
    unknown = [field for field in fields if field not in known]
    if unknown:
        near = {field: difflib.get_close_matches(field, known, n=1) for field in unknown}
        hints = ", ".join(f"{f!r} (did you mean {n[0]!r}?)" if n else repr(f) for f, n in near.items())
        raise ValueError(f"fields must be those of ModelShape, got {hints}; known: {', '.join(known)}")
    return ModelShape(**{**STACKS[name], **fields})


_of_stack = stack  # where an argument is called `stack`


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameter counts. `embedding` holds vocabulary tables (one if tied) and learned positions."""

    active: int
    """Used for one token: all but the routed experts that its router does not choose."""
    total: int
    embedding: int
    non_embedding: int
    """total - embedding."""

    @property
    def active_non_embedding(self) -> int:
        """active - embedding: the N of 6ND in the non-embedding convention."""
        return self.active - self.embedding


@dataclass(frozen=True, slots=True)
class WeightMatrix:
    """A [d_out, d_in] weight of a block: how many a block has, and how many of them one token uses."""

    d_out: int
    d_in: int
    copies: int = 1
    active: int = 1
    biases: int = 0
    """Bias vectors of d_out that each copy has."""


def block_matrices(shape: ModelShape) -> tuple[WeightMatrix, ...]:
    """Weight matrices of one block, queries, keys and values apart, gate and up apart, one per expert."""
    d, bias = shape.d_model, int(shape.biases)
    if shape.kind == "lstm":
        return (WeightMatrix(4 * d, d, copies=2, active=2, biases=bias),)
    q, kv = shape.n_heads * shape.width_per_head, shape.n_kv_heads * shape.width_per_head
    attention = (
        WeightMatrix(q, d, biases=bias),
        WeightMatrix(kv, d, copies=2, active=2, biases=bias),
        WeightMatrix(d, q, biases=bias),
    )
    into = costs.feed_forward_matmuls(shape.activation) - 1
    if shape.feed_forward != "moe":
        width = shape.feed_forward_width
        up = WeightMatrix(width, d, copies=into, active=into, biases=bias)
        return (*attention, up, WeightMatrix(d, width, biases=bias))
    experts = shape.n_experts + shape.n_shared_experts
    active = shape.top_k + shape.n_shared_experts
    width = shape.expert_width
    return (
        *attention,
        WeightMatrix(shape.n_experts, d),
        WeightMatrix(width, d, copies=into * experts, active=into * active, biases=bias),
        WeightMatrix(d, width, copies=experts, active=active, biases=bias),
    )


@functools.lru_cache(maxsize=1024)
def parameters(shape: ModelShape) -> Parameters:
    """Exact parameter counts of a shape."""
    d = shape.d_model
    per_norm = {"none": 0, "rms": d, "layer": d * (1 + shape.biases)}[shape.norm]
    transformer = shape.kind == "transformer"
    per_block = per_norm * (2 if transformer else 1)
    if transformer and shape.qk_norm:
        per_block += 2 * shape.width_per_head
    idle = 0
    for matrix in block_matrices(shape):
        size = matrix.d_out * (matrix.d_in + matrix.biases)
        per_block += matrix.copies * size
        idle += shape.n_layers * (matrix.copies - matrix.active) * size
    embedding = shape.vocab_size * d * (1 if shape.tied_head else 2)
    if transformer and shape.positions == "learned":
        embedding += shape.seq_len * d
    non_embedding = shape.n_layers * per_block + per_norm
    total = embedding + non_embedding
    return Parameters(total - idle, total, embedding, non_embedding)


def flops_per_token(
    shape: ModelShape,
    convention: Convention = "useful",
    *,
    passes: Passes = "training",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    block: int = 64,
    backward_matmuls: int = costs.FLASH_BACKWARD_MATMULS,
) -> float:
    """FLOP per token at full sequences of `shape.seq_len`.

    Args:
        shape: the model.
        convention: what is counted, see the top of this module.
        passes: "training" is forward, backward and optimizer; "forward" is inference without a cache.
        batch_tokens: tokens over which one optimizer step is spread; matters for Muon only.
        block: queries and keys per tile of flash attention, for "executed".
        backward_matmuls: matrix products in its backward pass, for "executed"
            (`cegain.kernels.costs.TWO_PASS_BACKWARD_MATMULS` for kernels without atomics).

    Raises:
        ValueError: unknown convention or passes, batch_tokens or block below 1.
    """
    if convention in ("6nd_non_embedding", "6nd_total"):
        count = parameters(shape)
        n = count.active if convention == "6nd_total" else count.active_non_embedding
        return float((6 if _is_training(passes) else 2) * n)
    tiles = {"block": block, "backward_matmuls": backward_matmuls}
    return sum(flop_parts(shape, convention, passes=passes, batch_tokens=batch_tokens, **tiles).values())


def flop_parts(
    shape: ModelShape,
    convention: Convention = "useful",
    *,
    passes: Passes = "training",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    block: int = 64,
    backward_matmuls: int = costs.FLASH_BACKWARD_MATMULS,
) -> dict[str, float]:
    """FLOP per token by part; arguments and errors as `flops_per_token`, without the 6nd conventions.

    Keys: projections, scores, feed_forward (with the router) for a transformer, recurrent for an LSTM; then
    unembedding, optimizer.
    """
    if convention not in ("useful", "executed", "full"):
        raise ValueError(f"convention must be one of useful, executed, full, got {convention!r}")
    training = _is_training(passes)
    pass_: costs.Pass = "fwd_bwd" if training else "fwd"
    tokens, d, layers = shape.seq_len, shape.d_model, shape.n_layers
    parts: dict[str, costs.Cost] = {}
    if shape.kind == "lstm":
        parts["recurrent"] = layers * costs.lstm_layer(1, tokens, d, d, pass_=pass_)
    else:
        q, kv = shape.n_heads * shape.width_per_head, shape.n_kv_heads * shape.width_per_head
        parts["projections"] = layers * (
            costs.linear(tokens, d, q + 2 * kv, pass_=pass_) + costs.linear(tokens, q, d, pass_=pass_)
        )
        parts["scores"] = layers * costs.attention(
            batch=1, heads_q=shape.n_heads, heads_kv=shape.n_kv_heads, seq_q=tokens, seq_kv=tokens,
            head_dim=shape.width_per_head,
            useful_scores=_useful_scores(shape, convention),
            visited_scores=_visited_scores(shape, block) if convention == "executed" else None,
            backward_matmuls=backward_matmuls,
            materialised=shape.attention == "materialised", pass_=pass_,
        )  # fmt: skip
        parts["feed_forward"] = layers * _feed_forward(shape, pass_)
    parts["unembedding"] = costs.linear(tokens, d, shape.vocab_size, pass_=pass_)
    executed = convention == "executed"
    per_token = {name: (cost.executed_flops if executed else cost.flops) / tokens for name, cost in parts.items()}
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}; give tokens per step")
    per_token["optimizer"] = optimizer_flops(shape) / batch_tokens if training else 0.0
    return per_token


def optimizer_flops(shape: ModelShape) -> int:
    """FLOP of the matrix products in one optimizer step: 0 for AdamW.

    Muon updates every matrix of the blocks, the router included and each expert and each of queries, keys and
    values by itself (Jordan et al. 2024); vocabulary tables, positions, norms and biases are AdamW's.
    """
    if shape.optimizer == "adamw":
        return 0
    return shape.n_layers * sum(m.copies * costs.muon_step([(m.d_out, m.d_in)]).flops for m in block_matrices(shape))


def kv_cache_bytes(shape: ModelShape, tokens: int, bytes_per_element: int = 2) -> int:
    """Bytes that one sequence keeps between decoding steps after `tokens` tokens.

    A window keeps its last tokens only; the other patterns look back to the start with some head. An LSTM
    keeps its two states per layer, however long the sequence.
    """
    if shape.kind == "lstm":
        return 2 * shape.n_layers * shape.d_model * bytes_per_element
    if shape.pattern == "window":
        tokens = min(tokens, _head_patterns(shape)[0].window)
    return costs.kv_cache_bytes(
        n_layers=shape.n_layers, heads_kv=shape.n_kv_heads, head_dim=shape.width_per_head, tokens=tokens,
        bytes_per_element=bytes_per_element,
    )  # fmt: skip


# Besiroglu et al. 2024 (arXiv 2404.10102): L(N, D) = E + A / N^alpha + B / D^beta, fitted again to the data
# of Hoffmann et al. 2022, N with embeddings. E does not move the optimum.
CHINCHILLA_A, CHINCHILLA_B = 482.01, 2085.43
CHINCHILLA_ALPHA, CHINCHILLA_BETA = 0.3478, 0.3658

ASPECT_RATIO = 100
"""d_model / n_layers: 102 in Chinchilla 70B (80 layers of 8192; Hoffmann et al. 2022, table 4). Loss hardly
depends on it (Kaplan et al. 2020, figure 5), so one value serves at every size."""


def compute_optimal(flops: float) -> tuple[float, float]:
    """Parameters (with embeddings) and tokens that minimise the loss of a dense Transformer at C = 6ND.

    N = G (C / 6)^(beta / (alpha + beta)) and D = C / (6N), with G = (alpha A / (beta B))^(1 / (alpha + beta))
    (Hoffmann et al. 2022, equation 4), and the constants of Besiroglu et al. 2024.

    Raises:
        ValueError: flops not positive and finite.
    """
    if not 0 < flops < math.inf:
        raise ValueError(f"flops must be positive and finite, got {flops}; give training FLOP, such as 1e21")
    exponents = CHINCHILLA_ALPHA + CHINCHILLA_BETA
    g = (CHINCHILLA_ALPHA * CHINCHILLA_A / (CHINCHILLA_BETA * CHINCHILLA_B)) ** (1 / exponents)
    n = g * (flops / 6) ** (CHINCHILLA_BETA / exponents)
    return n, flops / (6 * n)


@functools.lru_cache(maxsize=1024)
def compute_optimal_shape(flops: float, stack: Stack = "bare", **fields: Any) -> ModelShape:
    """A concrete shape whose dense Transformer has about the compute-optimal number of parameters.

    Width follows ASPECT_RATIO, in steps of four heads where it is that wide (so that grouped queries fit),
    then depth makes up the count. head_dim is 64, and 128 from a d_model of 2048 on (GPT-3: Brown et al.
    2020, arXiv 2005.14165, table 2.1). `fields` may set vocab_size and seq_len, by which the size is chosen;
    any other field is an intervention, which leaves the size as it is, since an ablation holds the shape.

    Raises:
        ValueError: a budget too small for its vocabulary, an unknown field, or a bad shape.
    """
    n, _ = compute_optimal(flops)
    # 12 d_model^2 parameters per block, d_model / ASPECT_RATIO blocks, tables as wide as d_model
    probe = _of_stack(stack, **{name: fields[name] for name in ("vocab_size", "seq_len") if name in fields})
    width = optimal_width(n, parameters(probe).embedding / probe.d_model)
    head_dim = 128 if width >= 2048 else 64
    step = 4 * head_dim if width >= 4 * head_dim else head_dim
    d_model = step * max(1, round(width / step))
    one = dataclasses.replace(probe, n_layers=1, d_model=d_model, n_heads=d_model // head_dim)
    per_layer = parameters(dataclasses.replace(one, n_layers=2)).total - parameters(one).total
    n_layers = 1 + round((n - parameters(one).total) / per_layer)
    if n_layers < 1:
        raise ValueError(
            f"a compute-optimal model must have room for its vocabulary, got {n:.3g} parameters at "
            f"{flops:.3g} FLOP for vocab_size={probe.vocab_size}; use more FLOP or a smaller vocabulary"
        )
    size = {"n_layers": n_layers, "d_model": d_model, "n_heads": one.n_heads}
    return _of_stack(stack, **{**size, **fields})


def optimal_width(n_params: float, table_rows: float) -> float:
    """d_model at which 12 d_model^3 / ASPECT_RATIO + table_rows * d_model is n_params, by bisection."""
    low, high = 0.0, math.cbrt(n_params * ASPECT_RATIO / 12)
    for _ in range(60):
        middle = (low + high) / 2
        too_small = 12 * middle**3 / ASPECT_RATIO + table_rows * middle < n_params
        low, high = (middle, high) if too_small else (low, middle)
    return high


def _is_training(passes: Passes) -> bool:
    if passes not in ("training", "forward"):
        raise ValueError(f"passes must be training or forward, got {passes!r}; use one of these")
    return passes == "training"


def _head_patterns(shape: ModelShape) -> tuple[patterns.HeadPattern, ...]:
    return patterns.head_patterns(
        shape.pattern, shape.n_heads, shape.seq_len, window=shape.window, stride=shape.stride, summary=shape.summary
    )


@functools.lru_cache(maxsize=1024)
def _useful_scores(shape: ModelShape, convention: Convention) -> int:
    """Scores of one sequence and layer that count as useful; every one of them for `full`."""
    if convention == "full":
        return shape.n_heads * shape.seq_len**2
    return patterns.useful_scores(_head_patterns(shape), shape.seq_len, shape.seq_len)


def _visited_scores(shape: ModelShape, block: int) -> int:
    """Scores of one sequence and layer that the hardware computes."""
    return shape.n_heads * shape.seq_len**2 if shape.attention == "materialised" else tile_scores(shape, block)


@functools.lru_cache(maxsize=1024)
def tile_scores(shape: ModelShape, tile: int) -> int:
    """Scores of one sequence and layer that a fused kernel computes, in tiles of so many queries and keys."""
    return patterns.visited_scores(_head_patterns(shape), shape.seq_len, shape.seq_len, block_q=tile, block_kv=tile)


def _feed_forward(shape: ModelShape, pass_: costs.Pass) -> costs.Cost:
    if shape.feed_forward != "moe":
        return costs.feed_forward(shape.seq_len, shape.d_model, shape.feed_forward_width, shape.activation, pass_=pass_)
    return costs.moe_feed_forward(
        shape.seq_len, shape.d_model, shape.expert_width, shape.activation,
        n_experts=shape.n_experts, top_k=shape.top_k, n_shared_experts=shape.n_shared_experts, pass_=pass_,
    )  # fmt: skip


def _multiple_of_8(numerator: int, denominator: int) -> int:
    """The quotient, rounded up to a multiple of 8."""
    return 8 * -(-numerator // (8 * denominator))


_FIELD_TYPES = get_type_hints(ModelShape)


def _problems(shape: ModelShape) -> Iterator[str]:
    """One line per broken rule: field, rule, value, remedy."""
    broken: set[str] = set()

    def report(field: str, rule: str, remedy: str) -> str:
        broken.add(field)
        return f"- {field} must be {rule}, got {getattr(shape, field)!r}; {remedy}"

    for field, kind in _FIELD_TYPES.items():
        value = getattr(shape, field)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                yield report(field, f"one of {', '.join(get_args(kind))}", "use one of these")
        elif kind is bool:
            if not isinstance(value, bool):
                yield report(field, "True or False", "use one of these")
        elif value is not None or kind is int:
            least = 0 if field == "n_shared_experts" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                derived = "" if kind is int else ", or None to derive it"
                yield report(field, f"an integer of at least {least}", f"use {least} or more{derived}")
    if shape.kind != "lstm":
        yield from _relation_problems(shape, broken)


def _relation_problems(shape: ModelShape, broken: set[str]) -> Iterator[str]:
    """Rules between fields of a Transformer, for fields that are sound by themselves."""
    if shape.head_dim is None and not broken & {"d_model", "n_heads"} and shape.d_model % shape.n_heads:
        yield (
            f"- n_heads must divide d_model if head_dim is None, got n_heads={shape.n_heads}, d_model="
            f"{shape.d_model}; give head_dim, or use {_nearest_divisor(shape.d_model, shape.n_heads)} heads"
        )
    elif shape.positions == "rope" and not broken & {"d_model", "n_heads", "head_dim"} and shape.width_per_head % 2:
        yield (
            f"- head_dim must be even for rope, which turns pairs, got {shape.width_per_head}; "
            f"use {shape.width_per_head + 1}"
        )
    if shape.heads == "gqa" and not broken & {"n_heads", "gqa_group"} and shape.n_heads % shape.gqa_group:
        yield (
            f"- gqa_group must divide n_heads, got gqa_group={shape.gqa_group}, n_heads={shape.n_heads}; "
            f"use {_nearest_divisor(shape.n_heads, shape.gqa_group)}"
        )
    if shape.feed_forward == "moe" and not broken & {"top_k", "n_experts"} and shape.top_k > shape.n_experts:
        yield (
            f"- top_k must be at most n_experts, got top_k={shape.top_k}, n_experts={shape.n_experts}; "
            "lower top_k or add experts"
        )
    if not broken & {"pattern", "n_heads", "seq_len", "window", "stride", "summary"}:
        try:
            _head_patterns(shape)
        except ValueError as error:
            yield f"- {error}"


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((i for i in range(1, number + 1) if number % i == 0), key=lambda i: abs(i - wanted))
