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
from cegain.gain import contrasts, method, prior
from cegain.gain.answer import Estimate
from cegain.gain.chain import Curve
from cegain.paper.tables import Claim, load_table2
from cegain.tables.published_gains import Evidence, PublishedGain, is_own

LOW, HIGH = 1e18, 1e24
"""Budgets (FLOP) whose gains are compared: the paper's own, and a frontier run's."""
AGREES, DIFFERS, OPEN, NO_CLASS, NOT_STUDIED = "same", "differs", "open", "no answer", "not in the paper"
_LADDER_FROM, _LADDER_DECADES, _LADDERS = 1e18, (2, 3, 4), (1, 2, 3, 5, 8)
"""Made-up ladders: their lowest rung (FLOP), decades, numbers of them; cheapest first, by what a top rung costs."""


class Settles(NamedTuple):
    """So many further ladders, from `_LADDER_FROM` FLOP over so many decades, would give `label` a `probability`."""

    ladders: int
    decades: int
    label: str
    probability: float


class Verdict(NamedTuple):
    """One algorithm: what the paper says, what we find, and why they differ.

    claim: the paper's Table II, if it has the algorithm; low and high: our answers at the two budgets; mean [2] and
    covariance [2, 2] of ln CEG at both in the average setting, None without an answer; why: sentences from the data.
    """

    name: str
    paper_class: str
    claim: Claim | None
    verdict: str
    low: Estimate
    high: Estimate
    mean: Array | None
    covariance: Array | None
    settles: Settles | None
    why: tuple[str, ...]

    @property
    def label(self) -> str:
        """Our class, or `unlocking`, or `no answer`."""
        if self.low.label is not None:
            return self.low.label
        return "unlocking" if algorithms.get(self.name).unlocking else NO_CLASS


def classify(tables: Evidence, low: float = LOW, high: float = HIGH) -> list[Verdict]:
    """Every algorithm, those of the paper first; gains in FLOP at two budgets (FLOP), low below high."""
    claims = {claim.algorithm: claim for claim in load_table2()}
    names = sorted(algorithms.names(), key=lambda name: (algorithms.get(name).paper_class == "not_studied", name))
    return [_verdict(tables, name, claims.get(name), low, high) for name in names]


def _verdict(tables: Evidence, name: str, claim: Claim | None, low: float, high: float) -> Verdict:
    entry = algorithms.get(name)
    prepared = method.prepare(tables.rows, [name], [entry.replaces[0]], currency="flop", spread=prior.frozen())
    ends = [method.evaluate(prepared, c, interval=0.9, thresholds=(), sha256=tables.sha256) for c in (low, high)]
    mean = covariance = settled = None
    if prepared.curves:
        mean, covariance = prepared.curves[0].together(low, high)
        if ends[0].label == "undetermined":
            settled = settles(prepared.questions[0], prepared.curves[0], name)
    first = ends[0]
    if entry.paper_class == "not_studied":
        verdict = NOT_STUDIED
    elif entry.unlocking:
        verdict = AGREES
    elif first.label is None:
        verdict = NO_CLASS
    else:
        verdict = {"undetermined": OPEN, entry.paper_class: AGREES}.get(first.label, DIFFERS)
    unexplained = Verdict(name, entry.paper_class, claim, verdict, ends[0], ends[1], mean, covariance, settled, ())
    return unexplained._replace(why=tuple(_why(unexplained)))


def settles(question: contrasts.QuestionRows, curve: Curve, name: str) -> Settles | None:
    """The cheapest further ladders, rungs half a decade apart, that would decide a class; None: none of those tried.

    Each is a study of its own that finds the mean curve's medians, read to `contrasts.ROW_SD`.
    """
    baseline = algorithms.get(name).replaces[0]
    rows = [used.row for used in question.used]
    weights = prior.frozen_weights(name, baseline, "flop")
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
            if label != "undetermined":
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
    if e.status == "no_evidence":
        return [e.reason]
    assert e.growth_interval is not None
    assert e.growth_per_decade is not None
    assert e.classes is not None
    fixing = [u for q in e.questions for u in q.used if u.fixes_level and u.contrast >= 0]
    if not fixing:
        return ["its gain in FLOP is 1 by construction"]
    cut = math.exp(CLASS_SLOPE)
    low, high = e.growth_interval
    inside = [label for label, a, b in _BANDS if low < b and high > a]
    growth = f"growth {e.growth_per_decade:.2f}x per decade, 90% {low:.2f}x to {high:.2f}x: "
    if len(inside) == 1:
        growth += f"{inside[0]} alone"
    else:
        growth += f"{' or '.join(inside)} (the classes part at {1 / cut:.2f}x and {cut:.2f}x)"
    if v.paper_class in e.classes:
        growth += f"; the paper's class has {e.classes[v.paper_class]:.2f}"
    lines = [growth, _rests_on(fixing)]
    if v.claim is not None and v.claim.currency != "flop":
        lines.append(f"the paper's figure is a gain in {v.claim.currency.replace('_', ' x ')}, ours are in FLOP")
    if e.label == "undetermined":
        lines.append(_to_settle(v.settles))
    return lines


_SHORT = {"dependent": "dep", "independent": "indep"}
_BANDS = (
    ("fading", 0.0, math.exp(-CLASS_SLOPE)),
    ("independent", math.exp(-CLASS_SLOPE), math.exp(CLASS_SLOPE)),
    ("dependent", math.exp(CLASS_SLOPE), math.inf),
)


def _rests_on(fixing: Sequence[contrasts.UsedRow]) -> str:
    """Studies, rows, budgets, and how much of them lies where a class is meant to hold."""
    from cegain.common.text import number
    from cegain.gain.chain import CORE

    studies = {u.row.study for u in fixing}
    own = len({u.row.study for u in fixing if is_own(u.row)})
    flops = contrasts.budgets(fixing)
    text = f"{len(fixing)} row(s) of {len(studies)} study(ies)" + f", {own} of them ours" * bool(own)
    if not flops:
        return f"{text}, compute not stated"
    inside = [c for c in flops if 10 ** CORE[0] <= c <= 10 ** CORE[1]]
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
        "evidence_sha256": first.low.evidence_sha256,
        "algorithms": [
            {
                "algorithm": v.name,
                "paper_class": v.paper_class,
                "paper_gain": None if v.claim is None else _claim(v.claim),
                "class": v.label,
                "class_probabilities": v.low.classes,
                "verdict": v.verdict,
                "growth_factor_per_decade": v.low.growth_per_decade,
                "growth_factor_per_decade_interval": v.low.growth_interval,
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
    title = "Classes and gains: the source paper's (arXiv 2505.04075, Tables I and II) and ours, in FLOP"
    ours = ("class", "dep/ind/fad", "per decade", f"at {budget(low)}", f"at {budget(high)}")
    columns = ("algorithm", "paper", "its gain", *ours, "verdict")
    shown = empty_table(columns, left=columns, wrapped=["its gain"], title=title, pad_edge=False, padding=(0, 1, 0, 0))
    for v in verdicts:
        if v.low.classes is None or v.low.growth_interval is None:
            continue
        cells = [v.name, _SHORT.get(v.paper_class, "-"), _gain_there(v.claim), v.label]
        cells.append("/".join(f"{p:.2f}" for p in v.low.classes.values()))
        cells.append("{:.2f}-{:.2f}x".format(*v.low.growth_interval))
        for e in (v.low, v.high):
            assert e.median is not None
            assert e.predictive is not None
            gains = "-".join(number(end) for end in e.predictive) + "x"
            exactly = e.predictive[0] == e.predictive[1]
            level = "1 exactly" if exactly else f"{number(e.median)} ({gains})"
            cells.append(level if e.status == "ok" else f"({gains}) far")
        shown.add_row(*cells, "" if v.verdict == NOT_STUDIED else v.verdict)
    console.print(shown)
    console.print(
        "90% intervals; gains: median and what a new study would find; far: far extrapolated, interval only.\n"
    )
    unlocking = [v.name for v in verdicts if algorithms.get(v.name).unlocking]
    console.print(
        wrap(f"Unlocking, in the paper and here, with no gain to fit: {', '.join(unlocking)}.", console.width)
    )
    for v in verdicts:
        if v.why and v.verdict != NOT_STUDIED:
            console.print(wrap(f"{v.name}, {v.verdict}: {'; '.join(v.why)}.", console.width))
    same = sum(v.verdict == AGREES for v in verdicts)
    differ, still = (sum(v.verdict == what for v in verdicts) for what in (DIFFERS, OPEN))
    studied = sum(v.verdict != NOT_STUDIED for v in verdicts)
    console.print(f"\nOf {studied} that the paper classes: {same} the same, {differ} differ, {still} open.")


def _gain_there(claim: Claim | None) -> str:
    if claim is None:
        return ""
    value = f">= {claim.low:g}x" if math.isnan(claim.ceg) else f"{claim.ceg:g}x"
    return f"{value} {claim.currency.replace('_', ' x ')}"
