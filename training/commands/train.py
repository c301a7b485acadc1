"""Commands on trainings: train, runs, curves, collect. Imported by name when one of them is called; torch only then."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cegain.commands.options import (
    IMAGE_TYPES,
    BadInput,
    Command,
    console,
    number,
    output_path,
    parse_budgets,
    print_json,
    refuse,
    single,
    write,
)
from cegain.tables.problems import EvidenceError
from cegain.training.run.options import OPTIONS, SIZES

if TYPE_CHECKING:
    from cegain.training.run.run_dir import RunDir
    from cegain.training.run.train import Progress

# Examples for people, by option; the first are whole numbers.
_WHOLE = {
    "--layers": "4", "--width": "128", "--heads": "4", "--seq-len": "128", "--batch": "16", "--micro-batch": "8",
    "--steps": "1000", "--warmup-steps": "100", "--eval-every": "500", "--eval-tokens": "262144", "--log-every": "10",
    "--threads": "1",
}  # fmt: skip
_REAL = {"--lr": "0.003", "--final-lr": "0.0003", "--weight-decay": "0.1", "--dropout": "0.2"}
_FIELDS = {**SIZES, **OPTIONS, "--threads": "threads"}
_CHOICES = {
    "stack": ("bare", "modern"),
    "schedule": ("wsd", "cosine"),
    "precision": ("float32", "bfloat16", "float64"),
    "backend": ("auto", "triton", "torch", "reference"),
    "compile": ("auto", "on", "off"),
}


def _numbers(command: Callable[..., None]) -> Callable[..., None]:
    help_lines = {
        "--layers": "Blocks. With --width, in place of the compute-optimal rule.",
        "--width": "d_model.",
        "--heads": "Query heads.",
        "--seq-len": "Tokens of a sequence (128).",
        "--batch": "Sequences per step, over all processes.",
        "--micro-batch": "Sequences whose activations are held at once.",
        "--steps": "Steps, in place of those that the budget buys.",
        "--warmup-steps": "Steps of linear warm-up (5%).",
        "--eval-every": "Steps between evaluations on the way.",
        "--eval-tokens": "Held-out tokens of the last evaluation (262144).",
        "--lr": "Highest learning rate.",
        "--final-lr": "Learning rate of the last step.",
        "--weight-decay": "Of matrices (0.1).",
        "--dropout": "Share of activations dropped (0).",
        "--log-every": "Steps between lines of metrics (10).",
        "--threads": "Of the CPU; rounding depends on them (by size).",
    }
    for name, line in reversed(help_lines.items()):
        command = single(name, metavar="N" if name in _WHOLE else "X", help=line)(command)
    return command


@click.command("train", cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@single("--arm", default="baseline", metavar="NAME[+NAME...]", help="The baseline, an algorithm, or several at once.")
@single("--stack", metavar="bare|modern", help="What every arm shares (bare).")
@single("--flops", metavar="C", help="Budget in useful FLOP; sets shape and tokens.")
@single("--seed", default="0", metavar="N", help="Of weights, batches and dropout (0).")
@single("--preset", metavar="paper|paper-mini", help="The source paper's setting, or a twin for a laptop.")
@single("--corpus", metavar="NAME|FOLDER", help="Text, as `ceg data prepare` left it (mini).")
@single("--tokenizer", metavar="byte|bpe", help="Of the corpus (byte).")
@_numbers
@single("--schedule", metavar="wsd|cosine", help="Warm-up, stable, decay (the default), or cosine.")
@single("--precision", metavar="float32|bfloat16|float64", help="float32 on a CPU, bfloat16 on a GPU.")
@single("--backend", metavar="auto|triton|torch|reference", help="Of the kernels (auto).")
@single("--compile", "compile_", metavar="auto|on|off", help="torch.compile; auto where it pays.")
@single("--device", default="auto", metavar="auto|cpu|cuda", help="Where to train (auto).")
@single("--runs", default="runs", metavar="FOLDER", help="Where run folders go (runs).")
@single("--checkpoint-seconds", default="60", metavar="S", help="Seconds between checkpoints (60).")
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and stop.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON on stdout, and nothing else there.")
def train_command(as_json: bool, dry_run: bool, **options: Any) -> None:
    """Train one arm of a stack at one budget, and leave a folder that says everything about it.

    \b
    ceg train --arm rope --stack bare --flops 1e12
    ceg train --preset paper-mini --arm layernorm+rope+flash_attention

    A run that was killed goes on when the same command is given again; one that has finished is not repeated. Several
    processes: torchrun --nproc-per-node N -m cegain.training, with the same options.
    """
    problems: list[str] = []
    given = _given(options, problems)
    seed = number("--seed", options["seed"], problems, "0", int)
    if seed is not None and not 0 <= seed < 2**62:
        problems.append(f"--seed: a whole number of at least 0 and below 2^62 (found {options['seed']!r}). Try 0.")
    seconds = number("--checkpoint-seconds", options["checkpoint_seconds"], problems, "60")
    if seconds is not None and not 0 <= seconds < float("inf"):
        found = options["checkpoint_seconds"]
        problems.append(f"--checkpoint-seconds: a number of at least 0 is needed (found {found!r}). Try 60.")
    torch = _torch(problems)
    device = options["device"]
    if device not in ("auto", "cpu") and device.partition(":")[0] != "cuda":
        problems.append(f"--device: one of auto, cpu, cuda is needed (found {device!r}). Use one of these.")
    elif device.startswith("cuda") and torch and not torch.cuda.is_available():
        problems.append(f"--device: a CUDA device is there (found none, asked for {device!r}). Use cpu.")
    on_gpu = torch is not None and device != "cpu" and torch.cuda.is_available()
    if given.get("backend") == "triton" and not on_gpu:
        problems.append("--backend: triton needs a CUDA device (found none). Use auto.")
    if given.get("compile") == "on" and not on_gpu and not _has_compiler():
        problems.append("--compile: on needs a C++ compiler (found none of c++, g++, clang++). Install one, or off.")
    folder = Path(options["runs"])
    if problems:
        _refuse(problems)

    from cegain.training.run import config, processes, run_dir
    from cegain.training.text.data import CorpusError, open_corpus

    if not run_dir.is_writable(folder):
        problems.append(f"--runs: the folder can be written (found {str(folder)!r}). Choose another.")
    name, tokenizer = given.pop("corpus", "mini"), given.pop("tokenizer", "byte")
    stack = given.pop("stack", "bare")
    given.setdefault("precision", "bfloat16" if on_gpu else "float32")
    wish, threads = given.pop("compile", "auto"), given.pop("threads", None)
    made = None
    try:
        corpus = open_corpus(name, tokenizer)
        sizes = {field: given.pop(field) for field in SIZES.values() if field in given}
        made = config.resolve(
            corpus, stack=stack, arm=options["arm"], flops=given.pop("flops", None), seed=seed, sizes=sizes,
            processes=processes.world_size(), **given,
        )  # fmt: skip
    except CorpusError as error:
        problems.append(f"--corpus: {error}")
    except ValueError as error:
        problems += str(error).splitlines()
    if problems or made is None:
        _refuse(problems)
    made = config.with_compile(made, wish if on_gpu or _has_compiler() else "off", on_gpu)
    if dry_run:
        print_json({**made.document(), "run_id": made.run_id, "tokens": made.tokens})
        return

    from cegain.training.run.train import train

    run = run_dir.RunDir(folder / made.run_id)
    warnings.showwarning = _warn
    try:
        processes.set_threads(made, threads)
        with processes.joined(device) as group:
            if group.first:
                again = ", finished before, not trained again" if (run.path / "summary.json").exists() else ""
                click.echo(f"{run.path}: {_plan_line(made)}{again}", err=True)
            with _progress(made.arm) if group.first else contextlib.nullcontext(lambda progress: None) as report:
                summary = train(made, corpus, run, group, checkpoint_seconds=seconds, report=report)
    except run_dir.RunError as error:
        _refuse([str(error)])
    except RuntimeError as error:
        if os.environ.get("RANK", "0") != "0" and "closed by peer" in str(error):  # the first process has said why
            raise SystemExit(2) from None
        raise
    except KeyboardInterrupt:
        raise click.ClickException("stopped. The same command goes on from the last checkpoint.") from None
    if group.first:
        if as_json:
            print_json(summary)
        else:
            click.echo(_summary_text(run, summary))


@click.command("runs", cls=Command)
@single("--runs", default="runs", metavar="FOLDER", help="Where run folders are (runs).")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def runs_command(runs: str, as_json: bool) -> None:
    """A table of runs: how far each is, its loss, its speed."""
    need_torch()
    from rich.table import Table

    from cegain.training.run.run_dir import RunError

    rows, problems = [], []
    for run in _runs_in(Path(runs)):
        try:
            rows.append(_status(run))
        except RunError as error:
            problems.append(str(error))
    refuse(problems)
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ("run", "status", "steps", "FLOP", "nats/token", "bits/byte", "tokens/s", "MFU")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["run_id"],
            row["status"],
            f"{row['step']}/{row['steps']}",
            f"{row['flops']:.3g}",
            *(_shown(row[key], ".4f") for key in ("loss_nats_per_token", "loss_bits_per_byte")),
            _shown(row["tokens_per_s"], ",.0f"),
            _shown(row["mfu"], ".0%"),
        )
    console().print(table)


@click.command("curves", cls=Command)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@single("--output", "-o", required=True, metavar="FILE", help="The picture (.svg, .pdf, .png).")
def curves_command(runs: tuple[str, ...], output: str) -> None:
    """Loss curves of runs (their folders), in one picture."""
    need_torch()
    from cegain.training.run import curves
    from cegain.training.run.run_dir import RunDir, RunError

    problems: list[str] = []
    picture = output_path("--output", output, problems, IMAGE_TYPES)
    found = [RunDir(Path(run)) for run in runs]
    for run in found:
        try:
            lines = run.metrics()
            run.read("config")
        except RunError as error:
            problems.append(str(error))
            continue
        if not lines:
            problems.append(f"RUN: a run's folder is needed, such as runs/* (found {str(run.path)!r}). See `ceg runs`.")
    refuse(problems)
    assert picture is not None
    write("--output", picture, curves.draw(found, picture.suffix.lower()))
    click.echo(f"wrote {output}")


@click.command("collect", cls=Command)
@single("--runs", default="runs", metavar="FOLDER", help="Where run folders are (runs).")
@single(
    "--out",
    metavar="FILE.csv",
    help="The table, such as training_runs.csv; in the project's own checkout its table by default.",
)
def collect_command(runs: str, out: str | None) -> None:
    """Add the runs that have ended, diverged ones too, to a training_runs.csv; one that is in it stays as it is."""
    need_torch()
    from cegain.tables import provenance, training_runs
    from cegain.training.run import collect
    from cegain.training.run.run_dir import RunError

    problems: list[str] = []
    target = output_path("--out", out, problems, (".csv",)) or provenance.own_table(training_runs.TRAINING_RUNS)
    if target is None and not problems:
        problems.append("--out: a table is needed outside the project's checkout (none given). Try training_runs.csv.")
    rows = []
    for run in _runs_in(Path(runs)):
        try:
            rows.append(collect.row(run))
        except RunError as error:
            problems.append(str(error))
    if problems or target is None:
        raise BadInput(problems)
    ended = [row for row in rows if row is not None]
    try:
        added = training_runs.append(target, ended)
    except EvidenceError as error:
        raise BadInput(list(map(str, error.problems))) from None
    except OSError as error:
        raise BadInput([f"--out: the file can be written ({error.strerror}). Choose another."]) from None
    unfinished = len(rows) - len(ended)
    click.echo(f"{target}: {added} added, {len(ended) - added} there already, {unfinished} not finished")


def _given(options: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """What the options say beside the preset, by field; only what was given."""
    from cegain.training.run.presets import PRESETS

    given: dict[str, Any] = {}
    if options["preset"] is not None:
        if options["preset"] in PRESETS:
            given.update(PRESETS[options["preset"]])
        else:
            known = ", ".join(PRESETS)
            problems.append(f"--preset: one of {known} is needed (found {options['preset']!r}). Use one of these.")
    for kind, table in ((int, _WHOLE), (float, _REAL)):
        for option, example in table.items():
            text = options[option.removeprefix("--").replace("-", "_")]
            if text is None:
                continue
            value = number(option, text, problems, example, kind)
            least = 1 if kind is int else 0
            if value is not None and not least <= value < float("inf"):
                problems.append(f"{option}: a number of at least {least} is needed (found {text!r}). Try {example}.")
            given[_FIELDS[option]] = value
    if given.get("dropout") is not None and given["dropout"] >= 1:
        problems.append(f"--dropout: a share below 1 is needed (found {given['dropout']:g}). Try 0.2.")
    for name, choices in _CHOICES.items():
        value = options["compile_" if name == "compile" else name]
        if value is not None and value not in choices:
            problems.append(f"--{name}: one of {', '.join(choices)} is needed (found {value!r}). Use one of these.")
        elif value is not None:
            given[name] = value
    if options["flops"] is not None:
        budgets = parse_budgets(options["flops"], problems)
        if len(budgets) > 1:
            problems.append(f"--flops: one budget is needed (found {options['flops']!r}). Try 1e12.")
        given["flops"] = budgets[0] if budgets else None
        if options["steps"] is None:  # a budget takes the place of a preset's steps
            given.pop("steps", None)
    elif "steps" not in given:
        problems.append("--flops: a budget is needed (none given). Try 1e12, or --preset paper-mini.")
    for name in ("corpus", "tokenizer"):
        if options[name] is not None:
            given[name] = options[name]
    return given


def _refuse(problems: list[str]) -> NoReturn:
    """All problems, said once: where several processes share a run, by the first."""
    if os.environ.get("RANK", "0") != "0":
        raise SystemExit(2)
    raise BadInput(problems)


def _has_compiler() -> bool:
    return any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))


def _torch(problems: list[str]) -> Any:
    try:
        import torch
    except ImportError:
        problems.append("training: torch is installed (found none). Try: pip install '.[torch]' in the checkout.")
        return None
    return torch


def need_torch() -> None:
    """Refuse where torch is not installed."""
    problems: list[str] = []
    if _torch(problems) is None:
        raise BadInput(problems)


def _runs_in(folder: Path) -> list[RunDir]:
    from cegain.training.run import run_dir

    found = run_dir.runs(folder)
    if not found:
        raise BadInput([f"--runs: a folder with runs is needed (found none in {str(folder)!r}). See `ceg train`."])
    return found


def _status(run: RunDir) -> dict[str, Any]:
    config, summary, metrics = run.read("config") or {}, run.read("summary"), run.metrics()
    last = metrics[-1] if metrics else {}
    source = summary or last
    return {
        "run_id": run.path.name,
        "status": summary["status"] if summary else "unfinished",
        "step": last.get("step", 0),
        "steps": config.get("steps", 0),
        "flops": source.get("flops", 0.0),
        "loss_nats_per_token": source.get("loss_nats_per_token", _last_validation(metrics)),
        "loss_bits_per_byte": source.get("loss_bits_per_byte"),
        "tokens_per_s": source.get("tokens_per_s"),
        "mfu": source.get("mfu"),
    }


def _last_validation(metrics: list[dict[str, Any]]) -> float | None:
    """Of a run that goes on: the newest loss on held-out text."""
    return next((line["validation_loss"] for line in reversed(metrics) if "validation_loss" in line), None)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _plan_line(made: Any) -> str:
    shape = made.shape
    return (
        f"{shape.n_layers} layers, {shape.d_model} wide, {made.steps} steps of {made.batch} x {shape.seq_len} tokens, "
        f"{made.flops:.3g} FLOP"
    )


def _summary_text(run: RunDir, summary: dict[str, Any]) -> str:
    speed = f"{summary['seconds']:.1f} s, {summary['tokens_per_s']:,.0f} tokens/s, MFU {summary['mfu']:.0%}"
    if summary["status"] == "diverged":
        loss = "loss: none, it diverged (see metrics.jsonl); a lower --lr may help"
    else:
        loss = (
            f"loss on held-out text: {summary['loss_nats_per_token']:.4f} nats per token, "
            f"{summary['loss_bits_per_byte']:.4f} bits per byte ({summary['nats_below_unigram']:.2f} nats below the "
            "unigram entropy)"
        )
    memory = f"peak memory {summary['peak_bytes'] / 1e6:,.0f} MB"
    return f"status: {summary['status']}\n{loss}\n{speed}, {memory}\n{run.path / 'loss.png'}"


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line now and then. On stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        last = time.monotonic()

        def line(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last > 15:
                last = time.monotonic()
                click.echo(_progress_line(progress), err=True)

        yield line
        return
    with Bar(TextColumn(name), BarColumn(), TextColumn("{task.fields[line]}"), console=terminal) as bar:
        task = bar.add_task(name, total=None, line="starting")

        def update(progress: Progress) -> None:
            bar.update(task, total=progress.steps, completed=progress.step, line=_progress_line(progress))

        yield update


def _progress_line(progress: Progress) -> str:
    left = round(progress.seconds_left)
    return (
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}  {progress.tokens_per_s:,.0f} tokens/s  "
        f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    )


def _warn(message: Warning | str, *rest: Any, **more: Any) -> None:
    click.echo(f"warning: {message}", err=True)
