"""`ceg speedup`: the gain behind one pair of losses, and whether its intervals hold on public ladders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cegain.commands.options import (
    COUNT,
    BadInput,
    Command,
    console,
    flag,
    gathered,
    number,
    print_json,
    refuse,
    single,
    write,
)

if TYPE_CHECKING:
    from cegain.ladders.pair.problems import Law
    from cegain.ladders.pair.slope_prior import Rungs

NEEDED = ("baseline_loss", "loss", "flops")
NUMBERS = (*NEEDED, "floor", "floor_sd", "exponent", "exponent_sd", "seed_noise")


@click.command("speedup", cls=Command)
@single("--baseline-loss", metavar="L", help="Loss without the algorithm.")
@single("--loss", metavar="L", help="Loss with it, at the same compute.")
@single("--flops", metavar="C", help="Training FLOP of each run.")
@single("--unit", metavar="nats|bpb", help="Of the losses: nats per token (default) or bits per byte.")
@click.option(
    "--baseline-at", multiple=True, nargs=2, metavar="C L", help="Another run of the baseline: FLOP and loss."
)
@single(
    "--law", metavar="FILE.json", help="A fitted frontier of the baseline: ceg fit --json, or E, gamma, covariance."
)
@single("--floor", metavar="E", help="Irreducible loss, in the losses' unit.")
@single("--floor-sd", metavar="S", help="Its uncertainty; 0 pins it, none is 15%.")
@single("--exponent", metavar="G", help="Exponent of the compute frontier.")
@single("--exponent-sd", metavar="S", help="Its uncertainty; 0 pins it, none is 15%.")
@single("--evaluation", metavar="NAME", help="What the floor or law was measured on; said in the answer.")
@single("--seed-noise", metavar="S", help="sd of one run's loss over seeds.")
@single("--seed", default="0", metavar="N", help="Of the draws.")
@click.option("--coverage", is_flag=True, help="Do such intervals hold? On known gains of public ladders.")
@click.option("--learn", multiple=True, metavar="RUNS.csv", help="With --coverage: on the ladders of these tables.")
@click.option("--freeze", is_flag=True, help="With --learn: store the prior that they give (maintainers).")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def speedup_command(
    as_json: bool, coverage: bool, learn: tuple[str, ...], freeze: bool, **options: Any
) -> None:  # fmt: skip
    """The gain behind one pair of losses, with all it depends on.

    \b
    ceg speedup --baseline-loss 2.310 --loss 2.290 --flops 1e19
    ceg speedup --baseline-loss 2.310 --loss 2.290 --flops 1e19 --baseline-at 1e18 2.560   # a second baseline run
    ceg speedup --baseline-loss 0.748 --loss 0.745 --flops 4.3e19 --unit bpb               # bits per byte
    ceg speedup --coverage                                                                 # do the intervals hold?
    """
    if coverage or learn or freeze:
        _coverage(as_json, learn, freeze, [flag(n) for n in NUMBERS if options[n] is not None])
        return
    from cegain.ladders import one_pair

    problems = [f"{flag(n)}: it is needed (found none). Try {flag(n)} 2.3." for n in NEEDED if options[n] is None]
    values = {n: number(flag(n), options[n], problems, "2.3") for n in NUMBERS if options[n] is not None}
    seed = number("--seed", options["seed"], problems, "0", **COUNT) or 0
    runs = [
        (number("--baseline-at", c, problems, "1e18 2.56"), number("--baseline-at", loss, problems, "1e18 2.56"))
        for c, loss in options["baseline_at"]
    ]
    law = None if options["law"] is None else _law(Path(options["law"]), problems)
    refuse(problems)
    try:
        answer = one_pair.speedup(
            **values, baseline_at=runs, law=law, evaluation=options["evaluation"] or "", unit=options["unit"], seed=seed
        )
    except ValueError as error:
        raise BadInput(str(error).splitlines()) from None
    print_json(answer.as_dict()) if as_json else click.echo(str(answer))


def _law(file: Path, problems: list[str]) -> Law | None:
    """Floor and exponent with their covariance: `ceg fit --json` of one arm, or an object with E, gamma, covariance.

    Errors without a covariance count as independent, which widens the answer: in fits floor and exponent rise together.
    """
    from cegain.ladders.pair.problems import Law

    rule = f"--law: {file} is the JSON of `ceg fit`, or has E, gamma and covariance [[.., ..], [.., ..]]"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        fitted = document.get("frontier", document)
        values, errors = fitted.get("parameters", fitted), fitted.get("errors", {})
        covariance = fitted.get("covariance")
        if covariance is None:
            covariance = [[float(errors["E"]) ** 2, 0.0], [0.0, float(errors["gamma"]) ** 2]]
        elif isinstance(covariance, dict):
            covariance = [[covariance[a][b] for b in ("E", "gamma")] for a in ("E", "gamma")]
        (a, b), (c, d) = (tuple(float(cell) for cell in row) for row in covariance)
        law = Law(float(values["E"]), float(values["gamma"]), ((a, b), (c, d)))
    except OSError as error:
        problems.append(f"--law: the file can be read ({error.strerror}: {file}). Correct the path.")
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problems.append(f"{rule} (found {type(error).__name__}: {error}). Correct it.")
        return None
    if not (all(map(math.isfinite, (a, b, c, d))) and b == c and min(a, d) >= 0 and b * b <= a * d * (1 + 1e-9)):
        problems.append(f"--law: a covariance is symmetric and positive (found {covariance}). Correct it.")
    return law


def _coverage(as_json: bool, learn: tuple[str, ...], freeze: bool, misplaced: list[str]) -> None:
    """Score the intervals on the shipped frontiers, or on those of tables, which `freeze` also stores."""
    from cegain.checks import pair_coverage
    from cegain.common.scores import rounded
    from cegain.ladders.pair import frontiers, slope_prior

    problems = [f"{name}: it goes without --coverage. Leave one out." for name in misplaced]
    if freeze and not learn:
        problems.append("--freeze: it stores the prior of --learn RUNS.csv... (found none). Name the tables.")
    if freeze and not (slope_prior.PRIOR.parents[2] / "pyproject.toml").is_file():
        problems.append("--freeze: it stores the prior in a checkout (found an installed package). Call it in one.")
    arms = _frontiers(learn, problems) if learn else slope_prior.read_rungs()
    refuse(problems)
    try:
        points = pair_coverage.score(arms)
    except ValueError as error:
        raise BadInput([f"--learn: {error}"]) from None
    if freeze:
        document = rounded(frontiers.document(arms, [Path(path) for path in learn]))
        write("--freeze", slope_prior.RUNGS, frontiers.table_of(arms))
        write("--freeze", slope_prior.PRIOR, (json.dumps(document, indent=1) + "\n").encode())
    if as_json:
        print_json(pair_coverage.document(points))
    else:
        pair_coverage.print_report(console(), points)


def _frontiers(paths: tuple[str, ...], problems: list[str]) -> list[Rungs]:
    """The frontiers of tables, in the digits that are stored."""
    from cegain.ladders import ladder
    from cegain.ladders.pair import frontiers

    arms: list[Rungs] = []
    for path in paths:
        with gathered(problems):
            arms += frontiers.arms_of(ladder.read_runs(path))
    return [arm._replace(x=frontiers.stored(arm.x), y=frontiers.stored(arm.y)) for arm in arms]
