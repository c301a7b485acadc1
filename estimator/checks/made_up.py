"""Made-up ladders of known gains: how often are answers `ok`, and how often do their 90% intervals hold?

Every truth of `synthetic.TRUTHS` is seen through ladders of three to eight rungs with noise from 0.2% to 1% of the
loss, which is stated to the method as the noise of seeds would be. The gain is asked for at the top rung, half a decade
and a decade past it. An onset, growth that starts past the middle of the ladder, is no smooth slope and stands apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cegain.common.scores import binomial_range
from cegain.ladders import forecast, synthetic

if TYPE_CHECKING:
    from rich.console import Console

RUNGS = (3, 4, 5, 6, 8)
NOISES = (0.002, 0.005, 0.01)
PAST = (0.0, 0.5, 1.0)
"""Decades past the top rung at which the gain is asked for."""
APART = "onset"


class Held(NamedTuple):
    """One truth, rungs, noise (of ln loss) and distance past the top rung (decades).

    ladders: how many were drawn; ok: answers with that status; inside: those of them whose 90% interval holds; width:
    median of its upper over its lower end, None where none is.
    """

    truth: str
    rungs: int
    noise: float
    past: float
    ladders: int
    ok: int
    inside: int
    width: float | None


def run(ladders: int, seed: int = 0, jobs: int = 1, stated: bool = True) -> Iterator[list[Held]]:
    """Cells of every truth in turn, `ladders` each; `stated` tells the method the noise."""
    work = partial(_truth, ladders=ladders, seed=seed, stated=stated)
    if jobs <= 1:
        yield from map(work, synthetic.TRUTHS)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(work, synthetic.TRUTHS)


def _truth(name: str, ladders: int, seed: int, stated: bool) -> list[Held]:
    settings = forecast.load_settings()
    cells = []
    for rungs in RUNGS:
        for noise in NOISES:
            rng = np.random.default_rng([seed, rungs, round(1e4 * noise)])
            answers: list[list[tuple[bool, float]]] = [[] for _ in PAST]
            for _ in range(ladders):
                truth = synthetic.fixed(name, rungs, noise, rng)
                tops = [float(truth.log10_flops[-1]) + past for past in PAST]
                found = forecast.forecast(
                    truth.baseline, truth.treatment, [10**top for top in tops], settings, noise if stated else None
                )
                for top, at, kept in zip(tops, found.at, answers, strict=False):
                    if at.status == "ok":
                        low, high = at.interval_90
                        kept.append((low <= math.exp(truth.gain(top)) <= high, math.log(high / low)))
            for past, kept in zip(PAST, answers, strict=True):
                inside = sum(held for held, _ in kept)
                width = math.exp(float(np.median([w for _, w in kept]))) if kept else None
                cells.append(Held(name, rungs, noise, past, ladders, len(kept), inside, width))
    return cells


class Total(NamedTuple):
    """All truths but onsets: coverage of `ok` answers at the top rung and a decade on, each cell with answers alike;
    the cells whose exact 95% range lies wholly below 85%; the least share of `ok` at six rungs or more and noise up to
    0.5%, half a decade on.
    """

    coverage: float
    too_low: tuple[Held, ...]
    least_ok: float


def total(cells: Sequence[Held]) -> Total:
    """What must hold of the cells together."""
    smooth = [c for c in cells if c.truth != APART]
    ends = [c for c in smooth if c.past != 0.5 and c.ok]
    low = tuple(c for c in ends if binomial_range(c.inside, c.ok)[1] < 0.85)
    long = [c.ok / c.ladders for c in smooth if c.past == 0.5 and c.rungs >= 6 and c.noise <= 0.005]
    return Total(sum(c.inside for c in ends) / max(1, sum(c.ok for c in ends)), low, min(long, default=math.nan))


def print_report(console: Console, cells: Sequence[Held]) -> None:
    """Per truth, rungs and noise: share of `ok` and coverage at each distance; then all together."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1))
    ends = [f"{where} {what}" for where in ("top", "+0.5", "+1") for what in ("ok", "in 90%")]
    for name in ("truth", "rungs", "noise", *ends):
        table.add_column(name, justify="left" if name == "truth" else "right")
    by_cell: dict[tuple[str, int, float], list[Held]] = {}
    for cell in cells:
        by_cell.setdefault((cell.truth, cell.rungs, cell.noise), []).append(cell)
    for (truth, rungs, noise), held in by_cell.items():
        shown = [text for c in held for text in (f"{c.ok / c.ladders:.0%}", f"{c.inside / c.ok:.0%}" if c.ok else "-")]
        table.add_row(truth, str(rungs), f"{noise:.1%}", *shown)
    console.print(table)
    all_of_them = total(cells)
    low = ", ".join(f"{c.truth} {c.rungs} rungs {c.noise:.1%}" for c in all_of_them.too_low) or "none"
    console.print(
        f"\nWithout onsets, at the top rung and a decade on, {all_of_them.coverage:.1%} of `ok` answers hold. Cells "
        f"whose exact 95% range lies wholly below 85%: {low}. Least share of `ok` at six rungs or more and noise up to "
        f"0.5%, half a decade on: {all_of_them.least_ok:.0%}."
    )
