"""`ceg scenario`: hardware frozen at a budget. Imported by name when it is called."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from cegain.commands.options import (
    IMAGE_TYPES,
    BadInput,
    Command,
    algorithm_names,
    evidence_options,
    load_evidence,
    number,
    one_budget,
    output_path,
    refuse,
    show,
    single,
    write,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cegain.views.scenario import Assumptions, Scenario

MAX_YEARS = 50
MAX_ARRIVALS = 200


@click.command("scenario", cls=Command)
@single("--freeze", metavar="C", help="The budget of the largest run from now on (FLOP); needed.")
@single("--years", default="10", metavar="N", help="How long (10).")
@single(
    "--pace",
    default="literature",
    metavar="literature|registry|R",
    help="Which pace, or R algorithms a year (literature).",
)
@single("--from", "names", metavar="NAME[,NAME...]", help="Algorithms that new ones are like (all with an answer).")
@single("--stack", metavar="NAME[,NAME...]", help="Algorithms in use already: they multiply the start (none).")
@single("--interaction", metavar="SD", help="sd of ln per algorithm adopted: stacks are no products (0.25).")
@single("--halving", metavar="A:B", help="With --pace literature: months to double, 95% range (5:14).")
@single("--share", metavar="A:B", help="With --pace literature: share that goes on without more compute (0.23:0.46).")
@single("--seed", default="0", metavar="N", help="Of the draws (0).")
@single("-o", "--output", metavar="FILE", help="Also draw it (.svg, .pdf, .png).")
@evidence_options
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def scenario_command(only_evidence: bool, evidence: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Hardware frozen at a budget: what algorithms alone still bring, and how much of it needs no scale.

    \b
    ceg scenario --freeze 1e26
    ceg scenario --freeze 1e26 --pace registry -o frozen.svg
    ceg scenario --freeze 1e24 --pace 3 --from rope,moe,muon --years 5 --json
    """
    problems: list[str] = []
    picture = output_path("--output", options["output"], problems, IMAGE_TYPES)
    assumed = _assumptions(options, problems)
    names = None if options["names"] is None else algorithm_names("--from", options["names"], problems)
    tables = load_evidence(evidence, only_evidence, problems)
    from cegain.views import scenario

    members = scenario.population(tables, assumed.freeze, names)
    known = {m.name for m in members}
    for option, named in (("--from", names or ()), ("--stack", assumed.stack)):
        answered = known if option == "--from" else {m.name for m in scenario.population(tables, assumed.freeze, named)}
        problems += [
            f"{option}: algorithms with a gain in FLOP are needed (found {name}, which has none). See `ceg classify`."
            for name in named
            if name not in answered
        ]
    if not members and assumed.pace != scenario.LITERATURE:
        problems.append("--evidence: some algorithm has a gain in FLOP (found none). Use --pace literature.")
    refuse(problems)
    registry = members if names is None else scenario.population(tables, assumed.freeze)
    try:
        result = scenario.run(tables, assumed, members, registry)
    except scenario.OutOfRangeError as error:
        pace = "--halving" if assumed.pace == scenario.LITERATURE else "--pace"
        raise BadInput([f"{pace}, --years: {error}. Ask for fewer years or a slower pace."]) from None
    if picture is not None:
        from cegain.pictures.scenario import draw

        write("--output", picture, draw(result, picture.suffix.lower()))
    show(as_json, scenario.document, _print_report, result, picture=options["output"])


def _assumptions(options: dict[str, Any], problems: list[str]) -> Assumptions:
    """The assumptions that the options state; their defaults where wrong, with problems added."""
    from cegain.gain.interaction import PAIR_SD
    from cegain.views import scenario

    freeze = math.nan
    if options["freeze"] is None:
        problems.append("--freeze: the budget of the largest run is needed. Try --freeze 1e26.")
    else:
        freeze = one_budget("--freeze", options["freeze"], problems)
    years = number(
        "--years", options["years"], problems, "10", int,
        fits=lambda years: 1 <= years <= MAX_YEARS, rule=f"1 to {MAX_YEARS}", found="{value}",
    )  # fmt: skip
    pace, per_year = options["pace"].lower(), None
    if pace not in (scenario.REGISTRY, scenario.LITERATURE):
        rate = number("--pace", options["pace"], problems, "registry, literature or 1.5")
        if rate is not None and not 0 < rate <= 100:
            problems.append(f"--pace: registry, literature, or 0 to 100 algorithms a year (found {rate:g}). Try 1.5.")
        elif rate is not None and years is not None and rate * years > MAX_ARRIVALS:
            problems.append(
                f"--pace: at most {MAX_ARRIVALS} algorithms in all years together (found {rate:g} x {years}). "
                "Ask for fewer years or a slower pace."
            )
        pace, per_year = scenario.REGISTRY, rate
    lists = pace == scenario.LITERATURE
    for option in ("halving", "share") if not lists else ("names", "interaction"):
        if options[option] is not None:
            which = "literature" if not lists else "registry"
            problems.append(f"--{option.replace('names', 'from')}: it goes with --pace {which}. Leave it out.")
    spread = number(
        "--interaction", options["interaction"], problems, "0.25",
        fits=lambda sd: 0 <= sd <= 2, rule="0 to 2", found="{value:g}",
    )  # fmt: skip
    seed = number(
        "--seed", options["seed"], problems, "0", int,
        fits=lambda seed: seed >= 0, rule="a whole number from 0", found="{value}",
    )  # fmt: skip
    return scenario.Assumptions(
        freeze=freeze,
        years=years or 1,
        pace=pace,
        per_year=per_year,
        halving_months=_range(
            "--halving", options["halving"], scenario.HALVING_MONTHS, (0.1, 1200.0), "5:14", problems
        ),
        share=_range("--share", options["share"], scenario.SHARE, (0.0, 1.0), "0.23:0.46", problems),
        interaction_sd=PAIR_SD if spread is None else spread,
        stack=() if options["stack"] is None else tuple(algorithm_names("--stack", options["stack"], problems)),
        seed=seed or 0,
    )


def _range(
    option: str,
    text: str | None,
    default: tuple[float, float],
    limits: tuple[float, float],
    example: str,
    problems: list[str],
) -> tuple[float, float]:
    """Two ends, low:high."""
    if text is None:
        return default
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = math.nan, math.nan
    if limits[0] <= low <= high <= limits[1]:
        return low, high
    problems.append(f"{option}: two ends, low:high, of {limits[0]:g} to {limits[1]:g} (found {text!r}). Try {example}.")
    return default


def _print_report(screen: Console, result: Scenario) -> None:
    """The answer, the table by year, shares, and all that is assumed."""
    from cegain.common import text
    from cegain.common.console import empty_table
    from cegain.common.text import share, span, wrap
    from cegain.views import scenario

    a, last = result.assumptions, result.years[-1]
    size = f"{text.budget(a.freeze)} FLOP"
    screen.print(f"Hardware frozen at {size} per largest run, for {a.years} years; pace: {a.pace}")
    screen.print(wrap(f"status: {result.status}" + f" - {result.reason}" * bool(result.reason)) + "\n")
    wide = span((last.interval_90[0] / a.freeze, last.interval_90[1] / a.freeze))
    median = f"{text.number(last.median / a.freeze)}x"
    gains = f"{wide} (90%; median {median})" if result.status != "ok" else f"{median} (90%: {wide})"
    answer = f"After {a.years} years of algorithms alone a run of {size} is worth {gains} what it is today"
    if a.stack:
        answer += f" without {' + '.join(a.stack)}, in use from the start"
    if result.no_scale is not None and a.pace == scenario.LITERATURE:
        answer += f"; {share(result.no_scale)} of the literature's pace (in ln) goes on without more compute"
    elif result.no_scale is not None:
        answer += f"; {share(result.no_scale)} of the gain that arrives (in ln) does not depend on scale"
    screen.print(wrap(f"{answer}.") + "\n")
    columns = ("year", "worth (FLOP)", "gain", "50%", "90%")
    years = empty_table(columns, wrapped=columns, padding=(0, 2, 0, 0), pad_edge=False)
    for y in result.years:
        spans = (span((low / a.freeze, high / a.freeze)) for low, high in (y.interval_50, y.interval_90))
        years.add_row(str(y.year), text.number(y.median), f"{text.number(y.median / a.freeze)}x", *spans)
    screen.print(years)
    screen.print()
    if result.shares:
        parts = ", ".join(f"{name} {share(part)}" for name, part in result.shares.items())
        whole = "the pace, in ln" if a.pace == scenario.LITERATURE else "the expected ln gain by class"
        screen.print(wrap(f"Share of {whole}: {parts}."))
    if result.without is not None:
        most, part, end = result.without
        rest = f"without such ones the median is {text.number(end / a.freeze)}x"
        screen.print(wrap(f"Algorithms like {most} bring most, {share(part)}; {rest}."))
    if result.other is not None:
        rival = scenario.LITERATURE if a.pace != scenario.LITERATURE else scenario.REGISTRY
        low, high = result.other.interval_90
        ends = span((low / a.freeze, high / a.freeze))
        screen.print(wrap(f"With --pace {rival}: {text.number(result.other.median / a.freeze)}x (90%: {ends})."))
    screen.print("Assumed:")
    for line in (f"pace: {result.rate_said}", *scenario.sources(a)):
        screen.print(wrap(f"  {line}."))
    if result.members:
        names = ", ".join(f"{m.name} {text.number(math.exp(m.gain.quantile(0.5)))}x" for m in result.members)
        screen.print(wrap(f"New algorithms are like one of these, at {size}: {names}."))
