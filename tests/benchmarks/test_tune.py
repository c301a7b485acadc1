"""The search for configurations: what is tried, what is refused, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cegain.benchmarks import tune
from cegain.kernels import tuned
from cegain.kernels.launch import MetaParameters


@dataclass(frozen=True)
class Meta(MetaParameters):
    block_m: int
    num_warps: int
    num_stages: int


FIRST, SECOND = Meta(64, 8, 2), Meta(128, 8, 3)


class Kernel:
    """Doubles x into y, and takes as long as `seconds` says of a configuration, on a clock that it holds."""

    def __init__(self, seconds: Callable[[dict[str, Any]], float], wrong: Callable[[dict[str, Any]], str]) -> None:
        self.seconds, self.wrong, self.clock = seconds, wrong, 0.0

    def __getitem__(self, grid: Any) -> Any:
        def run(x: torch.Tensor, y: torch.Tensor, **options: Any) -> None:
            how = self.wrong(options)
            if how == "error":
                raise RuntimeError("out of resource: shared memory")
            y[: 2 if how == "short" else None] = x[: 2 if how == "short" else None] * (3 if how == "result" else 2)
            self.clock += self.seconds(options)

        return run

    def watch(self, run: Callable[[], object]) -> float:
        before = self.clock
        run()
        return self.clock - before


def search(kernel: Kernel, grid: Any = (1,), **changes: Any) -> tuned.Launch | dict[str, Any] | None:
    tuner = tune.Tuner(kernel.watch, **{"deadline": time.monotonic() + 60, **changes})
    x, y = torch.arange(1.0, 5.0), torch.zeros(4)
    tuner(kernel, grid, (FIRST, SECOND), (x, y), {"D": 4}, (1,))
    assert x.tolist() == [1, 2, 3, 4]
    return next(iter(tuner.found.values()), None)


def none(options: dict[str, Any]) -> str:
    return ""


class TestNeighbours:
    def test_listed_ones_first_and_blocks_only_where_they_may_change(self) -> None:
        fixed = tune.neighbours((FIRST, SECOND), blocks=False)
        assert fixed[:2] == [FIRST, SECOND]
        assert {meta.block_m for meta in fixed if isinstance(meta, Meta)} == {64, 128}
        free = tune.neighbours((FIRST, SECOND), blocks=True)
        assert {meta.block_m for meta in free if isinstance(meta, Meta)} == {32, 64, 128, 256}
        for found in (fixed, free):
            assert len(found) == len(set(found))
            assert all(1 <= meta.num_stages <= tune.MOST_STAGES and meta.num_warps in tune.WARPS for meta in found)


class TestSearch:
    def test_the_fastest_is_kept(self) -> None:
        found = search(Kernel(lambda o: 1.0 if o["num_stages"] == 4 else 2.0, none))
        assert isinstance(found, dict)
        assert found["meta"]["num_stages"] == 4
        assert (found["seconds"], found["default_seconds"]) == (1.0, 2.0)
        assert found["default"] == "block_m=64, num_warps=8, num_stages=2"
        assert (found["key"], found["constants"], found["dtype"]) == ("1", "D=4", "float32")

    def test_what_is_hardly_faster_is_not(self) -> None:
        found = search(Kernel(lambda o: 1.995 if o["num_stages"] == 4 else 2.0, none))
        assert isinstance(found, dict)
        assert found["meta"] == vars(FIRST)
        assert found["seconds"] == found["default_seconds"]

    def test_wrong_results_errors_and_unwritten_entries_are_refused(self) -> None:
        ways = {4: "result", 3: "error", 1: "short"}
        kernel = Kernel(lambda o: float(5 - o["num_stages"]), lambda o: ways.get(o["num_stages"], ""))
        found = search(kernel)
        assert isinstance(found, dict)
        said = " ".join(found["failed"])
        assert "its result differs by" in said
        assert "out of resource" in said
        assert "it writes other entries than the default" in said
        assert found["meta"]["num_stages"] == 5  # of those that are right

    def test_once_for_launches_that_are_alike_and_never_where_nothing_may_be_tuned(self) -> None:
        kernel = Kernel(lambda o: 1.0, none)
        tuner = tune.Tuner(kernel.watch, time.monotonic() + 60)
        x, y = torch.ones(4), torch.zeros(4)
        tuner(kernel, (1,), (FIRST,), (x, y), {}, ())
        assert (tuner.found, kernel.clock) == ({}, 0.0)
        tuner(kernel, (1,), (FIRST, SECOND), (x, y), {}, ())
        spent = kernel.clock
        tuner(kernel, (1,), (FIRST, SECOND), (x, y), {}, ())
        assert (len(tuner.found), kernel.clock) == (1, spent)

    def test_nothing_begins_after_the_deadline(self) -> None:
        kernel = Kernel(lambda o: 1.0, none)
        tuner = tune.Tuner(kernel.watch, time.monotonic() - 1)
        tuner(kernel, (1,), (FIRST, SECOND), (torch.ones(4), torch.zeros(4)), {}, ())
        assert (tuner.found, tuner.late) == ({}, True)


def test_every_shape_that_is_timed_is_tuned() -> None:
    from cegain.benchmarks.gpu_kernels import slices

    timed = {case for chosen in slices("cuda").values() for case in chosen.cases if case.op != "feed_forward"}
    assert set(tune.cases("cuda")) == timed
