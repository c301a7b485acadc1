"""`ceg scenario`: the largest run is frozen at a budget; what do algorithms alone still bring, and how much of it needs
no scale?

Two paces, and neither is a forecast: each says what follows from assumptions that are printed and can be changed.

registry: algorithms arrive at random, so many a year, each as good as one of the registry drawn at random, its gain
in FLOP at the frozen budget (`curve.Curve.mean`, the average setting) and its class probabilities. What does not help
is not adopted. A gain is drawn once per future, for all that are like its algorithm: what is not known of it does not
average out over arrivals. How often a kind of algorithm comes up is as uncertain as so few algorithms leave it (a
Bayesian bootstrap: Rubin 1981, doi:10.1214/aos/1176345338), and so is the rate where it is the registry's own (Gamma,
Jeffreys' prior).

literature: effective compute doubles in a stated time (Ho et al. 2024), of which a share goes on when compute stops
growing (Gundlach et al. 2025): the rest came from gains that grew with scale.

Everything is drawn with a seed: the same question gives the same digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from cegain import algorithms
from cegain.common import verdict
from cegain.common.arrays import Array
from cegain.common.mixture import Mixture
from cegain.common.text import finite
from cegain.common.verdict import FAR_DECADES
from cegain.gain import method, prior
from cegain.gain.interaction import PAIR_SD
from cegain.tables.published_gains import Evidence

DRAWS = 20_000
MOST_LN = 600.0
"""ln of the largest compute that is answered: floating-point numbers end at 709."""
REGISTRY, LITERATURE = "registry", "literature"
HALVING_MONTHS = (5.0, 14.0)
HALVING_SOURCE = (
    "Ho et al. 2024, arXiv 2403.05812v1: 8 months, 95%: 5 to 14, over 2012-2023; the version at NeurIPS 2024 gives "
    "90%: 2 to 22"
)
HALVING_CONTENT = 0.95
SHARE = (math.log(10) / math.log(22_000), math.log(100) / math.log(22_000))
"""Of ln(22,000x), Ho et al.'s gain over 2012-2023: Gundlach et al. 2025 (arXiv 2511.21622) find less than 10x by their
own ablations of scale-invariant algorithms, and less than 100x with the literature's."""
SHARE_SOURCE = "Gundlach et al. 2025, arXiv 2511.21622: 10x to under 100x of 22,000x, in logarithms"
CLASSES = ("dependent", "independent", "fading")
NO_SCALE = ("independent", "fading")
"""Classes whose gain does not grow with compute."""
GROWING = "needed growing compute"


class OutOfRangeError(ValueError):
    """A band past what is answered."""


class Member(NamedTuple):
    """One algorithm of the population: ln CEG at the frozen budget, class probabilities, decades from its evidence."""

    name: str
    gain: Mixture
    classes: dict[str, float]
    decades: float


class Assumptions(NamedTuple):
    """What a scenario assumes. per_year: arrivals, None: the registry's own; halving_months: 95% range; share: range
    of the literature's pace that goes on; interaction_sd: of ln, per algorithm adopted; stack: in use already.
    """

    freeze: float
    years: int
    pace: str
    per_year: float | None = None
    halving_months: tuple[float, float] = HALVING_MONTHS
    share: tuple[float, float] = SHARE
    interaction_sd: float = PAIR_SD
    stack: tuple[str, ...] = ()
    seed: int = 0


class Year(NamedTuple):
    """Effective compute (FLOP) after so many years: median, and the ends of 50% and 90%."""

    year: int
    median: float
    interval_50: tuple[float, float]
    interval_90: tuple[float, float]


class Scenario(NamedTuple):
    """The answer. shares: of the expected ln gain, by class, sum 1 (empty where nothing is gained); without: the
    algorithm that brings most, its share, and the median of the last year without it; other: the last year at the
    other pace, by its defaults (None: no algorithm has an answer).
    """

    assumptions: Assumptions
    status: str
    reason: str
    years: tuple[Year, ...]
    shares: dict[str, float]
    no_scale: float | None
    members: tuple[Member, ...]
    rate_said: str
    without: tuple[str, float, float] | None
    other: Year | None
    evidence_sha256: str


def population(tables: Evidence, freeze: float, names: Sequence[str] | None = None) -> list[Member]:
    """Algorithms (all, or those named) whose gain in FLOP at a budget (FLOP) can be estimated, and that have a paper:
    one of the user's own may have none."""
    members = []
    for name in algorithms.names() if names is None else names:
        baseline = algorithms.get(name).replaces[0]
        prepared = method.prepare(tables.rows, [name], [baseline], currency="flop", spread=prior.frozen())
        if not prepared.missing and _years(name):
            curve = prepared.curves[0]
            classes = verdict.classes_of(curve.slope())
            members.append(Member(name, curve.mean(freeze), classes, curve.decades(freeze)))
    return members


def paper_years(members: Sequence[Member]) -> tuple[int, int]:
    """First and last year of the papers that introduced the algorithms."""
    years = [_years(m.name)[0] for m in members]
    return min(years), max(years)


def _years(name: str) -> list[int]:
    """Years in the text on an algorithm's paper, the first that of the paper that introduced it."""
    return [int(year) for year in re.findall(r"\b(?:19|20)\d\d\b", algorithms.get(name).paper)]


def run(
    tables: Evidence, assumed: Assumptions, members: Sequence[Member], registry: Sequence[Member] | None = None
) -> Scenario:
    """The scenario; `members` are `population`, and `assumed.stack` names algorithms with an answer.

    The registry's rate is that of `registry`, all who are in it (None: the members).

    Raises:
        OutOfRangeError: the band ends above MOST_LN.
    """
    registry = registry or members
    start, far = _in_use(tables, assumed)
    without = None
    if assumed.pace == LITERATURE:
        paths, shares, rate_text = _literature(assumed)
        other = _arrivals(assumed, members, registry)[0] if members else None
    else:
        other = _literature(assumed)[0]
        paths, shares, rate_text, brought = _arrivals(assumed, members, registry)
        far += [m.decades for m in members]
        if shares and len(members) > 1:
            first = max(members, key=lambda m: (brought[m.name], m.name))
            rest = _arrivals(assumed, [m for m in members if m is not first], registry)[0]
            end = float(np.median(start + rest[:, -1]))
            without = (first.name, brought[first.name], assumed.freeze * math.exp(end))
    n_far = sum(not d <= FAR_DECADES for d in far)
    reason = ""
    if n_far:
        most = max((d for d in far if d == d), default=math.nan)
        reason = (
            f"{n_far} of {len(far)} gains are taken over {FAR_DECADES:g} decades past their evidence, one {most:.1f}"
        )
    if assumed.pace == LITERATURE:
        on = f"a pace of 2012-2023, when compute grew, is carried on for {assumed.years} years"
        reason = f"{reason}; {on}" if reason else on

    def after(t: int, gains: Array) -> Year:
        ends = np.quantile(start + gains[:, t], (0.05, 0.25, 0.5, 0.75, 0.95))
        top = ends[-1] + math.log(assumed.freeze)
        if top > MOST_LN:
            raise OutOfRangeError(f"the band stays below e^{MOST_LN:.0f} FLOP (found e^{top:.0f})")
        low90, low50, median, high50, high90 = (assumed.freeze * math.exp(q) for q in ends)
        return Year(t, median, (low50, high50), (low90, high90))

    no_scale = sum(part for name, part in shares.items() if name in NO_SCALE) if shares else None
    return Scenario(
        assumed,
        "far_extrapolation" if reason else "ok",
        reason,
        tuple(after(t, paths) for t in range(assumed.years + 1)),
        shares,
        no_scale,
        tuple(members) if assumed.pace != LITERATURE else (),
        rate_text,
        without,
        None if other is None else after(assumed.years, other),
        tables.sha256,
    )


def _in_use(tables: Evidence, assumed: Assumptions) -> tuple[Array, list[float]]:
    """ln CEG [draws] of what is in use already, and its distance from the evidence."""
    if not assumed.stack:
        return np.zeros(DRAWS), []
    names = sorted(assumed.stack)
    baselines = [algorithms.get(name).replaces[0] for name in names]
    prepared = method.prepare(tables.rows, names, baselines, currency="flop", spread=prior.frozen())
    mean, _ = method.distributions(prepared, assumed.freeze)
    rng = np.random.default_rng([assumed.seed, 2])
    return _draw(mean, rng, DRAWS), [c.decades(assumed.freeze) for c in prepared.curves]


def _draw(law: Mixture, rng: np.random.Generator, n: int) -> Array:
    weights = law.weights / law.weights.sum()
    k = rng.choice(len(weights), n, p=weights)
    return np.asarray(law.means[k] + law.sds[k] * rng.standard_normal(n))


def _arrivals(
    assumed: Assumptions, members: Sequence[Member], counted: Sequence[Member]
) -> tuple[Array, dict[str, float], str, dict[str, float]]:
    """ln gain [draws, years + 1], shares by class, the pace in words, and shares by algorithm; the registry's rate is
    that of `counted`.
    """
    rng = np.random.default_rng([assumed.seed, 1])
    if assumed.per_year is None:
        first, last = paper_years(counted)
        span = last - first + 1
        rates = rng.gamma(len(counted) + 0.5, 1.0 / span, DRAWS)
        rate_text = (
            f"{(len(counted) + 0.5) / span:.2f} algorithms a year (mean of what {len(counted)} leave possible): so "
            f"many of the registry have papers of {first} to {last}. They are survivors, chosen because they were "
            "adopted"
        )
    else:
        rates = np.full(DRAWS, assumed.per_year)
        rate_text = f"{assumed.per_year:g} algorithms a year, as given"
    chances = rng.dirichlet(np.ones(len(members)), DRAWS)
    arrivals = rng.poisson(rates[:, None], (DRAWS, assumed.years))
    draw, year = (np.repeat(index.ravel(), arrivals.ravel()) for index in np.indices(arrivals.shape))
    drawn, ends = rng.random(len(draw)), chances.cumsum(1)
    picked = np.zeros(len(draw), int)
    for i in range(len(members) - 1):  # a column at a time: arrivals may be millions
        picked += drawn > ends[draw, i]
    known = np.maximum(0.0, np.stack([_draw(member.gain, rng, DRAWS) for member in members], axis=1))
    gains = known[draw, picked]
    bent = assumed.interaction_sd * rng.standard_normal(len(draw)) * (gains > 0)
    each = np.zeros((DRAWS, assumed.years + 1))
    np.add.at(each, (draw, year + 1), gains + bent)
    by_member = np.bincount(picked, gains, len(members))
    total = float(by_member.sum())
    shares: dict[str, float] = {}
    if total > 0:
        parts = {k: sum(m.classes[k] * g for m, g in zip(members, by_member, strict=True)) / total for k in CLASSES}
        whole = sum(parts.values())
        shares = {k: float(part / whole) for k, part in parts.items()}
    brought = {m.name: float(g) / total if total else 0.0 for m, g in zip(members, by_member, strict=True)}
    return each.cumsum(1), shares, rate_text, brought


def _literature(assumed: Assumptions) -> tuple[Array, dict[str, float], str]:
    """As `_arrivals`, without algorithms: a log-normal doubling time, a uniform share of it."""
    rng = np.random.default_rng([assumed.seed, 1])
    low, high = map(math.log, assumed.halving_months)
    sd = (high - low) / (2 * float(ndtri(0.5 + HALVING_CONTENT / 2)))
    months = np.exp((low + high) / 2 + sd * rng.standard_normal(DRAWS))
    share = rng.uniform(*assumed.share, DRAWS)
    rate = share * 12 * math.log(2) / months
    rate_text = (
        f"effective compute doubles in {math.exp((low + high) / 2):.1f} months ({HALVING_CONTENT:.0%}: "
        f"{assumed.halving_months[0]:g} to {assumed.halving_months[1]:g}), of which {assumed.share[0]:.0%} to "
        f"{assumed.share[1]:.0%} (of ln) goes on without more compute"
    )
    kept = float(np.mean(share / months) / np.mean(1 / months))
    return rate[:, None] * np.arange(assumed.years + 1), {"independent": kept, GROWING: 1 - kept}, rate_text


def document(scenario: Scenario) -> dict[str, object]:
    """As JSON; FLOP, and shares of the expected ln gain."""
    a = scenario.assumptions
    return {
        "schema": "ceg.scenario",
        "schema_version": 1,
        "status": scenario.status,
        "reason": scenario.reason,
        "assumptions": a._asdict() | {"pace_in_words": scenario.rate_said, "sources": sources(a)},
        "evidence_sha256": scenario.evidence_sha256,
        "years": [y._asdict() for y in scenario.years],
        "shares_by_class": scenario.shares,
        "share_without_scale": scenario.no_scale,
        "population": [
            {
                "algorithm": m.name,
                "ceg_median_at_freeze": math.exp(m.gain.quantile(0.5)),
                "ceg_interval_90_at_freeze": [math.exp(end) for end in m.gain.central(0.9)],
                "class_probabilities": m.classes,
                "extrapolation_decades": finite(m.decades),
            }
            for m in scenario.members
        ],
        "last_year_at_the_other_pace": None if scenario.other is None else scenario.other._asdict(),
        "most_influential": None
        if scenario.without is None
        else dict(zip(("algorithm", "share", "median_without_it"), scenario.without, strict=True)),
    }


def sources(assumed: Assumptions) -> list[str]:
    """Where the defaults come from; `as given` where they were changed."""
    if assumed.pace == LITERATURE:
        doubling = "as given with --halving" if assumed.halving_months != HALVING_MONTHS else HALVING_SOURCE
        kept = "as given with --share" if assumed.share != SHARE else SHARE_SOURCE
        return [f"doubling time: {doubling}", f"share that goes on: {kept}"]
    changed = assumed.interaction_sd != PAIR_SD
    return [
        "gains and classes: this estimator's, the average setting at the frozen budget (`ceg classify`)",
        f"interaction: sd {assumed.interaction_sd:g} of ln per algorithm adopted, "
        + ("as given with --interaction" if changed else "assumed (docs/method.md)"),
        "adoption: what does not help at the frozen budget is not adopted and adds nothing, what helps is at once; "
        "gains multiply, with no ceiling",
    ]
