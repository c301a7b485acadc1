"""The one-screen answer in words, and the same as JSON."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cegain import algorithms
from cegain.algorithms import Algorithm
from cegain.common.text import budget, counted, finite, number, share, span, wrap
from cegain.common.verdict import STATUSES
from cegain.gain import contrasts
from cegain.gain.curve import TAPER
from cegain.tables import studies
from cegain.tables.published_gains import is_own

if TYPE_CHECKING:
    from rich.console import Console

    from cegain.gain.interaction import Interaction
    from cegain.speed.two_models import Speeds

_Shown = TypeVar("_Shown")
METHOD = "meta-regression/3"
"""Name and version of the method, written into every JSON answer."""


class Range(NamedTuple):
    """Another answer to the same question: median and interval (factors)."""

    median: float
    interval: tuple[float, float]


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
    questions: tuple[contrasts.QuestionRows, ...] = field(compare=False, repr=False)
    notes: tuple[str, ...]
    evidence_sha256: str
    seed: int
    median: float | None = None
    predictive: tuple[float, float] | None = None
    predictive_50: tuple[float, float] | None = None
    predictive_90: tuple[float, float] | None = None
    mean_median: float | None = None
    mean_interval: tuple[float, float] | None = None
    growth_per_decade: float | None = None
    """Average from 1e18 to 1e26 FLOP; so are `growth_interval` and the classes."""
    growth_interval: tuple[float, float] | None = None
    label: str | None = None
    label_lacks: str = ""
    """Why there can be no label; empty where there can."""
    classes: dict[str, float] | None = None
    """Probabilities; like `above` None where the interval is the headline."""
    prior_classes: dict[str, float] | None = None
    """The same before any row was seen."""
    above: dict[float, float] | None = None
    decades: float | None = None
    """From the nearest run."""
    cap: float | None = None
    """The largest gain that counting allows (factor)."""
    without_proposers: Range | None = field(default=None, compare=False)
    """Without studies whose authors propose the algorithm; None where there are none, or nothing is left."""
    proposers_alone: bool = False
    """Whether nothing is left without them."""
    selected: Range | None = field(default=None, compare=False)
    """If what is published was chosen (`sensitivity.selected`)."""
    speeds: Speeds | None = None
    """In time, dollars and per token: the two models whose speeds are compared, None where rows alone answer."""
    gain_in_flop: float | None = None
    """What `speeds` are multiplied with: the median of the average setting."""
    joined: bool = False
    """Whether gains that were measured in the currency take part beside `speeds`."""
    interaction: Interaction | None = field(default=None, compare=False, repr=False)
    """Of a combination: ln(stack / product of parts) at `flops`; None for one part, or where all but one are exact."""
    influence: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    """How far ln of the answer moves with each kind of evidence (`sensitivity.influences`); empty where not asked."""
    where: Mapping[str, float] = field(default_factory=dict, compare=False)
    """What the answer depends on besides compute: `experts` (all over active ones), `seq_len` (tokens)."""
    given: int = field(default=0, compare=False)
    """Rows that set the level and come from tables of the user."""
    own_algorithms: Mapping[str, Algorithm] = field(default_factory=dict, compare=False, repr=False)
    """Those of the question's tables and folder that the registry does not have."""

    @property
    def equivalent_flops(self) -> float | None:
        """Compute (FLOP) that the run is worth without the algorithm: C x median."""
        return None if self.median is None or self.currency != "flop" else self.flops * self.median

    def __str__(self) -> str:
        return plain(self)


OWN, GIVEN = "own runs", "given by --evidence"
SCHEMA_VERSION = 1


def _beside(show: Callable[..., _Shown]) -> Callable[..., _Shown]:
    """Show an estimate (the first argument) while its own algorithms are known."""

    @functools.wraps(show)
    def shown(estimate: Estimate, *args: Any, **settings: Any) -> _Shown:
        with algorithms.beside(estimate.own_algorithms):
            return show(estimate, *args, **settings)

    return shown


@_beside
def title(estimate: Estimate) -> str:
    """What is asked: the algorithms, their baselines, the currency."""
    names = " + ".join(algorithms.get(name).title for name in estimate.algorithms)
    against = " + ".join(estimate.baselines).replace("_", " ")
    return f"{names}, against {against}, in {estimate.currency}"


def _where(estimate: Estimate) -> str:
    """What the answer depends on besides compute, in words."""
    parts = []
    if "experts" in estimate.where:
        parts.append(f", {estimate.where['experts']:g} experts for each active one")
    if "seq_len" in estimate.where:
        parts.append(f", {estimate.where['seq_len']:,.0f} tokens a sequence")
    return "".join(parts)


@_beside
def plain(estimate: Estimate, *, explain: bool = False) -> str:
    """The answer as text, one screen of at most 110 columns; `explain` says all that stands behind it."""
    lines = [
        f"CEG of {title(estimate)}, at {number(estimate.flops)} FLOP{_where(estimate)}",
        f"status: {estimate.status}",
    ]
    if estimate.status == "no_evidence":
        lines += ["", *(f"  {part}" for part in estimate.reason.split("; ")), *_notes(estimate)]
        return "\n".join(map(wrap, lines))
    if estimate.reason:
        lines[-1] += f" - {estimate.reason}"
    percent = f"{100 * estimate.interval:g}%"
    lines += ["", *_gains(estimate, percent), "", *_meaning(estimate, percent), *_speeds(estimate)]
    lines += [*_interaction(estimate, percent), *_class(estimate), *_evidence(estimate), *_context(estimate)]
    if explain:
        lines += _explained(estimate, percent)
    return "\n".join(map(wrap, [*lines, *_notes(estimate)]))


def _gains(estimate: Estimate, percent: str) -> list[str]:
    """The headline, and the same question put otherwise."""
    assert estimate.median is not None
    assert estimate.predictive is not None
    assert estimate.predictive_50 is not None
    assert estimate.mean_interval is not None
    assert estimate.mean_median is not None
    far = estimate.status != "ok"

    def line(what: str, median: float, interval: tuple[float, float], more: str = "") -> str:
        said = f"{percent}: {span(interval)}"
        said += f"    (median {number(median)}x)" if far else ""
        return f"  {what:24}" + (said if far else f"{number(median)}x    {said}") + more

    lines = [
        line("one new study", estimate.median, estimate.predictive, f"    50%: {span(estimate.predictive_50)}"),
        line("average over studies", estimate.mean_median, estimate.mean_interval),
    ]
    if estimate.without_proposers is not None:
        lines.append(line("without its proposers", *estimate.without_proposers))
    elif estimate.proposers_alone:
        lines.append(f"  {'without its proposers':24}no evidence")
    if estimate.selected is not None:
        lines.append(line("if gains were selected", *estimate.selected))
    return lines


def _meaning(estimate: Estimate, percent: str) -> list[str]:
    assert estimate.predictive is not None
    if estimate.currency == "flop":
        assert estimate.equivalent_flops is not None
        low, high = (end * estimate.flops for end in estimate.predictive)
        run = f"  A run of {number(estimate.flops)} FLOP with it is worth"
        if estimate.status != "ok":
            return [f"{run} {span((low, high), '')} FLOP without it ({percent})."]
        worth = f"{number(estimate.equivalent_flops)} FLOP without it ({percent}: {span((low, high), '')})"
        above = ", ".join(f"{budget(t)}: {share(p)}" for t, p in (estimate.above or {}).items())
        return [f"{run} {worth}" + (f"; probability of over {above}." if above else ".")]
    said = {
        "time": "  The same loss takes this many times the device time without it",
        "usd": "  The same loss costs this many times as much without it",
        "decode": "  A generated token takes this many times the device time without it, at equal shape",
    }[estimate.currency]
    if estimate.speeds is None:
        said += ", on the devices, sequence lengths and shapes of the rows behind it (`ceg show NAME --currency "
        said += f"{estimate.currency}`)"
    return [f"{said}."]


def _speeds(estimate: Estimate) -> list[str]:
    """What was modelled of the two sides, and why one is faster."""
    found = estimate.speeds
    if found is None:
        return []
    from cegain.speed import step_text, two_models

    price = math.exp(found.price)
    speed = math.exp(found.ln_factor - found.price)
    sd = math.sqrt(found.variance)
    if estimate.currency == "decode":
        lines = [f"  Modelled: {number(speed)}x (sd of ln {sd:.2f})."]
    else:
        in_flop = number(estimate.gain_in_flop or 1)
        lines = [
            f"  Gain in FLOP {in_flop}x on average, times achieved FLOP/s {number(speed)}x (modelled, sd of ln "
            f"{sd:.2f})"
        ]
        lines[0] += f", times price per hour {price:.2f}x." if abs(found.price) > 1e-9 else "."
    for what, side in (("with it", found.treatment), ("without", found.baseline)):
        lines.append(f"  {what + ':':9}{two_models.described(side)}")
    # On one device a gain in dollars is one in time.
    kinds = ("time", "usd") if estimate.currency == "usd" else (estimate.currency,)
    measured = [u for u in _level(estimate) if u.row.currency in kinds]
    joined = ""
    if measured and estimate.joined:
        modelled = number((estimate.gain_in_flop or 1) * math.exp(found.ln_factor))
        joined = f"modelled so {modelled}x, then joined with {len(measured)} row(s) in {' or '.join(kinds)}; "
    lines.append(f"  Speeds: {joined}model of docs/step_time.md, over shapes of like size.")
    devices = {side.time.device.name: side.time.device for side in (found.treatment, found.baseline)}
    lines += [f"  Measured on {d.kernel_times}: {step_text.measured(d)}." for d in devices.values() if d.kernel_times]
    return lines


def _interaction(estimate: Estimate, percent: str) -> list[str]:
    """How far the combination is from the product of its parts, and what is known of that."""
    found = estimate.interaction
    if found is None:
        return []
    ends = found.predictive.central(estimate.interval)
    lines = [
        f"  Interaction, stack / product of parts: {number(math.exp(found.predictive.quantile(0.5)))}x "
        f"({percent}: {span((math.exp(ends[0]), math.exp(ends[1])))}); it is in the gains above."
    ]
    measured: dict[str, dict[str, list[float]]] = {}
    for o in found.observations:
        measured.setdefault(o.label, {}).setdefault(o.study, []).append(math.exp(o.value))
    for label, by_study in measured.items():
        told = ", ".join(
            f"{study} {number(v[0])}x" if len(v) == 1 else f"{study} {span((min(v), max(v)))} at {len(v)} budgets"
            for study, v in by_study.items()
        )
        lines.append(f"    {label} against its parts: {told}.")
    if found.unmeasured:
        pairs = ", ".join(f"{a[0]} + {b[0]}" for a, b in found.unmeasured)
        lines.append(f"    No study measured together and apart: {pairs}.")
    return lines


def _class(estimate: Estimate) -> list[str]:
    if estimate.label is None:
        return []  # speeds change with compute too
    text = f"  Class, 1e18-1e26 FLOP: {estimate.label}"
    if estimate.classes is not None and estimate.prior_classes is not None:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in estimate.classes.items())
        text += f" ({shares}; prior {_slashed(estimate.prior_classes)})"
    if estimate.label_lacks:
        text += f", since {estimate.label_lacks}"
    return [f"{text}."]


def _slashed(shares: Mapping[str, float]) -> str:
    return "/".join(f"{share:.2f}" for share in shares.values())


def _level(estimate: Estimate) -> list[contrasts.UsedRow]:
    """Rows that set the level of an answer: toy runs of our own only where they still count."""
    fixing = [u for q in estimate.questions for u in q.used if u.contrast >= 0 and u.fixes_level]
    largest: dict[str, float] = {}
    for u in fixing:
        if is_own(u.row):
            largest[u.row.algorithm] = max(largest.get(u.row.algorithm, 0.0), u.row.flops)
    beyond = 10.0 ** TAPER[1]
    near = [u for u in fixing if not is_own(u.row) or estimate.flops < beyond * largest[u.row.algorithm]]
    return near or fixing


def _evidence(estimate: Estimate) -> list[str]:
    level = _level(estimate)
    if not level:  # by construction: no row behind it
        return []
    flops = contrasts.budgets(level)
    reach = ", compute not stated"
    if flops:
        reach = f", {number(flops[0])}" + f" - {number(flops[-1])}" * (flops[0] < flops[-1]) + " FLOP"
    groups = len({contrasts.laboratory(u.row) for u in level})
    text = f"  Evidence: {counted(len(level), 'row')} of {counted(groups, 'independent group')}"
    own, given = sum(is_own(u.row) for u in level), estimate.given
    text += f", {own} of our own toy runs" * bool(own) + f", {given} from your tables" * bool(given) + reach
    modelled = estimate.speeds is not None and all(algorithms.get(n).exact_in_flop for n in estimate.algorithms)
    if estimate.decades is not None and math.isfinite(estimate.decades) and not modelled:
        near = "at" if estimate.decades < 0.05 else f"{estimate.decades:.1f} decades from"
        text += f"; this budget is {near} the nearest run"
    if estimate.cap is not None:
        text += f". Counting allows at most {estimate.cap:.4g}x"
    return [f"{text}."]


def _context(estimate: Estimate) -> list[str]:
    """What toy runs of our own found at their largest, where they do not set the level."""
    level = _level(estimate)
    fixing = [u for q in estimate.questions for u in q.used if u.fixes_level and u.contrast >= 0]
    own = [u.row for u in fixing if is_own(u.row) and u not in level]
    if not own or estimate.currency != "flop" or len(estimate.algorithms) > 1:
        return []
    largest = [
        max((r for r in own if r.stack == s), key=lambda r: r.flops) for s in dict.fromkeys(r.stack for r in own)
    ]
    said = ", ".join(f"{number(r.ceg)}x at {number(r.flops)} FLOP ({r.stack})" for r in largest)
    return [f"  Toy runs of our own, which do not set this level: {said}."]


def _explained(estimate: Estimate, percent: str) -> list[str]:
    """Growth, evidence by kind, own runs, influence, conversions, what else is known."""
    lines = [""]
    if estimate.growth_per_decade is not None and estimate.growth_interval is not None:
        lines.append(
            f"  Growth per decade, average from 1e18 to 1e26 FLOP: {number(estimate.growth_per_decade)}x "
            f"({percent}: {span(estimate.growth_interval)})."
        )
    said = {algorithms.get(name).paper_class for name in estimate.algorithms} - {"not_studied"}
    if said:
        lines.append(f"  The source paper's class: {' and '.join(sorted(said))}.")
    fixing = _level(estimate)
    kinds = Counter("own" if is_own(u.row) else u.row.basis for u in fixing)
    silent = sum(u.row.flops != u.row.flops for u in fixing)
    growth = len([u for q in estimate.questions for u in contrasts.tells_growth(q.used)])
    if fixing:
        text = "  Rows that set the level: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        text += f" ({silent} without stated compute)" if silent else ""
        lines.append(f"{text}." + (f" Another {growth} row(s) tell of growth only." if growth else ""))
    if estimate.influence:
        parts = ", ".join(f"{name} {value:+.2f}" for name, value in estimate.influence.items())
        lines.append(f"  Influence, d ln(answer) / d ln(gains of a kind): {parts}. The rest is that of the prior.")
    if estimate.without_proposers is not None:
        names = sorted({u.row.study for u in fixing if studies.proposes(u.row.study, u.row.algorithm)})
        lines.append(f"  Studies by its proposers: {', '.join(names)}.")
    if estimate.selected is not None:
        lines.append(
            "  If gains were selected: a third of the studies below 1 are published, and each reports its best of five."
        )
    lines += _own([u for q in estimate.questions for u in q.used if u.contrast >= 0 and u.fixes_level])
    converted = Counter(u.row.currency for u in fixing if u.conversion.how)
    if converted:
        names = sorted({u.row.algorithm for u in fixing if u.conversion.how})
        currency = "" if estimate.currency == "flop" else f" --currency {estimate.currency}"
        lines.append(
            f"  Converted to {estimate.currency}: "
            + ", ".join(f"{n} row(s) from {source}" for source, n in sorted(converted.items()))
            + f". How: {', '.join(f'`ceg show {name}{currency}`' for name in names)}."
        )
    lines += [
        f"  {algorithms.get(name).title}: {gap}" for name in estimate.algorithms for gap in algorithms.get(name).gaps
    ]
    lines.append("  What would settle a class: `ceg classify`. Every row: `ceg show NAME`.")
    return lines


def _own(used: Sequence[contrasts.UsedRow]) -> list[str]:
    """What our own runs found, study by study, with standard errors of ln CEG."""
    own = [u.row for u in used if is_own(u.row)]
    several = len({row.algorithm for row in own}) > 1
    lines = []
    for study in dict.fromkeys(row.study for row in own):
        gains: dict[str, list[str]] = {}
        for row in own:
            if row.study == study:
                said = f"{number(row.ceg)}x (se {row.ln_ceg_se:.2g}) at {number(row.flops)}"
                gains.setdefault(row.algorithm, []).append(said)
        parts = (f"{name} " * several + ", ".join(said) for name, said in gains.items())
        lines.append(f"  Own runs ({study}; FLOP, se of ln CEG): {'; '.join(parts)}.")
    return lines


def _notes(estimate: Estimate) -> list[str]:
    return ["", *(f"  Note: {note}." for note in estimate.notes)] if estimate.notes else []


def document(estimates: Sequence[Estimate]) -> dict[str, object]:
    """The JSON answer (docs/json.md; `estimates`: one per budget). `status` is the worst of them."""
    first = estimates[0]
    return {
        "schema": "ceg.estimate",
        "schema_version": SCHEMA_VERSION,
        "method": METHOD,
        "status": max((e.status for e in estimates), key=STATUSES.index),
        "algorithms": list(first.algorithms),
        "baselines": list(first.baselines),
        "currency": first.currency,
        "interval_probability": first.interval,
        "evidence_sha256": first.evidence_sha256,
        "seed": first.seed,
        "estimates": [_one(e) for e in estimates],
    }


def _one(e: Estimate) -> dict[str, object]:
    used = [u for q in e.questions for u in q.used]
    kept = [u for u in used if u.contrast >= 0]
    fixing = [u for u in kept if u.fixes_level]
    flops = contrasts.budgets(fixing)
    return {
        "flops": e.flops,
        "where": dict(e.where),
        "proposers_alone": e.proposers_alone,
        "status": e.status,
        "reason": e.reason,
        "ceg_median": e.median,
        "ceg_predictive_interval": e.predictive,
        "ceg_predictive_interval_50": e.predictive_50,
        "ceg_predictive_interval_90": e.predictive_90,
        "ceg_mean_median": e.mean_median,
        "ceg_mean_interval": e.mean_interval,
        "equivalent_flops_median": e.equivalent_flops,
        "growth_factor_per_decade": e.growth_per_decade,
        "growth_factor_per_decade_interval": e.growth_interval,
        "class": e.label,
        "class_lacks": e.label_lacks,
        "class_probabilities": e.classes,
        "class_probabilities_prior": e.prior_classes,
        "share_above_threshold_flops": None
        if e.above is None
        else {f"{t:.12g}": max(0.0, p) for t, p in e.above.items()},
        "extrapolation_decades": None if e.decades is None else finite(e.decades),
        "evidence": {
            "rows_level": len(fixing),
            "rows_growth_only": len([u for q in e.questions for u in contrasts.tells_growth(q.used)]),
            "rows_not_used": len(used) - len(kept),
            "studies": len({contrasts.laboratory(u.row) for u in fixing}),
            "rows_by_basis": dict(sorted(Counter(u.row.basis for u in fixing).items())),
            "flops_range": [flops[0], flops[-1]] if flops else None,
            "influence": dict(e.influence),
            "own_rows": [
                {
                    "algorithm": row.algorithm,
                    "study": row.study,
                    "flops": row.flops,
                    "ceg": row.ceg,
                    "ceg_interval_90": [row.low, row.high],
                    "ln_ceg_se": row.ln_ceg_se,
                }
                for row in (u.row for u in fixing if is_own(u.row))
            ],
        },
        "largest_possible": e.cap,
        "without_proposers": None if e.without_proposers is None else e.without_proposers._asdict(),
        "if_selected": None if e.selected is None else e.selected._asdict(),
        "interaction": _interaction_document(e),
        "setting": _setting(e),
        "conversions": sorted({u.conversion.how for u in fixing if u.conversion.how}),
        "notes": list(e.notes),
    }


def _interaction_document(e: Estimate) -> dict[str, object] | None:
    """A combination's interaction: factors, and what it is learnt from."""
    found = e.interaction
    if found is None:
        return None
    return {
        "stack_over_product_median": math.exp(found.predictive.quantile(0.5)),
        "stack_over_product_interval": [math.exp(end) for end in found.predictive.central(e.interval)],
        "stack_over_product_mean_interval": [math.exp(end) for end in found.mean.central(e.interval)],
        "measured": [
            {"what": o.label, "study": o.study, "flops": o.flops, "over_product_of_parts": math.exp(o.value)}
            for o in found.observations
        ],
        "pairs_never_measured_together": [[a[0], b[0]] for a, b in found.unmeasured],
    }


def _setting(e: Estimate) -> dict[str, object] | None:
    """What was modelled in other currencies than flop."""
    if e.speeds is None:
        return None
    from cegain.speed import two_models

    return {
        "gain_in_flop_median": e.gain_in_flop,
        "factor": math.exp(e.speeds.ln_factor),
        "price_factor": math.exp(e.speeds.price),
        "ln_factor_sd": math.sqrt(e.speeds.variance),
        "with": two_models.side_document(e.speeds.treatment),
        "without": two_models.side_document(e.speeds.baseline),
    }


def print_table(console: Console, estimates: Sequence[Estimate]) -> None:
    """Several budgets as a table, one row each."""
    from rich.table import Table

    first = estimates[0]
    percent = f"{100 * first.interval:g}%"
    table = Table(title=title(first), title_justify="left", box=None, padding=(0, 1))
    columns = ["FLOP with it", "CEG median", "50%", f"{percent} (new study)", f"{percent} (mean)"]
    thresholds = list(next((e.above for e in estimates if e.above), {}))
    columns += [f">{budget(t)}" for t in thresholds] + ["decades", "status"]
    for name in columns:
        table.add_column(name, justify="left" if name == "status" else "right")
    for e in estimates:
        cells = [number(e.flops)]
        if e.median is None or e.predictive is None or e.predictive_50 is None or e.mean_interval is None:
            cells += ["-"] * (len(columns) - 2)
        else:
            cells += [f"{number(e.median)}x", *(span(i) for i in (e.predictive_50, e.predictive, e.mean_interval))]
            cells += [share(e.above[t]) if e.above and t in e.above else "-" for t in thresholds]
            far = "modelled" if e.decades is None else "unknown" if math.isnan(e.decades) else f"{e.decades:.1f}"
            cells.append(far)
        table.add_row(*cells, e.status)
    console.print(table)
    if thresholds and any(e.median is not None and not e.above for e in estimates):
        console.print("-: far from all runs, where the interval is the answer and no probability is given.")
    reasons = dict.fromkeys(e.reason for e in estimates if e.status == "no_evidence")
    for line in [*reasons, *_notes(first)]:
        console.print(wrap(line, console.width))
