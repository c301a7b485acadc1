"""What every operation must take on every backend, as one table: no backend can have a case that another lacks.

A `Case` names an operation, how its tensors lie in memory, and what is done to it; `problem` makes tensors and a
function of it, and `check` compares a backend's outputs and gradients with the definition's, in float64 on contiguous
copies. `test_cases` runs the table, `fuzz` draws cases of the same kind.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cegain.kernels.block_sparse import sparse_attention
from cegain.kernels.flash import flash_attention
from cegain.kernels.moe_dispatch import moe_feed_forward
from cegain.kernels.mqa import mqa_attention, mqa_decode
from cegain.kernels.patterns import BlockMask, HeadPattern
from tests.kernels.closeness import assert_close
from tests.kernels.interpreter import DEVICE

BACKENDS = ("reference", "torch", "triton")
OPS = ("flash_attention", "mqa_attention", "sparse_attention", "mqa_decode", "moe_feed_forward")
ULPS = {torch.float64: 64, torch.float32: 64, torch.float16: 8, torch.bfloat16: 8}
"""A probability computed again from a log-sum-exp carries that number's rounding (see `closeness`), which grows with
scores: they reach 50 where a column is expanded. Faults are larger by orders of magnitude."""


def _wider(x: Tensor, axes: Sequence[int], step: int, start: int) -> Tensor:
    """x in a buffer of NaN that is `step` times as long along some axes, `start` entries from its beginning."""
    index = [slice(None)] * x.dim()
    shape = list(x.shape)
    for axis in axes:
        shape[axis] = shape[axis] * step + start
        index[axis] = slice(start, None, step)
    buffer = torch.full(shape, torch.nan, dtype=x.dtype, device=x.device)
    buffer[tuple(index)] = x
    return buffer[tuple(index)]


def _stored(x: Tensor, order: Sequence[int]) -> Tensor:
    """x with its axes stored in another order."""
    inverse = [order.index(axis) for axis in range(x.dim())]
    return x.permute(*order).contiguous().permute(*inverse)


def _middle_last(x: Tensor) -> Tensor:
    """[B, H, T, D] stored as [B, T, H, D], what projections give."""
    order = list(range(x.dim()))
    order[-3:-1] = order[-3:-1][::-1]
    return _stored(x, order)


def _sliding(x: Tensor) -> Tensor:
    """Rows that share memory: each begins one entry after the last one."""
    rows, width = x.shape[-2:]
    long = torch.cat([x[..., 0, :], x[..., 0, :1].expand(*x.shape[:-2], rows - 1) * 0.5], -1)
    return long.contiguous().unfold(-1, width, 1)


def _expanded(axis: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.narrow(axis, 0, 1).expand_as(x)


STORED: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "every second column": lambda x: _wider(x, [-1], 2, 0),
    "every third row": lambda x: _wider(x, [-2], 3, 1),
    "part of a buffer": lambda x: _wider(x, range(x.dim()), 1, 3),
    "stored transposed": lambda x: x.mT.contiguous().mT,
    "heads beside columns": _middle_last,
    "stored backwards": lambda x: _stored(x, list(range(x.dim()))[::-1]),
}
"""Ways for the same numbers to lie in memory. What lies between them is NaN."""
SHARED: dict[str, Callable[[Tensor], Tensor]] = {
    "one column expanded": _expanded(-1),
    "one row expanded": _expanded(-2),
    "one head expanded": _expanded(-3),
    "rows that overlap": _sliding,
}
"""Ways for entries to share memory, which changes the numbers."""
LAYOUTS = {**STORED, **SHARED}
AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda out: out,
    "transposed": lambda out: out.mT,
    "summed": lambda out: out.sum(-1),
    "every second": lambda out: out[..., ::2],
}
"""What is done to an output: its gradient then comes contiguous, transposed, expanded, or with zeros between."""


@dataclass(frozen=True)
class Case:
    """One call; layouts are of the tensors in their order, and begin again after the last."""

    op: str
    layouts: tuple[str, ...] = ("contiguous",)
    after: str = "plain"
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 2
    heads: int = 4
    shared: int = 2
    queries: int = 9
    keys: int = 13
    width: int = 6
    lengths: tuple[int, ...] = (0, 5)
    experts: int = 4
    inner: int = 7
    router_factor: float = 1.0
    seed: int = 0


class Problem(NamedTuple):
    """Names of tensors, and of a backend the function of them: one output, differentiable in all of them."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    on: Callable[[str], Callable[..., Tensor]]


def problem(case: Case) -> Problem:
    """Tensors and function of a case."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, case.dtype)

    if case.op == "moe_feed_forward":
        made = _mixture(case, normal)
    elif case.op == "mqa_decode":
        made = _decoding(case, normal)
    else:
        made = _attention(case, normal)
    after = AFTER[case.after]
    return made._replace(on=lambda backend: lambda *tensors: after(made.on(backend)(*tensors)))


def _laid_out(case: Case, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    names = [case.layouts[i % len(case.layouts)] for i in range(len(tensors))]
    return tuple(LAYOUTS[name](x) for name, x in zip(names, tensors, strict=True))


def _attention(case: Case, normal: Callable[..., Tensor]) -> Problem:
    q = normal(case.batch, case.heads, case.queries, case.width)
    k, v = (normal(case.batch, case.shared, case.keys, case.width) for _ in range(2))
    op: Callable[..., Tensor] = {
        "flash_attention": flash_attention, "mqa_attention": mqa_attention, "sparse_attention": sparse_attention,
    }[case.op]  # fmt: skip
    options = dict(case.options)
    arguments = []
    if case.op == "sparse_attention":
        pattern = options.pop("pattern", WINDOW)
        arguments = [pattern if isinstance(pattern, BlockMask) else pattern[: case.heads]]
    return Problem(
        ("q", "k", "v"),
        _laid_out(case, (q, k, v)),
        lambda backend: lambda q, k, v: op(q, k, v, *arguments, backend=backend, **options),
    )


def _decoding(case: Case, normal: Callable[..., Tensor]) -> Problem:
    q = normal(case.batch, case.heads, case.width)
    caches = [normal(case.batch, case.shared, case.keys, case.width) for _ in range(2)]
    lengths = torch.tensor([case.lengths[i % len(case.lengths)] for i in range(case.batch)])
    for cache in caches:
        for b, length in enumerate(lengths.tolist()):
            cache[b, :, length:] = torch.nan
    k, v = _laid_out(case, caches)
    read = [x[b, :, :n].sum() for x in (k, v) for b, n in enumerate(lengths.tolist())]
    if any(map(torch.isnan, read)):  # entries that share memory are all read
        k, v = _laid_out(case, [cache.nan_to_num(0.5) for cache in caches])
    lengths = lengths.to(DEVICE)[:, None].expand(-1, 2)[:, 0] if case.seed % 2 else lengths.to(DEVICE)

    def on(backend: str) -> Callable[..., Tensor]:
        def function(q: Tensor) -> Tensor:
            # The caches stand for what is not differentiated; only the definition has a gradient of q.
            with torch.set_grad_enabled(False):
                out = mqa_decode(q, k.to(q.dtype), v.to(q.dtype), lengths, backend=backend, **case.options)
            return out + 0 * q.sum()

        return function

    return Problem(("q",), _laid_out(case, (q,)), on)


def _mixture(case: Case, normal: Callable[..., Tensor]) -> Problem:
    tokens, width, inner, n_experts = case.queries, case.width, case.inner, case.experts
    options = {"top_k": 2, **case.options}
    gated = options.get("activation", "swiglu") == "swiglu"
    with_shared = options.pop("shared", False)
    x = normal(case.batch, tokens, width)
    # A logit is one entry of x, some logits are the same one: no rounding, so that every dtype finds the same experts.
    w_router = torch.zeros(n_experts, width, dtype=case.dtype, device=DEVICE)
    w_router[range(n_experts), [e // 2 % width for e in range(n_experts)]] = case.router_factor
    matrices = [(normal(n_experts, width, inner) * 0.5), (normal(n_experts, inner, width) * 0.5)]
    names = ["x", "w_router", "w_up", "w_down"]
    if gated:
        matrices.append(normal(n_experts, width, inner) * 0.5)
        names.append("w_gate")
    router_layout = case.layouts[1 % len(case.layouts)]
    w_router = STORED.get(router_layout, STORED["contiguous"])(w_router)
    x, *matrices = _laid_out(case, (x, *matrices))
    own = tuple(normal(*shape) for shape in ((width, 3), (3, width), (width, 3)))

    def on(backend: str) -> Callable[..., Tensor]:
        def function(x: Tensor, w_router: Tensor, *weights: Tensor) -> Tensor:
            up, down, gate = (w.to(x.dtype) for w in own)
            extra = (up, down, gate if gated else None) if with_shared else None
            out, loss = moe_feed_forward(x, w_router, *weights, shared=extra, backend=backend, **options)
            return out + loss.to(out.dtype)

        return function

    return Problem(tuple(names), (x, w_router, *matrices), on)


def check(case: Case, backend: str) -> None:
    """Outputs and gradients of a backend are those of the definition, as far as the dtype allows."""
    names, tensors, on = problem(case)

    def plain(*tensors: Tensor) -> Tensor:
        return on("reference")(*(x.contiguous() for x in tensors))

    # The rounding of a routing weight's gradient is multiplied by what a router multiplies x by.
    ulps = ULPS[case.dtype] * max(1.0, case.router_factor)
    assert_close(on(backend), plain, tensors, names, ulps=ulps, cancelling=case.dtype.itemsize == 2)


WINDOW = [HeadPattern("window", window=4)]
BLOCKS = BlockMask(np.array([[True, False], [False, False], [True, True]]), 3, 7)
"""For 9 queries and 13 keys; three rows see nothing."""
PATTERNS: dict[str, Any] = {
    "window": WINDOW,
    "window and global": [HeadPattern("window", window=4, n_global=2)],
    "full": [HeadPattern("full")],
    "mixed": [
        HeadPattern("window", window=3), HeadPattern("column", stride=3), HeadPattern("causal"),
        HeadPattern("fixed", stride=4, summary=1, summary_start=3),
    ],
    "fixed": [HeadPattern("fixed", stride=4, summary=1, summary_start=s) for s in (3, 2, 1, 0)],
    "blocks": BLOCKS,
    "no block": BlockMask(np.zeros((3, 2), np.bool_), 3, 7, causal=False),
}  # fmt: skip
MASKS: dict[str, list[dict[str, Any]]] = {
    "flash_attention": [{}, {"causal": False}, {"window": 3}],
    "mqa_attention": [{}, {"causal": False}],
    "sparse_attention": [{"pattern": pattern} for pattern in PATTERNS.values()],
    "mqa_decode": [{}],
    "moe_feed_forward": [{}],
}
SCALES = (0.0, -0.5, 1e-33, -1e-33)
"""Beside the default; the smallest ones are 0 over ln 2 for some arithmetic, and their products still are not."""


BATCH = dict.fromkeys(OPS, 1) | {"mqa_decode": 2}
"""Where more would only take time; a length of 0 stands beside another one."""


def table() -> dict[str, Case]:
    """The cases, by name."""
    cases: dict[str, Case] = {}
    for op in OPS:
        masks = MASKS[op]
        for i, layout in enumerate(LAYOUTS):
            # A tensor alone in its layout, and all of them.
            cases[f"{op}: {layout}"] = Case(op, (layout,), options=masks[i % len(masks)], heads=2, shared=2)
            places = ["contiguous"] * 3
            places[i % 3] = layout
            cases[f"{op}: {layout}, one of three"] = Case(
                op, tuple(places), options=masks[(i + 1) % len(masks)], batch=BATCH[op], heads=2, shared=2
            )
        for after in AFTER:
            cases[f"{op}: output {after}"] = Case(op, after=after, options=masks[0], batch=BATCH[op], heads=2, shared=1)
        for options in masks:
            named = ", ".join(_named(options)) or "default"
            cases[f"{op}: {named}"] = Case(op, options=options)
            if op not in ("sparse_attention", "mqa_decode", "moe_feed_forward"):
                cases[f"{op}: {named}, queries without keys"] = Case(op, options=options, queries=13, keys=9)
                cases[f"{op}: {named}, square"] = Case(op, options=options, queries=9, keys=9)
        if op != "moe_feed_forward":
            for scale in SCALES:
                for i, options in enumerate(masks):
                    if i == 0 or (scale in SCALES[:2] and i % 3 != 1):
                        name = f"{op}: {', '.join(_named(options))} scale {scale}"
                        options = {**options, "scale": scale}
                        cases[name] = Case(op, options=options, batch=BATCH[op], heads=2, shared=1)
        cases[f"{op}: one of everything"] = Case(
            op, batch=1, heads=1, shared=1, queries=1, keys=1, width=1, lengths=(1,), experts=1, inner=1,
            options={"top_k": 1} if op == "moe_feed_forward" else {},
        )  # fmt: skip
    for pattern in ("mixed", "window and global", "fixed"):
        cases[f"sparse_attention: {pattern}, queries without keys"] = Case(
            "sparse_attention", options={"pattern": PATTERNS[pattern]}, queries=13, keys=9
        )
    for lengths in ((0,), (13,), (1, 13), (13, 0)):
        cases[f"mqa_decode: lengths {lengths}"] = Case("mqa_decode", lengths=lengths, seed=1)
    for router in ("softmax", "sigmoid"):
        for factor in (0.0, 30.0, 1e4):
            for normalise in (True, False):
                options = {"router": router, "normalise": normalise}
                name = f"moe_feed_forward: {router}, logits times {factor:g}{', normalised' if normalise else ''}"
                cases[name] = Case("moe_feed_forward", router_factor=factor, options=options, batch=1)
    for activation in ("gelu", "relu2"):
        options = {"activation": activation, "shared": True, "top_k": 4}
        cases[f"moe_feed_forward: {activation}, shared, all experts"] = Case("moe_feed_forward", options=options)
    cases["moe_feed_forward: no tokens"] = Case("moe_feed_forward", queries=0)
    return cases


def _named(options: dict[str, Any]) -> list[str]:
    by_value = {id(value): name for name, value in PATTERNS.items()}
    return [by_value.get(id(value), f"{name} {value}") for name, value in options.items()]


def draw(seed: int) -> Case:
    """A case by chance; every seed has its own, whatever is drawn for others."""
    rng = random.Random(seed)
    op = OPS[seed % len(OPS)]
    dtype = rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
    heads, shared = rng.choice([(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)])
    queries, keys = rng.choice([(1, 1), (1, 20), (20, 1), (rng.randint(1, 40), rng.randint(1, 50))])
    if rng.random() < 0.3:
        keys = queries
    options: dict[str, Any] = {}
    experts, width = rng.randint(1, 6), rng.choice([1, 2, 3, 8, 16, 17])
    if op == "flash_attention" or op == "mqa_attention":
        options["causal"] = rng.random() < 0.7
        if op == "flash_attention" and options["causal"] and rng.random() < 0.5:
            options["window"] = rng.choice([1, 2, rng.randint(1, 80)])
    if op == "sparse_attention":
        options["pattern"] = _draw_pattern(rng, heads, queries, keys)
    if op == "moe_feed_forward":
        options = {
            "top_k": rng.randint(1, experts), "router": rng.choice(["softmax", "sigmoid"]),
            "normalise": rng.random() < 0.6, "activation": rng.choice(["swiglu", "gelu", "relu2"]),
            "shared": rng.random() < 0.3,
        }  # fmt: skip
    elif rng.random() < 0.6:
        small = [1e-33, -1e-33] if dtype == torch.float32 else []
        options["scale"] = rng.choice([0.0, 0.0, *(x / width**0.5 for x in (-0.5, -1.0, 0.1, 1.3)), *small])
    factor = rng.choice([0.0, 1.0, 1.0, 32.0, 1024.0] if dtype == torch.float32 else [0.0, 1.0])
    every = list(LAYOUTS)
    return Case(
        op, tuple(rng.choice(every) for _ in range(rng.choice([1, 3, 5]))), rng.choice(list(AFTER)), dtype, options,
        rng.randint(1, 2), heads, shared, queries, keys, width, tuple(rng.randint(0, keys) for _ in range(3)), experts,
        rng.choice([1, 3, 16, 20]), factor, seed,
    )  # fmt: skip


def _draw_pattern(rng: random.Random, heads: int, queries: int, keys: int) -> Any:
    if rng.random() < 0.35:
        block_q, block_kv = rng.choice([1, 3, 8, 16, 24, 32]), rng.choice([1, 5, 8, 16, 24, 32])
        shape: tuple[int, ...] = (-(-queries // block_q), -(-keys // block_kv))
        shape = (heads, *shape) if rng.random() < 0.5 else shape
        seen = np.random.default_rng(rng.randrange(2**32)).random(shape) < rng.choice([0.0, 0.3, 0.7, 1.0])
        return BlockMask(seen, block_q, block_kv, rng.random() < 0.5)

    def head() -> HeadPattern:
        kind = rng.choice(["full", "causal", "window", "column", "fixed"])
        stride = rng.randint(1, 12)
        if kind == "window":
            return HeadPattern("window", window=rng.randint(1, 20), n_global=rng.choice([0, 0, 1, 5]))
        if kind == "column":
            return HeadPattern("column", stride=stride)
        if kind == "fixed":
            summary = rng.randint(1, stride)
            return HeadPattern("fixed", stride=stride, summary=summary, summary_start=rng.randint(0, stride - summary))
        return HeadPattern("full" if kind == "full" else "causal")

    return [head() for _ in range(rng.choice([1, heads]))]
