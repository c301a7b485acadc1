"""What all algorithms together say about scatter and slope: fitted once on the shipped literature, then frozen.

Few algorithms have enough studies to tell how much studies disagree or how a gain changes per decade. Those numbers
are shared: they maximise the marginal likelihood of all algorithms' rows, times a weak prior for each that keeps a
fold with few studies sane. The result is stored in `data/prior.json` by `ceg coverage --write`, so that a user's own
evidence changes an answer only through what it says about the algorithm.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cegain import algorithms
from cegain.common.arrays import Array
from cegain.gain import contrasts
from cegain.gain.chain import Chain, line_at_centre, link
from cegain.gain.study import Lines, Rows, Spread
from cegain.tables.files import DATA
from cegain.tables.published_gains import Evidence, PublishedGain

PRIOR_FILE = DATA / "prior.json"

_GUESS = Spread(
    study_level=0.35, study_slope=0.10, contrast_level=0.15, contrast_slope=0.03, slope_mean=0.0, slope_sd=0.10
)
"""Centres of the weak priors: log-normal with sd `_GUESS_LOG_SD` for the scatters, normal for the mean slope.
Assumed before any fit: studies disagree by a factor of about 1.4, treatments within a study by 1.15."""
_GUESS_LOG_SD = 0.5
_SLOPE_MEAN_SD = 0.05
_STUDY_SLOPE_RATIO = 0.7
_CONTRAST_SLOPE_RATIO = 0.2
"""sd of the slopes of studies, and of contrasts within a study, over the sd of the slopes of algorithms. Assumed: few
algorithms have ladders from two studies, so the rows cannot tell an algorithm's slope from its one study's; that
algorithms differ more than studies of one algorithm is what makes a slope worth asking for."""

_SCATTER_LOG_SD = 0.6  # one algorithm's studies may agree better or worse than usual
_SLOPE_LOG_SD = 0.8  # most gains change slowly with compute, a few (LSTM to Transformer) fast: a heavy tail


_NEGLIGIBLE = 1e-3  # scenarios lighter than this are left out of an answer
_INFLATIONS = (1.0, 1.5, 2.0, 3.0, 4.5, 7.0, 10.0, 15.0)
_CONTRADICTION = 3.0  # twice the log likelihood ratio is 6: beyond the 98% point for one degree of freedom


class Scenario(NamedTuple):
    """Multipliers of `Spread` for one algorithm, and their prior probability."""

    scatter: float
    slope: float
    weight: float


def _normal_nodes(n: int) -> list[tuple[float, float]]:
    """Nodes and weights of n-point Gauss-Hermite quadrature over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return list(zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True))


SCENARIOS = tuple(
    Scenario(math.exp(_SCATTER_LOG_SD * a), math.exp(_SLOPE_LOG_SD * b), p * q)
    for a, p in _normal_nodes(7)
    for b, q in _normal_nodes(5)
)
_SCATTER = np.array([s.scatter for s in SCENARIOS])
_SLOPE = np.array([s.slope for s in SCENARIOS])
_WEIGHT = np.array([s.weight for s in SCENARIOS])


class Posterior(NamedTuple):
    """An algorithm's chain in each of the k `SCENARIOS`, their weights given the rows [k], and the log likelihood
    of the rows with the scenarios averaged.
    """

    chain: Chain
    weights: Array
    log_likelihood: float


def fit_posterior(rows: Rows, spread: Spread) -> Posterior:
    """Fit the curve of one question in every scenario; weigh the scenarios by how well they explain its rows."""
    chain = link(rows, spread, _SCATTER, _SLOPE)
    lines = line_at_centre(chain)
    likelihood = _log_mean(lines.log_likelihoods, _WEIGHT)
    if not math.isfinite(likelihood):
        return Posterior(chain, _WEIGHT, likelihood)
    return Posterior(chain, _WEIGHT * np.exp(lines.log_likelihoods - likelihood), likelihood)


class Fitted(NamedTuple):
    """The chain in the k scenarios that matter, its line at the centre, the scenarios' weights [k] and multipliers of
    scatter [k], and the factor by which these were raised because the rows contradict each other (1: they do not).
    """

    chain: Chain
    lines: Lines
    weights: Array
    scatter: Array
    inflation: float


def fit_frozen(rows: Rows, spread: Spread, weights: Array) -> Fitted:
    """Fit the curve with scenario weights given beforehand, and more scatter where the rows contradict each other.

    Agreement never lowers the scatter, since the weights do not move. Gross disagreement widens it: the scatter of
    levels is multiplied by the factor of `_INFLATIONS` that makes the rows most likely, if that is more likely than
    no factor by `_CONTRADICTION` (ln).
    """
    kept = weights > _NEGLIGIBLE
    weights = weights[kept] / weights[kept].sum()
    chosen: Fitted | None = None
    likelihood = needed = -math.inf
    for factor in _INFLATIONS:
        scatter = factor * _SCATTER[kept]
        chain = link(rows, spread, scatter, _SLOPE[kept])
        fit = Fitted(chain, line_at_centre(chain), weights, scatter, factor)
        previous, likelihood = likelihood, _log_mean(fit.lines.log_likelihoods, weights)
        if chosen is None:
            chosen, needed = fit, likelihood + _CONTRADICTION
        elif likelihood > needed:
            chosen, needed = fit, likelihood
        elif likelihood < previous:
            break  # past the peak
    assert chosen is not None
    return chosen


def _log_mean(logs: Array, weights: Array) -> float:
    top = float(logs.max())
    return top + math.log(float(weights @ np.exp(logs - top))) if math.isfinite(top) else -math.inf


@functools.cache
def frozen() -> Spread:
    """The shipped settings."""
    return Spread(**_stored()["spread"])


def frozen_weights(algorithm: str, baseline: str, currency: str) -> Array:
    """Weights [k] of the `SCENARIOS` that the shipped rows of a question give; the prior's where there are none.

    Frozen too: if the rows of a call moved them, leaving rows out could narrow an interval.
    """
    # Gains in usd are gains in time at one price.
    key = _key(algorithm, baseline, "time" if currency == "usd" else currency)
    return np.array(_stored()["scenario_weights"].get(key, _WEIGHT))


def prior_weights() -> Array:
    """Weights [k] of the `SCENARIOS` before any row is seen: for evidence without the shipped table."""
    return _WEIGHT.copy()


def _key(algorithm: str, baseline: str, currency: str) -> str:
    return f"{algorithm} against {baseline} in {currency}"


@functools.cache
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(PRIOR_FILE.read_text())
    return stored


def document(evidence: Evidence) -> dict[str, object]:
    """Content of `data/prior.json`: the settings fitted on `evidence`, and its hash."""
    spread = fit_spread(evidence.rows)
    weights = {}
    for name, currency, question in questions(evidence.rows):
        assert question.rows is not None
        key = _key(name, algorithms.get(name).replaces[0], currency)
        weights[key] = [float(f"{w:.6g}") for w in fit_posterior(question.rows, spread).weights]
    return {
        "spread": {name: float(f"{value:.6g}") for name, value in spread._asdict().items()},
        "scenario_weights": weights,
        "evidence_sha256": evidence.sha256,
    }


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

    Kass & Steffey 1989 (doi:10.1080/01621459.1989.10478825), with the scale of each algorithm integrated out.
    """
    from scipy.optimize import minimize

    rows_of_questions = [q.rows for _, _, q in questions(list(rows)) if q.rows is not None]
    centre = np.log([_GUESS.study_level, _GUESS.contrast_level, _GUESS.slope_sd])

    def spread_of(p: Array) -> Spread:
        study, contrast, slope_sd = np.exp(p[:3])
        return Spread(study, _STUDY_SLOPE_RATIO * slope_sd, contrast, _CONTRAST_SLOPE_RATIO * slope_sd, p[3], slope_sd)

    def cost(p: Array) -> float:
        spread = spread_of(p)
        penalty = 0.5 * np.sum(((p[:3] - centre) / _GUESS_LOG_SD) ** 2) + 0.5 * (p[3] / _SLOPE_MEAN_SD) ** 2
        return float(penalty - sum(fit_posterior(a, spread).log_likelihood for a in rows_of_questions))

    best = minimize(cost, np.append(centre, 0.0), method="BFGS", options={"gtol": 1e-2})
    return Spread(*(float(v) for v in spread_of(best.x)))
