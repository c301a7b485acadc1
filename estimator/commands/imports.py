"""`ceg import`: somebody's table of runs, as it is, turned into one that every command reads."""

from __future__ import annotations

from pathlib import Path

import click

from cegain.commands.options import POSITIVE, Command, number, output_path, refuse, refused, single, write

ENDINGS = (".csv",)


@click.command("import", cls=Command)
@click.argument("table", metavar="TABLE")
@single("-o", "--output", metavar="FILE.csv", help="Where to write the table; stdout without it.")
@click.option(
    "--columns", multiple=True, metavar="C=gflops*1e9,N=params...",
    help="What variant, N, D, C, loss or seed is, where names do not tell: columns, numbers, + - * /.",
)  # fmt: skip
@single("--unit", default="nats", metavar="nats|bits", help="Of the losses, per token.")
@single("--bytes-per-token", metavar="B", help="Of the tokenizer: the losses are bits per byte.")
@click.option("--last", is_flag=True, help="Of several evaluations of one run, keep the last.")
@click.option("--strict", is_flag=True, help="Refuse rows without a result, such as crashed runs.")
def import_command(
    table: str, output: str | None, columns: tuple[str, ...], unit: str, bytes_per_token: str | None, last: bool,
    strict: bool,
) -> None:  # fmt: skip
    """Read a table of runs as people have it, and write variant, N, D, C, loss.

    TABLE is CSV (any separator, decimal commas, thousands), JSON lines, JSON, a trainer's state, Parquet, or one of
    these in gzip. What was understood is said on stderr, a line per column.

    \b
    ceg import wandb_export.csv -o runs.csv
    ceg import sweep.jsonl --columns C=total_gflops*1e9,variant=optimizer -o runs.csv
    ceg import trainer_state.json --columns "N=124e6,D=step*524288" --last -o runs.csv
    """
    from cegain.tables import run_import

    problems: list[str] = []
    target = output_path("--output", output, problems, ENDINGS) if output is not None else None
    chosen: dict[str, str] = {}
    for part in ",".join(columns).split(",") if columns else ():
        field, equals, formula = part.partition("=")
        field = field.strip()
        if not equals or field not in run_import.FIELDS:
            fields = ", ".join(run_import.FIELDS)
            problems.append(f"--columns: one of {fields}, = and a column (found {part!r}). Try C=total_flops.")
        chosen[field] = formula
    if unit not in run_import.UNIT_NAMES:
        problems.append(f"--unit: nats or bits (found {unit!r}). Try nats.")
    per_token = number("--bytes-per-token", bytes_per_token, problems, "4.3", **POSITIVE)
    refuse(problems)
    with refused():
        found = run_import.read(
            Path(table), columns=chosen, unit=unit, bytes_per_token=per_token, last=last, strict=strict
        )
    for line in (*found.understood, *found.remarks):
        click.echo(line, err=True)
    if target is None:
        click.echo(found.csv(), nl=False)
        return
    write("--output", target, found.csv().encode())
    click.echo(f"wrote {output}: {len(found.loss)} runs, {len(set(found.variant))} arm(s)")
