"""`ceg report`: the explorer as one HTML file. Imported by name when it is called."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import click

from cegain.commands.options import (
    BadInput,
    Command,
    algorithm_names,
    evidence_options,
    joined,
    one_budget,
    output_path,
    read_evidence,
    refuse,
    refused,
    single,
    write,
)

ENDINGS = (".html", ".htm")


@click.command("report", cls=Command)
@single("-o", "--output", required=True, metavar="FILE", help="Where to write (.html).")
@click.option("--algo", multiple=True, callback=joined, metavar="NAME[,NAME...]", help="What it shows first (moe).")
@single("--flops", metavar="C", help="Training FLOP that it shows first (1e24).")
@click.option(
    "--with", "stacks", multiple=True, metavar="NAME+NAME...", help="A combination that the page should hold too."
)
@evidence_options
def report_command(
    output: str, algo: str, flops: str | None, stacks: tuple[str, ...], only_evidence: bool, evidence: tuple[str, ...]
) -> None:
    """All answers as one page for a browser: choose algorithms, compute and currency there; needs no network.

    The first page takes up to a minute: every answer in it is computed. They are kept for the next.

    \b
    ceg report -o ceg.html
    ceg report -o ceg.html --with moe+mqa+muon
    ceg report -o ours.html --evidence my_gains.csv --algo moe,rope --flops 1e25
    """
    from cegain.explorer import explorer

    began = time.perf_counter()
    problems: list[str] = []
    target = output_path("--output", output, problems, ENDINGS)
    shown = explorer.START_FLOPS if flops is None else one_budget("--flops", flops, problems)
    low, high = explorer.FLOPS
    if not math.isnan(shown) and not low <= shown <= high:
        problems.append(f"--flops: {low:g} to {high:g} can be shown (found {shown:g}). Try 1e24.")
    named = [part for text in (algo, *stacks) for part in text.replace("+", ",").split(",") if part.strip()]
    tables = read_evidence(evidence, only_evidence, problems, named)
    names = algorithm_names("--algo", algo, problems) if algo else [explorer.START]
    more = [algorithm_names("--with", stack.replace("+", ","), problems) for stack in stacks]
    refuse(problems)
    assert target is not None
    try:
        explorer.plotly()  # what is missing is said before a minute's work
        with refused(prefix="ceg report: "):
            data = explorer.document(tables, evidence=evidence, only_evidence=only_evidence, algo=names, flops=shown)
            answered = explorer.answers(tables, bool(evidence), [names, *more], _progress(began))
            content = explorer.html(data, answered)
    except explorer.LibraryError as error:
        raise BadInput([f"ceg report: {error}"]) from None
    write("--output", target, content)
    click.echo(f"wrote {output} ({len(content) / 1e6:.1f} MB, {time.perf_counter() - began:.1f} s)")


def _progress(began: float) -> Callable[[int, int], None]:
    """Says on stderr how many answers are there and when the last will be; on a terminal in one line."""

    def say(done: int, of: int) -> None:
        left = (time.perf_counter() - began) * (of - done) / done
        if sys.stderr.isatty():
            click.echo(f"\r{done} of {of} combinations, {left:.0f} s left ", err=True, nl=done == of)
        elif done == of or done % 20 == 0:
            click.echo(f"{done} of {of} combinations, {left:.0f} s left", err=True)

    return say
