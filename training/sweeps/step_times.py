"""Seconds of real training steps beside what the step-time model says of them: alone, and with others on one device.

    python -m cegain.training.sweeps.step_times --arms baseline,moe --rungs 1e14,1e15 --device cuda --together 1,8,16

prints a JSON object per line as it is measured: arm, rung, processes, and seconds of a step. Text does not matter for
time, so tokens are random. Processes that share a device start together and are timed over the same seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from cegain.training.run.config import Config

WARM_UP, AT_MOST = 5, 200
"""Steps that are not timed, and that are at most."""


class RandomRows:
    """In place of `data.Batches`."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        self.vocab_size, self.seq_len = vocab_size, seq_len

    def rows(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Sequences [count, seq_len] and the tokens after each."""
        import torch

        generator = torch.Generator().manual_seed(first)
        windows = torch.randint(self.vocab_size, (count, self.seq_len + 1), generator=generator)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def configuration(arm: str, rung: float, *, on_gpu: bool, compiled: bool) -> Config:
    """A run of the bare stack on bytes, as `ceg ablate` would train it.

    Raises:
        ValueError: as `config.fill_in`.
    """
    from cegain.training.run import config

    precision = "bfloat16" if on_gpu else "float32"
    made = config.fill_in("random", "byte", 256, stack="bare", arm=arm, flops=rung, precision=precision)
    return config.with_compile(made, "on" if compiled else "off", on_gpu)


def measure(made: Config, device_name: str, seconds: float, ready: Any = None) -> dict[str, Any]:
    """Time steps of one run in this process for so many seconds.

    Returns:
        steps, the seconds of one (mean, as a run has them, and the quantiles of tenths of the time), peak memory.
    """
    import torch

    from cegain.training.models import model, optim
    from cegain.training.run import environment
    from cegain.training.run.processes import Processes
    from cegain.training.run.train import Objective, accumulate

    torch.set_num_threads(1)
    device = torch.device(device_name)
    one = Processes(0, 1, device)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)  # as in training
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    lm = model.build(made.shape, seed=made.seed, backend=made.backend).to(device)
    objective = Objective(lm, torch.bfloat16 if made.precision == "bfloat16" else None)
    optimizers = optim.optimizers(lm, made.shape.optimizer, made.learning_rate, made.weight_decay)
    if made.compile:
        objective.compile()
    batches: Any = RandomRows(made.shape.vocab_size, made.shape.seq_len)

    def step(i: int) -> Tensor:
        total = accumulate(objective, batches, made, i, one)
        torch.nn.utils.clip_grad_norm_(lm.parameters(), made.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return total

    for i in range(WARM_UP):
        step(i).item()
    if ready is not None:
        ready.wait()
    # As a run does, wait for the device once in `log_every` steps.
    marks = [time.perf_counter()]
    done = 0
    while done < AT_MOST and marks[-1] - marks[0] < seconds:
        for _ in range(made.log_every - 1):
            step(done)
            done += 1
        step(done).item()
        done += 1
        marks.append(time.perf_counter())
    each = np.diff(marks) / made.log_every
    p20, median, p80 = np.quantile(each, (0.2, 0.5, 0.8)).tolist()
    return {
        "steps": done, "seconds": (marks[-1] - marks[0]) / done, "p20_s": p20, "median_s": median, "p80_s": p80,
        "peak_bytes": environment.peak_bytes(device),
    }  # fmt: skip


def predicted(made: Config, model: str) -> float:
    """Seconds of a step by the step-time model, on a device by its name there."""
    from cegain.speed import measured_device
    from cegain.training.sweeps.ablate import Job
    from cegain.training.sweeps.pace import Modelled

    return Modelled(measured_device.find(model)).seconds(Job(made, "ladder")) / made.steps


def together(made: Config, device: str, count: int, seconds: float) -> list[dict[str, Any]]:
    """`measure` in so many processes at once.

    Raises:
        RuntimeError: a process ended without a result.
    """
    context = multiprocessing.get_context("spawn")  # a fork would not have the device
    ready, queue = context.Barrier(count), context.Queue()
    workers = [context.Process(target=_one, args=(made, device, seconds, ready, queue)) for _ in range(count)]
    for worker in workers:
        worker.start()
    found: list[dict[str, Any]] = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    failed = [one["error"] for one in found if "error" in one]
    if failed:
        raise RuntimeError(failed[0])
    return found


def _one(made: Config, device: str, seconds: float, ready: Any, queue: Any) -> None:
    try:
        queue.put(measure(made, device, seconds, ready))
    except Exception as error:
        ready.abort()  # or the others would wait
        queue.put({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Seconds of training steps, measured and predicted.")
    parser.add_argument("--arms", default="baseline")
    parser.add_argument("--rungs", default="1e14")
    parser.add_argument("--together", default="1", help="processes on the device at once, by commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="cpu", help="device of the step-time model")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    for rung in map(float, asked.rungs.split(",")):
        for arm in asked.arms.split(","):
            made = configuration(arm, rung, on_gpu=asked.device != "cpu", compiled=asked.compile)
            about = {
                "arm": arm, "rung_flops": rung, "compile": made.compile, "n_layers": made.shape.n_layers,
                "d_model": made.shape.d_model, "batch": made.batch, "seq_len": made.shape.seq_len,
                "run_steps": made.steps, "predicted_s": predicted(made, asked.model),
            }  # fmt: skip
            for count in map(int, asked.together.split(",")):
                try:
                    found = together(made, asked.device, count, asked.seconds)
                except RuntimeError as error:
                    line = {**about, "processes": count, "error": str(error)}
                else:
                    each = float(np.mean([one["seconds"] for one in found]))
                    line = {**about, "processes": count, "seconds": each, "seconds_per_step_of_all": each / count,
                            "p20_s": min(one["p20_s"] for one in found), "p80_s": max(one["p80_s"] for one in found),
                            "steps": sum(one["steps"] for one in found),
                            "peak_bytes": max(one["peak_bytes"] for one in found)}  # fmt: skip
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
