"""The command that repeats a run: as few options as say everything about it."""

from __future__ import annotations

import shlex
from typing import Any

from cegain.training.run import config
from cegain.training.run.config import Config
from cegain.training.run.options import OPTIONS, SIZES

_TOGETHER = ("n_layers", "d_model")


def command(made: Config, threads: int | None = None) -> str:
    """A `ceg train` command line that resolves to a configuration on any machine.

    Args:
        made: the configuration.
        threads: of the CPU, on which rounding depends; None says nothing about them.

    Raises:
        ValueError: no command gives this configuration: its fields contradict the rules.
    """
    said = _options(made, made.rung_flops) or _options(made, None)
    if said is None:
        raise ValueError(f"a run must follow the rules for its options, {made.run_id} has fields set by hand")
    said["--compile"] = "on" if made.compile else "off"
    if threads is not None:
        said["--threads"] = threads
    return shlex.join(["ceg", "train", *(word for option, value in said.items() for word in (option, _word(value)))])


def _options(made: Config, flops: float | None) -> dict[str, Any] | None:
    """Options and values; None where they do not lead to `made`."""
    sizes: dict[str, Any] = {}
    options: dict[str, Any] = {"precision": made.precision, "compile": made.compile}
    if flops is None:
        sizes = {field: getattr(made.shape, field) for field in SIZES.values()}
        options.update(batch=made.batch, steps=made.steps)

    def filled() -> Config:
        return config.fill_in(
            made.corpus, made.tokenizer, made.shape.vocab_size, stack=made.stack, arm=made.arm, flops=flops,
            seed=made.seed, sizes=sizes, **options,
        )  # fmt: skip

    for field in SIZES.values():
        if getattr(filled().shape, field) != getattr(made.shape, field):
            fields = _TOGETHER if field in _TOGETHER else (field,)
            sizes.update({name: getattr(made.shape, name) for name in fields})
    for field in OPTIONS.values():
        if getattr(filled(), field) != getattr(made, field):
            options[field] = getattr(made, field)
    if filled() != made:
        return None
    said: dict[str, Any] = {"--stack": made.stack, "--arm": made.arm, "--flops": flops, "--seed": made.seed}
    said |= {"--corpus": made.corpus} if made.corpus != "mini" else {}
    said |= {"--tokenizer": made.tokenizer} if made.tokenizer != "byte" else {}
    said |= {option: sizes[field] for option, field in SIZES.items() if field in sizes}
    said |= {option: options[field] for option, field in OPTIONS.items() if field in options}
    said["--precision"] = made.precision
    return {option: value for option, value in said.items() if value is not None}


def _word(value: object) -> str:
    """A number with all its digits, and none that say nothing."""
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.6g}".replace("e+0", "e").replace("e+", "e")
    return short if float(short) == value else repr(value)
