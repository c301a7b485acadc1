"""Every operation x implementation x pass x length: rows of `kernel_times.csv`. See docs/benchmarks.md.

    pytest benchmarks --benchmark-only --benchmark-json results.json
    pytest benchmarks/test_kernels.py -k "test_ceilings or test_flash" --seq-lens 512,1024 --benchmark-only

The implementations of a case are timed in turns, when its first test runs; pytest-benchmark then gets the times of
each, seconds of the device, through a clock that knows nothing else. What the definition does not agree with fails and
has no time; what cannot run here is skipped and says why.
"""

from __future__ import annotations

from typing import Any

import pytest

from cegain.benchmarks.clock import VirtualClock
from cegain.benchmarks.lab import Lab
from cegain.benchmarks.suite import Entry

CLOCK = VirtualClock()


def seconds_of_the_device() -> float:
    """What pytest-benchmark reads, and names in its JSON."""
    return CLOCK()


pytestmark = [
    pytest.mark.benchmark(timer=seconds_of_the_device),
    pytest.mark.filterwarnings("ignore:Benchmark fixture was not used"),  # where a test is skipped or red
]


def report(benchmark: Any, lab: Lab, entry: Entry, request: pytest.FixtureRequest) -> None:
    """Measure the entry's case with all of its selected entries, if that has not been done; then give its times."""
    operation, name, pass_ = entry
    _ = lab.ceilings
    if (name, pass_) not in lab.found.get(operation.case, {}):
        params = [item.callspec.params.get("entry") for item in request.session.items if hasattr(item, "callspec")]
        selected = [one for one in params if one is not None and one.operation.case == operation.case]
        lab.measure(operation, [(one.implementation, one.pass_) for one in selected])
    outcome = lab.found[operation.case][name, pass_]
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    if outcome.wrong:
        pytest.fail(outcome.wrong, pytrace=False)
    benchmark.group = f"{operation.case}, {pass_}"
    benchmark.extra_info.update(lab.row(operation, name, pass_))
    times = iter(outcome.seconds)
    CLOCK.seconds = 0.0
    benchmark.pedantic(lambda: CLOCK.advance(next(times)), rounds=len(outcome.seconds))


def test_ceilings(benchmark: Any, lab: Lab, entry: Entry, request: pytest.FixtureRequest) -> None:
    """Matrix products and copies, before everything else."""
    report(benchmark, lab, entry, request)


def test_flash(benchmark: Any, lab: Lab, entry: Entry, request: pytest.FixtureRequest) -> None:
    """Causal attention, as many key heads as query heads."""
    report(benchmark, lab, entry, request)


def test_sparse(benchmark: Any, lab: Lab, entry: Entry, request: pytest.FixtureRequest) -> None:
    """Attention under a pattern."""
    report(benchmark, lab, entry, request)


def test_mqa(benchmark: Any, lab: Lab, entry: Entry, request: pytest.FixtureRequest) -> None:
    """Causal attention with shared keys and values, in training."""
    report(benchmark, lab, entry, request)


def test_decode(benchmark: Any, lab: Lab, entry: Entry, request: pytest.FixtureRequest) -> None:
    """One new token per sequence against a cache."""
    report(benchmark, lab, entry, request)


def test_moe(benchmark: Any, lab: Lab, entry: Entry, request: pytest.FixtureRequest) -> None:
    """Mixtures of experts, and dense layers of their active width."""
    report(benchmark, lab, entry, request)
