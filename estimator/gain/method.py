"""Evidence -> CEG(C) with intervals, class and status: the estimate.

One algorithm is a curve in log10 C (`curve`) through what its studies say (`study`), mixed over how well they agree and
how fast the gain changes (`prior.SCENARIOS`). A combination is the sum of its parts plus an interaction
(`interaction`). Everything is closed form: the same question and evidence give the same digits.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain import algorithms
from cegain.common import mixture, verdict
from cegain.common.arrays import Array
from cegain.common.mixture import Mixture
from cegain.common.text import number
from cegain.common.verdict import FAR_DECADES, FAR_WIDTH
from cegain.gain import bounds, capped, contrasts, interaction, prior
from cegain.gain.answer import GIVEN, OWN, Estimate
from cegain.gain.curve import RANGE, TAPER, Curve, Posterior, posterior, variogram
from cegain.gain.interaction import Joint
from cegain.gain.study import X0, Rows, Spread, keep_rows
from cegain.tables.published_gains import PublishedGain, is_own

MAX_SLOPE_SD = 1.0
"""A slope less certain than this (ln CEG per decade) is not identified."""
TOY_WEIGHT = 1 / 3
"""What toy runs say of how fast a gain changes counts so much beside larger runs, and only their largest say it: gains
change faster among toys than later. Assumed."""
_SAME_PLACE = 1e-3
"""Decades between two budgets that are one."""
MAX_ROWS = 20_000
"""Of an algorithm: with more, what moves an answer would take seconds to find, and is left out."""


class Prepared(NamedTuple):
    """Everything about a question that does not depend on the budget; no `curves` when `missing` says what is not
    there. `joint` is how the parts of a stack interact; `priors` [k] the weights of the scenarios of each part before
    its rows were seen.
    """

    algorithms: tuple[str, ...]
    baselines: tuple[str, ...]
    currency: str
    questions: tuple[contrasts.QuestionRows, ...]
    curves: tuple[Curve, ...]
    joint: Joint
    missing: str
    notes: tuple[str, ...]
    priors: tuple[Array, ...] = ()
    spread: Spread | None = None


def prepare(
    rows: Sequence[PublishedGain],
    names: Sequence[str],
    baselines: Sequence[str],
    *,
    currency: str,
    spread: Spread,
    remarks: Sequence[str] = (),
    fitted: Mapping[tuple[str, str, str], Curve] | None = None,
    where: Mapping[str, float] = MappingProxyType({}),
) -> Prepared:
    """Fit the curves of a checked question: `names` canonical, sorted and distinct, `baselines` in their order.

    `fitted` are curves of the same rows by algorithm, baseline and currency, which are not fitted again. `where` may
    say `experts` (all over active ones) and `seq_len` (tokens).
    """
    questions, curves, missing, notes = [], [], [], list(remarks)
    priors = []
    for name, baseline in zip(names, baselines, strict=True):
        entry = algorithms.get(name)
        question = contrasts.question(rows, name, baseline, currency)
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
            priors.append(prior.prior_weights())
            question = contrasts.unused(question, exact)
        elif entry.unlocking or question.rows is None:
            missing.append(_missing(name, baseline, currency, question, spread))
        else:
            weights = prior.scenario_weights(name, baseline, currency)
            priors.append(weights)
            curve = (fitted or {}).get((name, baseline, currency)) or fit_curve(question, spread, weights, where=where)
            if curve is None:
                missing.append(_missing(name, baseline, currency, question, spread))
            else:
                curves.append(curve)
                if curve.stretch > 1.0:
                    notes.append(
                        f"the rows of {name} contradict each other: they lie {curve.stretch:.2g} times further apart "
                        "than could be, and all widths are enlarged by that"
                    )
        questions.append(question)
        notes += _misspelt(question, baseline)
    joint = interaction.NONE
    if not missing:
        parts = zip(names, baselines, curves, strict=True)
        # What two caps leave together is counting, and no interaction may lift it.
        inexact = [(name, baseline) for name, baseline, curve in parts if not curve.exact and not curve.capped]
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
        tuple(priors),
        spread,
    )


def evaluate(
    prepared: Prepared, flops: float, *, interval: float, thresholds: Iterable[float], sha256: str = "", seed: int = 0
) -> Estimate:
    """Answer a prepared question at one budget (FLOP)."""
    missing = prepared.missing or toys_alone(prepared, flops)
    if missing:
        return refused(prepared, missing, flops, interval=interval, sha256=sha256, seed=seed)
    mean, predictive = distributions(prepared, flops)
    slope = slope_of(prepared)
    answer = answered(prepared, flops, mean, predictive, interval=interval, sha256=sha256, seed=seed)
    classes, lacks = class_of(prepared)
    far = answer.status != "ok"  # the interval is the answer then, and probabilities would say more than is known
    silent = far or any(curve.capped for curve in prepared.curves)
    above = {t: min(1.0, max(0.0, 1.0 - predictive.cdf(math.log(t / flops)))) for t in thresholds}
    return dataclasses.replace(
        answer,
        growth_per_decade=math.exp(slope.quantile(0.5)),
        growth_interval=slope.factors(interval),
        label="undetermined" if lacks else verdict.label(classes),
        label_lacks=lacks,
        classes=None if silent else classes,
        prior_classes=None if silent else prior_classes(prepared),
        above=None if far or prepared.currency != "flop" else above,
        cap=caps(prepared, flops),
        interaction=prepared.joint.at(flops) if prepared.joint.target else None,
    )


def label_of(prepared: Prepared) -> str:
    """The class, `undetermined` where none has its probability or the runs span too little."""
    classes, lacks = class_of(prepared)
    return "undetermined" if lacks else verdict.label(classes)


def toys_alone(prepared: Prepared, flops: float) -> str:
    """What is wrong where nothing but toy runs far below a budget would answer; empty where that is not so."""
    alone = [
        f"{name}: only toy runs, up to {number(10**curve.toys)} FLOP, none within {TAPER[1]:g} decades of the budget"
        for name, curve in zip(prepared.algorithms, prepared.curves, strict=True)
        if unanswered(curve, flops)
    ]
    return "; ".join([*alone, "needed: larger runs with and without it (--evidence)"]) if alone else ""


def slope_of(prepared: Prepared) -> Mixture:
    """Average d ln CEG / d log10 C over `curve.RANGE`."""
    return mixture.total([c.slope() for c in prepared.curves])


def class_of(prepared: Prepared) -> tuple[dict[str, float], str]:
    """Probabilities of the classes by the average slope, and what a label lacks (`lacks_label`)."""
    return verdict.classes_of(slope_of(prepared)), lacks_label(prepared)


def lacks_label(prepared: Prepared) -> str:
    """What a label lacks: nothing where none is capped, the runs of each part span two decades of `curve.RANGE`, and
    they say more of the slope than was assumed before them.
    """
    if any(curve.capped for curve in prepared.curves):
        return "counting caps the gain"
    spans = [curve.span(*RANGE) for curve in prepared.curves if not curve.exact]
    if min(spans, default=math.inf) < verdict.CLASS_DECADES:
        return f"runs of one group, or of two at either end, cover {min(spans):.1f} of these decades: a label takes two"
    sd, before = slope_of(prepared).sd(), _slope_before(prepared).sd()
    if before > 0 and sd > verdict.LEARNT * before:
        return "its rows say little that was not assumed before them"
    return ""


def prior_classes(prepared: Prepared) -> dict[str, float]:
    """Probabilities of the classes before any row is seen."""
    return verdict.classes_of(_slope_before(prepared))


def _slope_before(prepared: Prepared) -> Mixture:
    """Average d ln CEG / d log10 C over `curve.RANGE` before any row is seen."""
    assert prepared.spread is not None
    slopes = [
        mixture.point(0.0) if curve.exact else prior_slope(prepared.spread, weights)
        for curve, weights in zip(prepared.curves, prepared.priors, strict=True)
    ]
    return mixture.total(slopes)


def prior_slope(spread: Spread, weights: Array) -> Mixture:
    """Average slope over `curve.RANGE` before any row is seen; weights [k] of the scenarios."""
    decades = RANGE[1] - RANGE[0]
    slope_sd = prior.finite(spread).slope_sd * math.sqrt(float(variogram(np.array(decades)))) / decades
    return Mixture(weights, np.zeros(len(weights)), prior.SLOPES * slope_sd)


def caps(prepared: Prepared, flops: float) -> float | None:
    """The largest gain that counting allows (factor), of a stack the product of its parts'; None without a limit."""
    inexact = [curve for curve in prepared.curves if not curve.exact]
    if not inexact or any(curve.capped is None for curve in inexact):
        return None
    return math.exp(sum(float(curve.ln_cap(np.array([flops]))[0]) for curve in inexact))


def distributions(prepared: Prepared, flops: float) -> tuple[Mixture, Mixture]:
    """ln CEG at a budget: in the average setting, and as a new study would find it."""
    mean = [curve.mean(flops) for curve in prepared.curves]
    predictive = [curve.new_study(average) for curve, average in zip(prepared.curves, mean, strict=True)]
    if prepared.joint.target:
        joint = prepared.joint.at(flops)
        mean.append(joint.mean)
        predictive.append(joint.predictive)
    return mixture.total(mean), mixture.total(predictive)


def average(prepared: Prepared, flops: float) -> Mixture:
    """ln CEG at a budget in the average setting."""
    mean = [curve.mean(flops) for curve in prepared.curves]
    if prepared.joint.target:
        mean.append(prepared.joint.at(flops).mean)
    return mixture.total(mean)


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
    tails = {content: ((1 - content) / 2, (1 + content) / 2) for content in (0.9, 0.5, interval)}
    wanted = list(dict.fromkeys([0.5, *(p for ends in tails.values() for p in ends)]))
    found = dict(zip(wanted, predictive.quantiles(wanted), strict=True))
    central = {content: (math.exp(found[low]), math.exp(found[high])) for content, (low, high) in tails.items()}
    low90, high90 = (found[p] for p in tails[0.9])
    mean_middle, mean_low, mean_high = map(math.exp, mean.quantiles([0.5, *tails[interval]]))
    reason = ""
    if math.isnan(decades):
        reason = "its evidence has no run at a stated compute"
    elif all(_bounds_alone(question) for question in prepared.questions if question.rows is not None) and any(
        question.rows is not None for question in prepared.questions
    ):
        reason = "its evidence is bounds, and no measurement"
    elif decades > FAR_DECADES:
        reason = f"{decades:.1f} decades from the nearest run (more than {FAR_DECADES:g})"
    elif high90 - low90 > math.log(FAR_WIDTH):
        reason = f"the 90% interval spans a factor of {math.exp(high90 - low90):.3g} (more than {FAR_WIDTH:g})"
    return dataclasses.replace(
        refused(prepared, reason, flops, interval=interval, sha256=sha256, seed=seed),
        status="far_extrapolation" if reason else "ok",
        median=math.exp(found[0.5]),
        predictive=central[interval],
        predictive_50=central[0.5],
        predictive_90=central[0.9],
        mean_median=mean_middle,
        mean_interval=(mean_low, mean_high),
        decades=decades,
    )


def _misspelt(question: contrasts.QuestionRows, baseline: str) -> list[str]:
    """Notes on rows whose baseline looks like the one asked about, but is another."""
    others = {u.row.baseline for u in question.used if u.contrast >= 0 and not u.fixes_level}
    others = {other for other in others if not other.startswith(f"{baseline}_")}  # a variant, named so on purpose
    near = difflib.get_close_matches(baseline, others, cutoff=0.85)
    return [f"rows against {name!r} set no level: did you mean {baseline!r}" for name in near]


def _missing(name: str, baseline: str, currency: str, question: contrasts.QuestionRows, spread: Spread) -> str:
    """What would have to exist for an answer."""
    entry = algorithms.get(name)
    if entry.unlocking:
        return f"{name}: {entry.unlocking}"
    text = f"{name}: no usable gain in {currency} against {baseline}"
    if any(u.fixes_level for u in question.used) and not math.isfinite(spread.slope_sd):
        return f"{text}: without the shared slope prior its rows must come from two budgets or more"
    others = sorted({u.row.baseline for u in question.used if u.contrast >= 0 and not u.fixes_level})
    if others:
        text += f" (there is some against {', '.join(others)})"
    unconverted = sorted({u.row.currency for u in question.used if u.contrast < 0})
    if unconverted:
        text += f"; {sum(u.contrast < 0 for u in question.used)} row(s) in {', '.join(unconverted)} cannot be converted"
    remedy = {
        "flop": "needed: runs with and without it at known FLOP (--evidence)",
        "time": "needed: time to equal loss, or kernel times of both on one device",
        "usd": "needed: time to equal loss with prices, or time on one device",
        "decode": "needed: seconds per generated token with and without it at equal shape",
    }[currency]
    return f"{text}; {remedy}"


def fit_curve(
    question: contrasts.QuestionRows,
    spread: Spread,
    weights: Array,
    *,
    frozen: bool = False,
    where: Mapping[str, float] = MappingProxyType({}),
) -> Curve | None:
    """The curve that the rows of one question support; None when none of them fixes its level or its slope.

    Args:
        question: rows of one algorithm, baseline and currency.
        spread: scatter and slope settings; `slope_sd` of inf leaves the slope to the rows alone.
        weights: [k] of the `prior.SCENARIOS`, sum 1, before the rows are seen; `frozen`: after them, and final.
        where: `experts` and `seq_len` of the question; what it leaves out is at its reference.
    """
    if question.rows is None or not question.rows.fixes_level.any():
        return None
    rows, heard = bounds.heard(question.rows, prior.finite(spread))
    if not frozen:
        weights = prior.updated(weights, _likelihoods(rows, spread))
    large, level = _large(rows), rows.fixes_level[rows.contrast_of_row]
    kept = prior.that_matter(weights)
    weights, scatter = weights[kept] / weights[kept].sum(), prior.SCATTERS[kept]
    above, below = posteriors(rows, spread, kept)
    algorithm = question.used[0].row.algorithm
    curve = Curve(
        weights,
        above,
        below,
        np.sqrt(np.square(scatter * spread.study_level) + spread.contrast_level**2 + contrasts.ROW_SD**2),
        np.log10(contrasts.budgets(question.used)),
        float(rows.x[~large & level].max()) + X0 if (~large & level).any() else -math.inf,
        contrasts.covariates_where(algorithm, where),
        (algorithm, where.get("seq_len", capped.SEQ_LEN)) if question.capped else None,
        kept,
        rows,
        heard,
        tuple(sorted({u.row.seq_len for u in question.used if u.fixes_level and u.row.seq_len > 0}))
        if question.capped and capped.is_pattern(algorithm)
        else (),
        tuple(whose for _, whose in contrasts.runs(question.used)),
        prior.contradiction(keep_rows(rows, large) if below is not None else rows, spread, *_likeliest(weights, kept)),
    )
    if not math.isfinite(spread.slope_sd):
        low, high = curve.reach[:1], curve.reach[-1:]
        if not len(low) or high - low < _SAME_PLACE or curve.slope(low[0], high[0]).sds.max() > MAX_SLOPE_SD:
            return None
    return curve


def _likeliest(weights: Array, kept: NDArray[np.intp]) -> tuple[float, float]:
    """Scatter and slope of the scenario of most weight."""
    best = int(np.argmax(weights))
    return float(prior.SCATTERS[kept][best]), float(prior.SLOPES[kept][best])


def _likelihoods(rows: Rows, spread: Spread) -> Array:
    """ln likelihood [k] of the rows in every scenario, toys beside larger runs counting `TOY_WEIGHT`."""
    large, level = _large(rows), rows.fixes_level[rows.contrast_of_row]
    if large.all() or not (large & level).any():
        return prior.log_likelihoods(rows, spread)
    alone = prior.log_likelihoods(keep_rows(rows, large), spread)
    beside = prior.log_likelihoods(keep_rows(rows, large | _largest(rows)), spread)
    return (1 - TOY_WEIGHT) * alone + TOY_WEIGHT * beside


def _large(rows: Rows) -> NDArray[np.bool_]:
    """[n] rows of studies that are no toys."""
    return np.asarray(~rows.toy[rows.study_of_contrast[rows.contrast_of_row]])


def posteriors(
    rows: Rows, spread: Spread, kept: NDArray[np.intp], readings: Array | None = None
) -> tuple[Posterior, Posterior | None]:
    """`Curve.above` and `Curve.below`, in the scenarios `kept`."""
    scatter, slope = prior.SCATTERS[kept], prior.SLOPES[kept]
    whole = posterior(rows, spread, scatter, slope, readings)
    large, level = _large(rows), rows.fixes_level[rows.contrast_of_row]
    if not ((large & level).any() and (~large & level).any()):
        return whole, None
    some = None if readings is None else readings[large]
    return posterior(keep_rows(rows, large), spread, scatter, slope, some), whole


def _bounds_alone(question: contrasts.QuestionRows) -> bool:
    """Whether no row that sets the level is more than a bound."""
    fixing = [u.row for u in question.used if u.contrast >= 0 and u.fixes_level and not is_own(u.row)]
    return bool(fixing) and all(row.ceg in (row.low, row.high) for row in fixing)


def unanswered(curve: Curve, flops: float) -> bool:
    """Whether nothing but toy runs far below a budget would answer."""
    return curve.only_toys and math.log10(flops) - curve.toys > TAPER[1]


def _largest(rows: Rows) -> NDArray[np.bool_]:
    """The largest run of each contrast [n]: of toys all that tells how far a gain strays, since it changes faster among
    them than it does later."""
    of = rows.contrast_of_row
    return np.asarray(rows.x == np.maximum.reduceat(rows.x, rows.contrast)[of])


def exact_curve() -> Curve:
    """CEG = 1 at every C, for an algorithm that computes the same function with the same FLOP, or against itself."""
    empty = np.zeros((0,))
    return Curve(empty, None, None, empty, empty, -math.inf, empty)


def kind(row: PublishedGain, shipped: Collection[PublishedGain] | None = None) -> str:
    """`own runs`, `given by --evidence` (rows that are not `shipped`; None: all are), or `published` and the basis."""
    if is_own(row):
        return OWN
    return GIVEN if shipped is not None and row not in shipped else f"published {row.basis}"
