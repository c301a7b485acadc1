"""`ceg classify`: the source paper's classes and gains beside ours, and where they differ and why, from the data.

Paper: arXiv 2505.04075v1, Table I (classes; here the registry's `paper_class`) and Table II (gains). A class of ours is
by the slope of ln CEG over 1e18-1e26 FLOP (`verdict.classify`). What would settle an open class is found by trying:
made-up ladders that find what is expected today are added to the evidence until the class has its probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from cegain import algorithms
from cegain.common import verdict
from cegain.common.arrays import Array
from cegain.common.verdict import CLASS_SLOPE, UNDETERMINED
from cegain.gain import contrasts, method, prior, question
from cegain.gain.answer import Estimate
from cegain.gain.curve import RANGE, Curve
from cegain.paper.tables import Claim, load_table2
from cegain.tables.published_gains import Evidence, PublishedGain, is_own

LOW, HIGH = 1e18, 1e24
"""Budgets (FLOP) whose gains are compared: the paper's own, and a frontier run's."""
AGREES, DIFFERS, OPEN, NO_CLASS, NOT_STUDIED = "same", "differs", "open", "no answer", "not in the paper"
_LADDER_FROM, _LADDER_DECADES, _LADDERS = 1e18, (2, 3, 4), (1, 2, 3, 5, 8)
"""Made-up ladders: their lowest rung (FLOP), decades, numbers of them; cheapest first, by what a top rung costs."""


_SAME = 1e-6
"""|ln gain| below which two sides are one."""


class Settles(NamedTuple):
    """So many further ladders, from `_LADDER_FROM` FLOP over so many decades, would give `label` a `probability`."""

    ladders: int
    decades: int
    label: str
    probability: float


class Verdict(NamedTuple):
    """One algorithm: what the paper says, what we find, and why they differ.

    claim: the paper's Table II, if it has the algorithm; classes: probabilities by the average slope from 1e18 to 1e26
    FLOP, None without an answer; lacks: why there is no label, empty where there can be one; low and high: our answers
    at the two budgets; mean [2] and covariance [2, 2] of ln CEG at both in the average setting, None without an answer,
    where the gain is capped, and in other currencies than flop; why: sentences from the data.
    """

    name: str
    paper_class: str
    claim: Claim | None
    verdict: str
    classes: dict[str, float] | None
    prior_classes: dict[str, float] | None
    growth: tuple[float, float, float] | None
    lacks: str
    low: Estimate
    high: Estimate
    mean: Array | None
    covariance: Array | None
    settles: Settles | None
    why: tuple[str, ...]

    @property
    def label(self) -> str:
        """Our class, or `unlocking`, or `no answer`."""
        if self.classes is not None:
            return "undetermined" if self.lacks and not self.by_construction else verdict.label(self.classes)
        return "unlocking" if algorithms.get(self.name).unlocking else NO_CLASS

    @property
    def by_construction(self) -> bool:
        """Whether there was nothing to find out: it unlocks, or its gain is 1 by construction (that of a decoded token
        where the model of speeds has the same on both sides, too).
        """
        entry = algorithms.get(self.name)
        if entry.unlocking or (entry.exact_in_flop and self.low.currency == "flop"):
            return True
        medians = [e.median for e in (self.low, self.high) if e.median is not None]
        return self.low.currency == "decode" and bool(medians) and all(abs(math.log(m)) < _SAME for m in medians)


def classify(tables: Evidence, low: float = LOW, high: float = HIGH, currency: str = "flop") -> list[Verdict]:
    """Every algorithm, those of the paper first; gains at two budgets (FLOP), low below high."""
    claims = {claim.algorithm: claim for claim in load_table2()}
    names = sorted(algorithms.names(), key=lambda name: (algorithms.get(name).paper_class == "not_studied", name))
    return [_verdict(tables, name, claims.get(name), (low, high), currency) for name in names]


def _verdict(tables: Evidence, name: str, claim: Claim | None, budgets: tuple[float, float], currency: str) -> Verdict:
    entry = algorithms.get(name)
    asked = question.Asked(tables, (name,), (entry.replaces[0],), currency)
    low, high = map(asked.answer, budgets)
    prepared = asked.prepared
    slope = None if entry.unlocking else asked.slope()
    mean = covariance = settled = classes = prior_classes = growth = None
    lacks = ""
    if slope is not None:
        classes, lacks = verdict.classes_of(slope), asked.lacks_label()
        capped = any(curve.capped for curve in prepared.curves)
        prior_classes = method.prior_classes(prepared) if prepared.curves and not capped else None
        growth = (math.exp(slope.quantile(0.5)), *slope.factors(0.9))
    if prepared.curves and currency == "flop":
        if not prepared.curves[0].capped:  # the moments of a curve that is cut off are not those of its answers
            mean, covariance = prepared.curves[0].together(*budgets)
        if (
            not prepared.curves[0].exact
            and not prepared.curves[0].capped
            and (lacks or verdict.label(classes or {"": 0.0}) == "undetermined")
        ):
            settled = settles(prepared.questions[0], prepared.curves[0], name)
    found = Verdict(
        name,
        entry.paper_class,
        claim,
        "",
        classes,
        prior_classes,
        growth,
        lacks,
        low,
        high,
        mean,
        covariance,
        settled,
        (),
    )
    if entry.paper_class == "not_studied":
        judged = NOT_STUDIED
    elif entry.unlocking:
        judged = AGREES
    elif classes is None:
        judged = NO_CLASS
    else:
        judged = {"undetermined": OPEN, entry.paper_class: AGREES}.get(found.label, DIFFERS)
    found = found._replace(verdict=judged)
    return found._replace(why=tuple(_why(found)))


def settles(question: contrasts.QuestionRows, curve: Curve, name: str) -> Settles | None:
    """The cheapest further ladders, rungs half a decade apart, that would decide a class; None: none of those tried.

    Each is a study of its own that finds the mean curve's medians, read to `contrasts.ROW_SD`.
    """
    baseline = algorithms.get(name).replaces[0]
    rows = [used.row for used in question.used]
    weights = prior.scenario_weights(name, baseline, "flop")
    for decades in _LADDER_DECADES:
        budgets = [_LADDER_FROM * 10 ** (i / 2) for i in range(2 * decades + 1)]
        rungs = [_made_up(name, baseline, c, curve) for c in budgets]
        for n in _LADDERS:
            more = [row._replace(study=study) for study in map("ladder {}".format, range(n)) for row in rungs]
            fitted = method.fit_curve(
                contrasts.question([*rows, *more], name, baseline, "flop"), prior.frozen(), weights
            )
            if fitted is None:
                continue
            label, classes = verdict.classify(fitted.slope())
            if label != "undetermined" and fitted.span(*RANGE) >= verdict.CLASS_DECADES:
                return Settles(n, decades, label, classes[label])
    return None


def _made_up(name: str, baseline: str, flops: float, curve: Curve) -> PublishedGain:
    """A rung that finds the mean curve's median; the ladder it stands in gives it a study."""
    expected = math.exp(curve.mean(flops).quantile(0.5))
    nan = math.nan
    return PublishedGain(
        name, "made up", baseline, "", flops, "useful", expected, nan, nan, nan, "flop", nan, "measured", "made up", ""
    )


def _why(v: Verdict) -> list[str]:
    """What the class rests on, and what would settle it; empty where the paper and we agree."""
    e, entry = v.low, algorithms.get(v.name)
    if v.verdict == AGREES or entry.unlocking:
        return []
    if v.classes is None or v.growth is None:
        return [e.reason]
    fixing = [u for q in e.questions for u in q.used if u.fixes_level and u.contrast >= 0]
    if v.by_construction:
        return [f"its gain in {_named(e)} is 1 by construction"]
    cut = math.exp(CLASS_SLOPE)
    middle, low, high = v.growth
    inside = [label for label, a, b in _BANDS if low < b and high > a]
    growth = f"growth {middle:.2f}x per decade, 90% {low:.2f}x to {high:.2f}x: "
    if len(inside) == 1:
        growth += f"{inside[0]} alone"
    else:
        growth += f"{' or '.join(inside)} (the classes part at {1 / cut:.2f}x and {cut:.2f}x)"
    if v.paper_class in v.classes and v.low.cap is None:
        growth += f"; the paper's class has {v.classes[v.paper_class]:.2f}"
        if v.prior_classes is not None:
            growth += f", and had {v.prior_classes[v.paper_class]:.2f} before any row"
    lines = [growth, _rests_on(fixing)] if fixing else [growth]
    if v.lacks:
        lines.append(f"no label: {v.lacks}")
    if (
        v.claim is not None
        and v.claim.currency != e.currency
        and not (e.currency == "flop" and v.claim.currency == "flop")
    ):
        lines.append(f"the paper's figure is a gain in {v.claim.currency.replace('_', ' x ')}, ours are in {_named(e)}")
    if v.label == "undetermined" and e.currency == "flop" and v.low.cap is None:
        lines.append(_to_settle(v.settles))
    return lines


def _named(e: Estimate) -> str:
    return "FLOP" if e.currency == "flop" else e.currency


_SHORT = {"dependent": "dep", "independent": "indep"}
_BANDS = (
    ("fading", 0.0, math.exp(-CLASS_SLOPE)),
    ("independent", math.exp(-CLASS_SLOPE), math.exp(CLASS_SLOPE)),
    ("dependent", math.exp(CLASS_SLOPE), math.inf),
)


def _rests_on(fixing: Sequence[contrasts.UsedRow]) -> str:
    """Studies, rows, budgets, and how much of them lies where a class is meant to hold."""
    from cegain.common.text import counted, number

    groups = {contrasts.laboratory(u.row) for u in fixing}
    own = any(is_own(u.row) for u in fixing)
    flops = contrasts.budgets(fixing)
    text = f"{counted(len(fixing), 'row')} of {counted(len(groups), 'independent group')}" + ", one of them ours" * own
    if not flops:
        return f"{text}, compute not stated"
    inside = [c for c in flops if 10 ** RANGE[0] <= c <= 10 ** RANGE[1]]
    text += f", {number(flops[0])} to {number(flops[-1])} FLOP"
    if not inside:
        return f"{text}; none between 1e18 and 1e26, where a class is meant to hold"
    decades = math.log10(inside[-1] / inside[0])
    return f"{text}; {len(inside)} of them, over {decades:.1f} decades, between 1e18 and 1e26"


def _to_settle(ladders: Settles | None) -> str:
    if ladders is None:
        most, longest = _LADDERS[-1], _LADDER_DECADES[-1]
        return (
            f"would settle it: not even {most} further ladders over {longest} decades that found what is expected "
            "today; its slope is near a class's edge, or its studies tilt apart"
        )
    number = "a further ladder" if ladders.ladders == 1 else f"{ladders.ladders} further ladders"
    return (
        f"would settle it: {number} of {ladders.decades} decades from 1e18 FLOP that found what is expected today "
        f"({ladders.label}, {ladders.probability:.2f})"
    )


def document(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """As JSON: gains as factors, moments of ln CEG at the two budgets in the average setting."""
    first = verdicts[0]

    def end(e: Estimate) -> dict[str, Any]:
        keys = ("status", "reason", "median", "predictive", "mean_median", "mean_interval")
        return {"flops": e.flops} | {key: getattr(e, key) for key in keys}

    return {
        "schema": "ceg.classify",
        "schema_version": 1,
        "paper": "arXiv 2505.04075v1, Tables I and II",
        "class_slope_ln_per_decade": CLASS_SLOPE,
        "undetermined_below": UNDETERMINED,
        "interval_probability": 0.9,
        "currency": first.low.currency,
        "evidence_sha256": first.low.evidence_sha256,
        "algorithms": [
            {
                "algorithm": v.name,
                "paper_class": v.paper_class,
                "paper_gain": None if v.claim is None else _claim(v.claim),
                "class": v.label,
                "class_probabilities": None if v.low.cap is not None else v.classes,
                "class_probabilities_prior": v.prior_classes,
                "class_lacks": v.lacks,
                "by_construction": v.by_construction,
                "verdict": v.verdict,
                "growth_factor_per_decade": None if v.growth is None else v.growth[0],
                "growth_factor_per_decade_interval": None if v.growth is None else list(v.growth[1:]),
                "low": end(v.low),
                "high": end(v.high),
                "ln_ceg_mean": None if v.mean is None else v.mean.tolist(),
                "ln_ceg_covariance": None if v.covariance is None else v.covariance.tolist(),
                "settles": None if v.settles is None else v.settles._asdict(),
                "why": list(v.why),
            }
            for v in verdicts
        ],
    }


def _claim(claim: Claim) -> dict[str, Any]:
    gains = {key: getattr(claim, key) for key in ("ceg", "low", "high")}
    return {key: gain if math.isfinite(gain) else None for key, gain in gains.items()} | {"currency": claim.currency}


def print_report(console: Any, verdicts: Sequence[Verdict]) -> None:
    """The table, and why we differ."""
    from cegain.common.console import empty_table
    from cegain.common.text import budget, number, wrap

    low, high = verdicts[0].low.flops, verdicts[0].high.flops
    currency = _named(verdicts[0].low)
    title = f"Classes and gains: the source paper's (arXiv 2505.04075, Tables I and II) and ours, in {currency}"
    ours = ("class", "dep/ind/fad", "per decade", f"at {budget(low)}", f"at {budget(high)}")
    columns = ("algorithm", "paper", "its gain", *ours, "verdict")
    shown = empty_table(columns, left=columns, wrapped=["its gain"], title=title, pad_edge=False, padding=(0, 1, 0, 0))
    for v in verdicts:
        if v.classes is None or v.growth is None:
            continue
        cells = [v.name, _SHORT.get(v.paper_class, "-"), _gain_there(v.claim), v.label]
        # A capped gain has no probabilities: its curve is of how far it stays below the cap.
        cells.append("capped" if v.low.cap is not None else "/".join(f"{p:.2f}" for p in v.classes.values()))
        cells.append("{:.2f}-{:.2f}x".format(*v.growth[1:]))
        for e in (v.low, v.high):
            if e.median is None or e.predictive is None:
                cells.append("no answer")
                continue
            gains = "-".join(number(end) for end in e.predictive) + "x"
            exactly = e.predictive[0] == e.predictive[1]
            level = "1 exactly" if exactly else f"{number(e.median)} ({gains})"
            cells.append(level if e.status == "ok" else f"({gains}) far")
        shown.add_row(*cells, "" if v.verdict == NOT_STUDIED else v.verdict)
    console.print(shown)
    console.print(
        "90% intervals; gains: median and what a new study would find; far: far extrapolated, interval only. A class\n"
        "is by the average growth from 1e18 to 1e26 FLOP; a label takes 0.7, and runs over two of these decades.\n"
    )
    unlocking = [v.name for v in verdicts if algorithms.get(v.name).unlocking]
    console.print(
        wrap(f"Unlocking, in the paper and here, with no gain to fit: {', '.join(unlocking)}.", console.width)
    )
    for v in verdicts:
        if v.why and v.verdict != NOT_STUDIED:
            console.print(wrap(f"{v.name}, {v.verdict}: {'; '.join(v.why)}.", console.width))
    studied = [v for v in verdicts if v.verdict != NOT_STUDIED]
    given = [v for v in studied if v.by_construction]
    found = [v.verdict for v in studied if not v.by_construction]
    console.print(
        f"\nOf {len(studied)} that the paper classes, {len(given)} had nothing to find out (unlocking, or 1 by "
        f"construction). Of the other {len(found)}: {found.count(AGREES)} the same, {found.count(DIFFERS)} differ, "
        f"{found.count(OPEN)} open, {found.count(NO_CLASS)} without an answer."
    )


def _gain_there(claim: Claim | None) -> str:
    if claim is None:
        return ""
    value = f">= {claim.low:g}x" if math.isnan(claim.ceg) else f"{claim.ceg:g}x"
    return f"{value} {claim.currency.replace('_', ' x ')}"
