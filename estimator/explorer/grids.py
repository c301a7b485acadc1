"""Answers as data, for a page that only looks them up: stacks x currencies x devices x lengths x budgets.

`stacks` says what the page can be asked and `answers` asks it of the estimator, stack by stack on every processor. What
travels are the answers themselves, in whole numbers: ln of a gain in steps of 1 / LN_STEPS, the first value and then
differences. Between two budgets `scripts/answers.js` draws a cubic spline through them.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

from cegain import algorithms
from cegain.common.mixture import Mixture
from cegain.common.verdict import STATUSES
from cegain.gain import in_currency, method
from cegain.gain.answer import Estimate
from cegain.gain.curve import RANGE, Curve
from cegain.gain.question import CURRENCIES, THRESHOLDS
from cegain.gain.study import Spread
from cegain.shapes import architecture
from cegain.speed import measured_device, two_models
from cegain.speed.step_time import TokenTime
from cegain.speed.two_models import Setting, Side
from cegain.tables.published_gains import Evidence, PublishedGain

Stack = tuple[str, ...]
Document = dict[str, Any]

ENDS = (15.0, 28.0)
"""log10 FLOP of the first and last budget."""
PER_DECADE = 4
"""Budgets in a decade. Speeds are averages over models half a decade apart (`two_models.averaged`), without jumps."""
STATUS_CLOSE = 0.02
"""Decades between two budgets of different status."""
NEAR_ENDS = (0.0, 0.1)
"""Decades from the first and last budget that are timed: more budgets, since a spline bends there."""
CLOSE = 0.002
"""Decades between the last budget that is not timed and the first one that is."""
DEVICES = ("v100", "a100-80", "h100", "h200", "b200")
SEQ_LENS = (512, 2048, 8192, 32768, 131072)
PAIR_DEVICES, PAIR_SEQ_LENS = ("a100-80", "h100", "b200"), (2048, 8192)
"""Where pairs are timed, of which there are many; single algorithms and named stacks on all of DEVICES and SEQ_LENS."""
NAMED: Mapping[str, Stack] = {
    "modern block": ("rmsnorm", "rope", "swiglu"),
    "LayerNorm + RoPE + FlashAttention": ("flash_attention", "layernorm", "rope"),
    "modern Transformer": ("rmsnorm", "rope", "swiglu", "transformer"),
    "experts + Muon + RMSNorm + RoPE": ("moe", "muon", "rmsnorm", "rope"),
}
"""Stacks of more than two that people ask about."""
INTERVAL = 0.9
LN_STEPS, SHARE_STEPS, DECADE_STEPS, PLACE_STEPS = 2000, 10_000, 1000, 10_000
"""Steps of ln gain, of a probability, of a distance in decades and of log10 FLOP, per unit."""
NOT_ALONE = ("transformer",)
"""Nothing is paired with these: what else there is presupposes them."""


class Asked(NamedTuple):
    """What the answers of a page rest on."""

    tables: Evidence
    shipped: Collection[PublishedGain] | None
    spread: Spread


def budgets(currency: str) -> list[float]:
    """log10 FLOP, rising; closer where models begin and cease to be timed."""
    n = round((ENDS[1] - ENDS[0]) * PER_DECADE)
    even = [ENDS[0] + i / PER_DECADE for i in range(n + 1)]
    if currency == "flop":
        return even
    first = math.log10(two_models.LEAST_FLOPS)
    more = [first - CLOSE, *(first + near for near in NEAR_ENDS), *(ENDS[1] - near for near in NEAR_ENDS)]
    return sorted({*even, *more})


def stacks(asked: Asked, more: Iterable[Sequence[str]] = ()) -> list[Stack]:
    """Every algorithm, every pair that can stand together and has answers in FLOP, the named stacks, and `more`."""
    singles = [(name,) for name in algorithms.names()]
    remembered = _Fitted(asked)
    known = [name for (name,) in singles if not remembered.prepared((name,), "flop").missing]
    pairs = [pair for pair in itertools.combinations(known, 2) if _go_together(*pair)]
    wanted = [*singles, *pairs, *NAMED.values(), *(tuple(sorted(stack)) for stack in more)]
    return list(dict.fromkeys(wanted))


def _go_together(one: str, other: str) -> bool:
    """Neither excludes the other: they set no field of a model differently."""
    if one in NOT_ALONE or other in NOT_ALONE:
        return False
    first, second = algorithms.get(one).arm, algorithms.get(other).arm
    return all(first[field] == second[field] for field in first.keys() & second.keys())


def settings(stack: Stack) -> list[tuple[str, int]]:
    """Devices and sequence lengths at which a stack is timed."""
    pair = len(stack) == 2
    return [*itertools.product(PAIR_DEVICES if pair else DEVICES, PAIR_SEQ_LENS if pair else SEQ_LENS)]


def settings_by_size() -> list[list[tuple[str, int]]]:
    """Settings of stacks of one, two and more algorithms."""
    return [settings(("",) * size) for size in (1, 2, 3)]


def answers(
    asked: Asked,
    wanted: Sequence[Stack],
    *,
    processes: int | None = None,
    done: Callable[[int, int], None] | None = None,
) -> Document:
    """The answers to all questions about `wanted`, as the page reads them.

    Args:
        asked: evidence and settings.
        wanted: stacks.
        processes: at once; one for every processor by default, 1 works in this process.
        done: called with the number of stacks that are finished, and of all.
    """
    texts = _Texts()
    found: dict[Stack, Document] = {}
    for i, (stack, document) in enumerate(_answered(asked, wanted, processes or os.cpu_count() or 1)):
        found[stack] = texts.moved(document)
        if done is not None:
            done(i + 1, len(wanted))
    return {
        "ends": list(ENDS), "statuses": list(STATUSES),
        "steps": {"ln": LN_STEPS, "share": SHARE_STEPS, "decades": DECADE_STEPS, "x": PLACE_STEPS},
        "thresholds": sorted(THRESHOLDS),
        "texts": texts.known, "stacks": {"+".join(stack): found[stack] for stack in wanted},
    }  # fmt: skip


def _answered(asked: Asked, wanted: Sequence[Stack], processes: int) -> Iterator[tuple[Stack, Document]]:
    if processes == 1:
        fitted = _Fitted(asked)
        yield from ((stack, _stack(fitted, stack)) for stack in wanted)
        return
    pool = ProcessPoolExecutor(processes, initializer=_start, initargs=(asked, dict(algorithms.own())))
    try:
        # The longest first, so that no processor ends up with one of them when the others are idle.
        order = sorted(wanted, key=lambda stack: -len(settings(stack)))
        for future in as_completed([pool.submit(_of_worker, stack) for stack in order]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Remembered(Curve):
    """A curve that remembers what it was asked: stacks share their parts."""

    def __init__(self, *_: object) -> None:
        self.means: dict[float, Mixture] = {}
        self.slopes: list[Mixture] = []

    def mean(self, flops: float) -> Mixture:
        if flops not in self.means:
            self.means[flops] = super().mean(flops)
        return self.means[flops]

    def slope(self, low: float = RANGE[0], high: float = RANGE[1]) -> Mixture:
        if (low, high) != RANGE:
            return super().slope(low, high)
        if not self.slopes:
            self.slopes.append(super().slope())
        return self.slopes[0]


class _Fitted:
    """Questions without their budgets; each algorithm is fitted once."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.curves: dict[tuple[str, str, str], Curve] = {}
        self.known: dict[tuple[Stack, str], method.Prepared] = {}

    def prepared(self, stack: Stack, currency: str) -> method.Prepared:
        if (stack, currency) not in self.known:
            tables, _, spread = self.asked
            against = [algorithms.get(name).replaces[0] for name in stack]
            found = method.prepare(
                tables.rows, stack, against, currency=currency, spread=spread, remarks=tables.remarks,
                fitted=self.curves,
            )  # fmt: skip
            members = [(name, baseline, currency) for name, baseline in zip(stack, against, strict=True)]
            for member, curve in zip(members, found.curves, strict=False):  # none at all where something is missing
                self.curves.setdefault(member, _Remembered(*curve))
            curves = tuple(self.curves[member] for member in members) if found.curves else ()
            self.known[stack, currency] = found._replace(curves=curves)
        return self.known[stack, currency]


_worker: list[_Fitted] = []


def _start(asked: Asked, own: Mapping[str, algorithms.Algorithm]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends its workers
    algorithms.add(own)
    _worker[:] = [_Fitted(asked)]


def _of_worker(stack: Stack) -> tuple[Stack, Document]:
    return stack, _stack(_worker[0], stack)


def _stack(fitted: _Fitted, stack: Stack) -> Document:
    """One stack in every currency, and at every setting where the currency has one."""
    found = {currency: fitted.prepared(stack, currency) for currency in CURRENCIES}
    machines = {device: measured_device.find(device) for device in DEVICES}
    document: Document = {
        "flop": _curve(
            budgets("flop"), lambda x: method.evaluate(found["flop"], 10**x, interval=INTERVAL, thresholds=THRESHOLDS)
        )
    }
    where = [Setting(machines[device], machines[device], length) for device, length in settings(stack)]
    for currency in CURRENCIES[1:]:
        of_flop = None if currency == "decode" else found["flop"]
        asked = _asked(of_flop, found[currency], where)
        curves = [_timed(a) for a in asked] if currency != "usd" else map(_in_dollars, asked, document["time"].values())
        places = (f"{setting.device.name} {setting.seq_len}" for setting in where)
        document[currency] = dict(zip(places, curves, strict=True))
    return document


def _asked(
    of_flop: method.Prepared | None, rows: method.Prepared, where: Sequence[Setting]
) -> list[in_currency.InCurrency]:
    """A question at every setting; what the settings share is computed once."""
    if of_flop is None or not any(curve.capped for curve in of_flop.curves):
        first = in_currency.InCurrency(of_flop, rows, where[0])
        return [first, *(first.elsewhere(setting) for setting in where[1:])]
    # A cap is of a length, and so is the gain in FLOP below it.
    at_length: dict[int, in_currency.InCurrency] = {}
    for setting in where:
        curves = (Curve(*curve).elsewhere(curve.covariates, setting.seq_len) for curve in of_flop.curves)
        there = of_flop._replace(curves=tuple(curves))
        at_length.setdefault(setting.seq_len, in_currency.InCurrency(there, rows, setting))
    return [at_length[setting.seq_len].elsewhere(setting) for setting in where]


def _timed(asked: in_currency.InCurrency) -> Document:
    """Answers at one setting."""
    return _curve(budgets(asked.rows.currency), lambda x: asked.answer(10**x, interval=INTERVAL, exactly=False))


def _in_dollars(asked: in_currency.InCurrency, in_time: Document) -> Document:
    """The same on one device in US$: what is missing for an answer has other words, and the rest is as in time."""
    x = itertools.accumulate(in_time["x"])
    answered = [STATUSES[int(status)] != "no_evidence" for status in in_time["status"]]
    reasons = [
        reason if has else asked.answer(10 ** (at / PLACE_STEPS), interval=INTERVAL).reason
        for at, has, reason in zip(x, answered, in_time["reasons"], strict=True)
    ]
    return {"same": "time", "reasons": reasons}


def _curve(even: Sequence[float], answer: Callable[[float], Estimate]) -> Document:
    """Answers at rising budgets (log10 FLOP), and near where their status changes: lists, and what does not change."""
    found = {x: answer(x) for x in even}
    for before, after in itertools.pairwise(even):
        while found[before].status != found[after].status and after - before > STATUS_CLOSE:
            middle = (before + after) / 2
            found[middle] = answer(middle)
            before, after = (before, middle) if found[middle].status != found[before].status else (middle, after)
    places, estimates = zip(*sorted(found.items(), key=lambda place: place[0]), strict=True)
    document: Document = {
        "x": _steps(places, PLACE_STEPS),
        "status": "".join(str(STATUSES.index(e.status)) for e in estimates),
        "timed": "".join(str(int(e.speeds is not None)) for e in estimates),
        "reasons": [e.reason for e in estimates],
        "notes": [list(e.notes) for e in estimates],
    }
    if all(e.median is None for e in estimates):
        return document
    gains = {
        "median": [e.median for e in estimates],
        "mean": [e.mean_median for e in estimates],
        **_ends("90", [e.predictive for e in estimates]),
        **_ends("50", [e.predictive_50 for e in estimates]),
        **_ends("_mean", [e.mean_interval for e in estimates]),
    }
    together = [None if e.interaction is None else e.interaction.predictive for e in estimates]
    if any(together):
        levels = [None if m is None else m.quantiles([0.5, (1 - INTERVAL) / 2, (1 + INTERVAL) / 2]) for m in together]
        for i, name in enumerate(("interaction", "low_interaction", "high_interaction")):
            gains[name] = [None if level is None else math.exp(level[i]) for level in levels]
        first = next(e.interaction for e in estimates if e.interaction is not None)
        document["measured"] = [[o.label, o.study, o.flops, round(math.exp(o.value), 4)] for o in first.observations]
        document["unmeasured"] = [[a[0], b[0]] for a, b in first.unmeasured]
    document["gains"] = {name: _steps(map(_ln, values), LN_STEPS) for name, values in gains.items()}
    known = [None if e.decades is None or math.isnan(e.decades) else e.decades for e in estimates]
    document["decades"] = _steps(known, DECADE_STEPS)
    if any(e.above is not None for e in estimates):
        shares = [sorted(e.above.items()) if e.above else None for e in estimates]
        document["above"] = [
            _steps((None if share is None else share[i][1] for share in shares), SHARE_STEPS)
            for i in range(len(THRESHOLDS))
        ]
    grown = next((e for e in estimates if e.growth_per_decade is not None), None)
    if grown is not None:
        assert grown.growth_interval is not None
        document["growth"] = [grown.growth_per_decade, *grown.growth_interval]
        document["class"], document["lacks"] = grown.label, grown.label_lacks
        # One posterior for all budgets: probabilities differ in where they are told, not in what they are.
        document["classes"] = next((e.classes for e in estimates if e.classes is not None), None)
    if any(e.speeds is not None for e in estimates):
        # Those of the budgets that were timed; the others are averages over these.
        document["models"] = [
            None if e.speeds is None or two_models.neighbour(10**x) != 10**x else _models(e)
            for x, e in zip(places, estimates, strict=True)
        ]
        document["joined"] = any(e.joined for e in estimates)
    return document


def _ends(name: str, intervals: Sequence[tuple[float, float] | None]) -> dict[str, list[float | None]]:
    """Lower and upper ends of intervals, one list each."""
    return {
        f"{side}{name}": [None if ends is None else ends[i] for ends in intervals]
        for i, side in enumerate(("low", "high"))
    }


def _ln(value: float | None) -> float | None:
    return None if value is None else math.log(value)


def _steps(values: Iterable[float | None], per_unit: int) -> list[int | None]:
    """Whole steps: the first value, then by how much each differs from the last one before it that there is."""
    told: list[int | None] = []
    last = 0
    for value in values:
        if value is None:
            told.append(None)
            continue
        at = round(value * per_unit)
        told.append(at - last)
        last = at
    return told


def _models(estimate: Estimate) -> list[object]:
    """Gain in FLOP, factor of the speeds and sd of its ln, then both models; on one device prices cancel."""
    found = estimate.speeds
    assert found is not None
    numbers = [estimate.gain_in_flop or 1.0, math.exp(found.ln_factor), math.sqrt(found.variance)]
    return [*(float(f"{value:.3g}") for value in numbers), _side(found.treatment), _side(found.baseline)]


def _side(side: Side) -> list[object]:
    """Layers, width, parameters, devices, seconds of a step or token, its longest part and that part's share."""
    count = architecture.parameters(side.shape)
    time = side.time
    devices = time.devices if isinstance(time, TokenTime) else time.plan.devices
    part, longest = max(time.parts.items(), key=lambda part: part[1])
    sizes = [side.shape.n_layers, side.shape.d_model, _rounded(count.active), _rounded(count.total), devices]
    return [*sizes, _rounded(time.seconds), part, _rounded(longest / time.seconds)]


def _rounded(value: float) -> float:
    """Two digits, as the page shows them."""
    return float(f"{value:.2g}")


class _Texts:
    """Sentences, each of which travels once."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self.places: dict[str, int] = {}

    def place(self, text: str) -> int:
        if text not in self.places:
            self.places[text] = len(self.known)
            self.known.append(text)
        return self.places[text]

    def moved(self, document: Document) -> Document:
        """The document of a stack with the places of its sentences."""
        timed = (curve for currency in CURRENCIES[1:] for curve in document[currency].values())
        for curve in (document["flop"], *timed):
            curve["reasons"] = [self.place(text) for text in curve["reasons"]]
            if "notes" in curve:
                curve["notes"] = [[self.place(text) for text in notes] for notes in curve["notes"]]
        return document
