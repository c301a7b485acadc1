"""`ceg bench`: what becomes of measured kernel times. Imported by name when it is called; needs no torch, no pytest."""

from __future__ import annotations

from pathlib import Path

import click

from estimator.cli_input import BadInput, Command, Group, output_path, single
from estimator.evidence import EvidenceError


@click.group("bench", cls=Group)
def bench_group() -> None:
    """Times of kernels on a device, and the table that holds them.

    \b
    pytest benchmarks --benchmark-only --benchmark-json results.json     # in a checkout, with ceg[torch,dev]
    ceg bench collect results.json --out kernel_times.csv
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
    from benchmarks import collect
    from estimator import kernel_times, provenance

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
    if problems:
        raise BadInput(problems)
    for remark in found.remarks:
        click.echo(remark, err=True)
    left = f", {found.others} other benchmarks left out" if found.others else ""
    click.echo(f"{target}: {added} added, {len(found.rows) - added} there already{left}")
