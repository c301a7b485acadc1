"""How long runs take: from runs that have ended, from a few steps, or from the step-time model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cegain.tables.training_runs import TrainingRun

if TYPE_CHECKING:
    import torch

    from cegain.speed.hardware import Device
    from cegain.training.run.config import Config
    from cegain.training.sweeps.ablate import Job, Ladders
    from cegain.training.text.data import Corpus

STEPS = 5
"""Timed, after two that are not."""


class Pace(Protocol):
    """Seconds of a job, alone on its device, and where they come from."""

    @property
    def source(self) -> str:
        """In words."""

    def seconds(self, job: Job) -> float:
        """Of one job."""


class Measured(NamedTuple):
    """A job's FLOP at the rate of the nearest budget known on this device, of the same arm if possible."""

    rates: tuple[tuple[str, float, float], ...]
    """(arm, ln budget, FLOP/s)"""
    source: str

    def seconds(self, job: Job) -> float:
        """See `Pace`."""
        made = job.config

        def distance(known: tuple[str, float, float]) -> float:
            return abs(known[1] - math.log(made.rung_flops)) + (0.0 if known[0] == made.arm else 1e-3)

        return made.flops / min(self.rates, key=distance)[2]


class Modelled(NamedTuple):
    """A job's steps at the step-time model's speed on one device that need not be here."""

    device: Device

    @property
    def source(self) -> str:
        """See `Pace`."""
        return f"the step-time model on one {self.device.title}"

    def seconds(self, job: Job) -> float:
        """See `Pace`. The held-out text at the end is not counted."""
        from cegain.speed import step_time, step_work

        made = job.config
        plan = step_work.Plan(
            device=self.device, devices=1, sharding="none", micro_batch=made.micro_batch,
            accumulate=made.batch // made.micro_batch,
        )  # fmt: skip
        return made.steps * step_time.training_step(made.shape, plan, fits=False).seconds


def measure(ladders: Ladders, table: Iterable[TrainingRun], device: torch.device) -> Measured:
    """From the table's runs; where it has none of this device, from a few steps of the first arm at the lowest and the
    highest rung."""
    from cegain.training.run import environment

    here = environment.device_name(device).partition(",")[0]
    rates = tuple(
        (run.arm, math.log(run.rung_flops), run.flops / run.wall_s)
        for run in table
        if run.device.partition(",")[0] == here and run.status == "finished"
    )
    if rates:
        return Measured(rates, f"{len(rates)} runs in the table")
    places = [ladders.configuration(ladders.arms[0], rung) for rung in {ladders.rungs[0], ladders.rungs[-1]}]
    rates = tuple(
        (made.arm, math.log(made.rung_flops), made.flops / made.steps / step_seconds(made, ladders.corpus, device))
        for made in places
    )
    return Measured(rates, f"{STEPS} steps of {ladders.arms[0]}")


def step_seconds(made: Config, corpus: Corpus, device: torch.device) -> float:
    """Median of a few training steps of one CPU thread or GPU."""
    import torch

    from cegain.training.models import model, optim
    from cegain.training.run.processes import Processes
    from cegain.training.run.train import Objective, accumulate
    from cegain.training.text.data import Batches

    one = Processes(0, 1, device)
    lm = model.build(made.shape, seed=made.seed, backend=made.backend).to(device)
    objective = Objective(lm, torch.bfloat16 if made.precision == "bfloat16" else None)
    optimizers = optim.optimizers(lm, made.shape.optimizer, made.learning_rate, made.weight_decay)
    batches = Batches(corpus, "train", made.shape.seq_len, made.seed)
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for step in range(2 + STEPS):
        began = time.perf_counter()
        accumulate(objective, batches, made, step, one).item()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return sorted(seconds[2:])[STEPS // 2]
