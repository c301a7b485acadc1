"""`ceg ablate`: a ladder of ablations. Imported by name when it is called; torch only then."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cegain.commands.options import (
    BadInput,
    Command,
    console,
    number,
    output_path,
    parse_budgets,
    print_json,
    refuse,
    single,
)
from cegain.common.text import as_number, finite
from cegain.tables.problems import EvidenceError
from cegain.tables.published_gains import FLOPS_RANGE
from cegain.training.commands.train import need_torch

if TYPE_CHECKING:
    from cegain.speed.hardware import Price
    from cegain.training.sweeps.ablate import Job, Ladders, Ledger
    from cegain.training.sweeps.pace import Modelled, Pace
    from cegain.training.sweeps.pool import Engine
    from cegain.training.sweeps.sweep import Outcome, Progress

_TRY_RUNGS = "Try 3e11:3e12, or a list 1e12,3e12."


@click.command("ablate", cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@single("--stack", default="bare", metavar="bare|modern", help="What every arm shares (bare).")
@single("--arms", default="all", metavar="NAME[,NAME...]|all", help="Arms; several algorithms at once as a+b (all).")
@single(
    "--rungs", required=True, metavar="LOW:HIGH|C,C,...", help="Budgets in useful FLOP; a range is in half decades."
)
@single(
    "--seeds", default="3", metavar="N[,N...]", help="Runs of each arm per rung, from the lowest; the last goes on (3)."
)
@click.option("--further", multiple=True, metavar="ARM:C[,C...]", help="More budgets for one arm. May be repeated.")
@single(
    "--learning-rates", default="sweep", metavar="sweep|unchecked|default",
    help="Find each arm's own and check it at the highest rung; find it; or neither (sweep).",
)  # fmt: skip
@single("--corpus", default="mini", metavar="NAME|FOLDER", help="Text, as `ceg data prepare` left it (mini).")
@single("--tokenizer", default="byte", metavar="byte|bpe", help="Of the corpus (byte).")
@single("--seq-len", default="128", metavar="N", help="Tokens of a sequence (128).")
@single("--model-size", default="1", metavar="X", help="Times the rule's parameters, on 1/X of the tokens (1).")
@single("--eval-tokens", metavar="N", help="Held-out tokens of the last evaluation (262144).")
@single("--compile", "compile_", default="off", metavar="auto|on|off", help="torch.compile (off).")
@single("--device", default="auto", metavar="auto|cpu|cuda", help="Where to train (auto).")
@single("--jobs", metavar="N", help="Runs at once (one per CPU core; one on a GPU).")
@single("--threads", metavar="N", help="CPU threads of a run (the cores' share of a job; 1 on a cluster).")
@single("--time-limit", metavar="SECONDS", help="What a run may take (any time).")
@single("--ray", metavar="ADDRESS", help="On a Ray cluster: auto, HOST:PORT, or local to start one here.")
@single("--gpus-per-run", metavar="N", help="With --ray: GPUs of a run; several share one at 0.5, 0.25, ... (1).")
@single("--runs", default="runs", metavar="FOLDER", help="Where run folders go (runs).")
@single("--out", metavar="FILE.csv", help="The table; in the project's own checkout its table by default.")
@click.option("--dry-run", is_flag=True, help="Print runs, FLOP, time and disk, and stop.")
@single("--on", metavar="GPU", help="With --dry-run: GPU-hours and dollars there, by the step-time model.")
@click.option("--json", "as_json", is_flag=True, help="What was done as JSON on stdout, and nothing else there.")
def ablate_command(as_json: bool, dry_run: bool, further: tuple[str, ...], **options: Any) -> None:
    """Train every arm at every budget with several seeds, and add each run to a training_runs.csv.

    \b
    ceg ablate --stack bare --arms all --rungs 3e11:3e12 --seeds 3 --dry-run
    ceg ablate --arms baseline,rope --rungs 3e11:3e12 --seeds 5,3 --further baseline:1e13,3e13
    ceg ablate --arms baseline,rope --rungs 1e13:1e15 --ray auto --gpus-per-run 0.25

    Each arm gets a learning rate of its own, found at the lowest rung. A run that is in the table is never trained
    again; the same command goes on where a killed one stopped. A run that fails is recorded, and the rest goes on.
    """
    elsewhere = options["ray"] is not None or options["on"] is not None
    if not elsewhere:
        need_torch()
    problems: list[str] = []
    rungs = _rungs(options["rungs"], problems)
    seeds = [_count("--seeds", text, problems, "3") for text in options["seeds"].split(",")]
    more = [place for text in further for place in _further(text, problems)]
    jobs = _count("--jobs", options["jobs"], problems, "2")
    threads = _count("--threads", options["threads"], problems, "1")
    seq_len = _count("--seq-len", options["seq_len"], problems, "128")
    eval_tokens = _count("--eval-tokens", options["eval_tokens"], problems, "262144")
    model_size = _above_zero("--model-size", options["model_size"], problems, "2")
    seconds = _above_zero("--time-limit", options["time_limit"], problems, "3600")
    gpus = _above_zero("--gpus-per-run", options["gpus_per_run"], problems, "0.25")
    if gpus is not None and options["ray"] is None:
        problems.append("--gpus-per-run: it goes with --ray. Add --ray local, or leave it out.")
    if gpus is not None and gpus > 1 and gpus % 1:
        problems.append(f"--gpus-per-run: a fraction below 1, or whole GPUs, are needed (found {gpus:g}). Try 0.25.")
    price = _priced(options["on"], dry_run, problems)
    if gpus is not None and options["on"] is not None:
        problems.append("--gpus-per-run: the model of --on is of one GPU per run. Leave it out.")
    for name, choices in (("stack", ("bare", "modern")), ("learning_rates", ("sweep", "unchecked", "default")),
                          ("compile_", ("auto", "on", "off")), ("device", ("auto", "cpu", "cuda"))):  # fmt: skip
        if options[name] not in choices:
            option = "--" + name.strip("_").replace("_", "-")
            shown = ", ".join(choices)
            problems.append(f"{option}: one of {shown} is needed (found {options[name]!r}). Use one of these.")
    table = output_path("--out", options["out"], problems, (".csv",))
    refuse(problems)

    from cegain.shapes import arms
    from cegain.tables import provenance
    from cegain.tables.training_runs import TRAINING_RUNS
    from cegain.training.run import run_dir
    from cegain.training.sweeps import ablate, sweep
    from cegain.training.text.data import CorpusError, open_corpus

    if price is not None:
        on_gpu = price.device.generation != "cpu"
    else:
        on_gpu = _has_gpus(options["ray"]) and options["device"] != "cpu"
    if options["device"] == "cuda" and not on_gpu:
        problems.append("--device: a CUDA device is there (found none, asked for 'cuda'). Use cpu.")
    table = table or provenance.own_table(TRAINING_RUNS)
    if table is None:
        problems.append("--out: a table is needed outside the project's checkout (none given). Try training_runs.csv.")
    runs = Path(options["runs"])
    if not run_dir.is_writable(runs):
        problems.append(f"--runs: the folder can be written (found {str(runs)!r}). Choose another.")
    ladders = None
    try:
        names = arms.arms(options["stack"]) if options["arms"] == "all" else tuple(options["arms"].split(","))
        corpus = open_corpus(options["corpus"], options["tokenizer"])
        given: dict[str, Any] = {"sizes": {"seq_len": seq_len}, "precision": "bfloat16" if on_gpu else "float32"}
        given |= {} if eval_tokens is None else {"eval_tokens": eval_tokens}
        canonical = _canonical(options["stack"], (*names, *(arm for arm, _ in more)), problems)
        ladders = ablate.Ladders(
            corpus=corpus, stack=options["stack"], arms=tuple(dict.fromkeys(canonical[: len(names)])),
            rungs=tuple(rungs), seeds=tuple(n or 1 for n in seeds),
            further=tuple(zip(canonical[len(names) :], (rung for _, rung in more), strict=False)),
            find_rates=options["learning_rates"] != "default",
            check_rates=options["learning_rates"] == "sweep", model_size=model_size or 1.0,
            compile=options["compile_"], on_gpu=on_gpu, options=tuple(given.items()),
        )  # fmt: skip
        problems += [] if problems else ladders.problems()
        ledger = sweep.read(table) if table is not None else {}
        problems += [] if problems else [f"--out: {other}" for other in ladders.strangers(ledger)]
    except CorpusError as error:
        problems.append(f"--corpus: {error}")
    except EvidenceError as error:
        problems += map(str, error.problems)
    if problems or ladders is None or table is None:
        raise BadInput(problems)

    if price is not None:
        _plan(ladders, ledger, price, jobs or 1, as_json, price.device.price)
        return
    engine: Engine
    if options["ray"] is not None:
        engine, pace = _cluster(ladders, ledger, runs, on_gpu, gpus or 1.0, jobs, threads or 1, seconds)
    else:
        engine, pace = _this_machine(ladders, ledger, runs, on_gpu, jobs, threads, seconds)
    if dry_run:
        slots = engine.slots
        engine.close()
        _plan(ladders, ledger, pace, slots, as_json)
        return
    try:
        with _progress() as report, contextlib.redirect_stdout(sys.stderr):
            outcome = sweep.run(ladders, table, runs, engine, pace.seconds, report)
    except run_dir.RunError as error:
        raise BadInput([str(error)]) from None
    except EvidenceError as error:
        raise BadInput(list(map(str, error.problems))) from None
    except OSError as error:
        raise BadInput([f"--out: the table can be written ({error.strerror}). Choose another."]) from None
    except KeyboardInterrupt:
        raise click.ClickException("stopped. The same command goes on from the last checkpoints.") from None
    if options["ray"] is not None:
        _disconnect()
    _say(ladders, sweep.read(table), outcome, table, runs, as_json)


def _priced(name: str | None, dry_run: bool, problems: list[str]) -> Modelled | None:
    """The pace of `--on`."""
    from cegain.speed import measured_device
    from cegain.training.sweeps.pace import Modelled

    if name is None:
        return None
    if not dry_run:
        problems.append("--on: it goes with --dry-run. Add --dry-run, or leave it out.")
    try:
        return Modelled(measured_device.find(name))
    except ValueError as error:
        problems.append(f"--on: {error}")
        return None


def _has_gpus(address: str | None) -> bool:
    """Whether runs could be trained on GPUs; connects to the cluster at an address."""
    if address is None:
        import torch

        return torch.cuda.is_available()
    from cegain.training.sweeps import ray_engine

    try:
        ray_engine.connect(address)
    except ray_engine.ClusterError as error:
        raise BadInput([f"--ray: {error}"]) from None
    click.get_current_context().call_on_close(_disconnect)
    return ray_engine.has_gpus()


def _disconnect() -> None:
    """From the cluster, which may still be telling of processes that are lost."""
    from cegain.training.sweeps import ray_engine

    with contextlib.redirect_stdout(sys.stderr):
        ray_engine.disconnect()


def _this_machine(
    ladders: Ladders, ledger: Ledger, runs: Path, on_gpu: bool, jobs: int | None, threads: int | None,
    seconds: float | None,
) -> tuple[Engine, Pace]:  # fmt: skip
    import torch

    from cegain.training.sweeps import pace, pool

    device = torch.device("cuda" if on_gpu else "cpu")
    slots = jobs or (1 if on_gpu else os.cpu_count() or 1)
    folder = ladders.corpus.folder
    engine = pool.LocalPool(slots, folder, runs, device=device.type, threads=threads, seconds=seconds)
    return engine, pace.measure(ladders, ledger.values(), device)


def _cluster(
    ladders: Ladders, ledger: Ledger, runs: Path, on_gpu: bool, gpus: float, jobs: int | None, threads: int,
    seconds: float | None,
) -> tuple[Engine, Pace]:  # fmt: skip
    from cegain.training.sweeps.pool import JobError
    from cegain.training.sweeps.ray_engine import ClusterError, RayEngine

    try:
        engine = RayEngine(
            ladders.corpus, runs, device="cuda" if on_gpu else "cpu", threads=threads, gpus=gpus, slots=jobs,
            seconds=seconds,
        )  # fmt: skip
    except ClusterError as error:
        raise BadInput([f"--ray: {error}"]) from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray tells there of processes that are lost
            return engine, engine.pace(ladders, ledger.values())
    except JobError as error:
        raise BadInput([f"--ray: a worker can train there ({error}). Install the project on every node."]) from None


def _rungs(text: str, problems: list[str]) -> list[float]:
    """Budgets, ascending and distinct."""
    from cegain.training.sweeps.ablate import half_decades

    budgets: list[float] = []
    for part in text.split(","):
        ends = [_budget(end, problems) for end in part.split(":")]
        if len(ends) > 2 or (len(ends) == 2 and not ends[0] <= ends[1] and not any(map(math.isnan, ends))):
            problems.append(f"--rungs: a range goes from low to high (found {part!r}). {_TRY_RUNGS}")
        elif not any(map(math.isnan, ends)):
            budgets += half_decades(*ends) if len(ends) == 2 else ends
    return sorted(set(budgets))


def _budget(text: str, problems: list[str]) -> float:
    value = as_number(text)
    if FLOPS_RANGE[0] <= value <= FLOPS_RANGE[1]:
        return value
    problems.append(f"--rungs: a number of FLOP above 0 is needed (found {text!r}). {_TRY_RUNGS}")
    return math.nan


def _further(text: str, problems: list[str]) -> list[tuple[str, float]]:
    arm, _, budgets = text.partition(":")
    if not arm or not budgets:
        problems.append(f"--further: an arm and budgets are needed (found {text!r}). Try baseline:1e13,3e13.")
        return []
    return [(arm, budget) for budget in parse_budgets(budgets, problems, "--further")]


def _count(option: str, text: str | None, problems: list[str], example: str) -> int | None:
    value = None if text is None else number(option, text, problems, example, int)
    if value is not None and value < 1:
        problems.append(f"{option}: a whole number of at least 1 is needed (found {text!r}). Try {example}.")
    return value


def _above_zero(option: str, text: str | None, problems: list[str], example: str) -> float | None:
    value: float | None = None if text is None else number(option, text, problems, example)
    if value is not None and not 0 < value < math.inf:
        problems.append(f"{option}: a number above 0 is needed (found {text!r}). Try {example}.")
    return value


def _canonical(stack: Any, names: tuple[str, ...], problems: list[str]) -> list[str]:
    from cegain.shapes import arms

    found = []
    for name in names:
        try:
            found.append(arms.canonical(stack, name))
        except ValueError as error:
            problems += [f"--arms: {line}" for line in str(error).splitlines()]
    return found


def _plan(ladders: Ladders, ledger: Ledger, pace: Pace, slots: int, as_json: bool, price: Price | None = None) -> None:
    """Print what would be trained, and what it costs where an hour of a device has a price."""
    ahead = ladders.ahead(ledger)
    groups: dict[tuple[str, float], list[Job]] = {}
    for job in sorted(ahead, key=lambda job: (job.role == "ladder", job.config.rung_flops)):
        groups.setdefault((job.role, job.config.rung_flops), []).append(job)
    rows: list[dict[str, Any]] = [
        {
            "role": role,
            "rung_flops": rung,
            "runs": len(jobs),
            "arms": len({job.config.arm for job in jobs}),
            "flops": sum(job.config.flops for job in jobs),
            "seconds": sum(map(pace.seconds, jobs)),
            "bytes": sum(map(_bytes, jobs)),
        }
        for (role, rung), jobs in groups.items()
    ]
    total: dict[str, float] = {key: sum(row[key] for row in rows) for key in ("runs", "flops", "seconds", "bytes")}
    hours = total["seconds"] / 3600
    total["seconds"] /= slots
    if as_json:
        cost = {"gpu_hours": hours, "usd": hours * price.usd_per_hour} if price else {}
        print_json({"groups": rows, "total": {**total, **cost}, "jobs": slots, "pace": pace.source})
        return
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("for", "rung (FLOP)", "arms", "runs", "FLOP", "time of one after another", "disk"):
        shown.add_column(heading, justify="left" if heading == "for" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(
            str(row["role"]).replace("_", " "), f"{row['rung_flops']:.3g}", str(row["arms"]), str(row["runs"]),
            f"{row['flops']:.3g}", _time(row["seconds"]), f"{row['bytes'] / 1e6:,.1f} MB",
        )  # fmt: skip
    console().print(shown)
    click.echo(
        f"{total['runs']:g} runs, {total['flops']:.3g} FLOP, {_time(total['seconds'])} with {slots} at once (pace of "
        f"{pace.source}), {total['bytes'] / 1e6:,.0f} MB on disk; what is in the table is not counted. A "
        "search for a learning rate may take a few runs more"
    )
    if price is not None:
        click.echo(
            f"{hours:,.1f} GPU-hours, ${hours * price.usd_per_hour:,.0f} at ${price.usd_per_hour:.2f} an hour "
            f"({price.source}, {price.date})"
        )


def _bytes(job: Job) -> int:
    """Of a run's folder: two checkpoints of weights and AdamW's two moments in float32, and what is text or picture."""
    from cegain.shapes import architecture

    return 2 * 3 * 4 * architecture.parameters(job.config.shape).total + 200_000


def _say(ladders: Ladders, ledger: Ledger, outcome: Outcome, table: Path, runs: Path, as_json: bool) -> None:
    """Print what was done; exit code 1 where something is missing."""
    rates = ladders.rates(ledger)
    carried = {arm: ladders.carried(arm, rate.factor, ledger) for arm, rate in rates.items() if rate.factor}
    wrong = [rate.wrong for rate in rates.values() if rate.wrong]
    if as_json:
        print_json(
            {
                "added": outcome.added,
                "failed": [{"run_id": job.config.run_id, "error": error} for job, error in outcome.failed],
                "learning_rates": {
                    arm: {
                        "over_default": rate.factor,
                        "tried": [[x, finite(y)] for x, y in rate.tried],
                        "wrong": rate.wrong or None,
                        "best_at_top_over_rule": finite((carried.get(arm) or (math.nan, math.nan))[0]),
                        "loss_given_away_at_top": finite((carried.get(arm) or (math.nan, math.nan))[1]),
                    }
                    for arm, rate in rates.items()
                },
            }
        )
    else:
        for arm, rate in rates.items():
            if rate.factor and rate.tried:
                best = f"{arm}: learning rate {rate.factor:.2f} times the default, by {len(rate.tried)} runs"
                top = carried.get(arm)
                if top is not None and math.isnan(top[0]):
                    best += "; at the highest rung half or twice as much is better: it is not tuned there"
                elif top is not None:
                    best += f"; at the highest rung {top[0]:.2f} times the rule's is best, {top[1]:.2%} of the loss"
                click.echo(best)
        click.echo(f"{table}: {outcome.added} runs added")
        for row in ledger.values():
            if (row.stack, row.role, row.status) == (ladders.stack, "ladder", "diverged"):
                click.echo(f"diverged, so left out of the ladder: {row.run_id}")
    for job, error in outcome.failed:
        click.echo(f"failed: {job.config.run_id}: {error}", err=True)
    for text in wrong:
        click.echo(f"left out: {text}", err=True)
    if outcome.failed:
        click.echo(f"See {runs / 'failures.jsonl'}. The same command tries them again.", err=True)
    if outcome.failed or wrong:
        raise SystemExit(1)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """One bar on a terminal; elsewhere a line now and then. On stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        last = -math.inf

        def line(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last > 30:
                last = time.monotonic()
                click.echo(_progress_line(progress), err=True)

        yield line
        return
    with Bar(BarColumn(), TextColumn("{task.fields[line]}"), console=terminal) as bar:
        task = bar.add_task("", total=None, line="starting")

        def update(progress: Progress) -> None:
            total = progress.ended + progress.due
            bar.update(task, total=total, completed=progress.ended, line=_progress_line(progress))

        yield update


def _progress_line(progress: Progress) -> str:
    failed = f", {progress.failed} failed" if progress.failed else ""
    return (
        f"{progress.ended}/{progress.ended + progress.due} runs{failed}  {_time(progress.seconds_left)} left  "
        f"{' '.join(progress.running)}"
    )


def _time(seconds: float) -> str:
    left = round(seconds)
    return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
