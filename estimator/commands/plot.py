"""`ceg plot`: all pictures but those that another command draws with `-o`. Imported by name when it is called."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cegain.commands.options import (
    IMAGE_TYPES,
    BadInput,
    Command,
    answer,
    flag,
    gathered,
    number,
    output_path,
    parse_budgets,
    question_options,
    refuse,
    single,
    write,
)
from cegain.commands.table_options import NAMES, read_options, table_options
from cegain.tables.problems import EvidenceError

# Options of `ceg plot --pattern`: default, and the most that a picture can show.
_PATTERN_OPTIONS: dict[str, tuple[str | None, int | None]] = {
    "tokens": ("128", 4096), "heads": ("2", 64), "block": ("16", 4096),
    "window": (None, None), "global_tokens": (None, None), "stride": (None, None), "summary": (None, None),
}  # fmt: skip
_DEFAULTS = {"currency": "flop", "interval": "0.9", "seed": "0", "flops_convention": "auto"}
"""Options that have a value without being given."""
_KINDS = ("gallery", "pattern", "runs", "kernels", "roofline", "coverage", "backtest")
"""Options that say what is drawn, one at most; CEG against scale without them."""
_GO_WITH = {
    "variant": "--runs", **dict.fromkeys(NAMES, "--runs"), "times": "--kernels or --roofline",
    **dict.fromkeys(_PATTERN_OPTIONS, "--pattern"),
}  # fmt: skip
_SHARED = {"device": ("kernels", "roofline"), "baseline": ("runs",), "flops": ("runs",)}
"""Options of a question that some other pictures take too."""


@click.command("plot", cls=Command)
@single("--runs", metavar="RUNS.csv", help="Draw two arms of a table of runs instead: --baseline B --variant V.")
@single("--variant", metavar="V", help="With --runs: the arm with the algorithm.")
@single("--pattern", metavar="NAME", help="Draw an attention pattern instead: strided, fixed, window, causal or full.")
@single("--tokens", metavar="N", help="With --pattern: length of the sequence (128).")
@single("--heads", metavar="N", help="With --pattern: query heads (2).")
@single("--block", metavar="N", help="With --pattern: side of the blocks that a kernel visits (16).")
@single("--window", metavar="N", help="With --pattern window: tokens seen (half of all).")
@single("--global-tokens", metavar="N", help="With --pattern window: first tokens, seen by all (0).")
@single("--stride", metavar="N", help="With --pattern strided or fixed: near the root of --tokens by default.")
@single("--summary", metavar="N", help="With --pattern fixed: columns of each block seen by all (a quarter).")
@single("--kernels", metavar="FAMILY", help="Draw kernel times of --device: flash, sparse, mqa, decode or moe.")
@click.option("--roofline", is_flag=True, help="Draw all operations of --device under its roofline instead.")
@single("--times", metavar="FILE.csv", help="With --kernels or --roofline: a table that `ceg bench collect` wrote.")
@click.option("--coverage", is_flag=True, help="Draw what `ceg coverage --write` stored: one study left out at a time.")
@click.option("--backtest", is_flag=True, help="Draw what `ceg backtest --scores` stored: tops of ladders, hidden.")
@single("--gallery", metavar="FOLDER", help="Make all pictures of this project, and an index (for maintainers).")
@table_options
@functools.partial(question_options, required=False)
@single("-o", "--output", metavar="FILE", help="Where to draw (.svg, .pdf, .png).")
def plot_command(**options: Any) -> None:
    """Draw CEG against scale; or ladders and the gain; an attention pattern; kernel times; how good forecasts were.

    A combination, a+b, is drawn with its parts and their product.

    \b
    ceg plot --algo moe,rope --flops 1e17:1e26 -o ceg.svg
    ceg plot --algo layernorm+rope,moe --flops 1e17:1e26 -o stack.svg
    ceg plot --runs runs.csv --baseline lstm --variant gpt --flops 1e17:1e24 -o gain.svg
    ceg plot --pattern strided -o strided.svg
    ceg plot --kernels flash -o flash.svg
    ceg plot --coverage -o coverage.svg
    """
    kinds = [kind for kind in _KINDS if options[kind]]
    kind = kinds[0] if kinds else ""
    problems = [f"--{other}: it goes without --{kind}. Leave one of them out." for other in kinds[1:]]
    if kind and click.get_current_context().get_parameter_source("registry") is ParameterSource.COMMANDLINE:
        problems.append(f"--{kind}: it goes without --registry. Leave one of them out.")
    problems += _misplaced(kind, options)
    if kind == "gallery":
        _make_gallery(options, problems)
        return
    output = options["output"]
    if output is None:
        problems.append("--output: a file to draw is needed. Add -o picture.svg.")
    picture = output_path("--output", output, problems, IMAGE_TYPES)
    content = _DRAW[kind](options, problems, picture.suffix.lower() if picture else "")
    assert picture is not None
    write("--output", picture, content)
    click.echo(f"wrote {output}")


def _misplaced(kind: str, options: dict[str, Any]) -> list[str]:
    """What is wrong with options that were given and do not belong to the picture."""
    problems = []
    for name, value in options.items():
        default = not value or value == _DEFAULTS.get(name)
        if default or name in _KINDS or (name == "output" and kind != "gallery"):
            continue
        if name in _GO_WITH:
            if f"--{kind}" not in _GO_WITH[name].split(" or "):
                example = _GO_WITH[name].replace("--pattern", "--pattern strided")
                problems.append(f"{flag(name)}: it goes with {_GO_WITH[name]}. Add {example}, or leave it out.")
        elif kind and kind not in _SHARED.get(name, ()):
            problems.append(f"--{kind}: it goes without {flag(name)}. Leave one of them out.")
    return problems


def _draw_curves(options: dict[str, Any], problems: list[str], ending: str) -> bytes:
    """CEG against scale, a panel for each algorithm or combination."""
    from cegain.pictures.curves import draw, grid

    options = {name: value for name, value in options.items() if name not in (*_KINDS, *_GO_WITH, "output")}
    budgets = parse_budgets(options["flops"], problems)
    if len(set(budgets)) > 1:
        options["flops"] = grid(min(budgets), max(budgets))
    elif budgets:
        problems.append("--flops: a picture needs a range (found one budget). Try 1e17:1e26.")
    names = [part for part in options["algo"].split(",") if part.strip()]
    baselines = (options["baseline"] or "").split(",") if options["baseline"] is not None else []
    if baselines and len(baselines) != len(names):
        problems.append(f"--baseline: one per algorithm is needed (found {len(baselines)} for {len(names)}). Add all.")
        baselines = []
    curves, parts = [], []
    for i, name in enumerate(names or [""]):
        question = options | {"baseline": baselines[i] if baselines else None}
        try:
            curve = answer(question, [], algo=name)
        except BadInput as error:
            problems += error.problems
            continue
        curves.append(curve)
        first = curve[0]
        alone = zip(first.algorithms, first.baselines, strict=True) if len(first.algorithms) > 1 else ()
        parts.append([answer(question | {"baseline": baseline}, [], algo=part) for part, baseline in alone])
    refuse(problems)
    return draw(curves, ending, parts)


def _draw_runs(options: dict[str, Any], problems: list[str], ending: str) -> bytes:
    """Two ladders and the gain between them."""
    from cegain.commands.runs import print_remarks
    from cegain.ladders import ladder
    from cegain.pictures.runs import draw

    budgets = parse_budgets(options["flops"], problems) if options["flops"] else []
    if len(set(budgets)) == 1:
        problems.append("--flops: a picture needs a range (found one budget). Try 1e17:1e24.")
    names = [options[end] for end in ("baseline", "variant") if options[end] is not None]
    if len(names) < 2:
        problems.append("--runs: two arms are needed (one is missing). Name them with --baseline and --variant.")
    how = read_options(options, problems)
    with gathered(problems):
        table = ladder.read_runs(options["runs"], how)
        if len(names) == 2:
            arms = ladder.pair(table, *names)
    refuse(problems)
    print_remarks(table)
    x = [float(end) for arm in arms for end in arm.x[[0, -1]]]
    low, high = (min(budgets), max(budgets)) if budgets else (math.exp(min(x)), 100 * math.exp(max(x)))
    return draw(arms[0], arms[1], low, high, ending)


def _draw_kernels(options: dict[str, Any], problems: list[str], ending: str) -> bytes:
    """Kernel times of one device: a family, or all under the roofline."""
    from cegain.pictures import kernels
    from cegain.tables import kernel_times
    from cegain.views import kernel_families

    family, which = options["kernels"], "--kernels" if options["kernels"] is not None else "--roofline"
    if family is not None and family not in kernel_families.FAMILIES:
        known = ", ".join(kernel_families.FAMILIES)
        problems.append(f"--kernels: one of {known} is needed (found {family!r}). Use one of these.")
    table = kernel_times.KERNEL_TIMES if options["times"] is None else Path(options["times"])
    rows = []
    if options["times"] is None and not table.exists():
        problems.append(
            f"{which}: a table of kernel times is there (found no kernel_times.csv). Give --times FILE.csv."
        )
    else:
        with gathered(problems):
            rows = kernel_times.load(table)
    refuse(problems)
    try:
        if family is None:
            return kernels.draw_roofline(rows, options["device"], ending)
        return kernels.draw(rows, family, options["device"], ending)
    except ValueError as error:
        raise BadInput([f"{which}: {error}."]) from None


def _draw_pattern(options: dict[str, Any], problems: list[str], ending: str) -> bytes:
    """Which keys each head's queries see, and the blocks visited for it."""
    from cegain.kernels.patterns import head_patterns
    from cegain.pictures.pattern import draw

    pattern = options["pattern"].lower()
    sizes: dict[str, int] = {}
    for name, (default, most) in _PATTERN_OPTIONS.items():
        text = options[name] or default
        limits: dict[str, Any] = {}
        if most is not None:
            limits = {"fits": range(1, most + 1).__contains__, "rule": f"1 to {most} can be drawn", "found": "{value}"}
        size = number(flag(name), text, problems, default or "16", int, **limits)
        if size is not None:
            sizes["n_global" if name == "global_tokens" else name] = size
    refuse(problems)
    tokens, n_heads, block = (sizes.pop(name) for name in ("tokens", "heads", "block"))
    try:
        heads = head_patterns(pattern, n_heads, tokens, **sizes)
    except ValueError as error:
        raise BadInput([f"--pattern: {error}."]) from None
    return draw(pattern, heads, tokens, block, ending)


def _draw_coverage(options: dict[str, Any], problems: list[str], ending: str) -> bytes:
    """The stored check of the intervals on the literature."""
    from cegain.checks import coverage
    from cegain.pictures import scores

    with gathered(problems):
        stored = coverage.load_stored()
    refuse(problems)
    return scores.draw_coverage(stored, ending)


def _draw_backtest(options: dict[str, Any], problems: list[str], ending: str) -> bytes:
    """The stored scores of backtests."""
    from cegain.checks import backtest_scores
    from cegain.pictures import scores

    refuse(problems)
    try:
        return scores.draw_backtest(backtest_scores.load(), ending)
    except (EvidenceError, ValueError) as error:
        raise BadInput([f"--backtest: {error}."]) from None


_DRAW: dict[str, Callable[[dict[str, Any], list[str], str], bytes]] = {
    "": _draw_curves, "runs": _draw_runs, "pattern": _draw_pattern,
    "kernels": _draw_kernels, "roofline": _draw_kernels,
    "coverage": _draw_coverage, "backtest": _draw_backtest,
}  # fmt: skip


def _make_gallery(options: dict[str, Any], problems: list[str]) -> None:
    """Every picture at once."""
    from cegain.commands import gallery

    folder = Path(options["gallery"])
    problems += gallery.check(folder)
    refuse(problems)
    try:
        pictures = gallery.make(folder)
    except OSError as error:
        raise BadInput([f"--gallery: the folder can be written (found {error}). Choose another."]) from None
    click.echo(f"wrote {len(pictures)} pictures and their index to {options['gallery']}")
