"""What every command shares: reading options, refusing bad ones with rule, value and remedy, printing.

Here too: the options that put a question, which `ceg estimate` and `ceg plot` share, and its answer.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cegain import algorithms
from cegain.common.text import quantity
from cegain.gain.evidence import load
from cegain.tables.files import write_atomically
from cegain.tables.problems import EvidenceError
from cegain.tables.published_gains import FLOPS_RANGE, Evidence

if TYPE_CHECKING:
    from cegain.gain.answer import Estimate

IMAGE_TYPES = (".svg", ".pdf", ".png")
_WIDTH = 120
_OURS = "cegain"


class BadInput(click.UsageError):
    """All problems of one call, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n  ".join(["bad input", *self.problems]))


def refuse(problems: Sequence[str]) -> None:
    """End the command if anything is wrong."""
    if problems:
        raise BadInput(problems)


@contextlib.contextmanager
def gathered(problems: list[str], prefix: str = "") -> Iterator[None]:
    """Add what is wrong with the evidence that is read in the block to `problems`, to report all at once."""
    try:
        yield
    except EvidenceError as error:
        problems += [f"{prefix}{problem}" for problem in error.problems]


@contextlib.contextmanager
def refused(problems: Sequence[str] = (), prefix: str = "") -> Iterator[None]:
    """End the command if evidence that is read in the block is wrong, with `problems` found before."""
    try:
        yield
    except EvidenceError as error:
        raise BadInput([*problems, *(f"{prefix}{problem}" for problem in error.problems)]) from None


class Command(click.Command):
    """A command whose output may not fit its place: a full disk, a terminal that lacks a letter."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command; an unwritable stdout is one line on stderr and no traceback."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(context)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has seen enough, as in `| head`: click ends quietly
                raise
            raise click.ClickException(f"the output can be written ({error.strerror}). Send it elsewhere.") from None


class Group(click.Group):
    """A group that knows some of its commands by name only, and imports them when they are called.

    `lazy` maps (module, name of the command) to its line of help; the module has it as NAME_command or NAME_group.
    """

    command_class = Command

    def __init__(self, *args: Any, lazy: dict[tuple[str, str], str] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.lazy = {name: (module, line) for (module, name), line in (lazy or {}).items()}

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of all commands."""
        return sorted([*super().list_commands(context), *self.lazy])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of this name, imported now if it is a lazy one."""
        if name not in self.lazy:
            return super().get_command(context, name)
        try:
            module = importlib.import_module(self.lazy[name][0])
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == _OURS:
                raise
            raise BadInput(
                [f"ceg {name}: {error.name} is installed (found none). Try: pip install '.[torch]' in the checkout."]
            ) from None
        command: click.Command = getattr(module, f"{name}_command", None) or getattr(module, f"{name}_group")
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List all commands with a line of help each, importing none."""
        lines = [(name, line) for name, (_, line) in self.lazy.items()]
        lines += [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(lines))


def parse_budgets(text: str, problems: list[str], option: str = "--flops") -> list[float]:
    """Budgets (FLOP) of an option: 1e24 or 10^24; 1e22,1e24; or 1e18:1e26, a range in steps of one decade, ends
    included.
    """
    remedy = "Try 1e24, a list 1e22,1e24, or a range 1e18:1e26."

    def one(part: str) -> float:
        try:
            value = quantity(part)
        except ValueError:
            value = math.nan
        if FLOPS_RANGE[0] <= value <= FLOPS_RANGE[1]:
            return value
        problems.append(
            f"{option}: a number of FLOP above 0 ({FLOPS_RANGE[0]:g} to {FLOPS_RANGE[1]:g}) is needed "
            f"(found {part.strip()!r}). {remedy}"
        )
        return math.nan

    budgets = []
    for part in text.split(","):
        if ":" not in part:
            budgets.append(one(part))
            continue
        ends = part.split(":")
        if len(ends) != 2:
            problems.append(f"{option}: a range has two ends, low:high (found {part.strip()!r}). {remedy}")
            continue
        low, high = one(ends[0]), one(ends[1])
        if low > high:
            problems.append(f"{option}: a range goes from low to high (found {part.strip()!r}). {remedy}")
        elif low <= high:
            steps = math.floor(math.log10(high / low) + 1e-9)
            inside = [float(f"{low * 10.0**i:.12g}") for i in range(steps + 1)]
            budgets += inside if math.isclose(inside[-1], high) else [*inside, high]
    return [b for b in budgets if b == b]


def one_budget(option: str, text: str, problems: list[str]) -> float:
    """One budget (FLOP), or NaN with a problem added."""
    before = len(problems)
    budgets = parse_budgets(text, problems, option)
    if len(budgets) != 1 and len(problems) == before:
        problems.append(f"{option}: one budget is needed (found {text!r}). Try 1e24.")
    return budgets[0] if len(budgets) == 1 else math.nan


def load_evidence(paths: Sequence[str], only: bool, problems: list[str]) -> Evidence:
    """As `read_evidence`.

    Raises:
        BadInput: the tables' problems, and all of `problems`.
    """
    tables = read_evidence(paths, only, problems)
    refuse(problems)
    return tables


def read_evidence(paths: Sequence[str], only: bool, problems: list[str], asked: Sequence[str] = ()) -> Evidence:
    """The evidence that `--evidence` and `--only-evidence` name; what is wrong with it is added to `problems`.

    Algorithms that only its rows name are known to the end of the command, so names are resolved after it. `asked` are
    those that the command is about, as they were typed.
    """
    if only and not paths:
        problems.append("--only-evidence: leaves no evidence without --evidence PATH. Add a table.")
    tables = Evidence((), "", ())
    with gathered(problems):
        tables = load(paths, shipped=not only, asked=asked)
        click.get_current_context().with_resource(algorithms.beside(dict(tables.own)))
    return tables


def flag(name: str) -> str:
    """An option as it is typed, from the name of its value."""
    return f"--{name.replace('_', '-')}"


def number(
    option: str, text: str | None, problems: list[str], example: str, convert: Callable[[str], Any] = quantity,
    *, fits: Callable[[Any], bool] | None = None, rule: str = "", found: str = "{text!r}",
) -> Any:  # fmt: skip
    """The value of an option; None where it was not given, and, with a problem added, where it is no number or
    `fits` says no. `rule` and `found`, a format of `text` and `value`, word that problem.
    """
    if text is None:
        return None
    try:
        value = convert(text)
    except ValueError:
        rule = f"a {'whole number' if convert is int else 'number'} is needed"
        problems.append(f"{option}: {rule} (found {text!r}). Try {example}.")
        return None
    if fits is None or fits(value):
        return value
    problems.append(f"{option}: {rule} (found {found.format(text=text, value=value)}). Try {example}.")
    return None


# How `number` reads what is common.
POSITIVE: dict[str, Any] = {
    "fits": lambda value: math.isfinite(value) and value > 0, "rule": "a finite number above 0 is needed"
}  # fmt: skip
NOISE: dict[str, Any] = {
    "fits": lambda value: 0 < value <= 0.5, "rule": "a share of the loss above 0 and up to 0.5 is needed"
}  # fmt: skip
OF_A_MODEL: dict[str, Any] = {
    "fits": lambda value: 1e3 <= value <= 1e20, "rule": "parameters or tokens, 1e3 to 1e20, are needed"
}  # fmt: skip
AT_LEAST_ONE: dict[str, Any] = {
    "convert": int, "fits": lambda value: value >= 1, "rule": "a whole number of at least 1 is needed"
}  # fmt: skip
COUNT: dict[str, Any] = {
    "convert": int, "fits": lambda value: value >= 0, "rule": "a whole number of at least 0 is needed"
}  # fmt: skip


def output_path(option: str, path: str | None, problems: list[str], endings: Sequence[str]) -> Path | None:
    """Check early that a file can be written, so that no work is lost when it cannot."""
    if path is None:
        return None
    target = Path(path)
    if target.suffix.lower() not in endings:
        problems.append(f"{option}: a name that ends in {', '.join(endings)} is needed (found {path!r}). Add one.")
    elif os.path.isdir(target):
        problems.append(f"{option}: a file is needed (found the folder {path!r}). Add a file name.")
    elif not os.path.isdir(target.parent):
        problems.append(f"{option}: the folder exists (found none at {str(target.parent)!r}). Create it first.")
    elif not os.access(target.parent, os.W_OK):
        problems.append(f"{option}: the folder can be written (found {str(target.parent)!r}). Choose another.")
    elif os.path.exists(target) and not os.access(target, os.W_OK):
        problems.append(f"{option}: the file can be replaced (found {path!r}, read-only). Choose another.")
    return target


def write(option: str, path: Path, content: bytes) -> None:
    """Write a result file atomically; BadInput where that cannot be."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise BadInput(
            [f"{option}: the file can be written (found {str(path)!r}: {error.strerror}). Choose another."]
        ) from None


def _once(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The one value of an option. click keeps the last of several and says nothing; here nothing is lost."""
    if len(values) > 1:
        all_values = ", ".join(map(repr, values))
        raise click.BadParameter(f"it is given once (found {all_values}). Remove all but one.", context, option)
    return values[0] if values else None


def joined(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str:
    """Repeating an option is the same as naming all in one, with commas."""
    return ",".join(values)


def single(
    *names: str, default: str | None = None, callback: Callable[..., Any] = _once, **settings: Any
) -> Callable[..., Any]:
    """An option with one value that refuses a second."""
    return click.option(
        *names, multiple=True, callback=callback, default=None if default is None else (default,), **settings
    )


def print_json(document: object) -> None:
    """JSON on stdout, and nothing else."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def show(
    as_json: bool, document: Callable[..., object], report: Callable[..., object], *content: Any, picture: Any = None
) -> None:
    """The JSON document of the content; or its report on the console, and the picture's name if one was drawn."""
    if as_json:
        print_json(document(*content))
        return
    report(console(), *content)
    if picture is not None:
        click.echo(f"wrote {picture}")


def console() -> Any:
    """A rich console that prints data as it is, markup-like text included."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    # Tables must not break when they are piped into a file.
    return console if console.is_terminal else Console(width=_WIDTH, highlight=False, markup=False, emoji=False)


def evidence_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that every command on evidence shares."""
    only = click.option("--only-evidence", is_flag=True, help="Leave the shipped tables out; needs --evidence.")
    more = "A table of gains of your own, file or folder; read beside the shipped one."
    described = single(
        "--registry", metavar="DIR", callback=_registry, expose_value=False, is_eager=True,
        help="A folder that describes algorithms of your own, one file each.",
    )  # fmt: skip
    command = described(command)
    return click.option("--evidence", multiple=True, metavar="PATH", help=more)(only(command))


def _registry(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> None:
    """Know the algorithms of a folder to the end of the command."""
    folder = _once(context, option, values)
    if folder is None or context.resilient_parsing:
        return
    from cegain.gain import own_algorithms

    with refused():
        context.with_resource(algorithms.beside(own_algorithms.of_folder(folder)))


def question_options(command: Callable[..., None], required: bool = True) -> Callable[..., None]:
    """Options that say what is asked."""
    needed: dict[str, Any] = {"required": required, "multiple": True, "callback": joined}
    flops = "Training FLOP spent with it: 1e24, 1e22,1e24 or 1e18:1e26."
    for option in (
        click.option("--no-prior", is_flag=True, help="Without the slope prior shared between algorithms."),
        single("--seed", default="0", metavar="N", help="Recorded; the method draws nothing."),
        single("--interval", default="0.9", metavar="P", help="Probability of the intervals (0.9)."),
        single("--experts", metavar="N", help="Of mixtures: all experts over active ones (16)."),
        single("--seq-len", metavar="T", help="Tokens of a sequence (2048): time, usd, decode; in flop of attention."),
        single("--baseline-device", metavar="NAME", help="Where the other model runs, if elsewhere."),
        single("--device", metavar="NAME", help="In time, usd, decode: where it runs (h100); see `ceg steptime`."),
        single("--baseline", metavar="NAME", help="What it replaces, if not its default."),
        single("--currency", default="flop", metavar="flop|time|usd|decode", help="What is counted (flop)."),
        click.option("--flops", metavar="C", help=flops, **needed),
        click.option("--algo", metavar="NAME[,NAME...]", help="Algorithm(s); see `ceg list`.", **needed),
    ):  # the last one stands first in the help
        command = option(command)
    return evidence_options(command)


def answer(
    options: dict[str, Any],
    problems: list[str],
    algo: str | None = None,
    sensitivity: bool = False,
    influence: bool = False,
) -> tuple[Estimate, ...]:
    """Answer the question that the shared options put, reporting `problems` found elsewhere with its own."""
    from cegain.gain import question

    interval = number("--interval", options["interval"], problems, "0.9")
    seed = number("--seed", options["seed"], problems, "0", int)
    thresholds = [number("--threshold", t, problems, "1e26") for t in options.get("threshold", ())]
    seq_len = number("--seq-len", options["seq_len"], problems, "2048", int)
    experts = number("--experts", options["experts"], problems, "16")
    try:
        return question.estimate_all(
            algo or options["algo"],
            parse_budgets(options["flops"], problems),
            currency=options["currency"].lower(),
            baseline=options["baseline"],
            device=options["device"],
            baseline_device=options["baseline_device"],
            seq_len=seq_len,
            experts=experts,
            interval=0.9 if interval is None else interval,
            evidence=options["evidence"],
            only_evidence=options["only_evidence"],
            slope_prior=not options["no_prior"],
            thresholds=[*question.THRESHOLDS, *(t for t in thresholds if t is not None)],
            seed=seed or 0,
            problems=problems,
            with_sensitivity=sensitivity,
            with_influence=influence,
            asked=options["algo"],
        )
    except question.QuestionError as error:
        raise BadInput(error.problems) from None


def algorithm_names(option: str, text: str, problems: list[str]) -> list[str]:
    """Canonical names of the algorithms that an option lists; problems are added for unknown ones and repetitions."""
    names = []
    for part in text.replace("+", ",").split(","):
        try:
            names.append(algorithms.resolve(part))
        except algorithms.UnknownAlgorithm as error:
            problems.append(f"{option}: {error}")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [f"{option}: an algorithm stands once (found {name} twice). Remove one." for name in twice]
    return names
