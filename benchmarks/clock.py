"""Time of the device: a stopwatch for one call, rounds in turns, and a clock that pytest-benchmark can read.

pytest-benchmark subtracts two readings of a clock around a call, which on a GPU is the time to queue the work. So calls
are timed here (by CUDA events on a GPU), several implementations in turns, and pytest-benchmark gets a clock that
stands still but for the times that are replayed to it: its table, its JSON and its comparisons then hold them.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], object]
Times = dict[str, list[float]]
Stopwatch = Callable[[Run], float]
"""Seconds that the device spends on one call."""

_CPU_CACHE = 2**26
"""Bytes overwritten between rounds where Linux does not tell the cache's size."""
_HEAD_START = 1_000_000
"""GPU cycles, about half a millisecond, in which the host queues a round before the device begins it."""


class VirtualClock:
    """Stands still but for `advance`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds


def by_events(new_event: Callable[[], Any], before: Run) -> Stopwatch:
    """A stopwatch that asks the device; `before` is queued ahead of every call, outside its time.

    Events are like `torch.cuda.Event(enable_timing=True)`: record, synchronize, elapsed_time in milliseconds.
    """

    def seconds(run: Run) -> float:
        begin, end = new_event(), new_event()
        before()
        begin.record()
        kept = run()  # until the end is queued: freed memory may make the allocator wait
        end.record()
        end.synchronize()
        del kept
        return float(begin.elapsed_time(end)) / 1e3

    return seconds


def by_host(before: Run, now: Callable[[], float] = time.perf_counter) -> Stopwatch:
    """A stopwatch that reads the host's clock, for a CPU."""

    def seconds(run: Run) -> float:
        before()
        begin = now()
        kept = run()
        end = now()
        del kept
        return end - begin

    return seconds


def stopwatch(device: torch.device) -> Stopwatch:
    """The stopwatch of a device. A buffer twice as large as its last cache is overwritten before every call."""
    if device.type == "cuda":
        size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        buffer = torch.empty(size, dtype=torch.uint8, device=device)

        def before() -> None:
            buffer.zero_()
            # Else gaps would be timed in which the device waits for the host to queue the next kernel.
            torch.cuda._sleep(_HEAD_START)  # type: ignore[no-untyped-call]

        return by_events(lambda: torch.cuda.Event(enable_timing=True), before)  # type: ignore[no-untyped-call]
    ones = torch.ones(2 * _cpu_cache() // 4)
    return by_host(lambda: ones.mul_(1.0))


def _cpu_cache() -> int:
    """Bytes of the first core's largest cache."""
    found = [_CPU_CACHE // 2]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        size = re.fullmatch(r"(\d+)([KM])", path.read_text().strip())
        if size:
            found.append(int(size[1]) * {"K": 2**10, "M": 2**20}[size[2]])
    return max(found)


@dataclass(frozen=True, slots=True)
class Rounds:
    """How many: as many as fit `seconds`, of `least` to `most`."""

    seconds: float
    least: int
    most: int

    def of(self, one: float) -> int:
        """Rounds for a call that takes `one` second(s)."""
        return min(self.most, max(self.least, int(self.seconds / max(one, 1e-9))))


def race(runners: Mapping[str, Callable[[int], Run]], wanted: Mapping[str, int], seconds: Stopwatch) -> Times:
    """Times of each runner, in turns, so that whatever else the machine does meets all of them.

    Args:
        runners: given a round's number, each prepares what is timed (outside the time) and returns it.
        wanted: rounds of each; one that has had its rounds drops out.
        seconds: the stopwatch.
    """
    times: Times = {name: [] for name in runners}
    gc.collect()
    gc.disable()
    try:
        for i in range(max(wanted.values(), default=0)):
            for name in _rotated(list(runners), i):
                if i < wanted[name]:
                    times[name].append(seconds(runners[name](i)))
    finally:
        gc.enable()
    return times


def _rotated(names: Sequence[str], by: int) -> Iterator[str]:
    """So that nobody always runs after the same other."""
    return (names[(i + by) % len(names)] for i in range(len(names)))
