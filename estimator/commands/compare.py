"""`ceg compare`: the verdict on two arms of a few seeds each."""

from __future__ import annotations

from typing import Any

import click

from cegain.commands.options import NOISE, POSITIVE, Command, gathered, number, print_json, refuse, refused, single
from cegain.commands.runs import print_remarks
from cegain.commands.table_options import read_options, table_options


@click.command("compare", cls=Command)
@click.argument("a", metavar="A.csv")
@click.argument("b", metavar="[B.csv]", required=False)
@single("--variant", metavar="V", help="The arm with the algorithm: in A, or in B where there is one.")
@single("--baseline", metavar="B", help="The arm without it, in A.")
@single("--at-least", default="1", metavar="F", help="Better means CEG > F, worse CEG < F. 0.95: no 5% is lost.")
@single("--level", default="0.05", metavar="P", help="Two-sided: each claim is made at half of it.")
@single("--loss-noise", metavar="S", help="Seed noise of ln loss, where it is known; instead of what seeds show.")
@table_options
@click.option("--check", is_flag=True, help="Exit code 0 shown better, 3 not shown, 4 shown worse.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def compare_command(a: str, b: str | None, check: bool, as_json: bool, **options: Any) -> None:
    """Is an arm better than another: loss, p-value, gain in compute, verdict.

    A has the baseline's runs and B the treatment's, a few seeds each, at one budget or several; or A has both, told
    apart by --baseline and --variant. Tables are read as `ceg fit` reads them (docs/compare.md).

    \b
    ceg compare old.csv new.csv
    ceg compare runs.csv --baseline dense --variant moe
    ceg compare old.csv new.csv --check --at-least 1.0      # for scripts

    Exit code: 0 for every answer. With --check 0 if better is shown, 3 if nothing is, 4 if worse is. 2 is bad input.
    """
    from cegain.comparison import arms, compare, report

    problems: list[str] = []
    at_least = number("--at-least", options["at_least"], problems, "1.05", **POSITIVE)
    level = number(
        "--level",
        options["level"],
        problems,
        "0.05",
        fits=lambda p: 0 < p < 1,
        rule="a number between 0 and 1 is needed",
    )
    noise = number("--loss-noise", options["loss_noise"], problems, "0.002", **NOISE)
    how = read_options(options, problems)
    sources: list[arms.Source] = []
    for path in (a, b):
        if path is not None:
            with gathered(problems):
                sources.append(arms.read(path, how))
    baseline, variant = options["baseline"], options["variant"]
    if b is None and sources:
        baseline, variant = _both_arms(sources[0].table.variants(), baseline, variant, problems)
    refuse(problems)
    for source in sources:
        print_remarks(source.table)
    with refused():
        both = (
            arms.of_one(sources[0], baseline, variant)
            if b is None
            else arms.of_two(sources[0], sources[1], baseline, variant)
        )
        answer = compare.compare(both, at_least, level, noise)
    print_json(report.document(answer)) if as_json else click.echo(report.text(answer))
    if check:
        raise SystemExit(report.EXIT[answer.verdict])


def _both_arms(there: list[str], baseline: str | None, variant: str | None, problems: list[str]) -> tuple[str, str]:
    """The arms of one table: the other one of two where one is named."""
    shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
    if baseline is None:
        problems.append(
            f"--baseline: the arm to compare with is needed (the table has {len(there)}: {shown}). Name it."
        )
    if variant is None:
        others = [arm for arm in there if arm != baseline]
        if len(others) == 1:
            variant = others[0]
        elif baseline is not None:
            problems.append(f"--variant: one arm is needed (the table has {len(there)}: {shown}). Name one.")
    return baseline or "", variant or ""
