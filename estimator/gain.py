"""Evidence -> CEG(C) with intervals, class and status: the estimate.

One algorithm is a curve in log10 C that its studies pin where they stand (`hierarchy`, `chain`), mixed over how well
they agree (`prior.SCENARIOS`). A combination is the sum of its parts plus an interaction (`interaction`). Everything is
closed form: the same question and evidence give the same digits.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cegain import algorithms, chain, contrasts, interaction, prior
from cegain.common import mixture
from cegain.common.arrays import Array
from cegain.common.mixture import Mixture
from cegain.common.verdict import FAR_DECADES, FAR_WIDTH, classify
from cegain.evidence import PublishedGain
from cegain.hierarchy import X0, Spread
from cegain.interaction import Interaction, Joint

if TYPE_CHECKING:
    from cegain.device_gain import Speeds

METHOD = "meta-regression/2"
"""Name and version of the method, written into every JSON answer."""

MAX_SLOPE_SD = 1.0
"""A slope less certain than this (ln CEG per decade) is not identified."""
UNKNOWN_DECADES = 3.0  # evidence whose compute is not stated is taken to be this far away


class Curve(NamedTuple):
    """Distribution of ln CEG at any C: k scenarios of scatter, each a Gaussian curve through the studies.

    weights: [k]; studies: None where the gain is 1 by construction; new_study_sds: [k]; reach: [m] log10 FLOP of the
    runs that fix the level, sorted; `inflation` is above 1 where the rows contradict each other.
    """

    weights: Array
    studies: chain.Chain | None
    new_study_sds: Array
    reach: Array
    inflation: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether the gain is 1 by construction."""
        return self.studies is None

    def decades(self, flops: float) -> float:
        """Distance (decades of compute) from the evidence: 0 inside its range, NaN where its compute is unknown."""
        if self.exact:
            return 0.0
        if not len(self.reach):
            return math.nan
        x = math.log10(flops)
        return max(0.0, x - float(self.reach[-1]), float(self.reach[0]) - x)

    def mean(self, flops: float) -> Mixture:
        """ln CEG in the average setting."""
        if self.studies is None:
            return mixture.point(0.0)
        x = math.log10(flops) - X0
        if not len(self.reach):  # rows of unknown compute may stand anywhere
            away = x - self.studies.centre
            x = self.studies.centre + math.copysign(max(UNKNOWN_DECADES, abs(away)), away)
        means, covariances = chain.state(self.studies, x)
        return Mixture(self.weights, means[:, 0], np.sqrt(covariances[:, 0, 0]))

    def together(self, low: float, high: float) -> tuple[Array, Array]:
        """ln CEG in the average setting at two budgets (FLOP): mean [2] and covariance [2, 2] of the mixture.

        Means and variances are those of `mean`; how far both move together is the chain's (`chain.joint`).
        """
        if self.studies is None:
            return np.zeros(2), np.zeros((2, 2))
        ends = [self.mean(low), self.mean(high)]
        _, apart = chain.joint(self.studies, math.log10(low) - X0, math.log10(high) - X0)
        correlation = apart[:, 0, 1] / np.sqrt(apart[:, 0, 0] * apart[:, 1, 1])
        means, sds = np.stack([m.means for m in ends], axis=1), np.stack([m.sds for m in ends], axis=1)
        within = sds[:, :, None] * sds[:, None, :]
        within[:, [0, 1], [1, 0]] *= correlation[:, None]
        mean = self.weights @ means
        away = means - mean
        return mean, np.einsum("k,kij->ij", self.weights, within + away[:, :, None] * away[:, None, :])

    def predictive(self, flops: float) -> Mixture:
        """ln CEG that a new, independent study would find."""
        average = self.mean(flops)
        if self.exact:
            return average
        return Mixture(average.weights, average.means, np.hypot(average.sds, self.new_study_sds))

    def slope(self) -> Mixture:
        """d ln CEG / d log10 C over the core of the evidence, seen from its point nearest to 1e22 FLOP."""
        if self.studies is None:
            return mixture.point(0.0)
        lines = chain.line_at_centre(self.studies)
        return Mixture(self.weights, lines.means[:, 1], np.sqrt(lines.covariances[:, 1, 1]))


def fit_curve(question: contrasts.Question, spread: Spread, weights: Array) -> Curve | None:
    """The curve that the rows of one question support; None when none of them fixes its level or its slope.

    Args:
        question: rows of one algorithm, baseline and currency.
        spread: scatter and slope settings; `slope_sd` of inf leaves the slope to the rows alone.
        weights: [k] of the `prior.SCENARIOS`, sum 1.
    """
    rows = question.rows
    if rows is None or not rows.fixes_level.any():
        return None
    fitted = prior.fit_frozen(rows, spread, weights)
    lines, weights = fitted.lines, fitted.weights
    slope_variance = weights @ lines.covariances[:, 1, 1]
    if not (np.isfinite(lines.covariances).all() and slope_variance < MAX_SLOPE_SD**2):
        return None
    new_study = fitted.scatter * math.hypot(spread.study_level, spread.contrast_level)
    return Curve(
        weights,
        fitted.chain,
        np.hypot(new_study, contrasts.ROW_SD),
        np.log10(contrasts.budgets(question.used)),
        fitted.inflation,
    )


def exact_curve() -> Curve:
    """CEG = 1 at every C, for an algorithm that computes the same function with the same FLOP, or against itself."""
    empty = np.zeros((0,))
    return Curve(empty, None, empty, empty)


@dataclass(frozen=True)
class Estimate:
    """Answer to one question. Gains are factors; intervals are (low, high); flops in FLOP; slopes per decade.

    `predictive` has probability `interval` and is what a new, independent study would find; `mean_interval`
    has the same probability and is about the average setting. All are None when `status` is "no_evidence".
    """

    algorithms: tuple[str, ...]
    baselines: tuple[str, ...]
    currency: str
    flops: float
    status: str
    reason: str
    interval: float
    median: float | None
    predictive: tuple[float, float] | None
    predictive_50: tuple[float, float] | None
    predictive_90: tuple[float, float] | None
    mean_median: float | None
    mean_interval: tuple[float, float] | None
    growth_per_decade: float | None
    growth_interval: tuple[float, float] | None
    label: str | None
    classes: dict[str, float] | None
    above: dict[float, float] | None
    decades: float | None
    questions: tuple[contrasts.Question, ...] = field(compare=False, repr=False)
    notes: tuple[str, ...]
    evidence_sha256: str
    seed: int
    speeds: Speeds | None = None
    """In time, dollars and per token: the two models whose speeds are compared, None where rows alone answer."""
    gain_in_flop: float | None = None
    """What `speeds` are multiplied with: the median of the average setting."""
    interaction: Interaction | None = field(default=None, compare=False, repr=False)
    """Of a combination: ln(stack / product of parts) at `flops`; None for one part, or where all but one are exact."""

    @property
    def equivalent_flops(self) -> float | None:
        """Compute (FLOP) that the run is worth without the algorithm: C x median."""
        return None if self.median is None or self.currency != "flop" else self.flops * self.median

    def __str__(self) -> str:
        from cegain import text

        return text.plain(self)


class Prepared(NamedTuple):
    """Everything about a question that does not depend on the budget; no `curves` when `missing` says what is not
    there. `joint` is how the parts of a stack interact.
    """

    algorithms: tuple[str, ...]
    baselines: tuple[str, ...]
    currency: str
    questions: tuple[contrasts.Question, ...]
    curves: tuple[Curve, ...]
    joint: Joint
    missing: str
    notes: tuple[str, ...]


def prepare(
    rows: Sequence[PublishedGain],
    names: Sequence[str],
    baselines: Sequence[str],
    *,
    currency: str,
    spread: Spread,
    shipped: Collection[PublishedGain] | None = None,
    remarks: Sequence[str] = (),
) -> Prepared:
    """Fit the curves of a checked question: `names` canonical, sorted and distinct, `baselines` in their order.

    The shipped rows tell how well the studies of an algorithm agree (`prior.frozen_weights`); that holds for `rows`
    only if they have some of them. `shipped` are these rows where `rows` may lack them; None: all are there.
    """
    questions, curves, missing, notes = [], [], [], list(remarks)
    for name, baseline in zip(names, baselines, strict=True):
        entry = algorithms.get(name)
        asked = contrasts.question(rows, name, baseline, currency)
        exact = ""
        if name == baseline:
            exact = f"{name} against itself: the gain is 1 by definition"
        elif entry.exact_in_flop and currency == "flop" and baseline == entry.replaces[0]:
            exact = (
                f"{name} computes the same function with the same FLOP: its gain in FLOP is 1.0 by construction, "
                "not by measurement (see --currency time)"
            )
        if exact:
            notes.append(exact)
            curves.append(exact_curve())
            asked = contrasts.unused(asked, exact)
        elif entry.unlocking or asked.rows is None:
            missing.append(_missing(name, baseline, currency, asked, spread))
        else:
            weights = prior.frozen_weights(name, baseline, currency)
            if shipped is not None and not any(u.row in shipped for u in asked.used):
                weights = prior.prior_weights()
            curve = fit_curve(asked, spread, weights)
            if curve is None:
                missing.append(_missing(name, baseline, currency, asked, spread))
            else:
                curves.append(curve)
                if curve.inflation > 1:
                    usual = f"{curve.inflation:g} times the usual scatter is assumed"
                    notes.append(f"the rows of {name} contradict each other: {usual}")
        questions.append(asked)
        notes += _misspelt(asked, baseline)
    joint = interaction.none()
    if not missing:
        parts = zip(names, baselines, curves, strict=True)
        inexact = [(name, baseline) for name, baseline, curve in parts if not curve.exact]
        if len(inexact) > 1:
            joint = interaction.estimate(rows, inexact, currency)
    return Prepared(
        tuple(names),
        tuple(baselines),
        currency,
        tuple(questions),
        () if missing else tuple(curves),
        joint,
        "; ".join(missing),
        tuple(notes),
    )


def evaluate(
    prepared: Prepared, flops: float, *, interval: float, thresholds: Iterable[float], sha256: str = "", seed: int = 0
) -> Estimate:
    """Answer a prepared question at one budget (FLOP)."""
    if prepared.missing:
        return refused(prepared, prepared.missing, flops, interval=interval, sha256=sha256, seed=seed)
    mean, predictive = distributions(prepared, flops)
    slope = mixture.total([c.slope() for c in prepared.curves])
    label, classes = classify(slope)
    above = {t: min(1.0, max(0.0, 1.0 - predictive.cdf(math.log(t / flops)))) for t in thresholds}
    answer = answered(prepared, flops, mean, predictive, interval=interval, sha256=sha256, seed=seed)
    return dataclasses.replace(
        answer,
        growth_per_decade=math.exp(slope.quantile(0.5)),
        growth_interval=_exp(slope.central(interval)),
        label=label,
        classes=classes,
        above=above if prepared.currency == "flop" else None,
        interaction=prepared.joint.at(flops) if prepared.joint.target else None,
    )


def distributions(prepared: Prepared, flops: float) -> tuple[Mixture, Mixture]:
    """ln CEG at a budget: in the average setting, and as a new study would find it."""
    curves, joint = prepared.curves, prepared.joint.at(flops)
    mean = mixture.total([*(c.mean(flops) for c in curves), joint.mean])
    return mean, mixture.total([*(c.predictive(flops) for c in curves), joint.predictive])


def refused(
    prepared: Prepared, reason: str, flops: float, *, interval: float, sha256: str = "", seed: int = 0
) -> Estimate:
    """No answer, and why."""
    return Estimate(
        algorithms=prepared.algorithms,
        baselines=prepared.baselines,
        currency=prepared.currency,
        flops=flops,
        status="no_evidence",
        reason=reason,
        interval=interval,
        questions=prepared.questions,
        notes=prepared.notes,
        evidence_sha256=sha256,
        seed=seed,
        **dict.fromkeys(_ANSWER_FIELDS),
    )


def answered(
    prepared: Prepared,
    flops: float,
    mean: Mixture,
    predictive: Mixture,
    *,
    interval: float,
    sha256: str = "",
    seed: int = 0,
) -> Estimate:
    """The answer that two distributions of ln CEG give; without growth, class and thresholds.

    The distance from the evidence is that of `prepared.curves`; 0 without curves, where no evidence is needed.
    """
    distances = [c.decades(flops) for c in prepared.curves]
    decades = math.nan if any(map(math.isnan, distances)) else max(distances, default=0.0)
    low90, high90 = predictive.central(0.9)
    reason = ""
    if math.isnan(decades):
        reason = "the compute of its evidence is not known"
    elif decades > FAR_DECADES:
        reason = f"{decades:.1f} decades past the evidence (more than {FAR_DECADES:g})"
    elif high90 - low90 > math.log(FAR_WIDTH):
        reason = f"the 90% interval spans a factor of {math.exp(high90 - low90):.3g} (more than {FAR_WIDTH:g})"
    return dataclasses.replace(
        refused(prepared, reason, flops, interval=interval, sha256=sha256, seed=seed),
        status="far_extrapolation" if reason else "ok",
        median=math.exp(predictive.quantile(0.5)),
        predictive=_exp(predictive.central(interval)),
        predictive_50=_exp(predictive.central(0.5)),
        predictive_90=_exp((low90, high90)),
        mean_median=math.exp(mean.quantile(0.5)),
        mean_interval=_exp(mean.central(interval)),
        decades=decades,
    )


_ANSWER_FIELDS = (
    "median",
    "predictive",
    "predictive_50",
    "predictive_90",
    "mean_median",
    "mean_interval",
    "growth_per_decade",
    "growth_interval",
    "label",
    "classes",
    "above",
    "decades",
)


def _exp(ends: tuple[float, float]) -> tuple[float, float]:
    return math.exp(ends[0]), math.exp(ends[1])


def _misspelt(asked: contrasts.Question, baseline: str) -> list[str]:
    """Notes on rows whose baseline looks like the one asked about, but is another."""
    others = {u.row.baseline for u in asked.used if u.contrast >= 0 and not u.fixes_level}
    near = difflib.get_close_matches(baseline, others, cutoff=0.85)
    return [f"rows against {name!r} set no level: did you mean {baseline!r}?" for name in near]


def _missing(name: str, baseline: str, currency: str, asked: contrasts.Question, spread: Spread) -> str:
    """What would have to exist for an answer."""
    entry = algorithms.get(name)
    if entry.unlocking:
        return f"{name}: {entry.unlocking}"
    text = f"{name}: no usable gain in {currency} against {baseline}"
    if any(u.fixes_level for u in asked.used) and not math.isfinite(spread.slope_sd):
        return f"{text}: without the shared slope prior its rows must come from two budgets or more"
    others = sorted({u.row.baseline for u in asked.used if u.contrast >= 0 and not u.fixes_level})
    if others:
        text += f" (there is some against {', '.join(others)})"
    unconverted = sorted({u.row.currency for u in asked.used if u.contrast < 0})
    if unconverted:
        text += (
            f"; {len([u for u in asked.used if u.contrast < 0])} row(s) in {', '.join(unconverted)} cannot be converted"
        )
    remedy = {
        "flop": "needed: runs with and without it at known FLOP (--evidence)",
        "time": "needed: time to equal loss, or kernel times of both on one device",
        "usd": "needed: time to equal loss with prices, or time on one device",
        "decode": "needed: seconds per generated token with and without it at equal shape",
    }[currency]
    return f"{text}; {remedy}"
