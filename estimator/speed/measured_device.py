"""What kernel times measured on a device say of it: its ceilings, and how fast attention and experts are beside them.

Where `kernel_times.csv` has a device, the step-time model takes these in place of a data sheet's, of assumptions and of
constants that were calibrated elsewhere. Kernels count forward and backward, on the longest sequence or the largest
layer that was measured; their speed is a share of the best matrix product of the same session.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

from cegain.kernels import costs, patterns
from cegain.speed import hardware
from cegain.speed.hardware import Device, Precision
from cegain.speed.step_work import TILE
from cegain.tables import kernel_times
from cegain.tables.kernel_times import KERNEL_TIMES, KernelTime

REPORTED: Mapping[str, str] = {
    "AMD EPYC, 2 threads": "cpu", "Tesla V100-SXM2-32GB": "v100", "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H800": "h800", "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}  # fmt: skip
"""What devices call themselves in a table of kernel times, and what they are called here."""
_PRECISIONS: Mapping[str, Precision] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_SCORE_BYTES: Mapping[str, int] = {"float32": 13 * 4, "bfloat16": 13 * 2, "float16": 13 * 2}
"""That the benchmark's materialised attention moves per score, forward and backward. It keeps 16 bits throughout, where
training under autocast (`step_work.SCORE_BYTES`) casts to fp32 and back."""
_P20_TO_P80 = 2 * 0.8416
"""Standard deviations of a normal between these quantiles."""


def find(name: str) -> Device:
    """As `hardware.find`, with what the shipped kernel times say of the device.

    Raises:
        ValueError: unknown name; the message lists the devices.
    """
    return measured(hardware.find(name), _shipped())


def measured(device: Device, rows: Iterable[KernelTime]) -> Device:
    """The device as `rows` measured it; unchanged where they have no matrix products and copies of it.

    Ceilings are those of the latest session that has both. A kernel's speed is a share of its own session's best
    product, and taken from the latest session that has the kernel.
    """
    sessions: dict[tuple[str, ...], list[KernelTime]] = {}
    for row in rows:
        if REPORTED.get(row.device) == device.name:
            sessions.setdefault(row.session(), []).append(row)
    kernels: dict[str, float] = {}
    result = device
    for session in sorted(sessions.values(), key=lambda session: max(row.date for row in session)):
        best: dict[Precision, KernelTime] = {}
        for row in session:
            precision = _PRECISIONS.get(row.dtype)
            if row.op == "gemm" and precision is not None and precision in device.matmul:
                best[precision] = max(best.get(precision, row), row, key=_rate)
        copies = [row.bytes / row.median_s for row in session if row.op == "copy"]
        if not best or not copies:
            continue
        matmul = {precision: _rate(row) for precision, row in best.items()}
        kernels |= _kernels(session, matmul)
        versions = f"torch {session[0].torch}, commit {session[0].commit[:9]}, {max(row.date for row in session)[:10]}"
        spread = max(math.log(row.p80_s / row.p20_s) / _P20_TO_P80 for row in best.values())
        result = device.with_ceilings(matmul, max(copies), f"{session[0].device}: {versions}", spread=spread)
    return dataclasses.replace(result, **kernels)  # type: ignore[arg-type]


def _kernels(session: Iterable[KernelTime], matmul: Mapping[Precision, float]) -> dict[str, float]:
    """Fields of a Device, those for which there are rows."""
    fields: dict[str, float] = {}
    rows = [row for row in session if row.pass_ == "fwd_bwd" and _PRECISIONS.get(row.dtype) in matmul]
    causal = [row for row in rows if row.pattern == "causal" and row.heads_kv == row.heads_q]
    fused = [row for row in causal if row.implementation == "flash"]
    if fused:
        row = max(fused, key=_size)
        heads = patterns.head_patterns("causal", row.heads_q, row.seq_q)
        tiles = patterns.visited_scores(heads, row.seq_q, row.seq_kv, block_q=TILE, block_kv=TILE)
        work = row.batch * tiles * 2 * row.head_dim * (2 + costs.FLASH_BACKWARD_MATMULS)
        fields["fused_attention"] = work / row.median_s / matmul[_PRECISIONS[row.dtype]]
    materialised = [row for row in causal if row.implementation == "materialised"]
    if materialised:
        row = max(materialised, key=_size)
        scores = row.batch * row.heads_q * row.seq_q * row.seq_kv
        products = scores * 2 * row.head_dim * (2 + costs.ATTENTION_BACKWARD_MATMULS)
        # What the products leave of the time goes into moving the scores.
        moving = row.median_s - products / matmul[_PRECISIONS[row.dtype]]
        if moving > 0:
            fields["score_rate"] = scores * _SCORE_BYTES[row.dtype] / moving
    dense = {(row.dtype, row.seq_q, row.d_model, row.d_ff): row for row in rows if row.op == "feed_forward"}
    mixtures = [
        (row, dense[of_active_width])
        for row in rows
        if row.implementation == "moe_dispatch"
        and (of_active_width := (row.dtype, row.seq_q, row.d_model, row.top_k * row.d_ff)) in dense
    ]
    if mixtures:
        row, layer = max(mixtures, key=lambda pair: pair[0].flops)
        fields["expert_speed"] = _rate(row) / _rate(layer)
    return fields


def _size(row: KernelTime) -> tuple[int, int]:
    """Of attention, for the longest sequence and then the widest heads."""
    return row.seq_q, row.head_dim


def _rate(row: KernelTime) -> float:
    """Useful FLOP/s."""
    return row.flops / row.median_s


@functools.cache
def _shipped() -> tuple[KernelTime, ...]:
    return tuple(kernel_times.load(KERNEL_TIMES)) if KERNEL_TIMES.exists() else ()
