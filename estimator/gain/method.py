"""Evidence -> CEG(C) with intervals, class and status: the estimate.

One algorithm is a curve in log10 C that its studies pin where they stand (`study`, `chain`), mixed over how well
they agree (`prior.SCENARIOS`). A combination is the sum of its parts plus an interaction (`interaction`). Everything is
closed form: the same question and evidence give the same digits.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cegain import algorithms
from cegain.common import mixture
from cegain.common.arrays import Array
from cegain.common.mixture import Mixture
from cegain.common.verdict import FAR_DECADES, FAR_WIDTH, classify
from cegain.gain import contrasts, interaction, prior
from cegain.gain.answer import GIVEN, OWN, Estimate
from cegain.gain.chain import Curve
from cegain.gain.interaction import Joint
from cegain.gain.study import Spread
from cegain.tables.published_gains import PublishedGain, is_own

MAX_SLOPE_SD = 1.0
"""A slope less certain than this (ln CEG per decade) is not identified."""
MAX_ROWS = 20_000
"""Of an algorithm: with more, leaving out each kind in turn would take seconds, and no share is given."""
_CONTENT = 0.9


class Prepared(NamedTuple):
    """Everything about a question that does not depend on the budget; no `curves` when `missing` says what is not
    there. `joint` is how the parts of a stack interact.
    """

    algorithms: tuple[str, ...]
    baselines: tuple[str, ...]
    currency: str
    questions: tuple[contrasts.QuestionRows, ...]
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
    fitted: Mapping[tuple[str, str, str], Curve] | None = None,
) -> Prepared:
    """Fit the curves of a checked question: `names` canonical, sorted and distinct, `baselines` in their order.

    The shipped rows tell how well the studies of an algorithm agree (`prior.frozen_weights`); that holds for `rows`
    only if they have some of them. `shipped` are these rows where `rows` may lack them; None: all are there. `fitted`
    are curves of the same rows by algorithm, baseline and currency, which are not fitted again.
    """
    questions, curves, missing, notes = [], [], [], list(remarks)
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
            question = contrasts.unused(question, exact)
        elif entry.unlocking or question.rows is None:
            missing.append(_missing(name, baseline, currency, question, spread))
        else:
            weights = prior.frozen_weights(name, baseline, currency)
            if shipped is not None and not any(u.row in shipped for u in question.used):
                weights = prior.prior_weights()
            curve = (fitted or {}).get((name, baseline, currency)) or fit_curve(question, spread, weights)
            if curve is None:
                missing.append(_missing(name, baseline, currency, question, spread))
            else:
                curves.append(curve)
                if curve.inflation > 1:
                    usual = f"{curve.inflation:g} times the usual scatter is assumed"
                    notes.append(f"the rows of {name} contradict each other: {usual}")
        questions.append(question)
        notes += _misspelt(question, baseline)
    joint = interaction.NONE
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
        growth_interval=slope.factors(interval),
        label=label,
        classes=classes,
        above=above if prepared.currency == "flop" else None,
        interaction=prepared.joint.at(flops) if prepared.joint.target else None,
    )


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
        reason = "the compute of its evidence is not known"
    elif decades > FAR_DECADES:
        reason = f"{decades:.1f} decades past the evidence (more than {FAR_DECADES:g})"
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
    near = difflib.get_close_matches(baseline, others, cutoff=0.85)
    return [f"rows against {name!r} set no level: did you mean {baseline!r}?" for name in near]


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


def fit_curve(question: contrasts.QuestionRows, spread: Spread, weights: Array) -> Curve | None:
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


def kind(row: PublishedGain, shipped: Collection[PublishedGain] | None = None) -> str:
    """`own runs`, `given by --evidence` (rows that are not `shipped`; None: all are), or `published` and the basis."""
    if is_own(row):
        return OWN
    return GIVEN if shipped is not None and row not in shipped else f"published {row.basis}"


def shares(
    rows: Sequence[PublishedGain],
    names: Sequence[str],
    baselines: Sequence[str],
    budgets: Sequence[float],
    *,
    currency: str,
    spread: Spread,
    shipped: Collection[PublishedGain] | None,
) -> list[dict[str, float]]:
    """Which kinds of evidence an answer rests on: the share of each at every budget, largest first; sum 1, or empty.

    The information about the level at a budget is 1 / (width of the 90% interval of ln CEG in the average setting)^2.
    What an answer would lose of it without the rows of one kind, over the sum of these losses, is that kind's share.
    Rows of other kinds keep the settings that all rows gave them. A kind that only repeats what others say loses
    little, and has a small share; where nothing would be lost, or the answer rests on no rows, there are none.

    Args:
        rows: all evidence.
        names, baselines, currency, spread: of the question, as in `prepare`.
        budgets: FLOP.
        shipped: rows that come with the package; None: all of them do.
    """
    parts = set(names)
    about = [row for row in rows if parts.intersection(row.algorithm.split("+"))]
    kinds = sorted({kind(row, shipped) for row in about})
    empty: list[dict[str, float]] = [{} for _ in budgets]
    if not kinds or len(about) > MAX_ROWS:
        return empty

    def information(without: str | None) -> list[float]:
        kept = [row for row in about if kind(row, shipped) != without]
        prepared = prepare(kept, names, baselines, currency=currency, spread=spread)
        return [_information(prepared, budget) for budget in budgets]

    whole = information(None)
    if len(kinds) == 1:
        return [{kinds[0]: 1.0} if total else {} for total in whole]
    left = {name: information(name) for name in kinds}
    found = []
    for i, total in enumerate(whole):
        lost = {name: max(0.0, total - left[name][i]) for name in kinds}
        together = math.fsum(lost.values())
        shared = {name: value / together for name, value in lost.items() if value > 0}
        found.append(dict(sorted(shared.items(), key=lambda item: (-item[1], item[0]))))
    return found


def _information(prepared: Prepared, budget: float) -> float:
    """1 / width^2; 0 without an answer, and where the answer is exact and rests on no rows."""
    answer = evaluate(prepared, budget, interval=_CONTENT, thresholds=())
    if answer.mean_interval is None:
        return 0.0
    width = math.log(answer.mean_interval[1] / answer.mean_interval[0])
    return width**-2.0 if width > 0 else 0.0
