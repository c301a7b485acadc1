"""`ceg ladder`: what our own runs say. Imported by name when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cegain.commands.options import (
    IMAGE_TYPES,
    BadInput,
    Command,
    gathered,
    output_path,
    parse_budgets,
    refuse,
    show,
    single,
    write,
)

if TYPE_CHECKING:
    from cegain.ladders.seed_ladder import StackRuns
    from cegain.views import ladder_report


@click.command("ladder", cls=Command)
@single("--algo", metavar="NAME[+NAME...]", help="Algorithm, or a combination that is an arm; see `ceg list`.")
@single("--stack", default="bare", metavar="bare|modern", help="What the arms share (bare).")
@single(
    "--runs",
    metavar="TABLE.csv",
    help="A table that `ceg collect` or `ceg ablate` wrote; this project's own without it.",
)
@click.option("--at", multiple=True, metavar="C", help="Budgets of the forecast: 1e14, a list, or a range 1e12:1e15.")
@single("-o", "--output", metavar="FILE", help="Also draw it (.svg, .pdf, .png).")
@click.option("--write", "store", is_flag=True, help="Make own_gains.csv from training_runs.csv (for maintainers).")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def ladder_command(at: tuple[str, ...], store: bool, as_json: bool, **options: Any) -> None:
    """What our own runs say: all gains of a stack; or one algorithm's by rung, the forecast, and the literature.

    \b
    ceg ladder
    ceg ladder --algo rope
    ceg ladder --algo layernorm+rope --at 1e14 -o ladder.svg
    ceg ladder --algo rope --runs training_runs.csv --json
    """
    problems: list[str] = []
    algo, output = options["algo"], options["output"]
    picture = output_path("--output", output, problems, IMAGE_TYPES)
    budgets = parse_budgets(",".join(at), problems, "--at") if at else []
    of_one = ["--at"] * bool(at) + ["--output"] * (output is not None)
    if store:
        misplaced = ["--algo"] * (algo is not None) + ["--runs"] * (options["runs"] is not None) + ["--json"] * as_json
        rule = "it goes without --write, which takes all of this project's runs. Leave it out."
        problems += [f"{name}: {rule}" for name in misplaced + of_one]
        _write_own_gains(problems)
        return
    if algo is None:
        problems += [f"{name}: it goes with an algorithm. Add --algo rope; `ceg list` shows all." for name in of_one]
    stacks = _stacks(options["runs"], problems)
    of_stack = _named(options["stack"], stacks, problems)
    if algo is None:
        _overview(of_stack, stacks.get("bare"), options["runs"], problems, as_json)
        return
    report = _report(algo, of_stack, budgets, problems)
    from cegain.views import ladder_report

    if picture is not None:
        from cegain.pictures import ladder

        write("--output", picture, ladder.draw(report, picture.suffix.lower()))
    show(as_json, ladder_report.document, ladder_report.print_report, report, picture=output)


def _write_own_gains(problems: list[str]) -> None:
    """`ceg ladder --write`: the derived table beside the project's runs."""
    from cegain.ladders import own_gains
    from cegain.tables import training_runs
    from cegain.tables.published_gains import OWN_GAINS

    content = b""
    with gathered(problems):
        content = own_gains.content(training_runs.TRAINING_RUNS)
    refuse(problems)
    write("--write", OWN_GAINS, content)
    click.echo(f"wrote {OWN_GAINS.name}: {content.count(10) - 1} gains of {training_runs.TRAINING_RUNS.name}")


def _stacks(runs: str | None, problems: list[str]) -> dict[str, StackRuns]:
    """The stacks of a table, or none with problems added."""
    from cegain.ladders import seed_ladder
    from cegain.tables import training_runs

    if runs is None and not training_runs.TRAINING_RUNS.exists():
        problems.append("--runs: this project has no runs of its own yet (found no training_runs.csv). Name a table.")
        return {}
    with gathered(problems):
        return seed_ladder.load(training_runs.TRAINING_RUNS if runs is None else Path(runs))
    return {}


def _named(stack: str, stacks: dict[str, StackRuns], problems: list[str]) -> StackRuns | None:
    """One of a table's stacks, or None with a problem added if the table was read."""
    of_stack = stacks.get(stack, stacks.get(""))
    if of_stack is None and stacks:
        problems.append(f"--stack: one of the table's, {', '.join(stacks)} (found {stack!r}). Use one of them.")
    return of_stack


def _overview(
    of_stack: StackRuns | None, bare: StackRuns | None, runs: str | None, problems: list[str], as_json: bool
) -> None:
    """All arms of a stack at a glance."""
    from cegain.tables import training_runs
    from cegain.views import ladder_overview

    if of_stack is None:  # the table says why
        raise BadInput(problems)
    table: list[training_runs.TrainingRun] = []
    with gathered(problems):
        table = training_runs.load(training_runs.TRAINING_RUNS if runs is None else Path(runs))
    refuse(problems)
    show(as_json, ladder_overview.document, ladder_overview.print_overview, of_stack, table, bare)


def _report(algo: str, of_stack: StackRuns | None, budgets: list[float], problems: list[str]) -> ladder_report.Report:
    """Check what was asked of one algorithm, and read it off the runs."""
    from cegain import algorithms
    from cegain.gain import evidence
    from cegain.ladders import seed_ladder
    from cegain.views import ladder_report

    name = None
    try:
        parts = [algorithms.resolve(part) for part in algo.replace(",", "+").split("+") if part.strip()]
        name = "+".join(dict.fromkeys(parts))
    except algorithms.UnknownAlgorithm as error:
        problems.append(f"--algo: {error}")
    pair = seed_ladder.pair_of(of_stack, name) if of_stack is not None and name else None
    if of_stack is not None and name is not None and pair is None:
        others = ", ".join(dict.fromkeys(pair[0] for pair in of_stack.pairs)) or "none"
        problems.append(
            f"--algo: runs with and without it are in the table (found {name!r}; there are: {others}). Train it: "
            f"`ceg ablate --help`."
        )
    if problems or of_stack is None or pair is None:
        raise BadInput(problems)
    return ladder_report.report(of_stack, pair, budgets, evidence.load().rows)
