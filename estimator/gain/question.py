"""Check a question, load the evidence, answer: what the commands and the Python API call."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gc
import itertools
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, SupportsFloat

# First, from near the top of the stack: where its imports cross the end of a chunk of the stack, CPython 3.11 gets and
# gives back memory at every call, 40 ms in all.
import numpy  # noqa: F401

from cegain import algorithms
from cegain.gain import capped, contrasts, method, prior
from cegain.gain.answer import Estimate, Range
from cegain.gain.evidence import load
from cegain.tables.problems import EvidenceError
from cegain.tables.published_gains import FLOPS_RANGE, Evidence, PublishedGain

if TYPE_CHECKING:
    from cegain.common.mixture import Mixture
    from cegain.gain.in_currency import InCurrency
    from cegain.speed.hardware import Device
    from cegain.speed.two_models import Setting

CURRENCIES = ("flop", "time", "usd", "decode")
DEVICE = "h100"
"""Where models run if a question in time, dollars or decode time does not say."""
THRESHOLDS = (1e25, 1e26)
"""Reporting thresholds (FLOP): EU AI Act, Art. 51 (2024), and US Executive Order 14110 (2023, since revoked)."""
EXPERTS_RANGE = (4.0, 4096.0)
MAX_INTERVAL = 0.9999
"""Wider intervals would rest on the far tails of the assumed normals, and on nothing in the evidence."""


class QuestionError(ValueError):
    """A question that cannot be asked; `problems` names rule, value and remedy of everything wrong with it."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


def estimate_all(
    algo: str | Sequence[str],
    flops: Sequence[float],
    *,
    currency: str = "flop",
    baseline: str | Sequence[str] | None = None,
    device: str | None = None,
    baseline_device: str | None = None,
    seq_len: int | None = None,
    experts: float | None = None,
    interval: float = 0.9,
    evidence: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    only_evidence: bool = False,
    registry: str | os.PathLike[str] | None = None,
    slope_prior: bool = True,
    thresholds: Iterable[float] = THRESHOLDS,
    seed: int = 0,
    problems: Sequence[str] = (),
    with_sensitivity: bool = True,
    with_influence: bool = True,
    asked: str | Sequence[str] | None = None,
) -> tuple[Estimate, ...]:
    """Answers at several budgets (FLOP); the arguments are those of `cegain.estimate`.

    `problems` that the caller found already are reported with the rest. The lines about proposers and selection take
    further fits, which a curve through many budgets can do without, and so do influences, which few read. `asked` are
    all algorithms of the caller's question where this one is a part of it (None: it is all).
    """
    problems = list(problems)
    paths = [evidence] if isinstance(evidence, str | os.PathLike) else list(evidence)
    parts = _parts(algo if asked is None else asked)
    with contextlib.ExitStack() as scope:
        scope.enter_context(_no_collection())
        described: Mapping[str, algorithms.Algorithm] = {}
        unreadable: list[str] = []
        tables = Evidence((), "", ())
        try:
            if registry is not None:
                from cegain.gain import own_algorithms

                described = own_algorithms.of_folder(registry)
                scope.enter_context(algorithms.beside(described))
            if paths or not only_evidence:
                tables = load(paths, shipped=not only_evidence, asked=parts)
        except EvidenceError as error:
            unreadable = [*map(str, error.problems)]
        scope.enter_context(algorithms.beside(dict(tables.own)))
        others = len(problems)
        names = _names(algo, problems)
        names_known = len(problems) == others
        budgets = [_positive("flops", c, "1e24", problems) for c in flops]
        limits = sorted({_positive("threshold", t, "1e26", problems) for t in thresholds})
        if not 0 < interval <= MAX_INTERVAL:
            problems.append(
                f"interval: a probability above 0 and up to {MAX_INTERVAL} is needed (found {interval}). Try 0.9."
            )
        if currency not in CURRENCIES:
            problems.append(f"currency: one of {', '.join(CURRENCIES)} is needed (found {currency!r}). Try flop.")
        setting = None
        if currency != "flop" and currency in CURRENCIES:
            setting = _setting(device, baseline_device, seq_len, problems)
        else:
            given = {"device": device, "baseline_device": baseline_device}
            for option in [name for name, value in given.items() if value is not None]:
                problems.append(
                    f"{option}: it goes with the currency time, usd or decode (found {currency}). Name one."
                )
        where = _where(names, currency, seq_len, experts, problems) if names_known else {}
        if only_evidence and not paths:
            problems.append("only_evidence: leaves no evidence without a table of your own. Add --evidence PATH.")
        problems += unreadable
        against = _baselines(names, baseline, tables, problems) if names_known else []
        _exclusive(names, against, problems)
        if problems:
            raise QuestionError(problems)
        order = sorted(range(len(names)), key=lambda i: names[i])
        stack, replaced = [names[i] for i in order], [against[i] for i in order]
        spread = prior.frozen()
        if not slope_prior:
            spread = spread._replace(slope_sd=math.inf)
        ours = frozenset(load().rows) if paths else None

        def prepared_in(counted: str) -> method.Prepared:
            return method.prepare(
                tables.rows, stack, replaced, currency=counted, spread=spread, remarks=tables.remarks, where=where
            )

        prepared = prepared_in(currency)
        if setting is not None:
            from cegain.gain import in_currency

            in_flop = None if currency == "decode" else prepared_in("flop")
            modelled = in_currency.InCurrency(in_flop, prepared, setting)
            answers = [
                modelled.answer(budget, interval=interval, sha256=tables.sha256, seed=seed) for budget in budgets
            ]
        else:
            answers = [
                method.evaluate(prepared, budget, interval=interval, thresholds=limits, sha256=tables.sha256, seed=seed)
                for budget in budgets
            ]
        if own := {**described, **dict(tables.own)}:
            answers = [dataclasses.replace(answer, own_algorithms=own) for answer in answers]
        covariates = _depends_on(names, currency, where)
        answers = [dataclasses.replace(answer, where=covariates, given=_given(answer, ours)) for answer in answers]
        if not with_sensitivity or all(answer.median is None for answer in answers):
            return tuple(answers)
        from cegain.gain import sensitivity

        kinds: list[dict[str, float]] = [{} for _ in budgets]
        if with_influence and setting is not None:
            kinds = [modelled.influences(budget, ours) for budget in budgets]
        elif with_influence:
            kinds = sensitivity.influences(prepared, budgets, ours)
        independent: list[Range | None] = [None] * len(budgets)
        chosen = independent
        if currency == "flop":
            independent = sensitivity.without_proposers(tables.rows, prepared, budgets, interval, where)
            chosen = sensitivity.selected(prepared, budgets, interval)
    return tuple(
        dataclasses.replace(
            answer,
            influence=of_kind,
            without_proposers=other,
            selected=selected,
            proposers_alone=currency == "flop" and other is None and sensitivity.rests_on_proposers(prepared),
        )
        if answer.median is not None
        else answer
        for answer, of_kind, other, selected in zip(answers, kinds, independent, chosen, strict=True)
    )


class Asked:
    """A checked question in any currency on the default device, for what compares many: its answers, slope and label.

    Args:
        tables: evidence.
        names: canonical, sorted.
        baselines: of each.
        currency: one of `CURRENCIES`.
    """

    def __init__(self, tables: Evidence, names: Sequence[str], baselines: Sequence[str], currency: str) -> None:
        self.sha256 = tables.sha256

        def prepared_in(counted: str) -> method.Prepared:
            return method.prepare(tables.rows, names, baselines, currency=counted, spread=prior.frozen())

        self.prepared = prepared_in(currency)
        self.modelled: InCurrency | None = None
        if currency != "flop":
            from cegain.gain import in_currency

            setting = _setting(None, None, None, [])
            assert setting is not None
            in_flop = None if currency == "decode" else prepared_in("flop")
            self.modelled = in_currency.InCurrency(in_flop, self.prepared, setting)

    def answer(self, flops: float) -> Estimate:
        """At a budget (FLOP), 90% intervals."""
        if self.modelled is not None:
            return self.modelled.answer(flops, interval=0.9, sha256=self.sha256)
        return method.evaluate(self.prepared, flops, interval=0.9, thresholds=(), sha256=self.sha256)

    def slope(self) -> Mixture | None:
        """Average d ln CEG / d log10 C from 1e18 to 1e26 FLOP; None without an answer."""
        if self.modelled is not None:
            return self.modelled.slope()
        return None if self.prepared.missing else method.slope_of(self.prepared)

    def lacks_label(self) -> str:
        """`method.lacks_label` of the gain in FLOP behind it; of the rows themselves where nothing is modelled, or
        where the gain in FLOP is 1 by construction and all of the gain is one of speeds.
        """
        rests_on = self.prepared
        if self.modelled is not None and self.modelled.in_flop is not None and not self.modelled.in_flop.missing:
            in_flop = self.modelled.in_flop
            rests_on = rests_on if all(curve.exact for curve in in_flop.curves) else in_flop
        if rests_on.missing:
            return "no run measures it: a model of speeds alone says it"
        return method.lacks_label(rests_on)


def _depends_on(names: Sequence[str], currency: str, where: Mapping[str, float]) -> dict[str, float]:
    """The covariates that an answer is for, those left out at their reference."""
    found: dict[str, float] = {}
    if currency != "decode" and any(contrasts.covariates_of(name) for name in names):
        found["experts"] = where.get("experts", contrasts.EXPERTS)
    if currency == "flop" and any(capped.applies(name, currency) for name in names):
        found["seq_len"] = where.get("seq_len", capped.SEQ_LEN)
    return found


def _given(answer: Estimate, shipped: Collection[PublishedGain] | None) -> int:
    """Rows that set the level and did not come with the package."""
    if shipped is None:
        return 0
    fixing = [u.row for q in answer.questions for u in q.used if u.contrast >= 0 and u.fixes_level]
    return sum(row not in shipped for row in fixing)


def _where(
    names: Sequence[str], currency: str, seq_len: int | None, experts: float | None, problems: list[str]
) -> dict[str, float]:
    """What the question says of covariates; problems are added where nothing depends on them."""
    where: dict[str, float] = {}
    if seq_len is not None:
        where["seq_len"] = seq_len
        if currency == "flop" and not any(capped.applies(name, currency) for name in names):
            rule = "it goes with the currency time, usd or decode, or in flop with an attention pattern or shared heads"
            problems.append(f"seq_len: {rule} (found flop and {', '.join(names)}). Leave it out.")
        elif seq_len < 1 and currency == "flop":
            problems.append(f"seq_len: a whole number of at least 1 is needed (found {seq_len}). Try 2048.")
        elif currency == "flop" and seq_len < capped.LEAST_PATTERN:
            for name in names:
                if capped.applies(name, currency) and capped.is_pattern(name):
                    rule = f"below {capped.LEAST_PATTERN} tokens {name} leaves next to nothing out, and gains nothing"
                    problems.append(f"seq_len: {rule} (found {seq_len}). Try 2048.")
    if experts is not None:
        where["experts"] = experts
        if not any(contrasts.covariates_of(name) for name in names):
            problems.append(f"experts: it goes with an algorithm of experts, such as moe (found {', '.join(names)}).")
        elif currency == "decode":
            problems.append("experts: a token's time is modelled for one mixture (found decode). Leave it out.")
        elif not EXPERTS_RANGE[0] <= experts <= EXPERTS_RANGE[1]:
            low, high = EXPERTS_RANGE
            rule = f"all experts over active ones is {low:g} to {high:g}, near what was measured (8 to 2048)"
            problems.append(f"experts: {rule} (found {experts:g}). Try 8: 64 experts, 8 active.")
    return where


def _exclusive(names: Sequence[str], against: Sequence[str], problems: list[str]) -> None:
    """Two algorithms that replace the same thing cannot stand in one stack."""
    by_baseline: dict[str, list[str]] = {}
    for name, baseline in zip(names, against, strict=False):
        if name != baseline:
            by_baseline.setdefault(baseline, []).append(name)
    for one, other in itertools.combinations(sorted(names), 2):
        arms = algorithms.get(one).arm, algorithms.get(other).arm
        clash = [field for field in arms[0].keys() & arms[1].keys() if arms[0][field] != arms[1][field]]
        if clash and not any({one, other} <= set(replacing) for replacing in by_baseline.values()):
            problems.append(
                f"algo: one model has one {clash[0].replace('_', ' ')} (found {one} and {other}). Leave one out."
            )
    for baseline, replacing in by_baseline.items():
        if len(replacing) > 1:
            problems.append(
                f"algo: one model has one of what replaces {baseline} (found {' and '.join(sorted(replacing))}). "
                "Leave all but one out."
            )


def _setting(
    device: str | None, baseline_device: str | None, seq_len: int | None, problems: list[str]
) -> Setting | None:
    """Devices and sequence length of a question, or None with problems added."""
    from cegain.speed import measured_device, two_models

    found: list[Device] = []
    named = {"device": device or DEVICE}
    if baseline_device is not None:
        named["baseline_device"] = baseline_device
    for option, name in named.items():
        try:
            found.append(measured_device.find(name))
        except ValueError as error:
            problems.append(str(error).replace("device", option, 1))
    length = two_models.SEQ_LEN if seq_len is None else seq_len
    if length < 1:
        problems.append(f"seq_len: a whole number of at least 1 is needed (found {seq_len}). Try 2048.")
    return two_models.Setting(found[0], found[-1], length) if len(found) == len(named) else None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No search for cyclic garbage meanwhile: a long table is many small objects, none of them garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parts(algo: str | Sequence[str]) -> list[str]:
    parts = algo.replace("+", ",").split(",") if isinstance(algo, str) else list(algo)
    return [part.strip() for part in parts if part.strip()]


ROWS_OF_IT = "Or give rows of it: --evidence TABLE."
"""What else can be done about an algorithm that the registry does not have."""


def _names(algo: str | Sequence[str], problems: list[str]) -> list[str]:
    parts = _parts(algo)
    if not parts:
        problems.append("algo: at least one name is needed (found none). See `ceg list`.")
    names: list[str] = []
    for part in parts:
        try:
            name = algorithms.resolve(part)
        except algorithms.UnknownAlgorithm as error:
            problems.append(f"{error} {ROWS_OF_IT}")
            continue
        if name in names:
            problems.append(f"algo: an algorithm stands once in a stack (found {name} twice). Remove one.")
        names.append(name)
    return names


def _positive(what: str, value: object, example: str, problems: list[str]) -> float:
    low, high = FLOPS_RANGE
    if isinstance(value, SupportsFloat) and low <= float(value) <= high:
        return float(value)
    problems.append(
        f"{what}: a number of FLOP above 0 ({low:g} to {high:g}) is needed (found {value!r}). Try {example}."
    )
    return math.nan


def _baselines(
    names: Sequence[str], given: str | Sequence[str] | None, tables: Evidence, problems: list[str]
) -> list[str]:
    """One baseline per name: the default, or the given ones in order."""
    if given is None:
        return [algorithms.get(name).replaces[0] for name in names]
    parts = given.replace("+", ",").split(",") if isinstance(given, str) else list(given)
    parts = [part.strip().lower().replace("-", "_").replace(" ", "_") for part in parts]
    if len(parts) != len(names):
        problems.append(
            f"baseline: one per algorithm is needed, in order (found {len(parts)} for {len(names)}). "
            "Leave --baseline out for the defaults."
        )
        return parts
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        known = {*algorithms.get(name).replaces, name}
        known |= {row.baseline for row in tables.rows if row.algorithm == name}
        if part not in known:
            with contextlib.suppress(algorithms.UnknownAlgorithm):
                parts[i] = algorithms.resolve(part)  # an alias of an algorithm that is replaced
        if parts[i] not in known:
            near = difflib.get_close_matches(part, sorted(known), 1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(known))}."
            problems.append(f"baseline: one that {name} can be compared with is needed (found {part!r}). {hint}")
    return parts
