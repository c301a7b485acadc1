"""Hide the top of two ladders, forecast the gain there, compare: are the intervals honest on runs they never saw?

For every pair of arms and every cut, each arm loses its runs above its own largest compute / cut. The gain is then
forecast at every hidden budget of the treatment at which it can be read off the whole ladders (the baseline reaches
that loss), and the error of that reading is part of the variance. Each pair is scored in both directions, since which
arm can be read at the top depends on which is better. Rivals: the gain stays what it was at the last read, with a band
linear in decades; and independent fits of the visible runs with a bootstrap (`frontier_ratio`). What is tuned (tau
for the forecast, the width of the band for the first rival) was chosen on the other sets by the same score and is
frozen in `estimator/data/forecast.json`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from cegain.common.arrays import LN10, Array
from cegain.common.scores import binomial_range, interval_score
from cegain.ladders import forecast, frontier_ratio, ladder, reading
from cegain.ladders.forecast import Nodes, Settings
from cegain.ladders.ladder import RunTable
from cegain.tables import csv_file
from cegain.tables.problems import EvidenceError, Problem, refusal

if TYPE_CHECKING:
    from rich.console import Console

CUTS = (3.0, 10.0, 30.0, 100.0)
ENOUGH_POINTS = 8
TRAINING_BUDGETS = forecast.MIN_RUNGS
DISTANCES = ((-math.inf, 0.3), (0.3, 0.6), (0.6, 1.0), (1.0, 1.5), (1.5, math.inf))
"""Bins of decades past the last read, for the table by distance."""
PENALTY = 20
"""Of the 90% interval score, 2 / (1 - 0.9)."""
PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)
METHODS = ("forecast", "last", "frontier", "chinchilla")
TAU_CANDIDATES = np.geomspace(0.15, 0.8, 8)
"""Not below 0.15: the sets at hand would take 0.1, at which growing gains that were made up are covered too rarely."""
_COMPONENTS = 120  # nodes kept of a mixture: the rest holds less than a thousandth
_BISECTIONS = 24
BAND_CANDIDATES = np.geomspace(0.05, 1.0, 40)


class Pair(NamedTuple):
    """Two arms to compare: the set they belong to (settings are chosen without it) and their selections."""

    set: str
    baseline: str
    treatment: str


class Cell(NamedTuple):
    """One pair, direction and cut, with p hidden budgets; everything about it that settings do not change.

    span of the reads (decades), whether the ladders are `short` (`forecast.too_short`) and the doubts about them;
    log10_flops, actual (ln CEG), decades past the last read, frontier and chinchilla [5, p] quantiles of
    the ratio of independent fits; known, unit,
    cross: error variances of `actual` (see `reading.Reads`), [p] each; log_likelihood [k], means, variances [k, p] of
    ln CEG at the nodes of the grid.
    """

    pair: Pair
    reference: str
    cut: float
    reads: int
    stretch: float
    span: float
    short: bool
    doubts: tuple[str, ...]
    last: float
    log10_flops: Array
    actual: Array
    decades: Array
    known: Array
    unit: Array
    cross: Array
    log_likelihood: Array
    means: Array
    variances: Array
    frontier: Array
    chinchilla: Array


class Skipped(NamedTuple):
    """A pair, direction and cut that cannot be scored, and why: too_few, no_overlap, not_bracketed."""

    pair: Pair
    reference: str
    cut: float
    why: str


class Point(NamedTuple):
    """One forecast of a hidden gain: ln values; four sets of quantiles at `PROBABILITIES`."""

    set: str
    baseline: str
    treatment: str
    reference: str
    cut: float
    flops: float
    reads: int
    decades: float
    status: str
    actual: float
    forecast: tuple[float, ...]
    last: tuple[float, ...]
    frontier: tuple[float, ...]
    chinchilla: tuple[float, ...]


class Summary(NamedTuple):
    """One method on one set and cut ("all": every cut): error factors, coverage, 90% interval score (ln).

    coverage_range: 95% range with each reference arm one vote (`coverage.binomial_range`).
    """

    set: str
    cut: str
    method: str
    points: int
    clusters: int
    median_factor: float
    p90_factor: float
    coverage_50: float
    coverage_90: float
    coverage_range: tuple[float, float]
    interval_score: float


def read_pairs(path: Path) -> list[Pair]:
    """Read a pairs file with the columns set, baseline, treatment (arms as in `ladder.select`).

    Raises:
        EvidenceError: unreadable, or other columns, or an empty cell.
    """
    problems: list[Problem] = []
    header, rows = csv_file.read(path, csv_file.text_of(path, "a file of pairs", Pair._fields), problems)
    if not set(Pair._fields) <= set(header):
        rule = f"the columns are {', '.join(Pair._fields)}"
        raise refusal(f"{path}, line 1", rule, ", ".join(header) or "nothing", "Add them.")
    pairs = []
    for line, cells in rows:
        by_column = dict(zip(header, cells, strict=True))
        pairs.append(Pair(*(by_column[name] for name in Pair._fields)))
        if not all(pairs[-1]):
            problems.append(Problem(f"{path}, line {line}", "no cell is empty", "an empty one", "Fill or remove it."))
    if problems or not pairs:
        raise EvidenceError(problems or [Problem(str(path), "there is at least one pair", "none", "Add one.")])
    return pairs


def all_pairs(runs: RunTable) -> list[Pair]:
    """Every two variants of a table, the earlier one as the reference. Honest only where one thing changed."""
    return [Pair(runs.name, a, b) for a, b in itertools.combinations(runs.variants(), 2)]


def hold_out(
    tables: Sequence[RunTable],
    pairs: Sequence[Pair],
    cuts: Sequence[float] = CUTS,
    settings: Settings | None = None,
    *,
    workers: int = 1,
    resamples: int = 200,
) -> Iterator[tuple[Pair, list[Cell], list[Skipped]]]:
    """Cells of every pair, pair by pair (for a progress bar). A pair belongs to the first table that has both arms.

    Args:
        tables: tables of runs.
        pairs: what to compare, each in the table named like its set (or one whose name starts so), else in the first
            that has both arms; pairs that no table has are left out (see `unmatched`).
        cuts: factors above 1 by which the hidden runs exceed the visible ones.
        settings: only the shape of the grid is taken from them.
        workers: processes.
        resamples: bootstrap resamples of the Chinchilla rival; 0 leaves the rival out.

    Raises:
        ValueError: a cut is not above 1.
    """
    if any(not cut > 1 for cut in cuts):
        raise ValueError(f"a cut is a factor above 1 (found {min(cuts)}).")
    settings = settings or forecast.load_settings()
    nodes = forecast.grid(settings)
    found = [(pair, table) for pair in pairs if (table := _table_of(tables, pair)) is not None]
    work = partial(_cells, cuts=tuple(cuts), settings=settings, nodes=nodes, resamples=resamples)
    if workers <= 1:
        yield from map(work, found)
        return
    with ProcessPoolExecutor(workers) as pool:
        # Neighbours share arms, and so laws already fitted.
        yield from pool.map(work, found, chunksize=max(1, len(found) // (4 * workers)))


def unmatched(tables: Sequence[RunTable], pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of which no table has both arms."""
    return [pair for pair in pairs if _table_of(tables, pair) is None]


def _table_of(tables: Sequence[RunTable], pair: Pair) -> RunTable | None:
    """The table that a pair's arms are taken from: one named like its set before any other, an exact name first."""

    def order(table: RunTable) -> int:
        return 0 if table.name == pair.set else 1 if table.name.startswith(pair.set) else 2

    for table in sorted(tables, key=order):
        try:
            ladder.select(table, pair.baseline)
            ladder.select(table, pair.treatment)
        except EvidenceError:
            continue
        return table
    return None


def _cells(
    job: tuple[Pair, RunTable], *, cuts: tuple[float, ...], settings: Settings, nodes: Nodes, resamples: int
) -> tuple[Pair, list[Cell], list[Skipped]]:
    pair, runs = job
    cells: list[Cell] = []
    skipped: list[Skipped] = []
    whole = dict(zip((pair.baseline, pair.treatment), ladder.pair(runs, pair.baseline, pair.treatment), strict=True))
    for cut in cuts:
        limits = {arm: math.exp(full.x[-1]) / cut for arm, full in whole.items()}
        visible = {arm: full.below(limits[arm]) for arm, full in whole.items()}
        for directed in (pair, Pair(pair.set, pair.treatment, pair.baseline)):
            base, treat = whole[directed.baseline], whole[directed.treatment]
            seen_base, seen_treat = visible[directed.baseline], visible[directed.treatment]
            hidden = treat.x > (seen_treat.x[-1] if len(seen_treat.x) else -np.inf)
            readable = hidden & (treat.y <= base.y[0]) & (treat.y >= base.y[-1])
            reads = None
            if min(len(seen_base.x), len(seen_treat.x)) < TRAINING_BUDGETS:
                why = "too_few"
            elif not readable.any():
                why = "not_bracketed"
            else:
                reads = reading.read_gains(seen_base, seen_treat)
                why = "no_overlap"
            if reads is None:
                skipped.append(Skipped(directed, pair.baseline, cut, why))
                continue
            losses, x = treat.y[readable], treat.x[readable] / LN10
            actual = reading.compute_at(base, losses) - treat.x[readable]
            known, unit, cross = (np.diag(part) for part in reading.read_errors(base, treat, losses))
            posterior = forecast.Posterior(seen_base, seen_treat, reads, nodes)
            means, variances = (np.stack(part, 1) for part in zip(*map(posterior.at_budget, x), strict=True))
            quantiles = []
            for law in ("frontier", "chinchilla"):
                of_base = _law(law, runs, directed.baseline, seen_base, limits[directed.baseline], resamples)
                of_treat = _law(law, runs, directed.treatment, seen_treat, limits[directed.treatment], resamples)
                quantiles.append(frontier_ratio.gains(of_base, of_treat, x, PROBABILITIES))
            last = float(reads.y[-1])
            cells.append(
                Cell(
                    directed,
                    pair.baseline,
                    cut,
                    len(reads.m),
                    posterior.stretch,
                    float(reads.m[-1] - reads.m[0]),
                    bool(forecast.too_short(posterior, (seen_base, seen_treat))),
                    tuple(forecast.doubts_of(posterior, (seen_base, seen_treat), settings.noise)),
                    last,
                    x,
                    actual,
                    x + last / (2 * LN10) - reads.m[-1],
                    known,
                    unit,
                    cross,
                    posterior.log_likelihood,
                    means,
                    variances,
                    *quantiles,
                )
            )
    return pair, cells, skipped


_fitted: dict[tuple[object, ...], frontier_ratio.Laws | None] = {}
"""Laws already fitted by this process: an arm takes part in many pairs."""


def _law(
    law: str, runs: RunTable, arm: str, visible: ladder.Ladder, max_flops: float, resamples: int
) -> frontier_ratio.Laws | None:
    if not resamples:
        return None
    key = (law, arm, resamples, visible.x.tobytes(), visible.y.tobytes())
    if key not in _fitted:
        if law == "frontier":
            _fitted[key] = frontier_ratio.frontier(visible, resamples)
        else:
            _fitted[key] = frontier_ratio.chinchilla(runs, arm, max_flops, resamples)
    return _fitted[key]


def predict(cell: Cell, settings: Settings, nodes: Nodes) -> tuple[Array, Array]:
    """Quantiles [5, p] at `PROBABILITIES` of what will be read off: forecast, and last gain with its band.

    `nodes` is `forecast.grid(settings)`. The error of reading the actual gain is the same in both.
    """
    weights, means, sds, read_variance = _components(cell, nodes)
    ours = np.array([_quantile(weights, means, sds, p) for p in PROBABILITIES])
    return ours, _last(cell, settings.band, read_variance)


def _components(cell: Cell, nodes: Nodes) -> tuple[Array, Array, Array, Array]:
    """The mixture of a cell: weights [k], means and sds [k, p]; and the variance [p] of reading the actual gains."""
    log_weight = cell.log_likelihood + nodes.log_prior
    weights = np.exp(log_weight - log_weight.max())
    kept = np.argsort(-weights)[:_COMPONENTS]
    weights = weights[kept] / weights[kept].sum()
    read_variance = nodes.noise[kept, None] ** 2 * (cell.unit - nodes.shared[kept, None] * cell.cross) + cell.known
    sds = np.sqrt(cell.stretch**2 * cell.variances[kept] + read_variance)
    return weights, cell.means[kept], sds, weights @ read_variance


def _last(cell: Cell, band: float, read_variance: Array) -> Array:
    """Quantiles [5, p] of the rival rule."""
    return np.asarray(
        cell.last + ndtri(np.array(PROBABILITIES))[:, None] * np.hypot(band * cell.decades, np.sqrt(read_variance))
    )


def _quantile(weights: Array, means: Array, sds: Array, probability: float) -> Array:
    """Quantile [p] of p mixtures with common weights [k]; means, sds [k, p]. Bisection, all p at once."""
    ends = means + ndtri(probability) * sds
    low, high = ends.min(0), ends.max(0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = weights @ ndtr((middle - means) / sds) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((low + high) / 2)


def score(cells: Sequence[Cell], settings: Callable[[str], Settings]) -> list[Point]:
    """Every hidden gain beside its forecasts; `settings` maps a set to the settings chosen without it."""
    grids = {name: (s := settings(name), forecast.grid(s)) for name in {cell.pair.set for cell in cells}}
    points = []
    for cell in cells:
        ours, last = predict(cell, *grids[cell.pair.set])
        for i, actual in enumerate(cell.actual):
            points.append(
                Point(
                    *cell.pair,
                    cell.reference,
                    cell.cut,
                    10.0 ** float(cell.log10_flops[i]),
                    cell.reads,
                    float(cell.decades[i]),
                    _status(cell, i, ours[:, i]),
                    float(actual),
                    tuple(map(float, ours[:, i])),
                    tuple(map(float, last[:, i])),
                    tuple(map(float, cell.frontier[:, i])),
                    tuple(map(float, cell.chinchilla[:, i])),
                )
            )
    return points


def _status(cell: Cell, i: int, quantiles: Array) -> str:
    """What `ceg fit` would say of the i-th hidden budget."""
    low, _, median, _, high = quantiles
    last_read = cell.log10_flops[i] + cell.last / (2 * LN10) - cell.decades[i]
    decades = float(cell.log10_flops[i] + median / (2 * LN10) - last_read)
    if forecast.too_far(decades, cell.span, float(high - low), cell.doubts):
        return "far_extrapolation"
    return "few_rungs" if cell.short else "ok"


def frozen(name: str) -> Settings:
    """The shipped settings that never saw the set `name`: chosen without it, or the default for an unknown set."""
    document = json.loads(forecast.SETTINGS.read_text())
    return forecast.load_settings(without=name if name in document["without"] else None)


class Trials(NamedTuple):
    """Mean 90% interval score of every set: by tau candidate and by band candidate."""

    by_tau: dict[str, Array]
    by_band: dict[str, Array]


def trials(cells: Sequence[Cell], start: Settings) -> Trials:
    """Score every candidate on every set once; `choose` then looks at the sets it may see."""
    sets = sorted({cell.pair.set for cell in cells})
    by_tau: dict[str, list[float]] = {name: [] for name in sets}
    by_band: dict[str, list[float]] = {name: [] for name in sets}
    ends = (PROBABILITIES[0], PROBABILITIES[-1])
    for tau in TAU_CANDIDATES:
        nodes = forecast.grid(start._replace(tau=float(tau)))
        scores: dict[str, list[Array]] = {name: [] for name in sets}
        for cell in cells:
            weights, means, sds, _ = _components(cell, nodes)
            quantiles = np.array([_quantile(weights, means, sds, p) for p in ends])
            scores[cell.pair.set].append(interval_score(quantiles[0], quantiles[-1], cell.actual, PENALTY))
        for name in sets:
            by_tau[name].append(float(np.concatenate(scores[name]).mean()))
    nodes = forecast.grid(start)
    read_variance = [_components(cell, nodes)[3] for cell in cells]
    for band in BAND_CANDIDATES:
        scores = {name: [] for name in sets}
        for cell, error in zip(cells, read_variance, strict=True):
            last = _last(cell, float(band), error)
            scores[cell.pair.set].append(interval_score(last[0], last[-1], cell.actual, PENALTY))
        for name in sets:
            by_band[name].append(float(np.concatenate(scores[name]).mean()))
    return Trials({name: np.array(v) for name, v in by_tau.items()}, {name: np.array(v) for name, v in by_band.items()})


def choose(tried: Trials, sets: Sequence[str], start: Settings) -> Settings:
    """tau and band that minimise the mean over `sets` of the log of the interval score; the rest stays as in `start`.

    Both the forecast and its rival have one number to choose, and both are chosen by the score they are judged by.
    """

    def best(candidates: Array, scores: dict[str, Array]) -> float:
        return round(float(candidates[np.mean([np.log(scores[name]) for name in sets], axis=0).argmin()]), 3)

    return start._replace(tau=best(TAU_CANDIDATES, tried.by_tau), band=best(BAND_CANDIDATES, tried.by_band))


def freeze(cells: Sequence[Cell], start: Settings) -> dict[str, object]:
    """What `estimator/data/forecast.json` holds: the settings chosen on all sets, and on all sets but one."""
    tried = trials(cells, start)
    sets = list(tried.by_tau)
    about = (
        "Settings of the forecast of gains. backtest.choose picked tau and band on public ladders: default on all "
        "sets, without.X on all sets but X. All the rest was chosen by hand with all sets in view: docs/ladders.md "
        "says what leaving a set out does and does not protect against."
    )
    without = {left: choose(tried, [s for s in sets if s != left], start)._asdict() for left in sets if len(sets) > 1}
    return {"about": about, "sets": sets, "default": choose(tried, sets, start)._asdict(), "without": without}


def summarise(points: Sequence[Point]) -> list[Summary]:
    """Per set and cut, per set over all cuts, and pooled over sets with enough points, every set weighing the same."""
    sets = list(dict.fromkeys(p.set for p in points))
    found: list[Summary] = []
    for name in sets:
        own = [p for p in points if p.set == name]
        for cut in sorted({p.cut for p in own}):
            found += _summaries(name, f"{cut:g}", [p for p in own if p.cut == cut])
        found += _summaries(name, "all", distinct(own))
    once = distinct(points)
    sizes = Counter(p.set for p in once)
    enough = [p for p in once if sizes[p.set] >= ENOUGH_POINTS]
    if len({p.set for p in enough}) > 1:
        found += _summaries("pooled", "all", enough)
        for words, kept in (("", enough), ("ok, ", [p for p in enough if p.status == "ok"])):
            if words:
                found += _summaries("pooled", "ok", kept)
            for low, high in DISTANCES:
                near = [p for p in kept if low <= p.decades < high]
                found += _summaries("pooled", f"{words}{_span(low, high)} decades", near)
    return found


def _span(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:g}"
    return f"{low:g} and more" if math.isinf(high) else f"{low:g} to {high:g}"


class Difference(NamedTuple):
    """How much higher (worse) the forecast's 90% interval score is than the rule's, with its 95% range (Student's t
    over reference arms, in the pool over sets); `ok` is the share of answers with that status.
    """

    set: str
    references: int
    difference: float
    range: tuple[float, float]
    ok: float


def differences(points: Sequence[Point]) -> list[Difference]:
    """Per set with enough points, and pooled with sets alike: paired scores of the forecast and of last gain."""
    once = distinct(points)
    sizes = Counter(p.set for p in once)
    by_set: dict[str, dict[str, list[float]]] = {}
    for p in once:
        if sizes[p.set] >= ENOUGH_POINTS:
            ours, last = (
                float(interval_score(np.array(q[0]), np.array(q[-1]), np.array(p.actual), PENALTY))
                for q in (p.forecast, p.last)
            )
            by_set.setdefault(p.set, {}).setdefault(p.reference, []).append(ours - last)
    rows = []
    for name, arms in by_set.items():
        sums, counts = (np.array([float(f(values)) for values in arms.values()]) for f in (sum, len))
        mean = float(sums.sum() / counts.sum())
        ok = float(np.mean([p.status == "ok" for p in once if p.set == name]))
        rows.append(Difference(name, len(arms), mean, _range_of(mean, (sums - mean * counts) / counts.mean()), ok))
    if len(rows) > 1:
        values = np.array([row.difference for row in rows])
        mean = float(values.mean())
        ok = float(np.mean([row.ok for row in rows]))
        references = sum(row.references for row in rows)
        rows.append(Difference("pooled", references, mean, _range_of(mean, values - mean), ok))
    return rows


def _range_of(mean: float, deviations: Array) -> tuple[float, float]:
    """95% range of a mean over independent groups with these deviations [k]; without end where there is one group."""
    k = len(deviations)
    if k < 2:
        return -math.inf, math.inf
    half = float(stdtrit(k - 1, 0.975)) * math.sqrt(float(deviations @ deviations) / (k * (k - 1)))
    return mean - half, mean + half


def distinct(points: Sequence[Point]) -> list[Point]:
    """Points once each: on a coarse ladder two cuts may hide the same runs."""
    return list({(p.baseline, p.treatment, p.flops, p.decades, p.forecast): p for p in points}.values())


def _summaries(name: str, cut: str, points: Sequence[Point]) -> Iterator[Summary]:
    if not points:
        return
    actual = np.array([p.actual for p in points])
    sizes = {s: sum(p.set == s for p in points) for s in {p.set for p in points}}
    weights = np.array([1 / sizes[p.set] for p in points]) / len(sizes)
    clusters = len({(p.set, p.reference) for p in points})
    for method in METHODS:
        quantiles = np.array([getattr(p, method) for p in points]).T
        answered = np.isfinite(quantiles).all(0)
        if not answered.any():
            continue
        q, v = quantiles[:, answered], actual[answered]
        w = weights[answered] / weights[answered].sum()
        errors = np.abs(q[2] - v)
        inside = float(w @ ((q[0] <= v) & (v <= q[4])))
        yield Summary(
            name,
            cut,
            method,
            int(answered.sum()),
            clusters,
            math.exp(_weighted_quantile(errors, w, 0.5)),
            math.exp(_weighted_quantile(errors, w, 0.9)),
            float(w @ ((q[1] <= v) & (v <= q[3]))),
            inside,
            binomial_range(inside * clusters, clusters),
            float(w @ interval_score(q[0], q[-1], v, PENALTY)),
        )


def _weighted_quantile(values: Array, weights: Array, probability: float) -> float:
    """The value at which the weight below reaches a probability, linear between (equal weights: the usual quantile)."""
    order = np.argsort(values)
    v, w = values[order], weights[order]
    if len(v) == 1:
        return float(v[0])
    at = np.cumsum(w) - w
    return float(np.interp(probability * (1 - w[-1]), at, v))


def document(
    points: Sequence[Point], skipped: Sequence[Skipped], settings: Mapping[str, Settings]
) -> dict[str, object]:
    """The scores as JSON: gains and error factors as factors, interval scores in ln; NaN and infinity are None."""
    gains = ("actual", *METHODS)
    rows = []
    for p in points:
        row = p._asdict()
        for key in gains:
            value = row[key]
            row[key] = [_factor(x) for x in value] if isinstance(value, tuple) else _factor(value)
        rows.append(row)
    return {
        "schema": "ceg.backtest",
        "schema_version": 2,
        "probabilities": list(PROBABILITIES),
        "settings": {name: s._asdict() for name, s in settings.items()},
        "summary": [s._asdict() | {"too_few": s.points < ENOUGH_POINTS} for s in summarise(points)],
        "differences": [
            d._asdict() | {"range": d.range if math.isfinite(d.range[0]) else None} for d in differences(points)
        ],
        "skipped": [s.pair._asdict() | {"cut": s.cut, "why": s.why} for s in skipped],
        "points": rows,
    }


def _factor(log_gain: float) -> float | None:
    return math.exp(log_gain) if abs(log_gain) < frontier_ratio.UNBOUNDED else None


def print_report(console: Console, points: Sequence[Point], skipped: Sequence[Skipped]) -> None:
    """The table of summaries, and what could not be scored."""
    from rich.table import Table

    if not points and any(s.why == "too_few" for s in skipped):
        console.print(
            f"No point could be scored. An arm needs {TRAINING_BUDGETS} budgets below its largest / cut, and a hidden "
            "one above: try a smaller --cut, such as 2, or a longer ladder."
        )
    table = Table(box=None, padding=(0, 1))
    for name in ("set", "cut", "method", "points", "median", "p90", "in 50%", "in 90%", "range", "score"):
        table.add_column(name, justify="left" if name in ("set", "cut", "method") else "right")
    for s in summarise(points):
        if s.points < ENOUGH_POINTS:
            table.add_row(s.set, s.cut, s.method, str(s.points), "too few", "", "", "", "", "")
            continue
        low, high = s.coverage_range
        table.add_row(
            s.set,
            s.cut,
            s.method,
            str(s.points),
            f"{s.median_factor:.2f}x",
            f"{s.p90_factor:.2f}x" if s.p90_factor < 1e3 else ">1000x",
            f"{100 * s.coverage_50:.0f}%",
            f"{100 * s.coverage_90:.0f}%",
            f"{100 * low:.0f}-{100 * high:.0f}%" if s.clusters > 1 else "-",
            f"{s.interval_score:.2f}" if s.interval_score < 1e2 else ">100",
        )
    if points:
        console.print(table)
        console.print(
            "\nErrors of the gain as factors; score: 90% interval score of ln gain, lower is better; range: 95%, each "
            "reference arm one vote. last: the gain stays what it was at the last read, its band tuned on other sets."
        )
    compared = differences(points)
    if compared:
        versus = Table(box=None, padding=(0, 1))
        for name in ("set", "references", "forecast - last, 90% score", "95% range", "ok"):
            versus.add_column(name, justify="left" if name == "set" else "right")
        for d in compared:
            ends = "-" if d.references < 2 else f"{d.range[0]:+.2f} to {d.range[1]:+.2f}"
            versus.add_row(d.set, str(d.references), f"{d.difference:+.2f}", ends, f"{d.ok:.0%}")
        console.print()
        console.print(versus)
    reasons = {
        "too_few": f"fewer than {TRAINING_BUDGETS} training budgets in an arm (too few)",
        "not_bracketed": "no hidden loss is reached by the other arm",
        "no_overlap": "the visible arms reach no common loss",
    }
    for why, words in reasons.items():
        count = sum(s.why == why for s in skipped)
        if count:
            console.print(f"{count} pair(s) x direction x cut not scored: {words}.")
