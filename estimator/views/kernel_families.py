"""Kernel times by what is drawn together: families of operations, and the ceilings of the session they share.

No picture is drawn here, so that whoever only counts needs no matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cegain.tables.kernel_times import KernelTime

Test = Callable[[KernelTime], bool]
OURS = ("flash", "block_sparse", "mqa", "moe_dispatch")
"""Implementations that are this project's own."""


class Family(NamedTuple):
    """A group of operations that is drawn together; `main` is the implementation of ours that is made for it."""

    title: str
    main: str
    belongs: Test
    passes: tuple[str, ...]
    x: str
    label: str


def _is_attention(row: KernelTime) -> bool:
    return row.op == "attention"


FAMILIES: Mapping[str, Family] = {
    "flash": Family(
        "Causal attention", "flash",
        lambda row: _is_attention(row) and row.pattern == "causal" and row.heads_kv == row.heads_q,
        ("fwd", "bwd"), "seq_q", "sequence length (tokens)",
    ),
    "sparse": Family(
        "Attention under a pattern, forward and backward", "block_sparse",
        lambda row: _is_attention(row) and row.pattern not in ("causal", "full"),
        ("fwd_bwd",), "seq_q", "sequence length (tokens)",
    ),
    "mqa": Family(
        "Causal attention with shared keys and values", "mqa",
        lambda row: _is_attention(row) and row.pattern == "causal" and row.heads_kv < row.heads_q,
        ("fwd", "bwd"), "seq_q", "sequence length (tokens)",
    ),
    "decode": Family(
        "One new token per sequence against a cache", "mqa",
        lambda row: row.op == "decode",
        ("decode",), "seq_kv", "tokens in the cache",
    ),
    "moe": Family(
        "Mixture of experts, forward and backward", "moe_dispatch",
        lambda row: row.op == "moe",
        ("fwd_bwd",), "seq_q", "tokens",
    ),
}  # fmt: skip
_PASS_WORDS = {"fwd": "forward", "bwd": "backward", "fwd_bwd": "forward and backward", "decode": "decoding"}


class Ceilings(NamedTuple):
    """The fastest matrix product (FLOP/s) and copy (bytes/s) of a session."""

    flops_per_s: float
    bytes_per_s: float

    def least_seconds(self, row: KernelTime) -> float:
        """Time of a row's useful work and traffic on the roofline."""
        return max(row.flops / self.flops_per_s, row.bytes / self.bytes_per_s)


def choose(rows: Sequence[KernelTime], device: str | None, belongs: Test) -> tuple[list[KernelTime], list[KernelTime]]:
    """The rows to draw, and all rows of their session: the latest one on the device that has any.

    `device` is a device's name or a part of it, in any case; None where all rows are of one.

    Raises:
        ValueError: no row, an unknown device, or several devices to choose from; the message lists them.
    """
    if not rows:
        raise ValueError("there is a row (the table is empty). Measure, then `ceg bench collect`")
    names = sorted({row.device for row in rows})
    matching = [name for name in names if device is None or device.lower() in name.lower()]
    if device is not None and device in names:
        matching = [device]
    if len(matching) != 1:
        named = "none was given" if device is None else f"found {device!r}"
        raise ValueError(f"one device of {'; '.join(names)} is needed ({named}). Name it with --device")
    device_rows = [row for row in rows if row.device == matching[0] and belongs(row)]
    if not device_rows:
        kinds = ", ".join(sorted({row.op for row in rows if row.device == matching[0]}))
        raise ValueError(f"there are such rows of {matching[0]} (found {kinds} only). Measure them")
    session = max(device_rows, key=lambda row: row.date).session()
    return [row for row in device_rows if row.session() == session], [row for row in rows if row.session() == session]


def ceilings(session: Iterable[KernelTime]) -> Ceilings | None:
    """Of a session's gemm and copy rows; None where one kind is missing."""
    products = [row.flops / row.median_s for row in session if row.op == "gemm"]
    copies = [row.bytes / row.median_s for row in session if row.op == "copy"]
    return Ceilings(max(products), max(copies)) if products and copies else None


def panel_title(family: str, row: KernelTime) -> str:
    """Of the panel that a row of a family stands in: its pass or pattern, and its shape."""
    shape = f"{row.heads_q} heads of {row.head_dim}"
    if family == "flash":
        return f"{_PASS_WORDS[row.pass_]}, {shape}"
    if family == "sparse":
        return f"{row.pattern}, {shape}"
    if family == "mqa":
        return f"{_PASS_WORDS[row.pass_]}, {shape},\n{row.heads_kv} key head{'s' if row.heads_kv > 1 else ''}"
    if family == "decode":
        return f"{row.batch} sequences, {shape},\n{row.heads_kv} key head{'s' if row.heads_kv > 1 else ''}"
    return f"{row.experts} experts of {row.d_ff}, top-{row.top_k},\nwidth {row.d_model}"
