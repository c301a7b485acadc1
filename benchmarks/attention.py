"""Attention, in training and in decoding: the implementations that are compared, and what each of them costs.

`materialised` holds all scores; `sdpa_*` are the backends of torch's `scaled_dot_product_attention`, each by itself;
`flex` is FlexAttention, compiled; ours are `flash`, `block_sparse` and `mqa`, on the backend that runs by default.
Rivals get keys and values repeated for every query head, and the copy is in their time.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cegain.benchmarks.cases import TRAINING, Case, Implementation, OnDevice, PassName
from cegain.kernels import costs, patterns, reference, sparse_torch
from cegain.kernels.block_sparse import sparse_attention, token_mask
from cegain.kernels.costs import Cost
from cegain.kernels.flash import flash_attention
from cegain.kernels.mqa import mqa_attention, mqa_decode
from cegain.kernels.patterns import BlockMask, HeadPattern

SDPA: Mapping[str, Mapping[str, SDPBackend]] = {
    "cpu": {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION},
    "cuda": {
        "math": SDPBackend.MATH,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    },
}
BLOCK, KEPT = 64, 0.1
"""Side of the blocks of `blocks`, and the share of them below the diagonal that is seen."""
_GPU_TILE = (128, 64)
"""Queries and keys of a tile, for the scores that kernels on a GPU compute: those of ours at 128 wide."""
_CHECKED = 64
"""Queries whose output is compared with the definition."""
Pattern = BlockMask | tuple[HeadPattern, ...]


def window(tokens: int) -> int:
    """Length of the window that is timed."""
    return max(1, tokens // 8)


def pattern_of(name: str, heads: int, tokens: int) -> Pattern:
    """The pattern of a case: windows of an eighth of the tokens, default strides, and a tenth of all blocks."""
    if name != "blocks":
        length = window(tokens) if name == "window" else None
        return patterns.head_patterns(cast(patterns.PatternName, name), heads, tokens, window=length)
    n = -(-tokens // BLOCK)
    return BlockMask((np.random.default_rng(0).random((n, n)) < KEPT) | np.eye(n, dtype=bool), BLOCK, BLOCK)


def useful(pattern: Pattern, heads: int, tokens: int) -> int:
    """Unmasked query-key pairs of one sequence, over its query heads."""
    if isinstance(pattern, BlockMask):
        return pattern.useful_scores(heads, tokens, tokens)
    return patterns.useful_scores(pattern, tokens, tokens)


class Attention(OnDevice):
    """Self-attention under a pattern, in training."""

    passes = TRAINING

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        self.heads, self.tokens = case.heads_q, case.seq_q
        self.pattern = pattern_of(case.pattern, self.heads, self.tokens)
        self.density = useful(self.pattern, self.heads, self.tokens) / (self.heads * self.tokens**2)
        chosen = np.unique(np.linspace(0, self.tokens - 1, min(_CHECKED, self.tokens)).round().astype(int))
        self.rows = torch.from_numpy(chosen)

    def leaves(self, seed: int) -> list[Tensor]:
        """q, k and v."""
        c = self.case
        shapes = [(c.batch, heads, c.seq_q, c.head_dim) for heads in (c.heads_q, c.heads_kv, c.heads_kv)]
        return _random(shapes, seed, self.device, self.dtype, differentiated=True)

    @cached_property
    def mask(self) -> Tensor:
        """Bool [1 or H, T, T]."""
        pattern = self.pattern
        if not isinstance(pattern, BlockMask) and len(set(pattern)) == 1:
            pattern = pattern[:1]
        return token_mask(pattern, self.tokens, self.tokens).to(self.device)

    @cached_property
    def bias(self) -> Tensor:
        """0 where a key is seen and -inf elsewhere, as a model keeps it: to add is faster than to fill."""
        return torch.zeros(self.mask.shape, dtype=self.dtype, device=self.device).masked_fill_(~self.mask, -math.inf)

    def selected(self, output: Tensor) -> Tensor:
        """The outputs of some queries."""
        return output[:, :, self.rows.to(output.device)]

    def plain(self, leaves: list[Tensor]) -> Tensor:
        """Those by the definition."""
        q, k, v = leaves
        return reference.attention(self.selected(q), k, v, self.mask[:, self.rows.to(q.device)])[0]

    def implementations(self) -> list[Implementation]:
        """Ours last."""
        c = self.case
        causal, masked = c.pattern == "causal", c.pattern not in ("causal", "full")
        found = [Implementation("materialised", self._materialised, self._cost(materialised=True))]
        for name, backend in SDPA[self.device.type].items():
            skips = _all("it takes no mask") if masked and name != "math" and not self._takes_masks(name) else {}
            cost = self._cost(materialised=name == "math", dense=masked, copied=True)
            found.append(Implementation(f"sdpa_{name}", self._sdpa(backend, causal, masked), cost, skips=skips))
        cost = self._cost(backward=costs.TWO_PASS_BACKWARD_MATMULS, copied=True)
        slow = "" if self.device.type == "cuda" else "compiling it takes 20 s for each shape"
        found.append(Implementation("flex", Flex(self), cost, only_full=slow, skips=_flex_skips(self.device)))
        ours: dict[str, Callable[..., Tensor]] = {}
        if c.heads_kv < c.heads_q:
            ours["mqa"] = mqa_attention
        elif not masked:
            ours["flash"] = lambda q, k, v: flash_attention(q, k, v, causal=causal)
        else:
            if c.pattern == "window":
                ours["flash"] = lambda q, k, v: flash_attention(q, k, v, window=window(self.tokens))
            ours["block_sparse"] = lambda q, k, v: sparse_attention(q, k, v, self.pattern)
        return [*found, *(Implementation(name, run, self._own_cost(name), ours=True) for name, run in ours.items())]

    def _takes_masks(self, backend: str) -> bool:
        return backend != "flash" or self.device.type == "cpu"

    def _materialised(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = _repeated(q, k, v)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
        return (scores if self.case.pattern == "full" else scores + self.bias).softmax(-1) @ v

    def _sdpa(self, backend: SDPBackend, causal: bool, masked: bool) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = _repeated(q, k, v)
            with sdpa_kernel([backend]):
                if not masked:
                    return scaled_dot_product_attention(q, k, v, is_causal=causal)
                return scaled_dot_product_attention(q, k, v, attn_mask=self.mask[None])

        return run

    def _own_cost(self, name: str) -> Callable[[PassName], Cost]:
        if self.device.type == "cuda":
            return self._cost(backward=costs.TWO_PASS_BACKWARD_MATMULS)
        if name == "block_sparse":
            visited = sparse_torch.computed_scores(self.pattern, self.heads, self.tokens, self.tokens)
            return self._cost(visited=visited)
        return self._cost()  # torch's kernel on a CPU is taken to compute unmasked scores only

    def _cost(
        self, *, materialised: bool = False, dense: bool = False, copied: bool = False, visited: int | None = None,
        backward: int = costs.FLASH_BACKWARD_MATMULS,
    ) -> Callable[[PassName], Cost]:  # fmt: skip
        """Costs by pass. `dense`: all pairs are computed under a mask; `copied`: keys and values for every head."""
        c, seen = self.case, useful(self.pattern, self.heads, self.tokens)
        if visited is None and not materialised:
            visited = seen
            if dense:
                visited = self.heads * self.tokens**2
            elif self.device.type == "cuda":
                visited = max(seen, _in_tiles(self.pattern, self.heads, self.tokens))

        def cost(pass_: PassName) -> Cost:
            return costs.attention(
                batch=c.batch,
                heads_q=c.heads_q,
                heads_kv=c.heads_q if copied or materialised else c.heads_kv,
                seq_q=c.seq_q,
                seq_kv=c.seq_kv,
                head_dim=c.head_dim,
                useful_scores=seen,
                visited_scores=visited,
                backward_matmuls=backward,
                materialised=materialised,
                pass_=cast(costs.Pass, pass_),
                bytes_per_element=self.dtype.itemsize,
            )

        return cost


class Flex:
    """FlexAttention under an operation's mask; compiled at the first call, for this shape alone."""

    def __init__(self, operation: Attention) -> None:
        self.operation = operation
        self.call: Callable[..., Tensor] | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Output [B, H, T, D]."""
        if self.call is None:
            self.call = self._compiled()
        k, v = _repeated(q, k, v)
        return self.call(q, k, v)

    def _compiled(self) -> Callable[..., Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        own = self.operation
        torch._dynamo.reset()  # else every shape counts against one limit of compilations
        compiled = torch.compile(flex_attention, dynamic=False)
        if own.case.pattern == "full":
            return lambda q, k, v: compiled(q, k, v)
        mask = own.mask

        def causal(b: Any, h: Any, query: Any, key: Any) -> Any:
            return query >= key

        def shared(b: Any, h: Any, query: Any, key: Any) -> Any:
            return mask[0, query, key]

        def by_head(b: Any, h: Any, query: Any, key: Any) -> Any:
            return mask[h, query, key]

        seen = causal if own.case.pattern == "causal" else by_head if len(mask) > 1 else shared
        heads = own.heads if len(mask) > 1 else None
        blocks = create_block_mask(seen, None, heads, own.tokens, own.tokens, device=str(own.device))

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = compiled(q, k, v, block_mask=blocks)
            return out

        return call


class Decode(OnDevice):
    """One new token per sequence against a full cache."""

    passes: tuple[PassName, ...] = ("decode",)
    density = 1.0

    def leaves(self, seed: int) -> list[Tensor]:
        """q [B, H, D], and caches of keys and values [B, Hk, S, D]."""
        c = self.case
        cache = (c.batch, c.heads_kv, c.seq_kv, c.head_dim)
        shapes = [(c.batch, c.heads_q, c.head_dim), cache, cache]
        return _random(shapes, seed, self.device, self.dtype, differentiated=False)

    @cached_property
    def lengths(self) -> Tensor:
        """All of the cache, for every sequence."""
        return torch.full((self.case.batch,), self.case.seq_kv, device=self.device)

    def selected(self, output: Tensor) -> Tensor:
        """All of it."""
        return output

    def plain(self, leaves: list[Tensor]) -> Tensor:
        """By the definition."""
        return reference.decode(leaves[0], leaves[1], leaves[2], self.lengths)

    def implementations(self) -> list[Implementation]:
        """Ours last."""
        found = [Implementation("materialised", _decode_materialised, self._cost("materialised"))]
        for name, backend in SDPA[self.device.type].items():
            kind: Literal["materialised", "copied"] = "materialised" if name == "math" else "copied"
            found.append(Implementation(f"sdpa_{name}", _decode_sdpa(backend), self._cost(kind)))
        ours = Implementation("mqa", lambda q, k, v: mqa_decode(q, k, v, self.lengths), self._cost("ours"), ours=True)
        return [*found, ours]

    def _cost(self, kind: Literal["materialised", "copied", "ours"]) -> Callable[[PassName], Cost]:
        c, size = self.case, self.dtype.itemsize
        cost = costs.decode_attention(
            batch=c.batch,
            heads_q=c.heads_q,
            heads_kv=c.heads_kv if kind == "ours" else c.heads_q,
            kv_tokens=c.seq_kv,
            head_dim=c.head_dim,
            bytes_per_element=size,
        )
        if kind == "materialised":
            cost += Cost(bytes=4 * size * c.batch * c.heads_q * c.seq_kv)
        return lambda _: cost


def _decode_materialised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = _repeated(q, k, v)
    scores = (q[:, :, None] / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    return (scores.softmax(-1) @ v)[:, :, 0]


def _decode_sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = _repeated(q, k, v)
        with sdpa_kernel([backend]):
            return scaled_dot_product_attention(q[:, :, None], k, v)[:, :, 0]

    return run


def _random(
    shapes: Sequence[tuple[int, ...]], seed: int, device: torch.device, dtype: torch.dtype, *, differentiated: bool
) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    made = [torch.randn(shape, generator=generator, device=device, dtype=dtype) for shape in shapes]
    return [x.requires_grad_(differentiated) for x in made]


def _repeated(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values for every query head."""
    group = q.shape[1] // k.shape[1]
    return (k, v) if group == 1 else (k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1))


def _in_tiles(pattern: Pattern, heads: int, tokens: int) -> int:
    if isinstance(pattern, BlockMask):
        return pattern.visited_scores(heads, tokens, tokens)
    return patterns.visited_scores(pattern, tokens, tokens, block_q=_GPU_TILE[0], block_kv=_GPU_TILE[1])


def _all(why: str) -> dict[PassName, str]:
    return dict.fromkeys(TRAINING, why)


def _flex_skips(device: torch.device) -> dict[PassName, str]:
    if device.type == "cuda":
        return {}
    if not (shutil.which("g++") or shutil.which("clang++")):
        return _all("FlexAttention is compiled on a CPU, and there is no C++ compiler")
    why = "torch has no backward pass of FlexAttention on a CPU"
    return {"bwd": why, "fwd_bwd": why}
