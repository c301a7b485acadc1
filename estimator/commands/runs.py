"""Commands on tables of runs: fit, backtest, synthetic. Imported when one of them is called."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cegain.commands.options import (
    AT_LEAST_ONE,
    COUNT,
    NOISE,
    OF_A_MODEL,
    POSITIVE,
    Command,
    console,
    gathered,
    number,
    output_path,
    parse_budgets,
    print_json,
    refuse,
    refused,
    single,
    write,
)
from cegain.commands.table_options import read_options, table_options

if TYPE_CHECKING:
    from cegain.checks import backtest
    from cegain.ladders import fit_report, ladder
    from cegain.run_tables.run_import import ReadOptions


def print_remarks(table: ladder.RunTable) -> None:
    """What reading a table left out, on stderr."""
    for remark in table.remarks:
        click.echo(f"{table.name}: {remark}.", err=True)


@click.command("fit", cls=Command)
@click.argument("runs", metavar="RUNS.csv")
@single("--variant", metavar="V", help="The arm to fit; with --baseline, the arm with the algorithm.")
@single("--baseline", metavar="B", help="The arm without it: gives the gain of V over B.")
@single("--max-flops", metavar="X", help="Use runs up to this budget only.")
@single("--drop-highest", default="0", metavar="N", help="Leave out the N highest losses (Besiroglu et al. drop 5).")
@click.option("--at", multiple=True, metavar="C", help="Budgets to answer at: 1e24, a list, or a range 1e18:1e24.")
@click.option("--at-size", multiple=True, metavar="N", help="Also the loss of a model of so many parameters ...")
@click.option(
    "--at-tokens", multiple=True, metavar="D", help="... on so many tokens; lists pair up, or one goes with all."
)
@single("--bootstrap", default="1000", metavar="N", help="Resamples behind the intervals of a law.")
@single("--loss-noise", metavar="S", help="Seed noise of ln loss, where it is known.")
@single("--seed", default="0", metavar="N", help="Of the resamples.")
@table_options
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def fit_command(runs: str, at: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Scaling law of one arm, or the gain between two, from a table of runs.

    RUNS is a table as people have it (docs/runs.md): variant,N,D,C,loss (parameters, tokens, FLOP, nats per token) by
    these or other known names; other columns are ignored.

    \b
    ceg fit runs.csv --variant gpt                                         # the scaling law of one arm
    ceg fit runs.csv --variant gpt --at-size 7e9 --at-tokens 4e12          # its loss far from compute-optimal
    ceg fit wandb_export.csv --baseline lstm --variant gpt --at 1e20,1e22  # the gain of one over the other
    ceg import sweep.jsonl --columns C=total_gflops*1e9,variant=arch -o runs.csv   # units and names of your own
    """
    from cegain.ladders import fit_report, ladder

    problems: list[str] = []
    budgets = parse_budgets(",".join(at), problems, "--at") if at else []
    models = _models(options["at_size"], options["at_tokens"], options["baseline"], problems)
    limit = number("--max-flops", options["max_flops"], problems, "1e20", **POSITIVE)
    noise = number("--loss-noise", options["loss_noise"], problems, "0.002", **NOISE)
    resamples = number("--bootstrap", options["bootstrap"], problems, "1000", **COUNT) or 0
    drop = number("--drop-highest", options["drop_highest"], problems, "5", **COUNT) or 0
    seed = number("--seed", options["seed"], problems, "0", **COUNT) or 0
    how = read_options(options, problems)
    with refused(problems):
        table = ladder.read_runs(runs, how)
        if drop >= len(table.loss):
            problems.append(f"--drop-highest: fewer than the {len(table.loss)} runs (found {drop}). Try 5.")
            drop = 0
        table = fit_report.restrict(table, limit, drop)
        if not len(table.loss):
            problems.append(f"--max-flops: some run lies below it (found {options['max_flops']!r}). Raise it.")
    variant, baseline = options["variant"], options["baseline"]
    if variant is None:
        variants = [v for v in table.variants() if v != baseline]
        if len(variants) != 1:
            shown = ", ".join(variants[:12]) + (", ..." if len(variants) > 12 else "")
            problems.append(f"--variant: one arm is needed (the table has {len(variants)}: {shown}). Name one.")
        else:
            variant = variants[0]
    refuse(problems)
    print_remarks(table)
    result: object
    with refused():
        if baseline is None:
            one = fit_report.one_arm(table, variant, resamples, seed)
            say = fit_report.one_arm_document if as_json else fit_report.one_arm_text
            result = say(one, budgets, models)
        else:
            two = fit_report.two_arms(table, baseline, variant, budgets, noise)
            result = fit_report.two_arms_document(two) if as_json else fit_report.two_arms_text(two)
        print_json(result) if as_json else click.echo(result)


def _models(
    sizes: tuple[str, ...], tokens: tuple[str, ...], baseline: str | None, problems: list[str]
) -> list[fit_report.Model]:
    """Sizes and tokens whose loss is asked for: lists of one length, or one of either with all of the other."""
    from cegain.ladders.fit_report import Model

    counts = []
    for name, texts, example in (("--at-size", sizes, "7e9"), ("--at-tokens", tokens, "4e12")):
        values = [
            number(name, text.strip(), problems, example, **OF_A_MODEL) for text in ",".join(texts).split(",") if text
        ]
        counts.append([value for value in values if value is not None])
    if not counts[0] and not counts[1]:
        return []
    if baseline is not None:
        problems.append("--at-size, --at-tokens: they are of one arm (found --baseline). Leave one out.")
    if 1 in map(len, counts) and all(counts):
        longest = max(map(len, counts))
        counts = [values * longest if len(values) == 1 else values for values in counts]
    if len(counts[0]) != len(counts[1]):
        found = f"{len(counts[0])} and {len(counts[1])}"
        problems.append(
            f"--at-size, --at-tokens: as many of one as of the other are needed (found {found}). Pair them."
        )
    return [Model(n, d) for n, d in zip(*counts, strict=False)]


@click.command("synthetic", cls=Command)
@single("-o", "--output", required=True, metavar="FILE.csv", help="Where to write the table.")
@single("--truth", default="fading", metavar="constant|power-law|fading", help="How the gain changes with compute.")
@single("--rungs", default="8", metavar="N", help="Budgets per arm, half a decade apart from 1e17 FLOP.")
@single("--noise", default="0.002", metavar="S", help="sd of ln loss.")
@single("--seed", default="0", metavar="N", help="Of the noise.")
def synthetic_command(output: str, truth: str, **options: Any) -> None:
    """Write a table of made-up runs with a known gain, to try `ceg fit` and `ceg backtest` on."""
    from cegain.ladders import synthetic

    problems: list[str] = []
    target = output_path("--output", output, problems, (".csv",))
    if truth not in synthetic.TRUTHS:
        problems.append(f"--truth: one of {', '.join(synthetic.TRUTHS)} (found {truth!r}). Try fading.")
    rungs = number("--rungs", options["rungs"], problems, "8", **COUNT) or 0
    if not 2 <= rungs <= 40 and not problems:
        problems.append(f"--rungs: 2 to 40 budgets (found {rungs}). Try 8.")
    noise = number(
        "--noise", options["noise"], problems, "0.002", fits=lambda sd: 0 <= sd < 1, rule="from 0 to below 1"
    )
    seed = number("--seed", options["seed"], problems, "0", **COUNT) or 0
    refuse(problems)
    assert target is not None
    write("--output", target, synthetic.table(truth, rungs, noise, seed).encode())
    click.echo(f"wrote {output}: {2 * rungs} made-up runs, {truth} gain")


@click.command("backtest", cls=Command)
@click.argument("runs", metavar="[RUNS.csv...]", nargs=-1)
@single("--made-up", metavar="N", help="In place of tables: N made-up ladders of each known gain, length and noise.")
@click.option(
    "--laws", is_flag=True, help="In place of gains, each arm's own losses by its laws (always with one arm)."
)
@single("--pairs", metavar="FILE", help="Arms to compare (columns set,baseline,treatment); every two arms without it.")
@click.option("--cut", multiple=True, metavar="X", help="Hide runs above the largest budget / X; 3, 10, 30, 100.")
@table_options
@single("--jobs", default=str(min(2, os.cpu_count() or 1)), metavar="N", help="Processes.")
@single("--freeze", metavar="FILE.json", help="Also choose the settings on these pairs and store them (maintainers).")
@single(
    "--scores", metavar="FILE.json", help="Also store the scores there, beside those of other tables (maintainers)."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def backtest_command(runs: tuple[str, ...], cut: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Hide the top of ladders, predict the gains there, and score the predictions.

    \b
    ceg backtest runs.csv
    ceg backtest a.csv b.csv --pairs pairs.csv --cut 10 --cut 100
    """
    from rich.console import Console
    from rich.progress import track

    from cegain.checks import backtest, backtest_scores
    from cegain.ladders import forecast

    problems: list[str] = []
    made_up_ladders = number("--made-up", options["made_up"], problems, "100", **AT_LEAST_ONE)
    if (options["made_up"] is None) == (not runs):
        found = "nothing" if not runs else "both"
        problems.append(f"RUNS.csv: tables of runs, or --made-up N in their place, are needed (found {found}).")
    cuts = [number("--cut", text, problems, "10", **POSITIVE) for text in cut]
    problems += [f"--cut: a factor above 1 is needed (found {c:g}). Try 10." for c in cuts if c is not None and c <= 1]
    jobs = max(1, number("--jobs", options["jobs"], problems, "2", **COUNT) or 0)
    target = output_path("--freeze", options["freeze"], problems, (".json",))
    scores = output_path("--scores", options["scores"], problems, (".json",))
    if made_up_ladders is not None and not runs:
        others = [name for name in ("pairs", "freeze", "scores") if options[name] is not None]
        others += ["cut"] * bool(cut) + ["laws"] * options["laws"]
        problems += [f"--{name}: it goes without --made-up. Leave one out." for name in others]
        refuse(problems)
        _made_up(made_up_ladders, jobs, as_json)
        return
    entries: list[backtest_scores.Entry] = []
    if scores is not None:
        misplaced = ["--cut"] * bool(cut) + ["--loss-column"] * (options["loss_column"] is not None)
        misplaced += ["--freeze"] * (target is not None)
        rule = "it goes without --scores, which are of usual calls. Leave one out."
        problems += [f"{name}: {rule}" for name in misplaced]
        with gathered(problems, "--scores: "):
            entries = backtest_scores.load(scores)
    how = read_options(options, problems)
    if options["laws"] or (options["pairs"] is None and _one_arm(runs, how)):
        for name in ("pairs", "freeze", "scores"):
            if options[name] is not None:
                problems.append(f"--{name}: it is about gains (found one arm, or --laws). Leave one out.")
        _laws(runs, how, tuple(c for c in cuts if c), as_json, problems)
        return
    tables, pairs = _tables_and_pairs(runs, how, options["pairs"], problems)
    start = forecast.load_settings()
    cells, skipped = [], []
    with refused():
        steps = backtest.hold_out(tables, pairs, tuple(c for c in cuts if c) or backtest.CUTS, start, workers=jobs)
        bar = track(steps, "hiding", total=len(pairs), console=Console(stderr=True), transient=True)
        for _, more_cells, left_out in bar:
            cells += more_cells
            skipped += left_out
    points = backtest.score(cells, backtest.frozen)
    if target is not None:
        write("--freeze", target, (json.dumps(backtest.freeze(cells, start), indent=1) + "\n").encode())
    if scores is not None:
        new = backtest_scores.entry(runs, options["pairs"], points, skipped)
        write("--scores", scores, backtest_scores.content(entries, new))
    if as_json:
        settings = {name: backtest.frozen(name) for name in dict.fromkeys(pair.set for pair in pairs)}
        print_json(backtest.document(points, skipped, settings))
    else:
        backtest.print_report(console(), points, skipped)


def _one_arm(runs: tuple[str, ...], how: ReadOptions) -> bool:
    """Whether the tables are one, of one arm; what cannot be read is said later."""
    from cegain.ladders import ladder
    from cegain.tables.problems import EvidenceError

    if len(runs) != 1:
        return False
    try:
        return len(ladder.read_runs(runs[0], how).variants()) == 1
    except EvidenceError:
        return False


def _laws(runs: tuple[str, ...], how: ReadOptions, cuts: tuple[float, ...], as_json: bool, problems: list[str]) -> None:
    """Hidden losses of every arm by its own laws."""
    from cegain.checks import backtest, one_arm
    from cegain.ladders import ladder

    points = []
    for path in runs:
        with gathered(problems):
            table = ladder.read_runs(path, how)
            print_remarks(table)
            points += one_arm.hold_out(table, table.variants(), cuts or backtest.CUTS)
    refuse(problems)
    if as_json:
        print_json(one_arm.document(points))
    else:
        one_arm.print_report(console(), points)


def _made_up(ladders: int, jobs: int, as_json: bool) -> None:
    """Answers from made-up ladders against the gains behind them."""
    from rich.console import Console
    from rich.progress import track

    from cegain.checks import made_up
    from cegain.ladders import synthetic

    steps = made_up.run(ladders, jobs=jobs)
    bar = track(steps, "drawing", total=len(synthetic.TRUTHS), console=Console(stderr=True), transient=True)
    cells = [cell for of_truth in bar for cell in of_truth]
    if as_json:
        print_json({"schema": "ceg.made_up", "schema_version": 1, "cells": [cell._asdict() for cell in cells]})
    else:
        made_up.print_report(console(), cells)


def _tables_and_pairs(
    runs: tuple[str, ...], how: ReadOptions, pairs_file: str | None, problems: list[str]
) -> tuple[list[ladder.RunTable], list[backtest.Pair]]:
    """The tables of runs, and the pairs of arms to compare: those of a file, or every two arms of a table."""
    from cegain.checks import backtest
    from cegain.ladders import ladder

    tables: list[ladder.RunTable] = []
    pairs: list[backtest.Pair] = []
    missing: list[backtest.Pair] = []
    for path in runs:
        with gathered(problems):
            table = ladder.read_runs(path, how)
            if any(table.name == other.name for other in tables):
                table = table._replace(name=path)
            tables.append(table)
            print_remarks(table)
            if pairs_file is None:
                pairs += backtest.all_pairs(table)
    if pairs_file is not None:
        with gathered(problems):
            pairs = backtest.read_pairs(Path(pairs_file))
            missing = backtest.unmatched(tables, pairs)
            if len(missing) == len(pairs) and not problems:
                problems.append(
                    f"--pairs: one pair at least names arms of a table (none of {len(pairs)} does, for one "
                    f"{missing[0].baseline!r} against {missing[0].treatment!r}). Check the arms' names."
                )
    if not pairs and not problems:
        problems.append("RUNS.csv: two arms or more are needed (found one). Add the other arm's runs.")
    refuse(problems)
    for table in tables:
        for arm in table.variants():
            if unclear := ladder.representatives(table, arm)[1].unclear:
                click.echo(f"{table.name}, {arm}: {unclear} Averaged; --repeats sweep takes the best.", err=True)
    if missing:
        sets = ", ".join(dict.fromkeys(pair.set for pair in missing))
        click.echo(f"{len(missing)} of {len(pairs)} pair(s) left out: no table has both arms (sets {sets}).", err=True)
    return tables, pairs
