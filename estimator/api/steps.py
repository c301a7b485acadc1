"""`cegain.step_time`: seconds of a training step or of a decoded token."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import click

from cegain.api.result import Picture, Result
from cegain.commands import steptime
from cegain.commands.options import BadInput
from cegain.gain.question import QuestionError
from cegain.speed import step_text
from cegain.speed.step_time import StepTime, TokenTime

_OPTION = re.compile(r"--([a-z][a-z-]*)")


@dataclass(frozen=True)
class Step(Result):
    """A modelled step, as `ceg steptime`."""

    value: StepTime | TokenTime
    """Seconds, parts, shape and plan."""

    def __str__(self) -> str:
        return step_text.token_plain(self.value) if isinstance(self.value, TokenTime) else step_text.plain(self.value)

    def to_dict(self) -> dict[str, Any]:
        """As `ceg steptime --json`."""
        if isinstance(self.value, TokenTime):
            return step_text.token_document(self.value)
        return step_text.document(self.value)

    def plot(self) -> Picture:
        """Where the time goes: a bar for every part."""
        from cegain.pictures.steps import draw

        return Picture(lambda ending: draw(str(self).partition("\n")[0], self.value.parts, ending))


def step_time(device: str, **options: Any) -> Step:
    """How long one training step takes, or with `decode=True` one token.

    >>> import cegain
    >>> step = cegain.step_time("h100", params=7e9, gpus=128)
    >>> step.to_dict()["gpus"]
    128
    >>> token = cegain.step_time("h100", params=7e9, decode=True, context=16384)
    >>> token.value.seconds < step.value.seconds
    True

    Args:
        device: name of a device ("h100"); see `ceg steptime --help`.
        options: those of `ceg steptime`, with underscores: params, or layers and width; heads, kv_heads, ff, experts,
            top_k, block, vocab, seq_len; gpus, micro_batch, accumulate, recompute, sharding, attention, precision,
            reduce_bits, network_gbps, expert_parallel; decode, context, batch.

    Raises:
        QuestionError: everything wrong with the options.
    """
    words = [word for name, value in {"device": device, **options}.items() for word in _words(name, value)]
    try:
        return Step(steptime.timed(words))
    except click.UsageError as error:
        problems = error.problems if isinstance(error, BadInput) else [error.message]
        raise QuestionError([_OPTION.sub(lambda m: m[1].replace("-", "_"), line) for line in problems]) from None


def _words(name: str, value: object) -> list[str]:
    """An option as the command line has it."""
    option = f"--{name.replace('_', '-')}"
    if value is None or (value is False and name == "decode"):
        return []
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    return [option, f"{value:.17g}" if isinstance(value, float) else str(value)]
