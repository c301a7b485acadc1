"""Which shapes are timed: by family, device and length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from cegain.benchmarks.attention import Attention, Decode
from cegain.benchmarks.cases import Case, Operation, PassName
from cegain.benchmarks.ceilings import Copy, Gemm
from cegain.benchmarks.mixture import FeedForward, Mixture

OPERATIONS: Mapping[str, Callable[[Case, torch.device], Operation]] = {
    "attention": Attention,
    "decode": Decode,
    "moe": Mixture,
    "feed_forward": FeedForward,
    "gemm": Gemm,
    "copy": Copy,
}
CEILINGS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "cpu": ((512, 1024, 2048), (2**24, 2**25)),
    "cuda": ((4096, 8192, 16384), (2**29, 2**31)),
}
"""By kind of device: sides of the square matrices that are multiplied, entries that are copied."""
GPU_DTYPES = ("float16", "float32")
"""Beside bfloat16, that matrices of the middle side are multiplied in on a GPU."""
CPU_LENGTHS, GPU_LENGTHS = (256, 512, 1024, 2048, 4096), (512, 1024, 2048, 4096, 8192, 16384)
# On a CPU unless --full or --seq-lens say otherwise: a default run should end within five minutes on two cores.
_FEW: Mapping[str, tuple[int, ...]] = {
    "flash": (256, 1024, 4096),
    "sparse": (512, 1024),
    "mqa": (512, 1024),
    "decode": (256, 1024, 4096),
    "moe": (256, 1024),
}
_GPU_TOKENS = (2048, 8192, 32768)
"""Tokens of a feed-forward layer on a GPU, where a batch has more of them than a sequence."""
PATTERNS = ("window", "strided", "fixed", "blocks")
# d_model, d_ff of an expert, experts, top_k
_CPU_MIXTURES = ((256, 512, 8, 2), (256, 512, 8, 1), (256, 512, 32, 2), (256, 256, 32, 4))
_GPU_MIXTURES = ((2048, 5632, 8, 2), (2048, 768, 32, 4), (2048, 768, 128, 8))
_GPU_TOKENS_PER_BATCH, _GPU_WIDTH = 16384, 2048


class Entry(NamedTuple):
    """One test: an operation, an implementation's name and a pass."""

    operation: Operation
    implementation: str
    pass_: PassName

    def __str__(self) -> str:
        return f"{self.operation.case}-{self.implementation}-{self.pass_}"


def cases(family: str, kind: str, lengths: Sequence[int], full: bool) -> list[Case]:
    """The cases of ceilings, flash, sparse, mqa, decode or moe.

    Args:
        family: one of these.
        kind: of device, "cpu" or "cuda".
        lengths: tokens of a sequence, of a cache, or of a feed-forward layer; none: those of the family.
        full: all lengths and shapes, where a default run on a CPU has a part of them.
    """
    on_gpu = kind == "cuda"
    if family == "ceilings":
        sides, sizes = CEILINGS[kind]
        products = [Case("gemm", seq_q=side, d_model=side, d_ff=side) for side in sides]
        if on_gpu:
            side = sides[len(sides) // 2]
            products += [Case("gemm", seq_q=side, d_model=side, d_ff=side, dtype=dtype) for dtype in GPU_DTYPES]
        return [*products, *(Case("copy", seq_q=size) for size in sizes)]
    if not lengths:
        lengths = CPU_LENGTHS if full else _FEW[family]
        if on_gpu:
            lengths = _GPU_TOKENS if family == "moe" else GPU_LENGTHS
    found: dict[str, Callable[[int], list[Case]]] = {
        "flash": lambda t: _attention(kind, "causal", t, shared=(0,)),
        "sparse": lambda t: [case for name in PATTERNS for case in _attention(kind, name, t, shared=(0,))],
        "mqa": lambda t: _attention(kind, "causal", t, shared=(1, 4) if on_gpu else (1, 2) if full else (1,)),
        "decode": lambda s: _decode(on_gpu, s),
        "moe": lambda n: _mixtures(_GPU_MIXTURES if on_gpu else _CPU_MIXTURES if full else _CPU_MIXTURES[:1], n),
    }
    return list(dict.fromkeys(case for length in lengths for case in found[family](length)))


def entries(cases: Sequence[Case], device: torch.device) -> list[Entry]:
    """Every implementation and pass of the cases."""
    operations = [OPERATIONS[case.op](case, device) for case in cases]
    return [
        Entry(operation, implementation.name, pass_)
        for operation in operations
        for implementation in operation.implementations()
        for pass_ in operation.passes
    ]


def _attention(kind: str, pattern: str, tokens: int, shared: Sequence[int]) -> list[Case]:
    """Key heads by `shared`, 0 for as many as query heads; on a GPU 16k tokens and a width of 2048 in all."""
    found = []
    for width in (64, 128) if kind == "cuda" else (64,):
        heads, batch = (_GPU_WIDTH // width, max(1, _GPU_TOKENS_PER_BATCH // tokens)) if kind == "cuda" else (4, 1)
        for key_heads in shared:
            found.append(
                Case(
                    "attention",
                    pattern,
                    batch=batch,
                    heads_q=heads,
                    heads_kv=key_heads or heads,
                    seq_q=tokens,
                    seq_kv=tokens,
                    head_dim=width,
                )
            )
    return found


def _decode(on_gpu: bool, tokens: int) -> list[Case]:
    batch, heads, width, shared = (8, 32, 128, (1, 8, 32)) if on_gpu else (2, 16, 64, (1, 4, 16))
    return [
        Case("decode", "full", batch=batch, heads_q=heads, heads_kv=s, seq_q=1, seq_kv=tokens, head_dim=width)
        for s in shared
    ]


def _mixtures(shapes: Sequence[tuple[int, int, int, int]], tokens: int) -> list[Case]:
    """Each mixture, and the dense layer of its active width."""
    found = []
    for width, hidden, experts, top_k in shapes:
        found.append(Case("moe", seq_q=tokens, d_model=width, d_ff=hidden, experts=experts, top_k=top_k))
        found.append(Case("feed_forward", seq_q=tokens, d_model=width, d_ff=top_k * hidden))
    return found
