"""`cegain.estimate`: how much compute an algorithm is worth."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat, overload

from cegain.api.result import Picture, Result
from cegain.gain import answer
from cegain.gain.question import THRESHOLDS, estimate_all

FIRST, LAST = 1e17, 1e26
"""Budgets (FLOP) that a picture reaches from and to, at least."""


@dataclass(frozen=True)
class Estimate(answer.Estimate, Result):
    """An answer; its fields are those of `cegain.gain.answer.Estimate`."""

    again: Callable[..., tuple[answer.Estimate, ...]] | None = field(default=None, compare=False, repr=False)
    """The same question at other budgets: `again(budgets, algo=..., baseline=...)`."""

    __str__ = answer.Estimate.__str__

    def to_dict(self) -> dict[str, Any]:
        """As `ceg-estimate --json`."""
        return answer.document([self])

    def plot(self) -> Picture:
        """CEG against scale, as `ceg plot`; a stack beside its parts."""
        from cegain.pictures.curves import draw, grid

        assert self.again is not None
        budgets = [float(c) for c in grid(min(FIRST, self.flops), max(LAST, self.flops)).split(",")]
        curve = self.again(budgets)
        alone = zip(self.algorithms, self.baselines, strict=True) if len(self.algorithms) > 1 else ()
        parts = [self.again(budgets, algo=part, baseline=baseline) for part, baseline in alone]
        return Picture(lambda ending: draw([curve], ending, [parts]))


@overload
def estimate(algo: str | Sequence[str], flops: SupportsFloat, **options: Any) -> Estimate: ...
@overload
def estimate(algo: str | Sequence[str], flops: Iterable[SupportsFloat], **options: Any) -> tuple[Estimate, ...]: ...
def estimate(  # type: ignore[misc]  # the options are spelled out once, here
    algo: str | Sequence[str],
    flops: SupportsFloat | Iterable[SupportsFloat],
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
) -> Estimate | tuple[Estimate, ...]:
    """Compute-equivalent gain of `algo` when `flops` are spent with it.

    >>> from cegain import estimate
    >>> answer = estimate("moe", flops=1e24)
    >>> answer.status, answer.currency
    ('ok', 'flop')
    >>> print(answer)  # doctest: +ELLIPSIS
    CEG of Mixture of experts, against dense, in flop, at 1e24 FLOP, 16 experts for each active one
    status: ok
    ...
    >>> [round(answer.flops) for answer in estimate("layernorm,rope", [1e20, 1e22])]
    [100000000000000000000, 10000000000000000000000]

    Args:
        algo: name or names ("moe", "layernorm,rope" or a sequence: a stack).
        flops: training compute with the algorithm (FLOP); several budgets give a tuple of answers.
        currency: "flop", "time", "usd" or "decode" (seconds per generated token).
        baseline: what the algorithm replaces, if not its default (one per algorithm).
        device: in other currencies than flop, where the model with the algorithm runs ("h100").
        baseline_device: where the other model runs; None: on the same device.
        seq_len: tokens of a sequence (None: 2048), in other currencies than flop, and in flop of attention.
        experts: of mixtures, all experts over active ones; None: 16.
        interval: probability content of `predictive` and `mean_interval`.
        evidence: further tables of gains (files or folders), read beside the shipped one.
        only_evidence: leave the shipped table out.
        registry: a folder that describes algorithms of your own, one Python file each, which is run.
        slope_prior: false leaves the growth with compute to the algorithm's own rows.
        thresholds: budgets (FLOP) for which the share of the distribution above is given.
        seed: recorded in the answer. Nothing is drawn at random: the method is closed form.

    Raises:
        QuestionError: with everything wrong with the question and its tables.
    """
    one = isinstance(flops, SupportsFloat | str) and not getattr(flops, "ndim", 0)
    ask = functools.partial(
        _ask, algo=algo, currency=currency, baseline=baseline, device=device, baseline_device=baseline_device,
        seq_len=seq_len, experts=experts, interval=interval, evidence=evidence, only_evidence=only_evidence,
        registry=registry, slope_prior=slope_prior, thresholds=tuple(thresholds), seed=seed,
    )  # fmt: skip
    answers = ask([flops] if one else list(flops))  # type: ignore[arg-type]
    again = functools.partial(ask, with_sensitivity=False, asked=algo)
    results = tuple(
        Estimate(**{f.name: getattr(a, f.name) for f in dataclasses.fields(a)}, again=again) for a in answers
    )
    return results[0] if one else results


def _ask(flops: Sequence[Any], algo: str | Sequence[str], **options: Any) -> tuple[answer.Estimate, ...]:
    return estimate_all(algo, flops, **options)
