"""Check a question, load the evidence, answer: what the commands and the Python API call."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gc
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, SupportsFloat

# First, from near the top of the stack: where its imports cross the end of a chunk of the stack, CPython 3.11 gets and
# gives back memory at every call, 40 ms in all.
import numpy  # noqa: F401

from cegain import algorithms
from cegain.gain import method, prior
from cegain.gain.answer import Estimate
from cegain.gain.evidence import load
from cegain.tables.problems import EvidenceError
from cegain.tables.published_gains import FLOPS_RANGE, Evidence

if TYPE_CHECKING:
    from cegain.speed.hardware import Device
    from cegain.speed.two_models import Setting

CURRENCIES = ("flop", "time", "usd", "decode")
DEVICE = "h100"
"""Where models run if a question in time, dollars or decode time does not say."""
THRESHOLDS = (1e25, 1e26)
"""Reporting thresholds (FLOP): EU AI Act, Art. 51 (2024), and US Executive Order 14110 (2023, since revoked)."""
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
    interval: float = 0.9,
    evidence: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    only_evidence: bool = False,
    slope_prior: bool = True,
    thresholds: Iterable[float] = THRESHOLDS,
    seed: int = 0,
    problems: Sequence[str] = (),
    with_shares: bool = True,
) -> tuple[Estimate, ...]:
    """Answers at several budgets (FLOP); the arguments are those of `cegain.estimate`.

    `problems` that the caller found already are reported with the rest. The shares of each kind of evidence take
    further fits, which a curve through many budgets can do without.
    """
    problems = list(problems)
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
        given = {"device": device, "baseline_device": baseline_device, "seq_len": seq_len}
        for option in [name for name, value in given.items() if value is not None]:
            problems.append(f"{option}: it goes with the currency time, usd or decode (found {currency}). Name one.")
    paths = [evidence] if isinstance(evidence, str | os.PathLike) else list(evidence)
    if only_evidence and not paths:
        problems.append("only_evidence: leaves no evidence without a table of your own. Add --evidence PATH.")
    with _no_collection():
        tables = Evidence((), "", ())
        if paths or not only_evidence:
            try:
                tables = load(paths, shipped=not only_evidence)
            except EvidenceError as error:
                problems += map(str, error.problems)
        against = _baselines(names, baseline, tables, problems) if names_known else []
        if problems:
            raise QuestionError(problems)
        order = sorted(range(len(names)), key=lambda i: names[i])
        parts, replaced = [names[i] for i in order], [against[i] for i in order]
        spread = prior.frozen()
        if not slope_prior:
            spread = spread._replace(slope_sd=math.inf, slope_mean=0.0)
        ours = frozenset(load().rows) if paths else None

        def prepared_in(counted: str) -> method.Prepared:
            known = ours if only_evidence else None
            return method.prepare(
                tables.rows, parts, replaced, currency=counted, spread=spread, shipped=known, remarks=tables.remarks
            )

        prepared = prepared_in(currency)
        by_kind: list[dict[str, float]] = [{}] * len(budgets)
        if with_shares:
            by_kind = method.shares(
                tables.rows, parts, replaced, budgets, currency=currency, spread=spread, shipped=ours
            )
        if setting is not None:
            from cegain.gain import in_currency

            in_flop = None if currency == "decode" else prepared_in("flop")
            asked = in_currency.InCurrency(in_flop, prepared, setting)
            answers = [asked.answer(budget, interval=interval, sha256=tables.sha256, seed=seed) for budget in budgets]
        else:
            answers = [
                method.evaluate(prepared, budget, interval=interval, thresholds=limits, sha256=tables.sha256, seed=seed)
                for budget in budgets
            ]
    return tuple(dataclasses.replace(answer, shares=kinds) for answer, kinds in zip(answers, by_kind, strict=True))


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


def _names(algo: str | Sequence[str], problems: list[str]) -> list[str]:
    parts = algo.replace("+", ",").split(",") if isinstance(algo, str) else list(algo)
    parts = [part.strip() for part in parts if part.strip()]
    if not parts:
        problems.append("algo: at least one name is needed (found none). See `ceg list`.")
    names: list[str] = []
    for part in parts:
        try:
            name = algorithms.resolve(part)
        except algorithms.UnknownAlgorithm as error:
            problems.append(str(error))
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
