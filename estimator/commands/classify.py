"""`ceg classify`: the source paper's classes beside ours. Imported by name when it is called."""

from __future__ import annotations

import click

from cegain.commands.options import (
    IMAGE_TYPES,
    Command,
    evidence_options,
    load_evidence,
    one_budget,
    output_path,
    show,
    single,
    write,
)


@click.command("classify", cls=Command)
@single("--low", default="1e18", metavar="C", help="The lower of the two budgets that are compared (1e18 FLOP).")
@single("--high", default="1e24", metavar="C", help="The higher one (1e24 FLOP).")
@single(
    "-o", "--output", metavar="FILE", help="Also draw gain at one budget against gain at the other (.svg, .pdf, .png)."
)
@evidence_options
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def classify_command(
    low: str, high: str, output: str | None, only_evidence: bool, evidence: tuple[str, ...], as_json: bool
) -> None:
    """Does a gain depend on compute? The source paper's classes and gains, ours, and why they differ.

    \b
    ceg classify
    ceg classify --low 1e18 --high 1e24 -o class.svg
    """
    problems: list[str] = []
    picture = output_path("--output", output, problems, IMAGE_TYPES)
    ends = [one_budget(option, text, problems) for option, text in (("--low", low), ("--high", high))]
    if ends[0] >= ends[1]:
        problems.append(f"--high: a budget above --low is needed (found {high}, not above {low}). Try 1e24.")
    tables = load_evidence(evidence, only_evidence, problems)
    from cegain.views import classify

    verdicts = classify.classify(tables, *ends)
    if picture is not None:
        from cegain.pictures import classes

        write("--output", picture, classes.draw(verdicts, picture.suffix.lower()))
    show(as_json, classify.document, classify.print_report, verdicts, picture=output)
