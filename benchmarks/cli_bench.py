"""`ceg bench`: what becomes of measured kernel times. Imported by name when it is called; needs no torch, no pytest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cegain.commands.options import BadInput, Command, Group, console, output_path, print_json, refuse, single
from cegain.tables.problems import EvidenceError

if TYPE_CHECKING:
    from cegain.benchmarks.table import Comparison, Line


@click.group("bench", cls=Group)
def bench_group() -> None:
    """Times of kernels on a device, and the table that holds them.

    \b
    pytest benchmarks --benchmark-only --benchmark-json results.json     # in a checkout, with cegain[torch,dev]
    ceg bench collect results.json --out kernel_times.csv
    ceg bench table                                                      # ours against others
    ceg plot --kernels flash -o flash.png
    """


@bench_group.command("collect", cls=Command)
@click.argument("results", metavar="RESULTS.json...", nargs=-1, required=True)
@single(
    "--out",
    metavar="FILE.csv",
    help="The table, such as kernel_times.csv; in the project's own checkout its table by default.",
)
@single("--commit", metavar="NAME", help="Of the code, for results that were measured outside a checkout.")
def collect_command(results: tuple[str, ...], out: str | None, commit: str | None) -> None:
    """Add what `pytest benchmarks --benchmark-json RESULTS.json` measured to a kernel_times.csv.

    A case that stands there for the same device, versions and commit stays as it is.
    """
    from cegain.benchmarks import collect
    from cegain.tables import kernel_times, provenance

    problems: list[str] = []
    target = output_path("--out", out, problems, (".csv",)) or provenance.own_table(kernel_times.KERNEL_TIMES)
    if target is None and not problems:
        problems.append("--out: a table is needed outside the project's checkout (none given). Try kernel_times.csv.")
    try:
        found = collect.rows([Path(path) for path in dict.fromkeys(results)], commit)
        if not problems and target is not None:
            added = kernel_times.append(target, found.rows)
    except EvidenceError as error:
        problems += map(str, error.problems)
    except OSError as error:
        problems.append(f"--out: the file can be written ({error.strerror}). Choose another.")
    refuse(problems)
    for remark in found.remarks:
        click.echo(remark, err=True)
    left = f", {found.others} other benchmarks left out" if found.others else ""
    click.echo(f"{target}: {added} added, {len(found.rows) - added} there already{left}")


@bench_group.command("table", cls=Command)
@single("--times", metavar="FILE.csv", help="Kernel times (the project's own).")
@single("--device", metavar="NAME", help="Of the table, or a part of its name (the GPU that was measured last).")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def table_command(times: str | None, device: str | None, as_json: bool) -> None:
    """Our kernels against those of others: how many times as fast, and what share of the device's measured ceiling.

    \b
    ceg bench table
    ceg bench table --device "AMD EPYC"
    """
    from cegain.benchmarks import table
    from cegain.tables import kernel_times

    path = Path(times) if times else kernel_times.KERNEL_TIMES
    try:
        found = table.compare(kernel_times.load(path), device)
    except (EvidenceError, table.NoTimesError) as error:
        raise BadInput(
            [str(p) for p in error.problems] if isinstance(error, EvidenceError) else [f"{error}."]
        ) from None
    if as_json:
        lines = [{**line._asdict(), "pass": line.pass_} for line in found.lines]
        for line in lines:
            del line["pass_"]
        print_json({**found._asdict(), "lines": lines})
        return
    _print_table(found)


_LETTERS = {"batch": "B", "heads_q": "H", "heads_kv": "KV", "seq_q": "T", "seq_kv": "S", "head_dim": "D",
            "d_model": "M", "d_ff": "F", "experts": "E", "top_k": "K"}  # fmt: skip


def _print_table(found: Comparison) -> None:
    from rich.table import Table

    from cegain.benchmarks.table import RIVALS

    click.echo(
        f"{found.device}: {found.flops_per_s / 1e12:,.4g} TFLOP/s (best matrix product), "
        f"{found.bytes_per_s / 1e9:,.4g} GB/s (copy); {found.versions}"
    )
    for op in dict.fromkeys(line.op for line in found.lines):
        lines = [line for line in found.lines if line.op == op]
        rivals = [name for name in RIVALS if any(name in line.faster for line in lines)]
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("ours", "pass", "sizes"):
            shown.add_column(heading, no_wrap=True)
        rate = "GB/s" if op == "decode" else "TFLOP/s"
        for heading in ("ms", rate, "of ceiling", *(f"x {RIVALS[name]}" for name in rivals)):
            shown.add_column(heading, justify="right", no_wrap=True)
        for line in lines:
            name = f"{line.implementation}, {line.pattern}" if op == "attention" else line.implementation
            ratios = [f"{line.faster[name]:.2f}" if name in line.faster else "" for name in rivals]
            shown.add_row(
                name, line.pass_, _sizes(line), f"{1e3 * line.seconds:,.4g}",
                f"{line.rate / (1e9 if op == 'decode' else 1e12):,.4g}", f"{line.of_ceiling:.0%}", *ratios,
            )  # fmt: skip
        console().print(shown)
    click.echo(
        "x: times as fast as cuDNN, FlashAttention (both by scaled_dot_product_attention), FlexAttention, or a layer of"
        " torch's grouped product, in the same session; of ceiling: of the best matrix product, in decoding of the copy"
    )


def _sizes(line: Line) -> str:
    """Without those that follow from others."""
    sizes = line.sizes
    if line.op == "attention":
        same = {"seq_kv"} if sizes["heads_kv"] < sizes["heads_q"] else {"seq_kv", "heads_kv"}
    else:
        same = {"seq_q"} if line.op == "decode" else set()
    return " ".join(f"{_LETTERS[name]}{size}" for name, size in sizes.items() if name not in same)
