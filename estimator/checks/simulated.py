"""Made-up literatures with a known truth: are intervals honest when the literature is not as the model assumes?

One algorithm at a time: a curve and the multipliers of scatter and slope are drawn from the shipped settings, three to
nine studies with one to three budgets each from the curve, and a question half a decade to two past the last of them.
What a new study would find, drawn without any selection, and the curve itself are then compared with the intervals.
The processes change how studies err or which of them are published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cegain.gain import contrasts, method, prior, sensitivity
from cegain.gain.curve import variogram
from cegain.gain.study import X0
from cegain.tables.published_gains import PublishedGain

if TYPE_CHECKING:
    from rich.console import Console

PROCESSES = {
    "as assumed": "",
    "heavy tails": "studies err by a t with three degrees of freedom, of the same sd",
    "outliers": "15% of studies err four times as far",
    "correlated": "half of a study's variance is common to all studies",
    "only gains": "a study is published only if it finds a gain above 1",
    "best of five": "each study reports the best of five settings",
    "weak baselines": "each study's baseline is worse by a half-normal factor of median 1.18x",
}
SELECTED = ("only gains", "best of five", "weak baselines")
_LEVEL = (0.3, 0.5)
"""Mean and sd of ln CEG of the algorithms: what registered ones have, not the far wider prior of a level."""
_WEAK = 0.25


class Result(NamedTuple):
    """Of one process: draws, bias (mean of ln median - ln truth), and what share of draws the mean's interval, the
    predictive one and the line about selection hold."""

    process: str
    draws: int
    bias: float
    mean: float
    predictive: float
    selected: float


class _Draw(NamedTuple):
    rows: list[PublishedGain]
    flops: float
    truth: float
    new: float


def run(draws: int, seed: int = 0, content: float = 0.9) -> Iterator[Result]:
    """Every process in turn, `draws` literatures each; `content` is the probability of the intervals."""
    for process in PROCESSES:
        rng = np.random.default_rng(seed)
        counts = np.zeros(4)
        found = 0
        while found < draws:
            drawn = _literature(rng, process)
            if drawn is None:
                continue
            found += 1
            prepared = method.prepare(
                drawn.rows, ["rope"], ["learned_positions"], currency="flop", spread=prior.frozen()
            )
            mean, predictive = method.distributions(prepared, drawn.flops)
            (selected,) = sensitivity.selected(prepared, [drawn.flops], content)
            assert selected is not None
            low, high = (math.log(end) for end in selected.interval)
            counts += (
                predictive.quantile(0.5) - drawn.truth,
                _inside(drawn.truth, *mean.central(content)),
                _inside(drawn.new, *predictive.central(content)),
                _inside(drawn.new, low, high),
            )
        yield Result(process, draws, *(counts / draws).tolist())


def _inside(value: float, low: float, high: float) -> float:
    return float(low <= value <= high)


def _literature(rng: np.random.Generator, process: str) -> _Draw | None:
    """None where nothing is published."""
    spread, weights = prior.frozen(), prior.scenario_weights("rope", "learned_positions", "flop")
    chosen = prior.SCENARIOS[rng.choice(len(weights), p=weights / weights.sum())]
    studies = int(rng.integers(3, 10))
    places = [np.sort(rng.uniform(-2, 2.5) + 0.5 * np.arange(rng.integers(1, 4))) for _ in range(studies)]
    asked = max(float(x[-1]) for x in places) + rng.uniform(0.5, 2.0)
    x = np.concatenate([*places, [asked]])
    strays = (variogram(x)[:, None] + variogram(x) - variogram(x[:, None] - x)) / 2
    curve = rng.normal(*_LEVEL) + rng.multivariate_normal(
        np.zeros(len(x)), (chosen.slope * spread.slope_sd) ** 2 * strays, method="svd"
    )
    sd = chosen.scatter * spread.study_level
    shared = rng.normal(0, sd * math.sqrt(0.5)) if process == "correlated" else 0.0
    rows: list[PublishedGain] = []
    at = 0
    for i, place in enumerate(places):
        level = curve[at : at + len(place)]
        at += len(place)
        study = _study_error(rng, sd, process) if process != "correlated" else rng.normal(0, sd * math.sqrt(0.5))
        tilt = rng.normal(0, chosen.slope * spread.study_slope)
        settings = rng.normal(0, spread.contrast_level, 5 if process == "best of five" else 1)
        y = level + shared + study + settings.max() + tilt * (place - place.mean())
        if process == "weak baselines":
            y = y + abs(rng.normal(0, _WEAK))
        y = y + rng.normal(0, contrasts.ROW_SD, len(place))
        if process == "only gains" and y.mean() <= 0:
            continue
        rows += [_row(i, float(a), float(b)) for a, b in zip(place, y, strict=True)]
    if not rows:
        return None
    error = shared + (_study_error(rng, sd, process) if process != "correlated" else rng.normal(0, sd * math.sqrt(0.5)))
    new = curve[-1] + error + rng.normal(0, spread.contrast_level) + rng.normal(0, contrasts.ROW_SD)
    return _Draw(rows, 10.0 ** (asked + X0), float(curve[-1]), float(new))


def _study_error(rng: np.random.Generator, sd: float, process: str) -> float:
    if process == "heavy tails":
        return float(sd * rng.standard_t(3) / math.sqrt(3))
    if process == "outliers" and rng.random() < 0.15:
        return float(rng.normal(0, 4 * sd))
    return float(rng.normal(0, sd))


def _row(study: int, x: float, y: float) -> PublishedGain:
    nan = math.nan
    return PublishedGain(
        "rope", "RoPE", "learned_positions", f"study {study}", 10.0 ** (x + X0), "useful", math.exp(y), nan, nan, nan,
        "flop", nan, "measured", "made up", "",
    )  # fmt: skip


def document(results: list[Result]) -> dict[str, Any]:
    """As JSON."""
    return {"schema": "ceg.coverage.simulated", "schema_version": 1, "processes": [r._asdict() for r in results]}


def print_report(console: Console, results: list[Result]) -> None:
    """One line per process."""
    from rich.table import Table

    table = Table(title="Made-up literatures: 90% intervals", title_justify="left", box=None, padding=(0, 1))
    for name in ("process", "median too high", "mean covers", "new study covers", "selection line covers"):
        table.add_column(name, justify="left" if name == "process" else "right")
    for r in results:
        table.add_row(
            r.process, f"{math.exp(r.bias):.2f}x", f"{r.mean:.1%}", f"{r.predictive:.1%}", f"{r.selected:.1%}"
        )
    console.print(table)
    console.print(f"{results[0].draws} literatures each.")
    for r in results:
        if PROCESSES[r.process]:
            console.print(f"{r.process}: {PROCESSES[r.process]}.")
