"""Attention on a CPU, forward and backward in float32: against materialised scores, windowed, and with shared keys.

    OMP_NUM_THREADS=2 pytest benchmarks -k cpu_flash --benchmark-only -s

Rivals take turns with ours, round by round, so that whatever else the machine does meets all of them. Printed and kept
in extra_info: medians, 90th percentiles, and the median and range of the ratio within a round. Peak memory is what one
forward and backward adds to a process of its own: its resident peak (VmHWM, reset before) minus its resident size with
inputs made and threads warm, so Linux only. No speed is reported before a small case agrees with the definition.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cegain.benchmarks.peak_memory import CLEAR_REFS, resident
from cegain.kernels.flash import flash_attention
from cegain.kernels.mqa import mqa_attention, mqa_decode

ROUNDS = 5
SPEED_BAR = 3.0
"""How many times as fast as materialised attention ours must be at T = 4096, H = 4, D = 64."""

MEMORY_BAR = 0.1
"""And the share of its peak memory that ours may take."""

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def materialised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of equal lengths as in minGPT: scores, mask, softmax, weighted sum."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ v


def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A window of 512 tokens."""
    return flash_attention(q, k, v, window=512)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys and values copied for every query head."""
    group = q.shape[1] // k.shape[1]
    return flash_attention(q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1))


PATHS: dict[str, Attention] = {
    "materialised": materialised,
    "flash": flash_attention,
    "windowed": windowed,
    "mqa": mqa_attention,
    "repeated": repeated,
}


def inputs(tokens: int, heads: int, shared: int, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """One sequence's q, k and v, to be differentiated."""
    shapes = [(1, h, tokens, width) for h in (heads, shared, shared)]
    q, k, v = (torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(shapes))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def step(path: Attention, tensors: tuple[Tensor, ...]) -> Callable[[], list[Tensor]]:
    """One forward and backward pass, giving the output and all gradients."""
    q, k, v = tensors
    grad = torch.ones_like(q)

    def run() -> list[Tensor]:
        out = path(q, k, v)
        return [out, *torch.autograd.grad(out, (q, k, v), grad)]

    return run


def agrees(name: str, heads: int, shared: int) -> bool:
    """Whether a path gives the definition's output and gradients at 600 tokens."""
    tensors = inputs(600, heads, shared)
    window = 512 if name == "windowed" else None
    want = step(lambda q, k, v: flash_attention(q, k, v, window=window, backend="reference"), tensors)()
    found = step(PATHS[name], tensors)()
    return all(bool(torch.allclose(a, b, rtol=1e-4, atol=1e-4)) for a, b in zip(found, want, strict=True))


def compare(benchmark: Any, ours: Callable[[], object], rival: Callable[[], object], names: tuple[str, str]) -> float:
    """Time ours and a rival in turns; the median over rounds of the rival's time divided by ours."""
    rival_times: list[float] = []

    def before_ours() -> None:
        begin = time.perf_counter()
        rival()
        rival_times.append(time.perf_counter() - begin)

    benchmark.pedantic(ours, setup=before_ours, rounds=ROUNDS, warmup_rounds=1)
    own, other = np.array(benchmark.stats.stats.data), np.array(rival_times[-ROUNDS:])
    ratios = other / own
    said = f"{names[1]} / {names[0]} {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
    for name, spent in zip(names, (own, other), strict=True):
        said += f"; {name} median {1e3 * np.median(spent):.1f} ms, p90 {1e3 * np.quantile(spent, 0.9):.1f} ms"
    benchmark.extra_info.update(ratio=said, rounds=ROUNDS, threads=torch.get_num_threads(), torch=torch.__version__)
    print(f"\n{said}; {ROUNDS} rounds, {torch.get_num_threads()} threads")
    return float(np.median(ratios))


@pytest.mark.benchmark(group="cpu attention, T 4096, H 4, D 64, forward and backward")
def test_cpu_flash_against_materialised(benchmark: Any) -> None:
    """At least 3 times as fast."""
    assert agrees("flash", 4, 4)
    assert agrees("materialised", 4, 4)
    tensors = inputs(4096, 4, 4)
    ratio = compare(benchmark, step(flash_attention, tensors), step(materialised, tensors), ("flash", "materialised"))
    assert ratio >= SPEED_BAR, f"materialised / flash must be at least {SPEED_BAR}, measured {ratio:.2f}"


@pytest.mark.benchmark(group="cpu attention, T 8192, H 4, D 64, forward and backward")
def test_cpu_flash_window_against_causal(benchmark: Any, full: bool) -> None:
    """A window of 512 of 8192 tokens leaves an eighth of the causal scores."""
    if not full:
        pytest.skip("20 s; --full measures it")
    assert agrees("windowed", 4, 4)
    tensors = inputs(8192, 4, 4)
    compare(benchmark, step(windowed, tensors), step(flash_attention, tensors), ("window 512", "causal"))


@pytest.mark.benchmark(group="cpu attention, T 2048, H 8, one key head, D 64, forward and backward")
def test_cpu_flash_mqa_against_repeated_keys(benchmark: Any) -> None:
    """Shared keys against copies of them."""
    assert agrees("mqa", 8, 1)
    assert agrees("repeated", 8, 1)
    tensors = inputs(2048, 8, 1)
    compare(benchmark, step(mqa_attention, tensors), step(repeated, tensors), ("shared keys", "repeated keys"))


@pytest.mark.benchmark(group="cpu decode, S 4096, H 32, D 64")
@pytest.mark.parametrize("shared", [1, 8])
def test_cpu_flash_decode_against_the_definition(benchmark: Any, shared: int) -> None:
    """One token for each of four sequences of unequal length."""
    k_cache, v_cache = torch.randn(2, 4, shared, 4096, 64)
    lengths = torch.tensor([4096, 3000, 4000, 3500])
    q = torch.randn(4, 32, 64)

    def ours() -> Tensor:
        return mqa_decode(q, k_cache, v_cache, lengths)

    def definition() -> Tensor:
        return mqa_decode(q, k_cache, v_cache, lengths, backend="reference")

    torch.testing.assert_close(ours(), definition(), rtol=1e-4, atol=1e-5)
    compare(benchmark, ours, definition, ("decode", "definition"))


def added_by_one_step(path: Attention, tensors: tuple[Tensor, ...]) -> int:
    """Resident bytes that one forward and backward adds at its peak, in a process that did little else before."""
    step(path, inputs(64, 4, 4))()
    CLEAR_REFS.write_text("5", encoding="ascii")
    before = resident("VmRSS")
    step(path, tensors)()
    return resident("VmHWM") - before


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.benchmark(group="cpu attention, T 4096, H 4, D 64, peak memory of forward and backward")
def test_cpu_flash_peak_memory(benchmark: Any, full: bool) -> None:
    """At most a tenth of what materialised scores take; each in a process of its own, three of each with `--full`."""

    def peak(name: str) -> int:
        command = [sys.executable, "-m", "cegain.benchmarks.test_cpu_flash", name]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert agrees("flash", 4, 4)
    count = 3 if full else 1
    flash, plain = [peak("flash") for _ in range(count)], [peak("materialised") for _ in range(count)]
    share = float(np.median(flash) / np.median(plain))
    said = f"flash / materialised {share:.3f}"
    for name, found in (("flash", flash), ("materialised", plain)):
        low, middle, high = np.quantile(found, [0, 0.5, 1]) / 2**20
        said += f"; {name} {middle:.1f} MiB ({low:.1f} to {high:.1f})"
    benchmark.extra_info["peak"] = said
    benchmark.pedantic(step(flash_attention, inputs(4096, 4, 4)), rounds=3)
    print(f"\n{said}")
    assert share <= MEMORY_BAR, f"flash / materialised peak memory must be at most {MEMORY_BAR}, measured {share:.3f}"


if __name__ == "__main__":
    print(added_by_one_step(PATHS[sys.argv[1]], inputs(4096, 4, 4)))
