"""Made-up kernel times, of a device with round ceilings: 100 TFLOP/s and 1 TB/s."""

import math
from typing import Any

from cegain.kernels import costs, patterns
from cegain.tables.kernel_times import KernelTime

DEVICE = "Made-up GPU"
FLOPS_PER_S, BYTES_PER_S = 100e12, 1e12
_BLANK: dict[str, Any] = {
    "device": DEVICE, "pattern": "", "dtype": "bfloat16", "batch": 0, "heads_q": 0, "heads_kv": 0, "seq_q": 0,
    "seq_kv": 0, "head_dim": 0, "d_model": 0, "d_ff": 0, "experts": 0, "top_k": 0, "density": math.nan, "n_repeats": 9,
    "peak_bytes": math.nan, "torch": "2.11.0", "triton": "3.6.0", "driver": "570.1", "commit": "abc1234",
    "date": "2026-01-31T12:00:00+00:00",
}  # fmt: skip


def timed(cost: costs.Cost, share: float, **columns: Any) -> KernelTime:
    """A row whose time is that of the roofline divided by `share`."""
    seconds = max(cost.flops / FLOPS_PER_S, cost.bytes / BYTES_PER_S) / share
    spread = {"median_s": seconds, "p20_s": 0.95 * seconds, "p80_s": 1.1 * seconds, "p90_s": 1.2 * seconds}
    counts = {"flops": cost.flops, "executed_flops": cost.executed_flops, "bytes": cost.bytes}
    columns["pass_"] = columns.pop("pass_", "fwd")
    return KernelTime(**{**_BLANK, **spread, **counts, **columns})


def attention(implementation: str, tokens: int, share: float, **columns: Any) -> KernelTime:
    """A row of attention, causal and with 16 heads of 128 unless told otherwise."""
    columns = {"pattern": "causal", "pass_": "fwd", "heads_kv": 16, **columns}
    heads = patterns.head_patterns(columns["pattern"], 16, tokens)
    seen = patterns.useful_scores(heads, tokens, tokens)
    cost = costs.attention(
        batch=1, heads_q=16, heads_kv=columns["heads_kv"], seq_q=tokens, seq_kv=tokens, head_dim=128,
        useful_scores=seen, materialised=implementation == "materialised", pass_=columns["pass_"],
    )  # fmt: skip
    sizes = {"batch": 1, "heads_q": 16, "seq_q": tokens, "seq_kv": tokens, "head_dim": 128}
    density = seen / (16 * tokens**2)
    return timed(cost, share, op="attention", implementation=implementation, density=density, **sizes, **columns)


def decode(implementation: str, tokens: int, shared: int, share: float) -> KernelTime:
    """A row of decoding, 8 sequences and 32 heads of 128."""
    cost = costs.decode_attention(batch=8, heads_q=32, heads_kv=shared, kv_tokens=tokens, head_dim=128)
    sizes = {"batch": 8, "heads_q": 32, "heads_kv": shared, "seq_q": 1, "seq_kv": tokens, "head_dim": 128}
    return timed(
        cost, share, op="decode", implementation=implementation, pass_="decode", pattern="full", density=1.0, **sizes
    )


def mixture(implementation: str, tokens: int, share: float) -> KernelTime:
    """A row of 8 experts, two for each token; `dense_ffn` is the dense layer of that width."""
    if implementation == "dense_ffn":
        cost = costs.feed_forward(tokens, 1024, 4096, "swiglu", pass_="fwd_bwd")
        sizes = {"op": "feed_forward", "seq_q": tokens, "d_model": 1024, "d_ff": 4096}
    else:
        cost = costs.moe_feed_forward(tokens, 1024, 2048, "swiglu", n_experts=8, top_k=2, pass_="fwd_bwd")
        sizes = {"op": "moe", "seq_q": tokens, "d_model": 1024, "d_ff": 2048, "experts": 8, "top_k": 2}
    return timed(cost, share, implementation=implementation, pass_="fwd_bwd", **sizes)


def session() -> list[KernelTime]:
    """Ceilings and every family."""
    product = costs.linear(8192, 8192, 8192)
    rows = [timed(product, 1.0, op="gemm", implementation="torch", seq_q=8192, d_model=8192, d_ff=8192)]
    rows.append(timed(costs.Cost(bytes=2**32), 1.0, op="copy", implementation="torch"))
    shares = {"materialised": 0.6, "sdpa_math": 0.45, "sdpa_flash": 0.55, "sdpa_cudnn": 0.8, "flex": 0.5}
    for tokens in (512, 1024, 2048, 4096, 8192, 16384):
        grown = tokens / (tokens + 600)
        for pass_ in ("fwd", "bwd", "fwd_bwd"):
            for name, share in [*shares.items(), ("flash", 0.78)]:
                rows.append(attention(name, tokens, share * grown, pass_=pass_))
            for name, share in [("sdpa_flash", 0.5), ("mqa", 0.77)]:
                rows.append(attention(name, tokens, share * grown, pass_=pass_, heads_kv=1))
        for pattern in ("window", "strided", "fixed"):
            for name, share in [("materialised", 0.6), ("sdpa_efficient", 0.2), ("block_sparse", 0.5)]:
                rows.append(attention(name, tokens, share * grown, pattern=pattern, pass_="fwd_bwd"))
        rows += [decode(name, tokens, 1, share * grown) for name, share in (("sdpa_flash", 0.2), ("mqa", 0.7))]
        rows += [
            mixture(n, tokens, s * grown) for n, s in (("every_expert", 0.2), ("moe_dispatch", 0.6), ("dense_ffn", 0.8))
        ]
    return rows
