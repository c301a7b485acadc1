"""One session of measurements: ceilings first, then a race per case; rows of `kernel_times.csv` come out."""

from __future__ import annotations

import datetime
import math
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cegain.benchmarks import peak_memory, suite
from cegain.benchmarks.cases import Case, Implementation, Operation, PassName, first_line
from cegain.benchmarks.check import Truth, WrongResultError
from cegain.benchmarks.clock import Rounds, Run, Stopwatch, race, stopwatch
from cegain.common.text import finite
from cegain.kernels.costs import Cost
from cegain.tables import provenance
from cegain.tables.kernel_times import SIZES

INPUT_SETS = 2
"""Inputs that rounds take in turn."""
ROUNDS = {
    ("cpu", False): Rounds(0.25, least=3, most=20),
    ("cpu", True): Rounds(2.0, least=5, most=50),
    ("cuda", False): Rounds(0.2, least=10, most=100),
    ("cuda", True): Rounds(1.0, least=20, most=300),
}
"""By kind of device, and whether the run is a full one."""
Wanted = tuple[str, PassName]


@dataclass(slots=True)
class Outcome:
    """What became of one implementation and pass: times in seconds, or why there are none."""

    seconds: list[float] = field(default_factory=list)
    warm_up_s: float = math.nan
    peak_bytes: float = math.nan
    skipped: str = ""
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The fastest matrix product (FLOP/s) and copy (bytes/s, read and written) of a session."""

    flops_per_s: float
    bytes_per_s: float

    def least_seconds(self, cost: Cost) -> float:
        """Time of useful work and of traffic on the roofline."""
        return max(cost.flops / self.flops_per_s, cost.bytes / self.bytes_per_s)


class Lab:
    """A device, its stopwatch, and what was measured on it so far."""

    def __init__(
        self, device: torch.device, rounds: Rounds, full: bool, watch: Stopwatch | None = None,
        ceilings: Ceilings | None = None,
    ) -> None:  # fmt: skip
        self.device, self.rounds, self.full = device, rounds, full
        self.watch = stopwatch(device) if watch is None else watch
        self.found: dict[Case, dict[Wanted, Outcome]] = {}
        if ceilings is not None:
            self.ceilings = ceilings

    @cached_property
    def environment(self) -> dict[str, str]:
        """What times depend on beside the case: the columns of a session, and versions that have no column."""
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device)
            if on_gpu
            else provenance.cpu_name(torch.get_num_threads()),
            "torch": torch.__version__,
            "triton": provenance.version("triton") if on_gpu else "",
            "driver": _driver() if on_gpu else "",
            "commit": provenance.commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }

    @cached_property
    def ceilings(self) -> Ceilings:
        """Measured when first asked for, which is before any kernel; given if they are known of this session."""
        best = {"gemm": 0.0, "copy": 0.0}
        for entry in suite.entries(suite.cases("ceilings", self.device.type, (), self.full), self.device):
            case = entry.operation.case
            if case not in self.found:
                self.measure(entry.operation, [(entry.implementation, entry.pass_)])
            outcome = self.found[case][entry.implementation, entry.pass_]
            if outcome.wrong:
                raise WrongResultError(outcome.wrong)
            if outcome.skipped:
                continue  # too large for what is free
            if case.dtype:
                continue  # not what kernels are timed in
            cost = entry.operation.implementations()[0].cost(entry.pass_)
            work = cost.flops if case.op == "gemm" else cost.bytes
            best[case.op] = max(best[case.op], work / float(np.median(outcome.seconds)))
        return Ceilings(best["gemm"], best["copy"])

    def measure(self, operation: Operation, wanted: Sequence[Wanted]) -> None:
        """Check and race implementations of one case, and keep what came of it in `found`."""
        outcomes = self.found.setdefault(operation.case, {})
        inputs = [operation.leaves(seed) for seed in range(INPUT_SETS)]
        truth = Truth(operation, inputs[0])
        runners: dict[Wanted, Callable[[int], Run]] = {}
        for implementation in operation.implementations():
            passes = [pass_ for name, pass_ in wanted if name == implementation.name]
            for pass_ in passes:
                outcomes[implementation.name, pass_] = Outcome(skipped=self._why_not(implementation, pass_))
            able = [pass_ for pass_ in passes if not outcomes[implementation.name, pass_].skipped]
            checked = _attempt(implementation, truth.check, implementation) if able else None
            for pass_ in able:
                key = (implementation.name, pass_)
                runner = _runner(implementation, pass_, inputs)
                found = checked or _attempt(implementation, self._warm_up, runner, outcomes[key])
                if found is None:
                    runners[key] = runner
                else:
                    outcomes[key] = found
        labels = {f"{name} {pass_}": (name, pass_) for name, pass_ in runners}
        times = race(
            {label: runners[key] for label, key in labels.items()},
            {label: self.rounds.of(outcomes[key].warm_up_s) for label, key in labels.items()},
            self.watch,
        )
        for label, seconds in times.items():
            outcomes[labels[label]].seconds = seconds
        if self.full and self.device.type == "cpu" and operation.case.op not in ("gemm", "copy"):
            for one, peak in peak_memory.measure(operation.case, list(runners)).items():
                outcomes[one].peak_bytes = peak

    def _warm_up(self, runner: Callable[[int], Run], outcome: Outcome) -> None:
        """A first call, which is not counted but for its memory and what it says of the time of one."""
        run = runner(0)
        if self.device.type == "cpu":
            outcome.warm_up_s = self.watch(run)
            return
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outcome.warm_up_s = self.watch(run)
        outcome.peak_bytes = torch.cuda.max_memory_allocated() - before

    def _why_not(self, implementation: Implementation, pass_: PassName) -> str:
        if implementation.only_full and not self.full and pass_ not in implementation.skips:
            return f"{implementation.only_full}; --full measures it"
        return implementation.skips.get(pass_, "")

    def row(self, operation: Operation, name: str, pass_: PassName) -> dict[str, Any]:
        """The columns of `tables.kernel_times`, and what can be derived from them; None for what is not known."""
        case, outcome = operation.case, self.found[operation.case][name, pass_]
        (implementation,) = (one for one in operation.implementations() if one.name == name)
        cost = implementation.cost(pass_)
        p20, median, p80, p90 = np.quantile(outcome.seconds, (0.2, 0.5, 0.8, 0.9)).tolist()
        return {
            **self.environment,
            "op": case.op,
            "implementation": name,
            "pass": pass_,
            "pattern": case.pattern,
            "dtype": str(operation.dtype).removeprefix("torch."),
            **{size: getattr(case, size) for size in SIZES[case.op]},
            "density": finite(operation.density),
            "n_repeats": len(outcome.seconds),
            "median_s": median,
            "p20_s": p20,
            "p80_s": p80,
            "p90_s": p90,
            "flops": cost.flops,
            "executed_flops": cost.executed_flops,
            "bytes": cost.bytes,
            "peak_bytes": finite(outcome.peak_bytes),
            "tflops_per_s": cost.flops / median / 1e12,
            "executed_tflops_per_s": cost.executed_flops / median / 1e12,
            "gb_per_s": cost.bytes / median / 1e9,
            "gemm_tflops_per_s": self.ceilings.flops_per_s / 1e12,
            "copy_gb_per_s": self.ceilings.bytes_per_s / 1e9,
            "roofline_fraction": self.ceilings.least_seconds(cost) / median,
            "rounds": "in turns with all implementations of the case, cache overwritten before each",
        }


def _attempt(implementation: Implementation, act: Callable[..., None], *arguments: Any) -> Outcome | None:
    """Act; the outcome where that raises an error. A rival may lack what it needs here, ours may not."""
    try:
        act(*arguments)
    except WrongResultError as error:
        return Outcome(wrong=str(error))
    except Exception as error:
        said = first_line(error)
        return Outcome(wrong=said) if implementation.ours else Outcome(skipped=said)
    return None


def _runner(
    implementation: Implementation, pass_: PassName, inputs: Sequence[Sequence[Tensor]]
) -> Callable[[int], Run]:
    """By a round's number, the call that is timed. A forward pass keeps what a backward one needs, if there is one."""
    differentiable = "bwd" not in implementation.skips
    grads: list[Tensor] = []

    def prepare(i: int) -> Run:
        leaves = inputs[i % len(inputs)]
        if not differentiable:
            leaves = [leaf.detach() for leaf in leaves]
        if pass_ in ("fwd", "decode"):
            return lambda: implementation.run(*leaves)
        if not grads:
            shape = implementation.run(*leaves)
            grads.append(torch.randn(shape.shape, device=shape.device, dtype=shape.dtype))
        if pass_ == "bwd":
            out = implementation.run(*leaves)
            return lambda: torch.autograd.grad(out, leaves, grads[0])
        return lambda: torch.autograd.grad(implementation.run(*leaves), leaves, grads[0])

    return prepare


def _driver() -> str:
    """The driver's version, from the tool that comes with it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.splitlines()[0].strip() if said.strip() else ""
