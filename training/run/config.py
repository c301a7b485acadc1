"""Everything that decides what a run computes, resolved before its first step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cegain.shapes import architecture, arms
from cegain.shapes.architecture import ModelShape, Stack
from cegain.training.run import budget, run_dir
from cegain.training.text.data import Batches, Corpus, CorpusError, validation_rows

if TYPE_CHECKING:
    from cegain.kernels.backend import Backend

Schedule = Literal["wsd", "cosine"]
Precision = Literal["float32", "bfloat16", "float64"]

LEARNING_RATE, LEARNING_RATE_WIDTH = 8e-3, 32
"""See `default_learning_rate`."""
WEIGHT_DECAY = 0.1
CLIP = 1.0
"""Largest norm of the gradient (GPT-3: Brown et al. 2020, arXiv 2005.14165, appendix B)."""
WARMUP, DECAY = 0.05, 0.3
"""Shares of the steps: linear warm-up from 0, and for warm-up-stable-decay the linear fall at the end (Haegele et al.
2024, arXiv 2405.18392, find 20% enough; short runs gain from more)."""
FINAL = {"wsd": 0.0, "cosine": 0.1}
"""Learning rate at the end over the highest."""
DEFAULT_SEQ_LEN = 128
COMPILE_FLOPS = {"cpu": 3e13, "cuda": 1e16}
"""Budgets from which a tenth of the time saved is more than half a minute, at 1e11 and 3e13 FLOP/s."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. Lengths in tokens, `batch` in sequences per step over all processes.

    `rung_flops` is the budget asked for, and `flops` what the steps come to (useful FLOP).
    """

    stack: Stack
    arm: str
    seed: int
    rung_flops: float
    flops: float
    shape: ModelShape
    batch: int
    steps: int
    corpus: str
    tokenizer: str
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    decay_steps: int
    schedule: Schedule
    weight_decay: float = WEIGHT_DECAY
    clip: float = CLIP
    dropout: float = 0.0
    precision: Precision = "float32"
    backend: Backend = "auto"
    """Of the kernels; see `cegain.kernels.backend`."""
    compile: bool = False
    """Whether torch.compile makes the model's code: other rounding, and half a minute before the first step."""
    micro_batch: int
    """Sequences whose activations are held at once by one process."""
    log_every: int
    eval_every: int
    eval_tokens: int = 2**18
    """Held-out tokens of the last evaluation; those on the way use the first eighth of them, or one sequence."""

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.steps * self.batch * self.shape.seq_len

    @cached_property
    def run_id(self) -> str:
        """Stack, arm, budget, seed, and a digest of everything."""
        arm = self.arm.replace("+", "-")
        return f"{self.stack}-{arm}-{self.rung_flops:.0e}-s{self.seed}-{run_dir.digest(self.document())}".replace(
            "e+", "e"
        )

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    def learning_rate_at(self, step: int) -> float:
        """Of the step with this number, counted from 0."""
        return self.learning_rate * self._share(step)

    def _share(self, step: int) -> float:
        low = self.final_learning_rate / self.learning_rate
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        since = step - (self.steps - self.decay_steps)
        if since < 0:
            return 1.0
        done = since / self.decay_steps  # a last step at 0 would be a step for nothing
        if self.schedule == "cosine":
            return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
        return low + (1 - low) * (1 - done)


def resolve(corpus: Corpus, *, seed: int = 0, **options: Any) -> Config:
    """Fill in what was not given (`fill_in`), and see that the corpus has enough text.

    Raises:
        ValueError: with every problem that was found, one line each.
    """
    problems: list[str] = []
    config = None
    try:
        config = fill_in(corpus.name, corpus.tokenizer, corpus.vocab_size, seed=seed, **options)
    except ValueError as error:
        problems += str(error).splitlines()
    seq_len = (options.get("sizes") or {}).get("seq_len", DEFAULT_SEQ_LEN)
    if seq_len >= 1:
        try:  # now rather than in the middle of a run
            Batches(corpus, "train", seq_len, seed)
            validation_rows(corpus, seq_len, options.get("eval_tokens", Config.eval_tokens))
        except CorpusError as error:
            problems += error.problems
    if config is None or problems:
        raise ValueError("\n".join(problems))
    return config


def fill_in(
    corpus: str,
    tokenizer: str,
    vocab_size: int,
    *,
    stack: Stack,
    arm: str,
    flops: float | None,
    seed: int = 0,
    batch: int | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    schedule: Schedule = "wsd",
    warmup_steps: int | None = None,
    micro_batch: int | None = None,
    processes: int = 1,
    sizes: dict[str, Any] | None = None,
    **fields: Any,
) -> Config:
    """The configuration of what was given and of rules for the rest.

    Args:
        corpus: name of what is trained on.
        tokenizer: of the corpus.
        vocab_size: of the tokenizer.
        stack: what every arm shares.
        arm: see `cegain.shapes.arms`.
        flops: the budget (useful FLOP); None where `steps` and a size are given.
        seed: of weights, batches and dropout.
        batch: sequences per step.
        steps: in place of those that the budget buys.
        learning_rate: the highest; None: by `default_learning_rate`.
        schedule: "wsd" (warm-up, stable, decay) or "cosine".
        warmup_steps: of linear warm-up; None: by WARMUP.
        micro_batch: sequences at once; None: all of a process's share.
        processes: that share a step.
        sizes: fields of ModelShape that are given, such as seq_len, n_layers, d_model.
        fields: other fields of Config.

    Raises:
        ValueError: with every problem that was found, one line each.
    """
    arm = arms.canonical(stack, arm)
    sizes = {"seq_len": DEFAULT_SEQ_LEN, **(sizes or {}), "vocab_size": vocab_size}
    size = _size(stack, arm, flops, batch, steps, processes, sizes)
    _check(size, processes, learning_rate, warmup_steps)
    share = size.batch // processes
    micro = share if micro_batch is None else min(micro_batch, share)
    if micro < 1 or share % micro:
        raise ValueError(f"micro_batch must divide the {share} sequences of a process, got {micro_batch}; change it")
    if learning_rate is None:
        learning_rate = default_learning_rate(size.shape)
    return Config(
        stack=stack,
        arm=arm,
        seed=seed,
        rung_flops=size.rung_flops,
        flops=size.flops,
        shape=size.shape,
        batch=size.batch,
        steps=size.steps,
        corpus=corpus,
        tokenizer=tokenizer,
        learning_rate=learning_rate,
        schedule=schedule,
        micro_batch=micro,
        **_timetable(size.steps, schedule, learning_rate, warmup_steps, fields),
    )


class _Size(NamedTuple):
    """The fields of Config with these names."""

    shape: ModelShape
    batch: int
    steps: int
    rung_flops: float
    flops: float


def _size(
    stack: Stack, arm: str, flops: float | None, batch: int | None, steps: int | None, processes: int,
    sizes: dict[str, Any],
) -> _Size:  # fmt: skip
    """By the budget's rule; by `batch`, `steps` and `sizes` where there is no budget."""
    arm_fields = arms.arm_shape_fields(stack, arm)
    if ("n_layers" in sizes) != ("d_model" in sizes):
        raise ValueError("n_layers and d_model must be given together, got one of them; give --layers and --width")
    if flops is None:
        if steps is None or batch is None or not {"n_layers", "d_model"} <= sizes.keys():
            raise ValueError(
                "flops must be given, or steps, batch, n_layers and d_model in its place; try --flops 1e12"
            )
        base = budget.baseline_shape(1.0, stack, **sizes)
        shape = architecture.stack(stack, **{**sizes, "n_heads": base.n_heads, **arm_fields})
        tokens = steps * batch * shape.seq_len
        spent = tokens * architecture.flops_per_token(shape, batch_tokens=batch * shape.seq_len)
        return _Size(shape, batch, steps, spent, spent)
    plan = budget.plan(flops, stack, arm_fields, batch=batch, **sizes)
    if batch is None and plan.batch % processes:
        plan = budget.plan(flops, stack, arm_fields, batch=processes * -(-plan.batch // processes), **sizes)
    shape, batch, planned, _, spent = plan
    if steps is None:
        return _Size(shape, batch, planned, flops, spent)
    return _Size(shape, batch, steps, flops, spent * (steps / planned))


def _check(size: _Size, processes: int, learning_rate: float | None, warmup_steps: int | None) -> None:
    """Raise ValueError with one line per problem."""
    _, batch, steps, _, _ = size
    problems = []
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        problems.append(f"learning_rate must be above 0, got {learning_rate}; try 0.003")
    for name, value in (("batch", batch), ("steps", steps)):
        if value < 1:
            problems.append(f"{name} must be at least 1, got {value}; give a whole number")
    if warmup_steps is not None and not 1 <= warmup_steps < max(steps, 2):
        problems.append(f"warmup_steps must be from 1 to below the {steps} steps, got {warmup_steps}; lower it")
    if batch % processes:
        problems.append(f"batch must be a multiple of the {processes} processes, got {batch}; change --batch")
    if problems:
        raise ValueError("\n".join(problems))


def _timetable(
    steps: int, schedule: Schedule, learning_rate: float, warmup_steps: int | None, fields: dict[str, Any]
) -> dict[str, Any]:
    """Fields of Config for what happens when. Those among `fields` stand; evaluations fall on logged steps."""
    warmup = warmup_steps or min(steps, max(1, round(WARMUP * steps)))
    decay = steps - warmup if schedule == "cosine" else min(steps - warmup, max(1, round(DECAY * steps)))
    log_every = fields.get("log_every", max(1, min(10, steps // 20)))
    if "eval_every" in fields:
        log_every = math.gcd(log_every, fields["eval_every"])
    timetable = {
        "final_learning_rate": FINAL[schedule] * learning_rate,
        "warmup_steps": warmup,
        "decay_steps": max(decay, 1),
        "eval_every": log_every * max(1, round(steps / 4 / log_every)),
    }
    return {**timetable, **fields, "log_every": log_every}


def default_learning_rate(shape: ModelShape) -> float:
    """Where none is given: LEARNING_RATE, falling with the root of the width."""
    return LEARNING_RATE * math.sqrt(LEARNING_RATE_WIDTH / shape.d_model)


def from_document(document: dict[str, Any]) -> Config:
    """The configuration that `Config.document` wrote."""
    return Config(**{**document, "shape": ModelShape(**document["shape"])})


def with_learning_rate(config: Config, learning_rate: float) -> Config:
    """The same run at another highest learning rate, and in proportion at the end."""
    final = config.final_learning_rate / config.learning_rate * learning_rate
    return dataclasses.replace(config, learning_rate=learning_rate, final_learning_rate=final)


def with_seed(config: Config, seed: int) -> Config:
    """The same run with another seed."""
    return dataclasses.replace(config, seed=seed)


def with_compile(config: Config, wish: str, on_gpu: bool) -> Config:
    """Decide on torch.compile: "on", "off", or "auto", where it pays for its half minute."""
    pays = config.flops >= COMPILE_FLOPS["cuda" if on_gpu else "cpu"] and config.shape.kind != "lstm"
    return dataclasses.replace(config, compile=wish == "on" or (wish == "auto" and pays))
