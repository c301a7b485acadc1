"""Two ladders -> ln CEG(C) inside and beyond their runs. The equations are in `docs/ladders.md`.

At every loss that both arms reach, the computes they need are read off: y = ln C_baseline - ln C_treatment, placed at
the midpoint m of the two (in decades), so that swapping the arms only flips the sign. The gain is a level plus the
integral of a slope: gains may grow or die out. A share of the slope lasts, the rest is forgotten over 1 / kappa
decades (Ornstein-Uhlenbeck). How far slopes wander (tau), what share lasts, how fast the rest is forgotten and the
noise of a run are not known; they are integrated over a grid, and every answer is a mixture of normals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import LN10, Array
from cegain.common.mixture import NORMAL_90, Mixture, point
from cegain.common.verdict import CLASS_DECADES, FAR_DECADES, FAR_WIDTH, classify
from cegain.ladders.ladder import Ladder
from cegain.ladders.reading import Reads, read_gains, smooth, third_differences
from cegain.tables.files import DATA

METHOD = "ladder-forecast/3"
SETTINGS = DATA / "forecast.json"

TAUS = np.geomspace(0.02, 2.56, 10)
NOISES = np.geomspace(0.0004, 0.05, 9)
SHARED = (0.0, 0.8)
"""Share of the noise that arms have in common at one budget: arms trained on the same data order, or with the same
shapes of which some are lucky, deviate together, and their gain is known better than either loss."""
STATED_NOISE_SD = 0.3
"""A stated noise is trusted to about this (natural log): ladders deviate from smooth curves by more than seed noise."""
LEAST_NOISE = 1e-6
MIN_RUNGS = 3
FEW_READS = 5
"""With fewer reads than this, all beyond them is `far_extrapolation`: the slope inside the data is hardly seen."""
FEW_RUNGS = ((0.008, 10), (0.005, 6), (0.0025, 5), (0.0, 4))
"""Rungs that each arm needs by the noise of a rung's ln loss: with fewer, a gain that grows is not seen to, and
intervals hold less often than they say (`docs/ladders.md`). The status is then `few_rungs`."""
FEW_WITHOUT_SEEDS, FOUND_NOISE = 5, 1.6
"""Where the noise is not stated: the least number of rungs, since fewer do not show it, and what the noise that is
found is multiplied by for `FEW_RUNGS`, since it is shrunk towards what is expected (1% is found as 0.5% to 0.8%)."""
VERY_FEW_READS = 3
"""With n reads fewer than this, all widths are multiplied by VERY_FEW_READS / n."""
ROUGH = 2.0
"""Ladders this many times rougher than the noise that was expected are no smooth curve with independent noise: widths
grow by what exceeds it, and all beyond the reads is `far_extrapolation`."""
FLAT = 0.4
"""An arm whose slope at its top is below this share of its overall slope may have stopped improving: a small change
of loss is then any change of compute, and all beyond the reads is `far_extrapolation`."""
CLASS_RANGE = (1e18, 1e26)
_NEGLIGIBLE = 1e-6


class Settings(NamedTuple):
    """What the method believes before it sees a pair of ladders; frozen in `estimator/data/forecast.json`.

    tau: median stationary sd of the slope (ln CEG per decade of compute) and the sd of its logarithm; noise: the same
    for the noise of a single run's ln loss; kappas: rates (per decade) at which slopes are forgotten, equally likely;
    lasting: shares of a slope's variance that are never forgotten, equally likely; shared: probability that arms have
    noise in common; band: sd per decade of the rival rule "the gain stays what it was at the last read".
    """

    tau: float
    tau_sd: float
    noise: float
    noise_sd: float
    kappas: tuple[float, ...]
    lasting: tuple[float, ...]
    shared: float
    band: float


def load_settings(path: Path = SETTINGS, without: str | None = None) -> Settings:
    """The shipped settings, or those chosen without one set of ladders (to score that set).

    Raises:
        ValueError: no settings were chosen without that set.
    """
    document = json.loads(path.read_text())
    table = document["default"] if without is None else document["without"].get(without)
    if table is None:
        raise ValueError(
            f"no settings without {without!r} in {path.name}. There are: {', '.join(document['without'])}."
        )
    return Settings(**(table | {name: tuple(table[name]) for name in ("kappas", "lasting")}))


class Nodes(NamedTuple):
    """The grid: kappa, lasting, tau, noise, shared, each [k], and the log prior weight [k] under some settings."""

    kappa: Array
    lasting: Array
    tau: Array
    noise: Array
    shared: Array
    log_prior: Array


def grid(settings: Settings, loss_noise: float | None = None) -> Nodes:
    """All combinations of kappa, the lasting share, tau, noise and its shared part.

    Args:
        settings: where the log-normal priors of tau and noise stand.
        loss_noise: a stated noise of ln loss per run, in place of the prior.
    """
    noises, centre, sd = NOISES, settings.noise, settings.noise_sd
    if loss_noise is not None:
        centre, sd = max(loss_noise, LEAST_NOISE), STATED_NOISE_SD
        noises = centre * np.exp(sd * np.arange(-2.0, 3.0))
    axes = (np.array(settings.kappas), np.array(settings.lasting), TAUS, noises, np.array(SHARED))
    kappa, lasting, tau, noise, shared = (part.ravel() for part in np.meshgrid(*axes, indexing="ij"))
    prior = -0.5 * (np.log(tau / settings.tau) / settings.tau_sd) ** 2 - 0.5 * (np.log(noise / centre) / sd) ** 2
    prior += np.log(np.where(shared > 0, settings.shared, 1 - settings.shared))
    return Nodes(kappa, lasting, tau, noise, shared, prior)


def variogram(decades: Array, kappa: Array, lasting: Array) -> Array:
    """Var[z(h) - z(0)] / tau^2 of the integral z of a slope with sd tau, of whose variance the share `lasting` stays
    and the rest is a stationary Ornstein-Uhlenbeck process with rate kappa.
    """
    kh = kappa * np.abs(decades)
    # The closed form loses all digits for a slope that is hardly forgotten.
    forgotten = np.where(kh < 1e-3, decades**2 * (1 - kh / 3), 2 * (kh + np.expm1(-kh)) / kappa**2)
    return lasting * decades**2 + (1 - lasting) * forgotten


class Posterior:
    """ln CEG as a function of the midpoint, at every node of the grid, given the reads (ordinary kriging).

    `log_likelihood` [k] is the restricted likelihood of the reads (level integrated out, flat prior) times that of how
    smooth each arm is by itself (see `smoothness`).
    """

    def __init__(self, baseline: Ladder, treatment: Ladder, reads: Reads, nodes: Nodes) -> None:
        n = len(reads.m)
        self.reads, self.nodes = reads, nodes
        covariance = nodes.tau[:, None, None] ** 2 * self._shape(reads.m)
        shared = nodes.shared[:, None, None]
        covariance += nodes.noise[:, None, None] ** 2 * (reads.unit - shared * reads.cross)
        covariance += reads.known + 1e-12 * np.eye(n)
        self._inverse = np.linalg.inv(covariance)
        self._to_level = self._inverse.sum(2)
        self._precision = self._to_level.sum(1)
        self._level = self._to_level @ reads.y / self._precision
        residual = reads.y - self._level[:, None]
        self._scores = np.einsum("kij,kj->ki", self._inverse, residual)
        log_determinant = np.linalg.slogdet(covariance)[1]
        fit = np.einsum("ki,ki->k", residual, self._scores)
        with np.errstate(invalid="ignore", divide="ignore"):
            likelihood = -0.5 * (log_determinant + np.log(self._precision) + fit)
        # A sum of two terms is the same in either order, so that swapping arms changes no digit.
        likelihood = likelihood + (smoothness(baseline, nodes.noise) + smoothness(treatment, nodes.noise))
        # Reads that hardly differ leave a covariance that rounding makes no covariance; such nodes say nothing.
        fits = np.isfinite(likelihood) & (np.linalg.slogdet(covariance)[0] > 0) & (self._precision > 0)
        self.log_likelihood = np.where(fits, likelihood, -np.inf) if fits.any() else np.zeros(len(likelihood))
        self.noise = self._mean_noise(self.weights())
        self.roughness = self.noise / self._mean_noise(np.exp(nodes.log_prior))
        self.stretch = max(1.0, VERY_FEW_READS / n) * max(1.0, self.roughness / ROUGH)

    def _shape(self, m: Array) -> Array:
        """Covariance of z at the reads, relative to the last read, per tau^2: [k, n, n] (an intrinsic process)."""
        h = m - m[-1]
        slopes, index = np.unique(np.stack([self.nodes.kappa, self.nodes.lasting]), axis=1, return_inverse=True)
        index = index.ravel()  # NumPy 2.0 alone keeps the shape of its input
        from_last = variogram(h, *slopes[:, :, None])
        between = variogram(h[:, None] - h, *slopes[:, :, None, None])
        return np.asarray((0.5 * (from_last[:, :, None] + from_last[:, None, :] - between))[index])

    def _mean_noise(self, weights: Array) -> float:
        return math.exp(float(weights @ np.log(self.nodes.noise) / weights.sum()))

    def weights(self, nodes: Nodes | None = None) -> Array:
        """Posterior weight [k] of every node, under the prior of `nodes` (its own by default)."""
        log_weight = self.log_likelihood + (nodes or self.nodes).log_prior
        weight = np.exp(log_weight - log_weight.max())
        return np.asarray(weight / weight.sum())

    def at_midpoint(self, m: Array) -> tuple[Array, Array]:
        """Mean and variance [k] of ln CEG at midpoints m [k] (log10 FLOP, one per node)."""
        _, mean, variance = self._towards(m)
        return mean, variance

    def at_budget(self, log10_flops: float) -> tuple[Array, Array]:
        """Mean and variance [k] of ln CEG when the treatment spends a budget: the midpoint is m = x + y / (2 ln 10)."""
        gain = np.full(len(self.nodes.tau), self.reads.y[-1])
        for _ in range(6):
            gain = self._towards(log10_flops + gain / (2 * LN10))[1]
        m = log10_flops + gain / (2 * LN10)
        _, mean, variance = self._towards(m)
        slope = (self._towards(m + 0.01)[1] - mean) / 0.01
        # An error of y moves the midpoint too: dy = df / (1 - f' / (2 ln 10)).
        carried = 1 / np.clip(1 - slope / (2 * LN10), 0.5, 2.0)
        return mean, variance * carried**2

    def mixture(self, log10_flops: float) -> Mixture:
        """Distribution of ln CEG at a budget of the treatment."""
        return self._mixed(*self.at_budget(log10_flops))

    def midpoint_mixture(self, m: float) -> Mixture:
        """Distribution of ln CEG at a midpoint (log10 FLOP): exactly reflected when the arms are swapped."""
        return self._mixed(*self.at_midpoint(np.full(len(self.nodes.tau), m)))

    def slope(self, low: float, high: float) -> Mixture:
        """d ln CEG / d log10 C between two midpoints (log10 FLOP)."""
        k = len(self.nodes.tau)
        first, first_mean, first_variance = self._towards(np.full(k, low))
        second, second_mean, second_variance = self._towards(np.full(k, high))
        shared = self._covariance(first, second, low, high)
        variance = np.maximum(first_variance + second_variance - 2 * shared, 0.0)
        return self._mixed((second_mean - first_mean) / (high - low), variance / (high - low) ** 2)

    def _towards(self, m: Array) -> tuple[Array, Array, Array]:
        """Covariance of z(m) with the reads [k, n], mean and variance [k] of ln CEG at midpoints m [k]."""
        nodes, h = self.nodes, self.reads.m - self.reads.m[-1]
        out = m - self.reads.m[-1]
        squared = nodes.tau**2
        own = variogram(out, nodes.kappa, nodes.lasting)
        kappa, lasting = nodes.kappa[:, None], nodes.lasting[:, None]
        shape = own[:, None] + variogram(h, kappa, lasting) - variogram(out[:, None] - h, kappa, lasting)
        c = 0.5 * squared[:, None] * shape
        mean = self._level + np.einsum("ki,ki->k", c, self._scores)
        explained = np.einsum("ki,kij,kj->k", c, self._inverse, c)
        unexplained = 1 - np.einsum("ki,ki->k", c, self._to_level)
        variance = squared * own - explained + unexplained**2 / self._precision
        return c, mean, np.maximum(variance, 0.0)

    def _covariance(self, first: Array, second: Array, low: float, high: float) -> Array:
        """Posterior covariance [k] of ln CEG at two midpoints, given their covariances with the reads."""
        nodes, top = self.nodes, self.reads.m[-1]
        a, b = np.full(len(nodes.tau), low - top), np.full(len(nodes.tau), high - top)
        prior = sum(sign * variogram(h, nodes.kappa, nodes.lasting) for sign, h in ((1, a), (1, b), (-1, a - b)))
        explained = np.einsum("ki,kij,kj->k", first, self._inverse, second)
        left = 1 - np.einsum("ki,ki->k", first, self._to_level)
        right = 1 - np.einsum("ki,ki->k", second, self._to_level)
        return np.asarray(0.5 * nodes.tau**2 * prior - explained + left * right / self._precision)

    def _mixed(self, mean: Array, variance: Array) -> Mixture:
        weights = self.weights()
        kept = weights > _NEGLIGIBLE
        weights = weights[kept] / weights[kept].sum()
        return Mixture(weights, mean[kept], self.stretch * np.sqrt(variance[kept]))


def smoothness(arm: Ladder, noise: Array) -> Array:
    """Log likelihood of noise [k] given how far an arm's ln loss is from a local parabola in ln C: [k].

    Third divided differences over four neighbouring rungs vanish for a parabola; what is left is noise (and the little
    that a smooth ladder bends more than a parabola, which errs towards more noise).
    """
    n = len(arm.x)
    if n < 4:
        return np.zeros_like(noise)
    contrasts = third_differences(arm.x)
    contrasts /= np.linalg.norm(contrasts, axis=1, keepdims=True)
    difference = contrasts @ arm.y
    known = (contrasts * arm.sd**2) @ contrasts.T + 1e-14 * np.eye(n - 3)
    levels, index = np.unique(noise, return_inverse=True)
    covariance = known + levels[:, None, None] ** 2 * ((contrasts / arm.repeats) @ contrasts.T)
    fit = np.einsum("i,ki->k", difference, np.linalg.solve(covariance, difference[:, None])[..., 0])
    return np.asarray((-0.5 * (np.linalg.slogdet(covariance)[1] + fit))[index])


class AtBudget(NamedTuple):
    """The gain when the treatment spends `flops`: factors; intervals (low, high); `decades` past the reads, either way.

    `last` is the rival rule: the gain of the last read, with its 90% band.
    """

    flops: float
    status: str
    reason: str
    median: float
    interval_50: tuple[float, float]
    interval_90: tuple[float, float]
    decades: float
    last: float
    last_90: tuple[float, float]
    distribution: Mixture

    def to_dict(self) -> dict[str, object]:
        """JSON form: gains are factors, flops in FLOP."""
        return {
            "flops": self.flops,
            "status": self.status,
            "reason": self.reason,
            "ceg_median": self.median,
            "ceg_interval_50": self.interval_50,
            "ceg_interval_90": self.interval_90,
            "extrapolation_decades": self.decades,
        }


class Forecast(NamedTuple):
    """Answer of `forecast`. `at` and the class are empty when `status` is too_few or no_overlap.

    reads: number of gains read off; read_range: midpoints (FLOP) of the first and last; label and classes as everywhere
    (`verdict.classify`).
    """

    baseline: str
    treatment: str
    status: str
    reason: str
    reads: int
    read_range: tuple[float, float] | None
    read_gains: tuple[tuple[float, float], ...]
    at: tuple[AtBudget, ...]
    label: str | None
    classes: dict[str, float] | None
    notes: tuple[str, ...]


def forecast(
    baseline: Ladder,
    treatment: Ladder,
    flops: Sequence[float],
    settings: Settings | None = None,
    loss_noise: float | None = None,
) -> Forecast:
    """CEG(C) of a treatment over a baseline from their ladders.

    Args:
        baseline: ladder of the arm without the algorithm.
        treatment: ladder of the arm with it.
        flops: budgets C (FLOP) of the treatment.
        settings: `load_settings()` by default.
        loss_noise: sd of ln loss of one run where it is known (seeds); estimated otherwise.

    Returns:
        per budget a status: `ok`; `ambiguous_repeats` or `unlike_yardsticks` where an arm's runs leave a doubt
        (`Ladder.doubt`); `few_rungs` where a ladder is too short for its noise (`FEW_RUNGS`); `far_extrapolation`
        more than 3 decades past the last read, further past it than the reads span, from fewer than 5 reads, rough or
        flattening ladders, or with a 90% interval wider than a factor of 100. Overall: `too_few` (an arm has fewer
        than 3 rungs), `no_overlap` (the arms reach no common loss), or the worst of its budgets.

    Raises:
        ValueError: a budget is not positive and finite, or the noise is negative.
    """
    bad = [c for c in flops if not (math.isfinite(c) and c > 0)]
    if bad or (loss_noise is not None and not (math.isfinite(loss_noise) and loss_noise >= 0)):
        bad_value = bad[0] if bad else loss_noise
        raise ValueError(f"budgets are finite FLOP above 0 and the loss noise is not negative (found {bad_value}).")
    settings = settings or load_settings()
    notes = tuple(f"{arm.name}: {note}" for arm in (baseline, treatment) for note in arm.notes)

    def no_forecast(status: str, reason: str) -> Forecast:
        return Forecast(baseline.name, treatment.name, status, reason, 0, None, (), (), None, None, notes)

    few = [f"{arm.name} has {len(arm.x)}" for arm in (baseline, treatment) if len(arm.x) < MIN_RUNGS]
    if few:
        return no_forecast("too_few", f"a ladder needs {MIN_RUNGS} rungs of falling loss: {', '.join(few)}")
    if np.array_equal(baseline.x, treatment.x) and np.array_equal(baseline.y, treatment.y):
        return _identical(baseline, treatment, flops, notes)
    noise = settings.noise if loss_noise is None else max(loss_noise, LEAST_NOISE)
    reads = read_gains(baseline, treatment, noise)
    if reads is None:
        arms = [f"{a.name} {math.exp(a.y[-1]):.4g} to {math.exp(a.y[0]):.4g}" for a in (baseline, treatment)]
        return no_forecast("no_overlap", f"no loss is reached by both arms: {'; '.join(arms)}")
    posterior = Posterior(baseline, treatment, reads, grid(settings, loss_noise))
    doubts = doubts_of(posterior, (baseline, treatment), noise)
    at = tuple(_at_budget(posterior, c, settings, doubts) for c in flops)
    label, classes = classify(posterior.slope(*np.log10(CLASS_RANGE)))
    inside = reads.m[(reads.m >= math.log10(CLASS_RANGE[0])) & (reads.m <= math.log10(CLASS_RANGE[1]))]
    if len(inside) < 2 or np.ptp(inside) < CLASS_DECADES:
        label = "undetermined"
        covered = float(np.ptp(inside)) if len(inside) else 0.0
        notes = (
            *notes,
            f"no class: the reads cover {covered:.1f} decades from 1e18 to 1e26 FLOP, and a label takes two",
        )
    doubt = baseline.doubt or treatment.doubt
    if doubt is None and (short := too_short(posterior, (baseline, treatment), loss_noise)):
        at = tuple(a._replace(status="few_rungs", reason=short) if a.status == "ok" else a for a in at)
    if doubt is not None:
        at = tuple(a._replace(status=doubt[0], reason=doubt[1]) if a.status == "ok" else a for a in at)
    far = [a for a in at if a.status != "ok"]
    status, reason = doubt or ("ok", "")
    if far and doubt is None:
        status, reason = far[0].status, f"at {far[0].flops:.3g} FLOP: {far[0].reason}"
    return Forecast(
        baseline.name,
        treatment.name,
        status,
        reason,
        len(reads.m),
        (10.0 ** float(reads.m[0]), 10.0 ** float(reads.m[-1])),
        tuple(zip(10.0**reads.treatment, np.exp(reads.y), strict=True)),
        at,
        label,
        classes,
        notes,
    )


def last_gain(reads: Reads, settings: Settings, log10_flops: float) -> tuple[float, float, float]:
    """The rival rule at a budget: ln gain of the last read, its sd, and the decades (of midpoint) past that read."""
    last = float(reads.y[-1])
    decades = log10_flops + last / (2 * LN10) - float(reads.m[-1])
    return last, settings.band * abs(decades), decades


def too_short(posterior: Posterior, arms: Sequence[Ladder], stated: float | None = None) -> str:
    """Why ladders as short and noisy as these are not enough for `ok`; "" where they are."""
    per_run = FOUND_NOISE * posterior.noise if stated is None else stated
    noise = max(per_run / math.sqrt(float(np.median(arm.repeats))) for arm in arms)
    needed = next(rungs for least, rungs in FEW_RUNGS if noise >= least)
    if stated is None:
        needed = max(needed, FEW_WITHOUT_SEEDS)
    few = [f"{arm.name} has {len(arm.x)}" for arm in arms if len(arm.x) < needed]
    if not few:
        return ""
    return f"noise of {noise:.2%} of the loss takes {needed} rungs of falling loss: {', '.join(few)}"


def doubts_of(posterior: Posterior, arms: Sequence[Ladder], noise: float) -> list[str]:
    """Why nothing beyond these reads is more than a far extrapolation."""
    doubts = []
    if len(posterior.reads.m) < FEW_READS:
        doubts.append(f"{len(posterior.reads.m)} reads only (fewer than {FEW_READS})")
    if posterior.roughness > ROUGH:
        doubts.append(
            f"the ladders are {posterior.roughness:.1f} times rougher than the noise expected of runs "
            f"({noise:.2g} of the loss; more than {ROUGH:g} times)"
        )
    for arm in arms:
        slopes = np.diff(smooth(arm, noise)) / np.diff(arm.x)
        share = float(slopes[-1] * (arm.x[-1] - arm.x[0]) / (arm.y[-1] - arm.y[0]))
        if share < FLAT:
            doubts.append(f"{arm.name} flattens: at its top the loss falls at {share:.0%} of its average rate")
    return doubts


def too_far(decades: float, span: float, log_width: float, doubts: Sequence[str]) -> str:
    """Why an answer is a far extrapolation; "" where it is none.

    Args:
        decades: past the reads.
        span: of the reads, decades.
        log_width: of the 90% interval, ln.
        doubts: `doubts_of` the ladders.
    """
    if decades > FAR_DECADES:
        return f"{decades:.1f} decades past the reads (more than {FAR_DECADES:g})"
    if decades > 0.1 and decades > span:
        return f"{decades:.1f} decades past reads that span {span:.1f}"
    if decades > 0.1 and doubts:
        return "; ".join(doubts)
    if log_width > math.log(FAR_WIDTH):
        return f"the 90% interval spans a factor of {math.exp(min(log_width, 700.0)):.3g} (more than {FAR_WIDTH:g})"
    return ""


def _at_budget(posterior: Posterior, flops: float, settings: Settings, doubts: Sequence[str]) -> AtBudget:
    reads, x = posterior.reads, math.log10(flops)
    distribution = posterior.mixture(x)
    median = distribution.quantile(0.5)
    low, high = distribution.central(0.9)
    beyond = x + median / (2 * LN10)
    decades = max(0.0, beyond - float(reads.m[-1]), float(reads.m[0]) - beyond)
    reason = too_far(decades, float(reads.m[-1] - reads.m[0]), high - low, doubts)
    last, band, _ = last_gain(reads, settings, x)
    half = NORMAL_90 * band
    return AtBudget(
        flops,
        "far_extrapolation" if reason else "ok",
        reason,
        math.exp(median),
        distribution.factors(0.5),
        (math.exp(low), math.exp(high)),
        decades,
        math.exp(last),
        (math.exp(last - half), math.exp(last + half)),
        distribution,
    )


def _identical(baseline: Ladder, treatment: Ladder, flops: Sequence[float], notes: tuple[str, ...]) -> Forecast:
    """Both arms are the same runs: the gain is 1 by definition, whatever the budget."""
    one = (1.0, 1.0)
    ends = (math.exp(baseline.x[0]), math.exp(baseline.x[-1]))
    past = [max(0.0, math.log10(c / ends[1]), math.log10(ends[0] / c)) for c in flops]
    at = tuple(AtBudget(c, "ok", "", 1.0, one, one, d, 1.0, one, point(0.0)) for c, d in zip(flops, past, strict=True))
    label, classes = classify(point(0.0))
    notes = (*notes, "the arms hold the same runs: the gain is 1 by definition")
    gains = tuple((float(c), 1.0) for c in np.exp(baseline.x))
    return Forecast(baseline.name, treatment.name, "ok", "", len(gains), ends, gains, at, label, classes, notes)
