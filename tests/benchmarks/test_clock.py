"""The stopwatch by events, rounds in turns, and what pytest-benchmark makes of the clock, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cegain.benchmarks.clock import Rounds, VirtualClock, by_events, by_host, race


class Device:
    """A device with a queue: work takes its time, the host none. Events note the device's time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.log: list[str] = []

    def work(self, name: str, seconds: float) -> Callable[[], str]:
        def run() -> str:
            self.seconds += seconds
            self.log.append(name)
            return name

        return run

    def event(self) -> Event:
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.at: float | None = None
        self.waited = False

    def record(self) -> None:
        self.at = self.device.seconds

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: Event) -> float:
        assert end.waited, "asked before the device got there"
        assert self.at is not None
        assert end.at is not None
        return 1e3 * (end.at - self.at)


def test_events_time_the_call_and_not_what_goes_before_it() -> None:
    device = Device()
    seconds = by_events(device.event, device.work("overwrite the cache", 5.0))
    assert seconds(device.work("kernel", 0.25)) == pytest.approx(0.25)
    assert device.log == ["overwrite the cache", "kernel"]


def test_the_hosts_stopwatch_leaves_out_what_goes_before() -> None:
    device = Device()
    seconds = by_host(device.work("overwrite the cache", 5.0), now=lambda: device.seconds)
    assert seconds(device.work("call", 0.5)) == pytest.approx(0.5)


def test_rounds_take_turns_and_nobody_always_follows_the_same_other() -> None:
    device = Device()
    seconds = by_events(device.event, lambda: None)
    spent = {"a": 1.0, "b": 2.0, "c": 4.0}
    inputs: list[tuple[str, int]] = []

    def runner(name: str) -> Callable[[int], Callable[[], str]]:
        def prepare(i: int) -> Callable[[], str]:
            device.seconds += 100.0  # preparing is not timed
            inputs.append((name, i))
            return device.work(name, spent[name])

        return prepare

    times = race({name: runner(name) for name in spent}, {"a": 3, "b": 3, "c": 1}, seconds)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0]}
    assert device.log == ["a", "b", "c", "b", "a", "a", "b"]
    assert [i for name, i in inputs if name == "a"] == [0, 1, 2]


@pytest.mark.parametrize(("one", "expected"), [(1.0, 3), (0.05, 10), (1e-6, 50), (0.0, 50)])
def test_rounds_fill_the_time_within_limits(one: float, expected: int) -> None:
    assert Rounds(0.5, least=3, most=50).of(one) == expected


CLOCK = VirtualClock()


@pytest.mark.benchmark(timer=CLOCK)
def test_pytest_benchmark_stores_the_replayed_times(benchmark: Any) -> None:
    times = [0.25, 0.5, 0.125]
    replayed = iter(times)
    benchmark.pedantic(lambda: CLOCK.advance(next(replayed)), rounds=len(times))
    if not benchmark.disabled:  # as it is where tests run in parallel
        assert benchmark.stats.stats.data == times
    assert list(replayed) == times[1:] if benchmark.disabled else not list(replayed)
