"""What `ceg estimate` and `ceg plot` share: the options that put a question, and its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from cegain.commands.options import BadInput, joined, number, parse_budgets, single

if TYPE_CHECKING:
    from cegain.gain.answer import Estimate


def evidence_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that every command on evidence shares."""
    command = click.option("--only-evidence", is_flag=True, help="Leave the shipped tables out; needs --evidence.")(
        command
    )
    return click.option(
        "--evidence",
        multiple=True,
        metavar="PATH",
        help="A table of gains of your own, file or folder; read beside the shipped one.",
    )(command)


def question_options(command: Callable[..., None], required: bool = True) -> Callable[..., None]:
    """Options that say what is asked."""
    for option in reversed(
        (
            click.option(
                "--algo",
                required=required,
                multiple=True,
                callback=joined,
                metavar="NAME[,NAME...]",
                help="Algorithm(s); see `ceg list`.",
            ),
            click.option(
                "--flops",
                required=required,
                multiple=True,
                callback=joined,
                metavar="C",
                help="Training FLOP spent with it: 1e24, 1e22,1e24 or 1e18:1e26.",
            ),
            single("--currency", default="flop", metavar="flop|time|usd|decode", help="What is counted (flop)."),
            single("--baseline", metavar="NAME", help="What it replaces, if not its default."),
            single("--device", metavar="NAME", help="In time, usd, decode: where it runs (h100); see `ceg steptime`."),
            single("--baseline-device", metavar="NAME", help="Where the other model runs, if elsewhere."),
            single("--seq-len", metavar="T", help="In time, usd, decode: tokens of a sequence (2048)."),
            single("--interval", default="0.9", metavar="P", help="Probability of the intervals (0.9)."),
            single("--seed", default="0", metavar="N", help="Recorded; the method draws nothing."),
            click.option("--no-prior", is_flag=True, help="Without the slope prior shared between algorithms."),
        )
    ):
        command = option(command)
    return evidence_options(command)


def answer(
    options: dict[str, Any], problems: list[str], algo: str | None = None, shares: bool = False
) -> tuple[Estimate, ...]:
    """Answer the question that the shared options put, reporting `problems` found elsewhere with its own."""
    from cegain.gain import question

    interval = number("--interval", options["interval"], problems, "0.9")
    seed = number("--seed", options["seed"], problems, "0", int)
    thresholds = [number("--threshold", t, problems, "1e26") for t in options.get("threshold", ())]
    seq_len = None if options["seq_len"] is None else number("--seq-len", options["seq_len"], problems, "2048", int)
    try:
        return question.estimate_all(
            algo or options["algo"],
            parse_budgets(options["flops"], problems),
            currency=options["currency"].lower(),
            baseline=options["baseline"],
            device=options["device"],
            baseline_device=options["baseline_device"],
            seq_len=seq_len,
            interval=0.9 if interval is None else interval,
            evidence=options["evidence"],
            only_evidence=options["only_evidence"],
            slope_prior=not options["no_prior"],
            thresholds=[*question.THRESHOLDS, *(t for t in thresholds if t is not None)],
            seed=seed or 0,
            problems=problems,
            with_shares=shares,
        )
    except question.QuestionError as error:
        raise BadInput(error.problems) from None


def algorithm_names(option: str, text: str, problems: list[str]) -> list[str]:
    """Canonical names of the algorithms that an option lists; problems are added for unknown ones and repetitions."""
    from cegain import algorithms

    names = []
    for part in text.replace("+", ",").split(","):
        try:
            names.append(algorithms.resolve(part))
        except algorithms.UnknownAlgorithm as error:
            problems.append(f"{option}: {error}")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [f"{option}: an algorithm stands once (found {name} twice). Remove one." for name in twice]
    return names
