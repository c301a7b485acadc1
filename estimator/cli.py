"""Command line: parse, call, print. `ceg-estimate` is `ceg estimate`. No arithmetic and no torch here.

Answers go to stdout, progress and errors to stderr; bad input exits with 2 and names rule, value and remedy of
everything that is wrong. Whatever is needed by one command only is imported inside it: an answer must start fast.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from estimator.cli_input import (
    IMAGE_TYPES,
    BadInput,
    Group,
    console,
    joined,
    load_evidence,
    number,
    output_path,
    parse_budgets,
    print_json,
    single,
    write,
)
from estimator.evidence import EvidenceError, published

if TYPE_CHECKING:
    from estimator.gain import Estimate

_RUNS, _TRAIN = "estimator.cli_runs", "training.cli_train"
# Options of `ceg plot --pattern`: default, and the most that a picture can show.
_PATTERN_OPTIONS: dict[str, tuple[str | None, int | None]] = {
    "tokens": ("128", 4096), "heads": ("2", 64), "block": ("16", 4096),
    "window": (None, None), "global_tokens": (None, None), "stride": (None, None), "summary": (None, None),
}  # fmt: skip


def _evidence_options(command: Callable[..., None]) -> Callable[..., None]:
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


def _question_options(command: Callable[..., None], required: bool = True) -> Callable[..., None]:
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
    return _evidence_options(command)


def _optional_question_options(command: Callable[..., None]) -> Callable[..., None]:
    return _question_options(command, required=False)


def _ask(
    options: dict[str, Any],
    problems: list[str],
    algo: str | None = None,
    shared: list[dict[str, float]] | None = None,
) -> tuple[Estimate, ...]:
    """Answer the question that the shared options put, reporting `problems` found elsewhere with its own; a list
    `shared` receives the share of each kind of evidence at every budget."""
    from estimator import ask

    interval = number("--interval", options["interval"], problems, "0.9")
    seed = number("--seed", options["seed"], problems, "0", int)
    thresholds = [number("--threshold", t, problems, "1e26") for t in options.get("threshold", ())]
    seq_len = None if options["seq_len"] is None else number("--seq-len", options["seq_len"], problems, "2048", int)
    try:
        return ask.estimate_all(
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
            thresholds=[*ask.THRESHOLDS, *(t for t in thresholds if t is not None)],
            seed=seed or 0,
            problems=problems,
            shared=shared,
        )
    except ask.QuestionError as error:
        raise BadInput(error.problems) from None


@click.group(
    cls=Group,
    lazy={
        "fit": (_RUNS, "fit_command", "Scaling law of one arm, or the gain between two, from a table of runs."),
        "backtest": (_RUNS, "backtest_command", "Hide the top of ladders, predict the gains there, and score it."),
        "ladder": (
            "estimator.cli_ladder",
            "ladder_command",
            "What our own runs say: gains by rung, forecast.",
        ),
        "classify": (
            "estimator.cli_classify",
            "classify_command",
            "Does a gain depend on compute? The source paper's classes beside ours.",
        ),
        "scenario": (
            "estimator.cli_scenario",
            "scenario_command",
            "Hardware frozen at a budget: what algorithms alone still bring.",
        ),
        "report": (
            "estimator.cli_report",
            "report_command",
            "All answers as one page for a browser, to choose and compare in.",
        ),
        "speedup": (_RUNS, "speedup_command", "The gain behind one pair of losses, with all it depends on."),
        "steptime": ("estimator.cli_steptime", "steptime_command", "Time of a training step or of a decoded token."),
        "synthetic": (_RUNS, "synthetic_command", "Write a table of made-up runs with a known gain."),
        "bench": (
            "benchmarks.cli_bench",
            "bench_group",
            "Times of kernels on a device, and the table that holds them.",
        ),
        "train": (_TRAIN, "train_command", "Train one arm of a stack at one budget."),
        "ablate": ("training.cli_ablate", "ablate_command", "A ladder of ablations: arms by budgets by seeds."),
        "runs": (_TRAIN, "runs_command", "A table of training runs: how far, what loss, how fast."),
        "curves": (_TRAIN, "curves_command", "Loss curves of training runs, as a picture."),
        "collect": (_TRAIN, "collect_command", "Add finished runs to a training_runs.csv."),
        "data": ("training.cli_data", "data_command", "Text to train on: prepare a corpus, list those that are there."),
        "flops": ("training.cli_flops", "flops_command", "FLOP of an arm, term by term, beside torch's and fvcore's."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="ceg", prog_name="ceg")
def ceg() -> None:
    """How much compute is an algorithm worth? Compute-equivalent gains with honest intervals."""


@ceg.command("estimate", context_settings={"help_option_names": ["-h", "--help"]})
@_question_options
@click.option(
    "--threshold", multiple=True, metavar="C", help="A further budget to compare with (1e25 and 1e26 always)."
)
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON on stdout, and nothing else there.")
@single("--plot", metavar="FILE", help="Also draw CEG against scale (.png, .svg, .pdf).")
def estimate_command(as_json: bool, plot: str | None, **options: Any) -> None:
    """How much more compute would one need WITHOUT the algorithm to reach the same loss?

    \b
    ceg-estimate --algo moe --flops 1e24
    ceg-estimate --algo layernorm,rope --flops 1e18:1e26 --json
    """
    problems: list[str] = []
    picture = output_path("--plot", plot, problems, IMAGE_TYPES)
    shared: list[dict[str, float]] = []
    estimates = _ask(options, problems, shared=shared)
    if picture is not None:
        from estimator import plot as drawing

        budgets = sorted({e.flops for e in estimates} | {1e17, 1e26})
        curve = _ask(options | {"flops": drawing.grid(budgets[0], budgets[-1])}, problems)
        write("--plot", picture, drawing.draw([curve], picture.suffix.lower()))
    from estimator import text

    if as_json:
        print_json(text.document(estimates, shared))
    elif len(estimates) == 1:
        click.echo(text.plain(estimates[0], shared[0]))
    else:
        text.print_table(console(), estimates, shared)


@ceg.command("list")
@_evidence_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_command(as_json: bool, **options: Any) -> None:
    """All algorithms: what they replace, class, evidence and its range."""
    from estimator import listing

    tables = load_evidence(options["evidence"], options["only_evidence"], [])
    if as_json:
        print_json(listing.overview_document(tables))
    else:
        listing.print_overview(console(), tables)


@ceg.command("show")
@click.argument("algo")
@single("--currency", default="flop", metavar="flop|time|usd|decode", help="What is counted.")
@_evidence_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show_command(algo: str, currency: str, as_json: bool, **options: Any) -> None:
    """Every row behind an algorithm, with its source and its weight."""
    from estimator import algorithms, ask, listing

    problems: list[str] = []
    currency = currency.lower()
    if currency not in ask.CURRENCIES:
        problems.append(f"--currency: one of {', '.join(ask.CURRENCIES)} is needed (found {currency!r}). Try flop.")
    name = ""
    try:
        name = algorithms.resolve(algo)
    except algorithms.UnknownAlgorithm as error:
        problems.append(str(error))
    tables = load_evidence(options["evidence"], options["only_evidence"], problems)
    if as_json:
        print_json(listing.rows_document(tables, name, currency))
    else:
        listing.print_rows(console(), tables, name, currency)


@ceg.command("paper")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def paper_command(as_json: bool) -> None:
    """The source paper's Tables II and III beside what our tables give, and what its numbers say."""
    from estimator import paper

    if as_json:
        print_json(paper.as_dict())
    else:
        paper.render(console())


@ceg.command("plot")
@single("--runs", metavar="RUNS.csv", help="Draw two arms of a table of runs instead: --baseline B --variant V.")
@single("--variant", metavar="V", help="With --runs: the arm with the algorithm.")
@single("--pattern", metavar="NAME", help="Draw an attention pattern instead: strided, fixed, window, causal or full.")
@single("--tokens", metavar="N", help="With --pattern: length of the sequence (128).")
@single("--heads", metavar="N", help="With --pattern: query heads (2).")
@single("--block", metavar="N", help="With --pattern: side of the blocks that a kernel visits (16).")
@single("--window", metavar="N", help="With --pattern window: tokens seen (half of all).")
@single("--global-tokens", metavar="N", help="With --pattern window: first tokens, seen by all (0).")
@single("--stride", metavar="N", help="With --pattern strided or fixed: near the root of --tokens by default.")
@single("--summary", metavar="N", help="With --pattern fixed: columns of each block seen by all (a quarter).")
@single("--kernels", metavar="FAMILY", help="Draw kernel times of --device: flash, sparse, mqa, decode or moe.")
@click.option("--roofline", is_flag=True, help="Draw all operations of --device under its roofline instead.")
@single("--times", metavar="FILE.csv", help="With --kernels or --roofline: a table that `ceg bench collect` wrote.")
@_optional_question_options
@single("-o", "--output", required=True, metavar="FILE", help="Where to draw (.png, .svg, .pdf).")
def plot_command(output: str, runs: str | None, variant: str | None, pattern: str | None, **options: Any) -> None:
    """Draw CEG against scale; or two arms' ladders and the gain; or an attention pattern; or kernel times.

    \b
    ceg plot --algo moe,rope --flops 1e17:1e26 -o ceg.png
    ceg plot --runs runs.csv --baseline lstm --variant gpt --flops 1e17:1e24 -o gain.png
    ceg plot --pattern strided -o strided.png
    ceg plot --kernels flash -o flash.png
    """
    from estimator import plot as drawing

    of_kernels = {name: options.pop(name) for name in ("kernels", "roofline", "times")}
    if of_kernels["kernels"] is not None or of_kernels["roofline"]:
        given = {"runs": runs, "variant": variant, "pattern": pattern, **options}
        of_kernels["device"] = given.pop("device")  # an answer's option too
        del given["interval"], given["seed"], given["currency"]  # these have defaults
        _draw_kernels(of_kernels, [name for name, value in given.items() if value], output)
        return
    of_pattern = {name: options.pop(name) for name in _PATTERN_OPTIONS}
    if pattern is not None:
        others = {"runs": runs, "variant": variant, **{name: options[name] for name in ("algo", "flops", "baseline")}}
        _draw_pattern(pattern.lower(), of_pattern, [name for name, value in others.items() if value], output)
        return
    if runs is not None:
        from estimator.cli_runs import draw_runs

        draw_runs(runs, options["baseline"], variant, options["flops"], output)
        return
    problems: list[str] = []
    picture = output_path("--output", output, problems, IMAGE_TYPES)
    if variant is not None:
        problems.append("--variant: it goes with --runs. Add --runs RUNS.csv, or leave it out.")
    for name in (name for name, value in of_pattern.items() if value is not None):
        problems.append(f"--{name.replace('_', '-')}: it goes with --pattern. Add --pattern strided, or leave it out.")
    if of_kernels["times"] is not None:
        problems.append("--times: it goes with --kernels or --roofline. Add one of them, or leave it out.")
    budgets = parse_budgets(options["flops"], problems)
    if len(set(budgets)) > 1:
        options["flops"] = drawing.grid(min(budgets), max(budgets))
    elif budgets:
        problems.append("--flops: a picture needs a range (found one budget). Try 1e17:1e26.")
    names = [part for part in options["algo"].split(",") if part.strip()]
    baselines = (options["baseline"] or "").split(",") if options["baseline"] is not None else []
    if baselines and len(baselines) != len(names):
        problems.append(f"--baseline: one per algorithm is needed (found {len(baselines)} for {len(names)}). Add all.")
        baselines = []
    curves = []
    for i, name in enumerate(names or [""]):
        try:
            curves.append(_ask(options | {"baseline": baselines[i] if baselines else None}, [], algo=name))
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(problems)
    assert picture is not None
    write("--output", picture, drawing.draw(curves, picture.suffix.lower()))
    click.echo(f"wrote {output}")


def _draw_kernels(options: dict[str, Any], others: list[str], output: str) -> None:
    """`ceg plot --kernels` and `--roofline`: kernel times of one device."""
    from pathlib import Path

    from estimator import kernel_families, kernel_times, plot_kernels

    family, which = options["kernels"], "--kernels" if options["kernels"] is not None else "--roofline"
    problems = [f"{which}: it goes without --{name.replace('_', '-')}. Leave one of them out." for name in others]
    picture = output_path("--output", output, problems, IMAGE_TYPES)
    if family is not None and options["roofline"]:
        problems.append("--roofline: it goes without --kernels. Leave one of them out.")
    elif family is not None and family not in kernel_families.FAMILIES:
        known = ", ".join(kernel_families.FAMILIES)
        problems.append(f"--kernels: one of {known} is needed (found {family!r}). Use one of these.")
    table = kernel_times.KERNEL_TIMES if options["times"] is None else Path(options["times"])
    rows = []
    if options["times"] is None and not table.exists():
        problems.append(
            f"{which}: a table of kernel times is there (found no kernel_times.csv). Give --times FILE.csv."
        )
    else:
        try:
            rows = kernel_times.load(table)
        except EvidenceError as error:
            problems += map(str, error.problems)
    if problems:
        raise BadInput(problems)
    assert picture is not None
    ending = picture.suffix.lower()
    try:
        content = (
            plot_kernels.draw_roofline(rows, options["device"], ending)
            if family is None
            else plot_kernels.draw(rows, family, options["device"], ending)
        )
    except ValueError as error:
        raise BadInput([f"{which}: {error}."]) from None
    write("--output", picture, content)
    click.echo(f"wrote {output}")


def _draw_pattern(pattern: str, options: dict[str, str | None], others: list[str], output: str) -> None:
    """`ceg plot --pattern`: which keys each head's queries see, and the blocks visited for it."""
    from estimator import plot_pattern
    from kernels.patterns import head_patterns

    problems = [f"--pattern: it goes without --{name}. Leave one of them out." for name in others]
    picture = output_path("--output", output, problems, IMAGE_TYPES)
    sizes: dict[str, int] = {}
    for name, (default, most) in _PATTERN_OPTIONS.items():
        text = options[name] or default
        option = f"--{name.replace('_', '-')}"
        size = None if text is None else number(option, text, problems, default or "16", int)
        if size is not None and most is not None and not 1 <= size <= most:
            problems.append(f"{option}: 1 to {most} can be drawn (found {size}). Try {default}.")
        if size is not None:
            sizes["n_global" if name == "global_tokens" else name] = size
    if problems:
        raise BadInput(problems)
    assert picture is not None
    tokens, n_heads, block = (sizes.pop(name) for name in ("tokens", "heads", "block"))
    try:
        heads = head_patterns(pattern, n_heads, tokens, **sizes)  # type: ignore[arg-type]
    except ValueError as error:
        raise BadInput([f"--pattern: {error}."]) from None
    write("--output", picture, plot_pattern.draw(pattern, heads, tokens, block, picture.suffix.lower()))
    click.echo(f"wrote {output}")


@ceg.command("coverage")
@click.option("--stacks", is_flag=True, help="Leave one measured combination out instead, and predict it.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--write", "store", is_flag=True, help="Store the settings fitted on all studies, and this check (for maintainers)."
)
@_evidence_options
def coverage_command(stacks: bool, as_json: bool, store: bool, **options: Any) -> None:
    """Leave one study out and predict its rows: are the intervals honest on the literature?"""
    from rich.console import Console
    from rich.progress import track

    from estimator import coverage, prior

    problems = []
    if store and options["evidence"]:
        problems.append("--write: settings are fitted on the shipped tables only. Leave --evidence out.")
    if store and stacks:
        problems.append("--write: settings are fitted on single algorithms. Leave --stacks out.")
    tables = load_evidence(options["evidence"], options["only_evidence"], problems)
    if stacks:
        from estimator import stack_coverage

        of_stacks = stack_coverage.leave_one_combination_out(tables.rows)
        if as_json:
            print_json(stack_coverage.document(of_stacks))
        else:
            stack_coverage.print_report(console(), of_stacks)
        return
    tables = published(tables)
    studies = coverage.studies(tables.rows)
    steps = track(studies, "leaving out", console=Console(stderr=True), transient=True)
    report = coverage.leave_one_study_out(tables.rows, steps)
    if store:
        for path, content in (
            (prior.PRIOR_FILE, prior.document(tables)),
            (coverage.COVERAGE_FILE, coverage.stored(tables, report)),
        ):
            write("--write", path, (json.dumps(content, indent=2) + "\n").encode())
    if as_json:
        print_json(coverage.document(report))
    else:
        coverage.print_report(console(), report)
