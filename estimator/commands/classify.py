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
@single("--currency", default="flop", metavar="flop|time|usd|decode", help="What is counted (flop).")
@single("--low", default="1e18", metavar="C", help="The lower of the two budgets that are compared (1e18 FLOP).")
@single("--high", default="1e24", metavar="C", help="The higher one (1e24 FLOP).")
@single(
    "-o", "--output", metavar="FILE", help="Also draw gain at one budget against gain at the other (.svg, .pdf, .png)."
)
@evidence_options
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def classify_command(
    currency: str,
    low: str,
    high: str,
    output: str | None,
    only_evidence: bool,
    evidence: tuple[str, ...],
    as_json: bool,
) -> None:
    """Does a gain depend on compute? The source paper's classes and gains, ours, and why they differ.

    \b
    ceg classify
    ceg classify --currency time
    ceg classify --low 1e18 --high 1e24 -o class.svg
    """
    problems: list[str] = []
    picture = output_path("--output", output, problems, IMAGE_TYPES)
    least, most = (one_budget(option, text, problems) for option, text in (("--low", low), ("--high", high)))
    if least >= most:
        problems.append(f"--high: a budget above --low is needed (found {high}, not above {low}). Try 1e24.")
    from cegain.gain import question

    currency = currency.lower()
    if currency not in question.CURRENCIES:
        problems.append(
            f"--currency: one of {', '.join(question.CURRENCIES)} is needed (found {currency!r}). Try time."
        )
    elif currency != "flop" and output is not None:
        problems.append(f"--output: the picture is of gains in flop (found {currency}). Leave one of both out.")
    tables = load_evidence(evidence, only_evidence, problems)
    from cegain.views import classify

    verdicts = classify.classify(tables, least, most, currency)
    if picture is not None:
        from cegain.pictures import classes

        write("--output", picture, classes.draw(verdicts, picture.suffix.lower()))
    show(as_json, classify.document, classify.print_report, verdicts, picture=output)
