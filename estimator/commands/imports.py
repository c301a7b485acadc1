"""`ceg import`: somebody's table of runs, as it is, turned into one that every command reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cegain.commands.options import Command, output_path, refuse, refused, single, write
from cegain.commands.table_options import read_options, table_options

ENDINGS = (".csv",)


@click.command("import", cls=Command)
@click.argument("tables", metavar="TABLE...", nargs=-1, required=True)
@table_options
@single("-o", "--output", metavar="FILE.csv", help="Where to write the table; stdout without it.")
def import_command(tables: tuple[str, ...], output: str | None, **options: Any) -> None:
    """Read a table of runs as people have it, and write variant, N, D, C, loss.

    TABLE is CSV (any separator, decimal commas, thousands), JSON lines, JSON, a trainer's state, a log as text,
    Parquet, one of these in gzip, or a folder of them: several are read as one. What was understood is said on stderr,
    a line per column.

    \b
    ceg import wandb_export.csv -o runs.csv
    ceg import sweep.jsonl --columns C=total_gflops*1e9,variant=optimizer -o runs.csv
    ceg import trainer_state.json --columns "N=124e6,D=step*524288" -o runs.csv
    ceg import logs/ --columns "N=n_params,D=step*524288" --last -o runs.csv
    """
    from cegain.run_tables import repeats, run_import

    problems: list[str] = []
    target = output_path("--output", output, problems, ENDINGS) if output is not None else None
    how = read_options(options, problems)
    refuse(problems)
    with refused():
        rule = repeats.Rule(how.repeats, how.seed_columns, how.sweep_columns)
        first, *more = map(Path, tables)
        found = run_import.read(first, how, more)
        if any(rule):
            found = repeats.settled(found, rule)
    for line in (*found.understood, *found.remarks):
        click.echo(line, err=True)
    if target is None:
        click.echo(found.csv(), nl=False)
        return
    write("--output", target, found.csv().encode())
    click.echo(f"wrote {output}: {len(found.loss)} runs, {len(set(found.variant))} arm(s)")
