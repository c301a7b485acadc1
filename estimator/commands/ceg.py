"""Command line: parse, call, print. `ceg-estimate` is `ceg estimate`. No arithmetic and no torch here.

Answers go to stdout, progress and errors to stderr; bad input exits with 2 and names rule, value and remedy of
everything that is wrong. Whatever is needed by one command only is imported inside it: an answer must start fast.
"""

from __future__ import annotations

import json
from typing import Any

import click

from cegain import algorithms
from cegain.commands.options import (
    IMAGE_TYPES,
    Group,
    answer,
    console,
    evidence_options,
    load_evidence,
    number,
    output_path,
    print_json,
    question_options,
    read_evidence,
    refuse,
    show,
    single,
    write,
)
from cegain.tables.published_gains import published

_HERE, _TRAIN = "cegain.commands", "cegain.training.commands"


@click.group(
    cls=Group,
    lazy={
        (f"{_HERE}.runs", "fit"): "Scaling law of one arm, or the gain between two, from a table of runs.",
        (f"{_HERE}.compare", "compare"): "Is an arm better than another, by a few seeds each: a verdict.",
        (f"{_HERE}.imports", "import"): "Turn somebody's table of runs into one that the other commands read.",
        (f"{_HERE}.runs", "backtest"): "Hide the top of ladders, predict the gains there, and score it.",
        (f"{_HERE}.plot", "plot"): "Pictures: CEG against scale, stacks, ladders, kernels, backtests.",
        (f"{_HERE}.ladder", "ladder"): "What our own runs say: gains by rung, forecast.",
        (f"{_HERE}.classify", "classify"): "Does a gain depend on compute? The source paper's classes beside ours.",
        (f"{_HERE}.scenario", "scenario"): "Hardware frozen at a budget: what algorithms alone still bring.",
        (f"{_HERE}.report", "report"): "All answers as one page for a browser, to choose and compare in.",
        (f"{_HERE}.speedup", "speedup"): "The gain behind one pair of losses, with all it depends on.",
        (f"{_HERE}.steptime", "steptime"): "Time of a training step or of a decoded token.",
        (f"{_HERE}.runs", "synthetic"): "Write a table of made-up runs with a known gain.",
        ("cegain.benchmarks.cli_bench", "bench"): "Times of kernels on a device, and the table that holds them.",
        (f"{_TRAIN}.train", "train"): "Train one arm of a stack at one budget.",
        (f"{_TRAIN}.ablate", "ablate"): "A ladder of ablations: arms by budgets by seeds.",
        (f"{_TRAIN}.train", "runs"): "A table of training runs: how far, what loss, how fast.",
        (f"{_TRAIN}.train", "curves"): "Loss curves of training runs, as a picture.",
        (f"{_TRAIN}.train", "collect"): "Add finished runs to a training_runs.csv.",
        (f"{_TRAIN}.data", "data"): "Text to train on: prepare a corpus, list those that are there.",
        (f"{_TRAIN}.flops", "flops"): "FLOP of an arm, term by term, beside torch's and fvcore's.",
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="cegain", prog_name="ceg")
def ceg() -> None:
    """How much compute is an algorithm worth? Compute-equivalent gains with honest intervals."""


@ceg.command("estimate", context_settings={"help_option_names": ["-h", "--help"]})
@question_options
@click.option(
    "--threshold", multiple=True, metavar="C", help="A further budget to compare with (1e25 and 1e26 always)."
)
@click.option("--explain", is_flag=True, help="All that stands behind the answer.")
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON on stdout, and nothing else there.")
@single("--plot", metavar="FILE", help="Also draw CEG against scale (.svg, .pdf, .png).")
def estimate_command(as_json: bool, explain: bool, plot: str | None, **options: Any) -> None:
    """How much more compute would one need WITHOUT the algorithm to reach the same loss?

    \b
    ceg-estimate --algo moe --flops 1e24
    ceg-estimate --algo layernorm,rope --flops 1e18:1e26 --json
    """
    problems: list[str] = []
    picture = output_path("--plot", plot, problems, IMAGE_TYPES)
    estimates = answer(options, problems, sensitivity=True, influence=explain or as_json)
    if picture is not None:
        from cegain.pictures import curves as drawing

        budgets = sorted({e.flops for e in estimates} | {1e17, 1e26})
        curve = answer(options | {"flops": drawing.grid(budgets[0], budgets[-1])}, problems)
        write("--plot", picture, drawing.draw([curve], picture.suffix.lower()))
    from cegain.gain.answer import document, plain, print_table

    if as_json:
        print_json(document(estimates))
    elif len(estimates) == 1:
        click.echo(plain(estimates[0], explain=explain))
    else:
        print_table(console(), estimates)


@ceg.command("list")
@evidence_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_command(as_json: bool, **options: Any) -> None:
    """All algorithms: what they replace, class, evidence and its range."""
    from cegain.views import listing

    tables = load_evidence(options["evidence"], options["only_evidence"], [])
    show(as_json, listing.overview_document, listing.print_overview, tables)


@ceg.command("show")
@click.argument("algo")
@single("--currency", default="flop", metavar="flop|time|usd|decode", help="What is counted.")
@evidence_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show_command(algo: str, currency: str, as_json: bool, **options: Any) -> None:
    """Every row behind an algorithm, with its source and its weight."""
    from cegain.gain import question
    from cegain.views import listing

    problems: list[str] = []
    currency = currency.lower()
    if currency not in question.CURRENCIES:
        problems.append(
            f"--currency: one of {', '.join(question.CURRENCIES)} is needed (found {currency!r}). Try flop."
        )
    tables = read_evidence(options["evidence"], options["only_evidence"], problems, [algo])
    name = ""
    try:
        name = algorithms.resolve(algo)
    except algorithms.UnknownAlgorithm as error:
        problems.append(f"{error} {question.ROWS_OF_IT}")
    refuse(problems)
    show(as_json, listing.rows_document, listing.print_rows, tables, name, currency)


@ceg.command("paper")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def paper_command(as_json: bool) -> None:
    """The source paper's Tables II and III beside what our tables give, and what its numbers say."""
    from cegain import estimate
    from cegain.paper import reread

    show(as_json, reread.as_dict, reread.render, estimate)


@ceg.command("coverage")
@click.option("--stacks", is_flag=True, help="Leave one measured combination out instead, and predict it.")
@single("--simulated", metavar="N", help="N made-up literatures of each kind instead, selected ones among them.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--write", "store", is_flag=True, help="Store the settings fitted on all studies, and this check (for maintainers)."
)
@evidence_options
def coverage_command(stacks: bool, simulated: str | None, as_json: bool, store: bool, **options: Any) -> None:
    """Are the intervals honest on the literature? Leave one study out and predict it; hide what stands above a compute
    and predict that."""
    from rich.console import Console
    from rich.progress import track

    from cegain.checks import coverage
    from cegain.gain import prior

    problems = []
    if store and options["evidence"]:
        problems.append("--write: settings are fitted on the shipped tables only. Leave --evidence out.")
    if store and (stacks or simulated is not None):
        problems.append("--write: settings are fitted on single algorithms of the tables. Leave the other option out.")
    draws = number("--simulated", simulated, problems, "1000", int)
    if draws is not None and draws < 1:
        problems.append(f"--simulated: a whole number of at least 1 is needed (found {simulated}). Try 1000.")
    tables = load_evidence(options["evidence"], options["only_evidence"], problems)
    if stacks:
        from cegain.checks import stack_coverage

        of_stacks = stack_coverage.leave_one_combination_out(tables.rows)
        show(as_json, stack_coverage.document, stack_coverage.print_report, of_stacks)
        return
    if draws is not None:
        from cegain.checks import simulated as made_up

        processes = track(
            made_up.run(draws), "drawing", total=len(made_up.PROCESSES), console=Console(stderr=True), transient=True
        )
        show(as_json, made_up.document, made_up.print_report, list(processes))
        return
    everything, tables = tables, published(tables)
    studies = coverage.studies(tables.rows)
    steps = track(studies, "leaving out", console=Console(stderr=True), transient=True)
    report = coverage.leave_one_study_out(tables.rows, steps)
    cuts = track(coverage.CUTS, "hiding above", console=Console(stderr=True), transient=True)
    report = report._replace(upward=coverage.hide_above(everything.rows, cuts).scores)
    if store:
        documents = {prior.PRIOR_FILE: prior.document(tables), coverage.COVERAGE_FILE: coverage.stored(tables, report)}
        for path, content in documents.items():
            write("--write", path, (json.dumps(content, indent=2) + "\n").encode())
    show(as_json, coverage.document, coverage.print_report, report)
