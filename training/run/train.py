"""Train one model and leave a folder that says everything about it: `ceg train`, or

    torchrun --nproc-per-node 2 -m cegain.training --arm rope --stack bare --flops 1e12

The order of the text, the initial weights and dropout follow from the seed alone, so that two arms with one seed differ
by what the arm changes, and a run that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cegain.common.text import finite
from cegain.training.models import model, optim
from cegain.training.models.loss import cross_entropy
from cegain.training.run import curves, environment, run_dir
from cegain.training.run.config import Config
from cegain.training.run.evaluate import held_out_text, validation_loss
from cegain.training.run.processes import Processes
from cegain.training.run.run_dir import RunDir, RunError
from cegain.training.text.data import Batches, Corpus, CorpusError

CHECKPOINT_SECONDS = 60.0
DIVERGED = 2.0
"""A run has diverged when a loss or a gradient is not finite, or when a training loss after warm-up or the last
held-out loss is above this many times ln(vocabulary), which is the loss of a uniform guess."""


class Progress(NamedTuple):
    """What a progress bar shows."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float
    seconds_left: float


class Objective(nn.Module):
    """tokens, targets [B, T] -> mean nats per token, and auxiliary losses: their sum is minimised."""

    def __init__(self, lm: model.LanguageModel, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.lm = lm
        self.autocast = autocast

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Both are scalars."""
        with torch.autocast(tokens.device.type, self.autocast) if self.autocast else contextlib.nullcontext():
            hidden, auxiliary = self.lm.hidden(tokens)
            nats = cross_entropy(hidden, self.lm.unembedding, targets)
        return nats, auxiliary


def train(
    config: Config,
    corpus: Corpus,
    run: RunDir,
    processes: Processes,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one, and return the summary.

    A run that has finished is not trained again: its summary is returned as it is.

    Raises:
        RunError: the folder belongs to another configuration or corpus, or cannot be written.
    """
    with run.locked() if processes.first else contextlib.nullcontext():
        processes.first_does(lambda: _claim(config, corpus, run), RunError)
        summary = run.read("summary")
        if summary is None:
            if processes.first and run.read("environment") is None:
                run.write("environment", environment.describe(processes.device, processes.world))
            processes.wait()
            summary = _train(config, corpus, run, processes, checkpoint_seconds, report)
    return summary


def _train(
    config: Config,
    corpus: Corpus,
    run: RunDir,
    processes: Processes,
    checkpoint_seconds: float,
    report: Callable[[Progress], None],
) -> dict[str, Any]:
    device, shape = processes.device, config.shape
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    # The model, in float64 if asked; bfloat16 only inside matrix products, with weights and sums in float32.
    double = config.precision == "float64"
    lm = model.build(shape, seed=config.seed, dropout=config.dropout, backend=config.backend)
    lm.to(device, torch.float64 if double else torch.float32)
    objective: nn.Module = Objective(lm, torch.bfloat16 if config.precision == "bfloat16" else None)
    optimizers = optim.optimizers(lm, shape.optimizer, config.learning_rate, config.weight_decay)
    first_step, seconds_before = _restore(run, config.run_id, lm, optimizers, processes)
    if config.compile:
        objective.compile()
    trained = DistributedDataParallel(objective) if processes.world > 1 else objective

    batches = Batches(corpus, "train", shape.seq_len, config.seed)
    ceiling = (run.read("environment") or {}).get("gemm_flops_per_s", math.nan) * processes.world
    flops_per_step = config.flops / config.steps

    started = saved = logged = time.perf_counter()
    interval = torch.zeros((), dtype=torch.float64, device=device)
    diverged, step = False, first_step - 1
    for step in range(first_step, config.steps):
        if config.dropout:
            torch.manual_seed(_dropout_seed(config.seed, step, processes.rank))
        interval += accumulate(trained, batches, config, step, processes)
        norm = nn.utils.clip_grad_norm_(lm.parameters(), config.clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
            optimizer.step()
            optimizer.zero_grad()

        done = step + 1
        if done % config.log_every and done < config.steps:
            continue
        steps = (done - 1) % config.log_every + 1
        loss = processes.sum(interval).item() / processes.world / steps
        interval.zero_()
        now = time.perf_counter()
        tokens_per_s = steps * config.batch * shape.seq_len / (now - logged)
        logged = now
        line = {
            "step": done,
            "tokens": done * config.batch * shape.seq_len,
            "flops": done * flops_per_step,
            "loss": finite(loss),
            "gradient_norm": finite(norm.item()),
            "learning_rate": config.learning_rate_at(step),
            "seconds": seconds_before + now - started,
            "tokens_per_s": tokens_per_s,
            "mfu": tokens_per_s / (config.batch * shape.seq_len) * flops_per_step / ceiling,
        }
        diverged = not (math.isfinite(loss) and math.isfinite(norm.item()))
        diverged = diverged or (done > config.warmup_steps and loss > DIVERGED * math.log(shape.vocab_size))
        if done % config.eval_every == 0 and done < config.steps and not diverged:
            line["validation_loss"] = validation_loss(
                objective, corpus, shape.seq_len, max(shape.seq_len, config.eval_tokens // 8), processes
            )
            logged = time.perf_counter()
        if processes.first:
            run.append_metrics(line)
            left = (config.steps - done) * (now - started) / (done - first_step)
            report(Progress(done, config.steps, loss, tokens_per_s, left))
        if diverged:
            break
        if processes.first and (now - saved > checkpoint_seconds or done == config.steps):
            run.save(done, {**_state(lm, optimizers, seconds_before + now - started), "run_id": config.run_id})
            saved = time.perf_counter()

    final = math.nan
    if not diverged:
        final = validation_loss(objective, corpus, shape.seq_len, config.eval_tokens, processes)
        diverged = not final <= DIVERGED * math.log(shape.vocab_size)
    final = math.nan if diverged else final
    text = held_out_text(corpus, shape.seq_len, config.eval_tokens)
    seconds = seconds_before + time.perf_counter() - started
    steps_done = step + 1
    all_tokens = steps_done * config.batch * shape.seq_len
    summary = {
        "run_id": config.run_id,
        "status": "diverged" if diverged else "finished",
        "steps": steps_done,
        "tokens": all_tokens,
        "flops": steps_done * flops_per_step,
        "loss_nats_per_token": finite(final),
        "loss_bits_per_byte": finite(final / math.log(2) / text.bytes_per_token),
        "nats_below_unigram": finite(text.unigram_entropy - final),
        "seconds": seconds,
        "tokens_per_s": all_tokens / seconds,
        "mfu": steps_done * flops_per_step / seconds / ceiling,
        "peak_bytes": environment.peak_bytes(device),
    }
    if processes.first:
        run_dir.write_picture(run.path / "loss.png", curves.draw([run], ".png"))
        run.write("summary", summary)
    processes.wait()
    return summary


def accumulate(trained: nn.Module, batches: Batches, config: Config, step: int, processes: Processes) -> Tensor:
    """Gradients of one step, the same in every process; returns this one's mean nats per token.

    A step is `batch` sequences. Each process takes an equal share, `micro_batch` at a time.
    """
    share = config.batch // processes.world
    parts = share // config.micro_batch
    total = torch.zeros((), dtype=torch.float64, device=processes.device)
    for part in range(parts):
        first = step * config.batch + processes.rank * share + part * config.micro_batch
        tokens, targets = (t.to(processes.device, non_blocking=True) for t in batches.rows(first, config.micro_batch))
        # Processes exchange gradients once, with the last part.
        whole = part == parts - 1 or processes.world == 1
        with contextlib.nullcontext() if whole else trained.no_sync():  # type: ignore[operator]
            nats, auxiliary = trained(tokens, targets)
            ((nats + auxiliary) / parts).backward()
        total += nats.detach() / parts
    return total


def _claim(config: Config, corpus: Corpus, run: RunDir) -> None:
    """Write what the run will be, or see that it is what the folder already says."""
    try:
        corpus.verify()
    except CorpusError as error:
        raise RunError(str(error)) from None
    asked = {**config.document(), "run_id": config.run_id, "corpus_sha256": corpus.sha256}
    there = run.read("config")
    if there is None:
        run.write("config", asked)
        return
    if there.get("corpus_sha256") != corpus.sha256:
        then, now = there["shape"]["vocab_size"], corpus.vocab_size
        sizes = f" (its vocabulary had {then} entries, now {now})" if then != now else ""
        raise RunError(
            f"a run keeps the corpus it began with; {corpus.name} has changed under {run.path}{sizes}: SHA-256 "
            f"{there.get('corpus_sha256')} then, {corpus.sha256} now. Restore the corpus, or use another --runs folder"
        )
    different = sorted(key for key in asked if there.get(key) != asked[key])
    if different:
        raise RunError(
            f"a run keeps its configuration; {run.path / 'config.json'} differs in {', '.join(different)}. Remove the "
            "run, or use another --runs folder"
        )


def _restore(
    run: RunDir, run_id: str, lm: nn.Module, optimizers: list[torch.optim.Optimizer], processes: Processes
) -> tuple[int, float]:
    """Load the newest sound checkpoint: the step to go on with, and the seconds spent before."""
    state = run.load()
    processes.wait()  # before the first process removes anything
    first_step, seconds = 0, 0.0
    if state is not None:
        if state["run_id"] != run_id:
            there, here = (len(weights["embedding.weight"]) for weights in (state["model"], lm.state_dict()))
            raise RunError(
                f"a checkpoint belongs to its run; the newest in {run.path} is of {state['run_id']} (vocabulary "
                f"{there}), this is {run_id} (vocabulary {here}). Remove the checkpoint"
            )
        lm.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first_step, seconds = state["step"], state["seconds"]
    if processes.first:
        run.drop_checkpoints(after=first_step)
        run.keep_metrics(first_step)
    return first_step, seconds


def _state(lm: nn.Module, optimizers: list[torch.optim.Optimizer], seconds: float) -> dict[str, Any]:
    return {
        "model": lm.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "seconds": seconds,
    }


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Equal for equal steps of all arms, whatever the number of steps."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=7).digest(), "little")
