"""Options of every command that reads a table of runs: what its columns, units, repeated and unfinished runs are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from cegain.commands.options import COUNT, POSITIVE, number, single
from cegain.run_tables.run_import import AS_IT_IS, ReadOptions

CONVENTIONS = "auto|6nd|6nd-active|non-embedding|with-attention|hardware"
REPEATS = "seeds|sweep"
NAMES = (
    "columns", "loss_column", "unit", "bytes_per_token", "flops_convention", "last", "smooth", "strict", "repeats",
    "seed_column", "sweep_columns",
)  # fmt: skip


def table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options; `read_options` makes a `ReadOptions` of their values."""
    for option in (
        click.option("--strict", is_flag=True, help="Refuse rows without a result, such as crashed runs."),
        single("--sweep-columns", metavar="A,B", help="Columns of what was tuned: the best of each size and budget."),
        single("--seed-column", metavar="NAME", help="The column that tells seeds apart."),
        single("--repeats", metavar=REPEATS, help="What runs of one size and budget are, where columns do not tell."),
        single("--smooth", metavar="K", help="Of a run's evaluations take the mean of the last K."),
        click.option("--last", is_flag=True, help="Of several evaluations of one run, keep the last."),
        single("--flops-convention", default="auto", metavar=CONVENTIONS, help="How C was counted (auto)."),
        single("--bytes-per-token", metavar="B", help="Of the tokenizer: the losses are bits per byte."),
        single("--unit", metavar="nats|bits|bits-per-byte", help="Of the losses, per token or per byte."),
        single("--loss-column", metavar="NAME", help="The column that holds the loss; as --columns loss=NAME."),
        click.option(
            "--columns", multiple=True, metavar="C=gflops*1e9,N=params...",
            help="What variant, N, D, C, loss, seed, run or step is: columns, numbers, + - * /, log().",
        ),
    ):  # the last one stands first in the help  # fmt: skip
        command = option(command)
    return command


def read_options(options: Mapping[str, Any], problems: list[str]) -> ReadOptions:
    """What the options say; problems are added for those that cannot be."""
    chosen = _columns(options["columns"], problems)
    if options["loss_column"] is not None:
        chosen["loss"] = options["loss_column"]
    unit, per_token = options["unit"], number(
        "--bytes-per-token", options["bytes_per_token"], problems, "4.3", **POSITIVE
    )  # fmt: skip
    if unit == "bits-per-byte" and options["bytes_per_token"] is None:
        problems.append("--unit: bits per byte become nats per token by the tokenizer. Add --bytes-per-token 4.3.")
    if unit not in (None, "nats", "bits", "bits-per-byte"):
        problems.append(f"--unit: nats, bits or bits-per-byte (found {unit!r}). Try nats.")
    convention = options["flops_convention"].lower()
    if convention not in CONVENTIONS.split("|"):
        problems.append(f"--flops-convention: one of {CONVENTIONS.replace('|', ', ')} (found {convention!r}).")
    repeats = options["repeats"]
    if repeats not in (None, *REPEATS.split("|")):
        problems.append(f"--repeats: seeds or sweep (found {repeats!r}). Leave it out to see both.")
    smooth = number("--smooth", options["smooth"], problems, "5", **COUNT)
    return ReadOptions(
        columns=chosen,
        unit=None if unit == "bits-per-byte" else unit,
        bytes_per_token=per_token,
        convention=convention,
        last=options["last"],
        smooth=max(1, smooth or AS_IT_IS.smooth),
        strict=options["strict"],
        repeats=repeats,
        seed_columns=_names(options["seed_column"]),
        sweep_columns=_names(options["sweep_columns"]),
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _columns(parts: tuple[str, ...], problems: list[str]) -> dict[str, str]:
    """Formulas by field of `--columns`, given once with commas or several times."""
    from cegain.run_tables.run_columns import FIELDS

    chosen: dict[str, str] = {}
    for part in _split(",".join(parts)):
        field, equals, formula = part.partition("=")
        field = field.strip()
        if not equals or field not in FIELDS:
            problems.append(
                f"--columns: one of {', '.join(FIELDS)}, = and a column (found {part[:100]!r}). Try C=total_flops."
            )
        elif field in chosen:
            problems.append(f"--columns: {field} is given once (found {chosen[field][:100]!r} and {formula[:100]!r}).")
        chosen[field] = formula.strip()
    return chosen


def _split(text: str) -> list[str]:
    """At commas outside of braces and brackets: names of columns may hold some."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "{(") - (letter in "})")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]
