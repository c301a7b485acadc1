"""What all algorithms together say about scatter and straying: fitted once on the shipped literature, then frozen.

Few algorithms have enough studies to tell how much studies disagree or how a gain changes per decade. Those numbers
are shared: they maximise the marginal likelihood of all algorithms' rows, times a weak prior for each that keeps a
fold with few studies sane. One algorithm may be calmer or wilder than the rest, and algorithms of one kind of change
(normalisation, attention, optimizer ...) are so together: `SCENARIOS` multiply the scatter of levels and everything
about slopes, and an algorithm's logarithms scatter about those of its kind. What the other algorithms of a kind say of
its scenarios is stored, in `data/prior.json`, by `ceg coverage --write`; what an algorithm's own rows say is computed
with every answer. So studies that contradict each other widen it, and a new one moves it as Bayes' rule has it. Rows
that disagree within a study, or by more than any scenario allows, would leave widths as they are: the spread of all is
compared with what is expected of it, and widths grow by what exceeds that (`contradiction`).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from cegain import algorithms
from cegain.common.arrays import Array
from cegain.gain import bounds, contrasts, study
from cegain.gain.curve import COVARIATE_SD, LEVEL_SD, LINE_SD, posterior, prior_covariance
from cegain.gain.study import Rows, Spread
from cegain.tables.files import DATA
from cegain.tables.published_gains import Evidence, PublishedGain

PRIOR_FILE = DATA / "prior.json"
MOST_COMPARED = 600
"""It takes the cube of the number of rows; longer tables are taken as they are."""
ODD = 0.001
"""Share of tables, drawn as the model says, that count as odd."""

_GUESS = Spread(study_level=0.35, study_slope=0.07, contrast_level=0.15, slope_sd=0.10)
"""Centres of the weak priors, log-normal with sd `_GUESS_LOG_SD`. Slopes have no mean: gains are not taken to grow.
Assumed before any fit: studies disagree by a factor of about 1.4, treatments within a study by 1.15."""
_GUESS_LOG_SD = 0.5
_STUDY_SLOPE_RATIO = 0.3
"""sd of the tilts of studies over the sd of the slopes of algorithms. Assumed: few algorithms have ladders from two
studies, so the rows cannot tell an algorithm's slope from its one study's; that algorithms differ more than studies of
one algorithm is what makes a slope worth asking for."""

_SCATTER = (-1.2, 0.4, 7)
_SLOPE = (-1.2, 0.6, 7)
"""First ln multiplier, step and number of the scenarios."""
_KIND_SDS = (0.4, 0.5)
_ALGORITHM_SDS = (0.45, 0.65)
"""sd of the ln multipliers of scatter and slopes: of kinds, and of an algorithm about its kind. Assumed: studies of one
algorithm agree better or worse than usual; most gains change slowly with compute, a few (LSTM to Transformer) fast."""
_NEGLIGIBLE = 1e-3  # scenarios lighter than this are left out of an answer


class Scenario(NamedTuple):
    """Multipliers of `Spread` for one algorithm."""

    scatter: float
    slope: float


def _nodes(first: float, step: float, number: int) -> Array:
    return np.asarray(first + step * np.arange(number))


def _bell(away: Array, sd: float) -> Array:
    """Weights of a normal on nodes, along the last axis; sum 1."""
    weights = np.exp(-0.5 * np.square(away / sd))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _pairs(scatter: Array, slope: Array) -> Array:
    """Outer product over the last axes of [.., a] and [.., b], flattened to [.., a b]."""
    return np.asarray((scatter[..., :, None] * slope[..., None, :]).reshape(*scatter.shape[:-1], -1))


_LN_SCATTER, _LN_SLOPE = _nodes(*_SCATTER), _nodes(*_SLOPE)
SCENARIOS = tuple(Scenario(math.exp(a), math.exp(b)) for a in _LN_SCATTER for b in _LN_SLOPE)
SCATTERS = np.array([s.scatter for s in SCENARIOS])
SLOPES = np.array([s.slope for s in SCENARIOS])
_KINDS = _pairs(_bell(_LN_SCATTER, _KIND_SDS[0]), _bell(_LN_SLOPE, _KIND_SDS[1]))
"""[k] probabilities of a kind's multipliers before any row is seen."""
_WITHIN = np.einsum(
    "ij,kl->ikjl",
    _bell(_LN_SCATTER - _LN_SCATTER[:, None], _ALGORITHM_SDS[0]),
    _bell(_LN_SLOPE - _LN_SLOPE[:, None], _ALGORITHM_SDS[1]),
).reshape(len(SCENARIOS), len(SCENARIOS))
"""[k, k] probabilities of an algorithm's multipliers (columns) given its kind's (rows)."""


def that_matter(weights: Array) -> NDArray[np.intp]:
    """Indices of the scenarios that an answer takes into account."""
    return np.flatnonzero(weights > _NEGLIGIBLE)


def log_likelihoods(rows: Rows, spread: Spread) -> Array:
    """Of the rows, without bounds, in every scenario [k]."""
    return posterior(rows, spread, SCATTERS, SLOPES).log_likelihoods


def updated(weights: Array, log_likelihoods: Array) -> Array:
    """Weights [k] after the rows were seen."""
    top = float(log_likelihoods.max())
    if not math.isfinite(top):
        return weights
    after = weights * np.exp(log_likelihoods - top)
    return np.asarray(after / after.sum())


def finite(spread: Spread) -> Spread:
    """The settings with the shipped prior of slopes where theirs is left out."""
    return spread if math.isfinite(spread.slope_sd) else spread._replace(slope_sd=frozen().slope_sd)


@functools.cache
def frozen() -> Spread:
    """The shipped settings."""
    return Spread(**_stored()["spread"])


def scenario_weights(algorithm: str, baseline: str, currency: str) -> Array:
    """Weights [k] of the `SCENARIOS` before an algorithm's own rows are seen: what the rest of its kind says."""
    stored = _stored()["scenario_weights"]
    # Gains in usd are gains in time at one price.
    currency = "time" if currency == "usd" else currency
    usual = baseline == algorithms.get(algorithm).replaces[0]
    found = stored.get(key(algorithm, currency) if usual else "", stored.get(kind_key(algorithm, currency)))
    return prior_weights() if found is None else np.array(found)


def prior_weights() -> Array:
    """Weights [k] of the `SCENARIOS` before any row of any algorithm is seen."""
    return np.asarray(_KINDS @ _WITHIN)


def key(algorithm: str, currency: str) -> str:
    """Under which the weights of an algorithm's scenarios stand, against its default baseline."""
    return f"{algorithm} against {algorithms.get(algorithm).replaces[0]} in {currency}"


def kind_key(algorithm: str, currency: str) -> str:
    """The same of another algorithm of its kind, and of another baseline."""
    return f"{algorithms.get(algorithm).kind} in {currency}"


@functools.cache
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(PRIOR_FILE.read_text())
    return stored


def document(evidence: Evidence) -> dict[str, object]:
    """Content of `data/prior.json`: the settings fitted on `evidence`, and its hash."""
    spread = fit_spread(evidence.rows)
    weights = {
        name: [float(f"{w:.4g}") for w in of_name] for name, of_name in kind_weights(evidence.rows, spread).items()
    }
    return {
        "spread": {name: float(f"{value:.6g}") for name, value in spread._asdict().items()},
        "scenario_weights": weights,
        "evidence_sha256": evidence.sha256,
    }


def kind_weights(rows: Sequence[PublishedGain], spread: Spread) -> dict[str, Array]:
    """Weights [k] of the scenarios that a kind's other algorithms give to each, and all of them to a new one."""
    by_kind: dict[str, dict[str, Array]] = {}
    for name, currency, question in questions(rows):
        assert question.rows is not None
        said = log_likelihoods(bounds.as_readings(question.rows, spread), spread)
        by_kind.setdefault(kind_key(name, currency), {})[key(name, currency)] = said
    weights = {}
    for kind, of_algorithm in by_kind.items():
        # [kind's multipliers] of each algorithm's rows
        logs = {name: _log_means(said) for name, said in of_algorithm.items()}
        weights[kind] = updated(_KINDS, sum(logs.values(), np.zeros(len(_KINDS)))) @ _WITHIN
        if len(logs) > 1:
            for name in logs:
                others = sum((said for other, said in logs.items() if other != name), np.zeros(len(_KINDS)))
                weights[name] = updated(_KINDS, others) @ _WITHIN
        else:
            weights[next(iter(logs))] = prior_weights()
    return weights


def _log_means(log_likelihoods: Array) -> Array:
    """ln likelihood [k] of an algorithm's rows given its kind's multipliers."""
    top = float(log_likelihoods.max())
    return np.asarray(top + np.log(_WITHIN @ np.exp(log_likelihoods - top)))


def questions(rows: Sequence[PublishedGain]) -> Iterator[tuple[str, str, contrasts.QuestionRows]]:
    """Every (algorithm, currency) that some of `rows` say anything about, each against its default baseline."""
    for name in sorted({row.algorithm for row in rows if "+" not in row.algorithm}):
        entry = algorithms.get(name)
        for currency in ("flop", "time"):
            if currency == "flop" and entry.exact_in_flop:
                continue
            question = contrasts.question(rows, name, entry.replaces[0], currency)
            if question.rows is not None:
                yield name, currency, question


def fit_spread(rows: Iterable[PublishedGain]) -> Spread:
    """Scatter and slope settings that make all algorithms' rows most likely (empirical Bayes).

    Kass & Steffey 1989 (doi:10.1080/01621459.1989.10478825), with the scales of kinds and algorithms integrated out.
    """
    from scipy.optimize import minimize

    by_kind: dict[str, list[Rows]] = {}
    for name, currency, question in questions(list(rows)):
        assert question.rows is not None
        readings = bounds.as_readings(question.rows, _GUESS)  # once: the fit reads the same rows at every step
        by_kind.setdefault(kind_key(name, currency), []).append(readings)
    centre = np.log([_GUESS.study_level, _GUESS.contrast_level, _GUESS.slope_sd])

    def spread_of(p: Array) -> Spread:
        study, contrast, slope_sd = np.exp(p)
        return Spread(study, _STUDY_SLOPE_RATIO * slope_sd, contrast, slope_sd)

    def cost(p: Array) -> float:
        spread = spread_of(p)
        penalty = 0.5 * np.sum(np.square((p - centre) / _GUESS_LOG_SD))
        return float(penalty - log_likelihood(by_kind, spread))

    best = minimize(cost, centre, method="BFGS", options={"gtol": 1e-2})
    return Spread(*(float(v) for v in spread_of(best.x)))


def log_likelihood(by_kind: Mapping[str, Sequence[Rows]], spread: Spread) -> float:
    """Of all rows, the multipliers of kinds and algorithms integrated out."""
    total = 0.0
    for of_kind in by_kind.values():
        said = sum((_log_means(log_likelihoods(rows, spread)) for rows in of_kind), np.zeros(len(_KINDS)))
        top = float(said.max())
        total += top + math.log(float(_KINDS @ np.exp(said - top)))
    return total


def contradiction(rows: Rows, spread: Spread, scatter: float, slope: float) -> float:
    """How many times further apart rows lie than one scenario says they do, 1 or more.

    It is the root of chi squared over the point that only a share `ODD` of tables passes, a Birge ratio (Birge 1932,
    doi:10.1103/PhysRev.40.207).

    Args:
        rows: the gains, without bounds.
        spread: scatter and slope settings.
        scatter: multiplier of how far the levels of studies scatter.
        slope: multiplier of how far slopes stray.
    """
    n = len(rows.x)
    if not 1 < n <= MOST_COMPARED:
        return 1.0
    chi_squared = float(rows.y @ np.linalg.solve(covariance(rows, spread, scatter, slope), rows.y))
    return max(1.0, math.sqrt(chi_squared / float(chdtri(n, ODD))))


def covariance(rows: Rows, spread: Spread, scatter: float, slope: float) -> Array:
    """Of ln gains [n, n] before any is seen: the curve, its covariates, studies, contrasts and each row's own."""
    contrast, of_study = rows.contrast_of_row, rows.study_of_contrast[rows.contrast_of_row]
    strange = np.where(rows.fixes_level, 0.0, study.OTHER_BASELINE_SD**2)
    level = spread.contrast_level**2 + rows.contrast_variance + strange
    slope_sd = spread.slope_sd if math.isfinite(spread.slope_sd) else LINE_SD
    levels, slopes = np.array([LEVEL_SD * max(1.0, slope)]), np.array([slope * slope_sd])
    whole = prior_covariance(rows.x, rows.x, levels, slopes, 0.0)[0]
    whole = whole + COVARIATE_SD**2 * rows.covariates @ rows.covariates.T + np.diag(rows.variance)
    whole += (contrast[:, None] == contrast) * level[contrast]
    dx = rows.x - rows.x.mean()
    tilts = (slope * spread.study_slope) ** 2 * np.multiply.outer(dx, dx)
    whole += (of_study[:, None] == of_study) * ((scatter * spread.study_level) ** 2 + tilts)
    return np.asarray(whole)
