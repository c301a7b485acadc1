"""Ours against others, from a kernel_times.csv: ratios of times, and shares of the measured ceiling. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cegain.tables.kernel_times import ALL_SIZES, KernelTime

OURS = ("flash", "mqa", "block_sparse", "moe_dispatch")
RIVALS = {"sdpa_cudnn": "cuDNN", "sdpa_flash": "flash", "flex": "Flex", "grouped_mm": "grouped_mm"}
"""Implementations of others that ours are held against, by what they are called in the table."""


class NoTimesError(Exception):
    """What the table of kernel times does not have: one sentence with rule, value and remedy."""


class Line(NamedTuple):
    """One case and pass: sizes by name, seconds of ours, useful FLOP/s (bytes/s in decoding), its share of the
    session's best matrix product (copy), and by rival how many times as fast ours is."""

    op: str
    implementation: str
    pass_: str
    pattern: str
    dtype: str
    sizes: dict[str, int]
    seconds: float
    rate: float
    of_ceiling: float
    faster: dict[str, float]


class Comparison(NamedTuple):
    """Lines of a device's latest session, and its ceilings, FLOP/s and bytes/s."""

    device: str
    versions: str
    flops_per_s: float
    bytes_per_s: float
    lines: tuple[Line, ...]


def compare(rows: Iterable[KernelTime], device: str | None = None) -> Comparison:
    """The table of a device: by default of the GPU that was measured last. Only rows of one session stand beside each
    other, the latest that has ceilings.

    Raises:
        NoTimesError: no such device, no GPU, or no session with ceilings.
    """
    everything = list(rows)
    known = sorted({row.device for row in everything})
    chosen = [row for row in everything if (row.driver if device is None else device.lower() in row.device.lower())]
    if not chosen:
        there = "; ".join(known) or "no rows at all"
        if device is None:
            raise NoTimesError(
                f"kernel times of a GPU are there (the table has {there}). Measure on one (docs/gpu.md), collect with "
                "`ceg bench collect`, or name a device with --device"
            )
        raise NoTimesError(f"--device: one of the table's is named ({device!r}; it has {there}). Name one of these")
    sessions: dict[tuple[str, ...], list[KernelTime]] = {}
    for row in chosen:
        sessions.setdefault(row.session(), []).append(row)
    for session in sorted(sessions.values(), key=lambda one: max(row.date for row in one), reverse=True):
        best = max((row for row in session if row.op == "gemm"), key=_rate, default=None)
        copies = [row.bytes / row.median_s for row in session if row.op == "copy"]
        if best is None or not copies:
            continue
        first = session[0]
        versions = (
            f"torch {first.torch}, triton {first.triton or 'none'}, driver {first.driver or 'none'}, {first.commit}"
        )
        lines = _lines(session, max(copies))
        return Comparison(first.device, versions, _rate(best), max(copies), tuple(lines))
    raise NoTimesError(
        f"a session has ceilings (none of {chosen[0].device} has a matrix product and a copy). Measure them with the "
        "same commit: `--slice ceilings`, or test_ceilings of the benchmarks"
    )


def _lines(session: Sequence[KernelTime], copied: float) -> list[Line]:
    best = {row.dtype: 0.0 for row in session}
    for row in session:
        if row.op == "gemm":
            best[row.dtype] = max(best[row.dtype], _rate(row))
    theirs = {(_case(row), row.implementation): row.median_s for row in session if row.implementation in RIVALS}
    lines = []
    for row in session:
        if row.implementation not in OURS:
            continue
        decoding = row.op == "decode"
        rate = row.bytes / row.median_s if decoding else _rate(row)
        ceiling = copied if decoding else best[row.dtype] or max(best.values())
        faster = {rival: theirs[_case(row), rival] / row.median_s for rival in RIVALS if (_case(row), rival) in theirs}
        sizes = {name: getattr(row, name) for name in ALL_SIZES if getattr(row, name)}
        lines.append(
            Line(row.op, row.implementation, row.pass_, row.pattern, row.dtype, sizes, row.median_s, rate,
                 rate / ceiling, faster)
        )  # fmt: skip
    return sorted(lines, key=_order)


def _order(line: Line) -> tuple[object, ...]:
    passes = ("fwd", "bwd", "fwd_bwd", "decode")
    sizes = line.sizes
    return (
        ("attention", "decode", "moe").index(line.op), line.pattern, sizes.get("head_dim", 0), passes.index(line.pass_),
        sizes.get("heads_kv", 0), sizes.get("experts", 0), sizes.get("seq_kv", 0), sizes["seq_q"], line.implementation,
    )  # fmt: skip


def _case(row: KernelTime) -> tuple[object, ...]:
    return (row.op, row.pass_, row.pattern, row.dtype, *(getattr(row, name) for name in ALL_SIZES))


def _rate(row: KernelTime) -> float:
    """Useful FLOP/s."""
    return row.flops / row.median_s
