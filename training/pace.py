"""How long runs take here, from runs that have ended or from a few steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch

from estimator.training_runs import TrainingRun
from training import environment, model, optim
from training.ablate import Job, Ladders
from training.config import Config
from training.data import Batches, Corpus
from training.processes import Processes
from training.train import Objective, accumulate

STEPS = 5
"""Timed, after two that are not."""


class Pace:
    """Seconds of a job: its FLOP at the rate of the nearest budget known on this device, of the same arm if possible.

    Runs of the table set the rates; where it has none of this device, a few steps of the first arm at the lowest and
    the highest rung do.
    """

    def __init__(self, ladders: Ladders, table: Iterable[TrainingRun], device: torch.device) -> None:
        here = environment.device_name(device).partition(",")[0]
        self.rates = [
            (run.arm, math.log(run.rung_flops), run.flops / run.wall_s)
            for run in table
            if run.device.partition(",")[0] == here and run.status == "finished"
        ]
        self.source = f"{len(self.rates)} runs in the table"
        if not self.rates:
            places = [ladders.configuration(ladders.arms[0], rung) for rung in {ladders.rungs[0], ladders.rungs[-1]}]
            self.rates = [
                (
                    made.arm,
                    math.log(made.rung_flops),
                    made.flops / made.steps / step_seconds(made, ladders.corpus, device),
                )
                for made in places
            ]
            self.source = f"{STEPS} steps of {ladders.arms[0]}"

    def seconds(self, job: Job) -> float:
        """Of one job, alone on its device."""
        made = job.config

        def distance(known: tuple[str, float, float]) -> float:
            return abs(known[1] - math.log(made.rung_flops)) + (0.0 if known[0] == made.arm else 1e-3)

        return made.flops / min(self.rates, key=distance)[2]


def step_seconds(made: Config, corpus: Corpus, device: torch.device) -> float:
    """Median of a few training steps of one CPU thread or GPU."""
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
