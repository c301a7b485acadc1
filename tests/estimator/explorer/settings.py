"""Questions that the explorer can be asked, drawn at random: the same ones for the same seed."""

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cegain import algorithms
from cegain.explorer.steps import SEQ_LENS
from cegain.speed import hardware

CURRENCIES = ("flop", "time", "usd", "decode")
LOG10_FLOPS = (15.0, 28.0)
"""Of the compute slider."""
IN_FLOP = (0.05, 1000.0)


class ReportSetting(NamedTuple):
    """One question: a stack, what each of it replaces, and where. `in_flop` is a CEG in FLOP that is taken as given."""

    algorithms: tuple[str, ...]
    baselines: tuple[str, ...]
    currency: str
    flops: float
    in_flop: float
    device: str
    baseline_device: str
    seq_len: int


def timed() -> tuple[str, ...]:
    """Algorithms that change a model's shape."""
    return tuple(name for name in algorithms.names() if algorithms.get(name).arm or algorithms.get(name).baseline_arm)


def settings(
    n: int,
    seed: int,
    *,
    currencies: Sequence[str] = CURRENCIES,
    names: Sequence[str] | None = None,
    seq_lens: Sequence[int] = SEQ_LENS,
    any_baseline: bool = False,
) -> Iterator[ReportSetting]:
    """`n` questions: every algorithm by itself in every currency first, then stacks of one to four.

    Args:
        n: how many.
        seed: of the draws.
        currencies: to draw from.
        names: algorithms to draw from; all of the registry by default.
        seq_lens: to draw from.
        any_baseline: in some questions, an algorithm replaces something else than it does by default: another of its
            baselines, another algorithm, or itself.
    """
    draw = random.Random(seed)
    registry = algorithms.names()
    known = registry if names is None else tuple(names)
    singles = [((name,), currency) for currency in currencies for name in known]
    for i in range(n):
        stack, currency = singles[i] if i < len(singles) else (None, draw.choice(currencies))
        if stack is None:
            stack = tuple(sorted(draw.sample(known, draw.randint(1, min(4, len(known))))))
        baselines = [algorithms.get(name).replaces[0] for name in stack]
        if any_baseline and draw.random() < 0.25:
            at = draw.randrange(len(stack))
            baselines[at] = draw.choice([*algorithms.get(stack[at]).replaces, *registry])
        device = draw.choice(list(hardware.DEVICES))
        yield ReportSetting(
            algorithms=stack,
            baselines=tuple(baselines),
            currency=currency,
            flops=10 ** draw.uniform(*LOG10_FLOPS),
            in_flop=math.exp(draw.uniform(*map(math.log, IN_FLOP))),
            device=device,
            baseline_device=device if draw.random() < 0.5 else draw.choice(list(hardware.DEVICES)),
            seq_len=draw.choice(seq_lens),
        )
