"""A step of training on a CPU against an eager loop of the same model and optimizer.

    OMP_NUM_THREADS=2 pytest benchmarks/test_training.py --benchmark-only --full -s

4 layers, 4 heads, 128 wide, layer norm, flash attention, sequences of 256, batch 16, vocabulary 4096, fp32. The rival
is what one writes first: all logits, `torch.nn.functional.cross_entropy`, torch's AdamW as it comes. Ours is
`train.Objective` and the optimizer of `cegain.training`, as it comes and compiled. All take turns in every
round; medians, 90th percentiles and the ratios' range are printed and stored. Aim, not asserted: 1.2x the rival's
tokens per second. No time is taken before the losses and gradients of all three agree.
"""

from __future__ import annotations

import shutil
import statistics
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cegain.shapes import architecture
from cegain.training.models import model, optim
from cegain.training.run import train

SHAPE = architecture.stack(
    "bare", n_layers=4, d_model=128, n_heads=4, vocab_size=4096, seq_len=256, norm="layer", attention="flash"
)
BATCH, LEARNING_RATE, ROUNDS = 16, 1e-3, 7


class Eager:
    """The rival, with weights of its own."""

    def __init__(self) -> None:
        self.lm = model.build(SHAPE, seed=0)
        decay = [p for p in self.lm.parameters() if p.ndim >= 2]
        rest = [p for p in self.lm.parameters() if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=optim.BETAS)]

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean nats per token."""
        return functional.cross_entropy(self.lm(tokens).flatten(0, 1), targets.flatten())

    def step(self, tokens: Tensor, targets: Tensor) -> None:
        """One step of training."""
        self.loss(tokens, targets).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.lm.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


class Ours(Eager):
    """What `train.train` does in a step."""

    def __init__(self, compiled: bool = False) -> None:
        super().__init__()
        self.objective = train.Objective(self.lm, None)
        if compiled:
            self.objective.compile()
        self.optimizers = optim.optimizers(self.lm, "adamw", LEARNING_RATE, 0.1)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean nats per token, and auxiliary losses, of which there are none here."""
        nats, auxiliary = self.objective(tokens, targets)
        total: Tensor = nats + auxiliary
        return total


def check(ours: Ours, rival: Eager, tokens: Tensor, targets: Tensor) -> None:
    """Equal losses and gradients from equal weights."""
    found: list[list[Tensor]] = []
    for one in (ours, rival):
        loss = one.loss(tokens, targets)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(one.lm.parameters()))])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.benchmark(group="training: 4 layers, 128 wide, 16 x 256 tokens, vocabulary 4096, one step")
def test_cpu_training_step(benchmark: Any, capsys: Any, full: bool) -> None:
    """Steps of the rival, ours, and with `--full` ours compiled where there is a compiler, in turns."""
    windows = torch.randint(SHAPE.vocab_size, (BATCH, SHAPE.seq_len + 1), generator=torch.Generator().manual_seed(0))
    tokens, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
    loops: dict[str, Eager] = {"eager loop": Eager(), "ours": Ours()}
    if full and (shutil.which("g++") or shutil.which("clang++")):
        loops["ours, compiled"] = Ours(compiled=True)
    for loop in loops.values():
        if isinstance(loop, Ours):
            check(loop, loops["eager loop"], tokens, targets)

    times: dict[str, list[float]] = {name: [] for name in loops}

    def timed(name: str) -> None:
        begin = time.perf_counter()
        loops[name].step(tokens, targets)
        times[name].append(time.perf_counter() - begin)

    def others() -> None:
        for name in loops:
            if name != "ours":
                timed(name)

    benchmark.pedantic(lambda: timed("ours"), setup=others, rounds=ROUNDS, warmup_rounds=2)
    times = {name: spent[2:] for name, spent in times.items()}  # without the warm-up
    count = BATCH * SHAPE.seq_len
    ratios = {
        name: [rival / own for rival, own in zip(times["eager loop"], spent, strict=True)]
        for name, spent in times.items()
    }
    benchmark.extra_info |= {
        "threads": torch.get_num_threads(),
        "tokens_per_s": {name: count / statistics.median(spent) for name, spent in times.items()},
        "p90_s": {name: float(np.quantile(spent, 0.9)) for name, spent in times.items()},
        "times_the_eager_loop": {name: [min(r), statistics.median(r), max(r)] for name, r in ratios.items()},
    }
    with capsys.disabled():
        print(f"\ntraining step, {torch.get_num_threads()} threads, {ROUNDS} rounds, aim 1.2x the eager loop")
        for name, spent in times.items():
            r, p90 = ratios[name], 1e3 * np.quantile(spent, 0.9)
            print(
                f"  {name:15} {count / statistics.median(spent):8,.0f} tokens/s, p90 {p90:6.0f} ms, "
                f"{statistics.median(r):.2f}x ({min(r):.2f} to {max(r):.2f})"
            )
