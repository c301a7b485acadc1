"""`cegain.fit`, `forecast`, `backtest`, `compare`, `speedup`: what tables of runs, or one pair of losses, tell."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cegain.api.result import Picture, Result
from cegain.checks import backtest as held_out
from cegain.checks import backtest_scores
from cegain.comparison import arms, report
from cegain.comparison import compare as comparisons
from cegain.gain.question import QuestionError
from cegain.ladders import fit_report, ladder, one_pair
from cegain.ladders import forecast as forecasts
from cegain.ladders.ladder import Ladder, RunTable
from cegain.run_tables.run_import import AS_IT_IS, ReadOptions
from cegain.tables.problems import EvidenceError

Runs = Any
"""A table of runs: a path, or a pandas DataFrame with the same columns (variant, N, D, C, loss)."""
_PAST_RUNS = 100.0
"""How far past the runs a picture reaches, as a factor of compute."""


@dataclass(frozen=True)
class Law(Result):
    """The scaling law of one arm, as `ceg fit --variant`."""

    value: fit_report.OneArm
    """The fits: `value.chinchilla` (None without tokens) and `value.frontier`."""
    budgets: tuple[float, ...]

    def __str__(self) -> str:
        return fit_report.one_arm_text(self.value, self.budgets)

    def to_dict(self) -> dict[str, Any]:
        """As `ceg fit --variant V --json`."""
        return fit_report.one_arm_document(self.value)

    def plot(self) -> Picture:
        """The losses of the arm, and the frontier through them."""
        from cegain.pictures.runs import draw_law

        return Picture(lambda ending: draw_law(self.value.rungs, self.value.frontier, ending))


@dataclass(frozen=True)
class Gain(Result):
    """The gain of one arm over another at some budgets, as `ceg fit --baseline B --variant V`."""

    value: fit_report.TwoArms
    """`value.forecast.at` has the median, intervals and status at every budget."""
    arms: tuple[Ladder, Ladder] = field(repr=False)

    def __str__(self) -> str:
        return fit_report.two_arms_text(self.value)

    def to_dict(self) -> dict[str, Any]:
        """As `ceg fit --baseline B --variant V --json`."""
        return fit_report.two_arms_document(self.value)

    def plot(self) -> Picture:
        """Both ladders and the gain between them, as `ceg plot --runs`."""
        from cegain.pictures.runs import draw

        ends = [math.exp(end) for arm in self.arms for end in arm.x[[0, -1]]]
        budgets = [at.flops for at in self.value.forecast.at] or [_PAST_RUNS * max(ends)]
        high = max([*budgets, *ends])
        return Picture(lambda ending: draw(*self.arms, min(ends), high, ending))


@dataclass(frozen=True)
class Backtest(Result):
    """The top of ladders hidden, predicted and scored, as `ceg backtest`."""

    points: tuple[held_out.Point, ...] = field(repr=False)
    skipped: tuple[held_out.Skipped, ...] = field(repr=False)
    settings: Mapping[str, forecasts.Settings] = field(repr=False)

    @property
    def summary(self) -> list[held_out.Summary]:
        """Scores by set, cut and method."""
        return held_out.summarise(self.points)

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        held_out.print_report(Console(file=text, width=120), self.points, self.skipped)
        return text.getvalue().rstrip("\n")

    def to_dict(self) -> dict[str, Any]:
        """As `ceg backtest --json`."""
        return held_out.document(self.points, self.skipped, self.settings)

    def plot(self) -> Picture:
        """Forecasts against what was hidden, as `ceg plot --backtest`."""
        from cegain.pictures.scores import draw_backtest

        entry = {"points": backtest_scores.columns(self.points), "tables": []}
        return Picture(lambda ending: draw_backtest([entry], ending))


@dataclass(frozen=True)
class Verdict(Result):
    """Is one arm better than another, as `ceg compare`."""

    value: comparisons.Comparison
    """`value.verdict`, `value.p_value`, `value.gain`, and `value.budgets` with each budget's own."""

    def __str__(self) -> str:
        return report.text(self.value)

    def to_dict(self) -> dict[str, Any]:
        """As `ceg compare --json`."""
        return report.document(self.value)

    def plot(self) -> Picture:
        """The difference of losses at every budget, beside its 95% interval."""
        from cegain.pictures.runs import draw_comparison

        return Picture(lambda ending: draw_comparison(self.value, ending))


@dataclass(frozen=True)
class Speedup(one_pair.Speedup, Result):
    """The gain behind one pair of losses, as `ceg speedup`."""

    __str__ = one_pair.Speedup.__str__

    def to_dict(self) -> dict[str, Any]:
        """As `ceg speedup --json`."""
        return self.as_dict()

    def plot(self) -> Picture:
        """The gain by the floor that is assumed, beside its 90% interval."""
        from cegain.pictures.runs import draw_pair

        return Picture(lambda ending: draw_pair(self, ending))


def fit(
    runs: Runs,
    variant: str | None = None,
    baseline: str | None = None,
    *,
    at: float | Sequence[float] = (),
    max_flops: float | None = None,
    drop_highest: int = 0,
    bootstrap: int = 1000,
    loss_column: str = "loss",
    read: ReadOptions = AS_IT_IS,
    loss_noise: float | None = None,
    seed: int = 0,
) -> Law | Gain:
    """The scaling law of one arm, or with `baseline` the gain of `variant` over it.

    >>> import tempfile, cegain
    >>> from cegain.ladders.synthetic import table
    >>> path = tempfile.mkdtemp() + "/runs.csv"
    >>> _ = open(path, "w").write(table("constant", seed=1))
    >>> law = cegain.fit(path, "baseline", bootstrap=20)
    >>> print(law)  # doctest: +ELLIPSIS
    baseline: 8 rungs, 1e17 - 3.2e20 FLOP
    ...

    Args:
        runs: path of a table of runs, or a DataFrame.
        variant: the arm to fit; None where the table has one arm besides `baseline`.
        baseline: the arm without the algorithm; None for the law of `variant` alone.
        at: budgets (FLOP) to answer at.
        max_flops: use runs up to this budget (FLOP) only.
        drop_highest: leave out so many of the highest losses.
        bootstrap: resamples behind the intervals of a law.
        loss_column: the column that holds the loss.
        read: what its names do not tell: `cegain.ReadOptions(columns={"C": "gflops*1e9"}, repeats="sweep")`.
        loss_noise: seed noise of ln loss, where it is known.
        seed: of the resamples.

    Raises:
        QuestionError: everything wrong with the table and the question.
    """
    budgets = [float(c) for c in ([at] if isinstance(at, int | float) else at)]
    problems = [f"at: budgets above 0 FLOP are needed (found {c}). Try 1e22." for c in budgets if not 0 < c < math.inf]
    try:
        table = fit_report.restrict(_table(runs, _how(read, loss_column)), max_flops, drop_highest)
        arm = variant if variant is not None else _only_arm(table, baseline, problems)
        if problems or arm is None:
            raise QuestionError(problems)
        if baseline is None:
            return Law(fit_report.one_arm(table, arm, bootstrap, seed), tuple(budgets))
        gain = fit_report.two_arms(table, baseline, arm, budgets, loss_noise)
        return Gain(gain, gain.arms)
    except EvidenceError as error:
        raise QuestionError([*problems, *map(str, error.problems)]) from None


def forecast(
    runs: Runs,
    variant: str,
    baseline: str,
    at: float | Sequence[float] = (),
    *,
    loss_column: str = "loss",
    read: ReadOptions = AS_IT_IS,
    loss_noise: float | None = None,
) -> Gain:
    """The gain of `variant` over `baseline` at budgets inside and past the runs.

    >>> import tempfile, cegain
    >>> from cegain.ladders.synthetic import table
    >>> path = tempfile.mkdtemp() + "/runs.csv"
    >>> _ = open(path, "w").write(table("constant", seed=1))  # a gain of 2x everywhere
    >>> gain = cegain.forecast(path, "treatment", "baseline", at=1e20)
    >>> 1.8 < gain.value.forecast.at[0].median < 2.2
    True

    Args:
        runs: path of a table of runs, or a DataFrame.
        variant: the arm with the algorithm.
        baseline: the arm without it.
        at: budgets (FLOP); by default some past the last run.
        loss_column: the column that holds the loss.
        read: what its names do not tell: `cegain.ReadOptions(columns={"C": "gflops*1e9"}, repeats="sweep")`.
        loss_noise: seed noise of ln loss, where it is known.

    Raises:
        QuestionError: everything wrong with the table and the question.
    """
    gain = fit(runs, variant, baseline, at=at, loss_column=loss_column, read=read, loss_noise=loss_noise)
    assert isinstance(gain, Gain)
    return gain


def backtest(
    runs: Runs | Sequence[Runs],
    *,
    pairs: str | os.PathLike[str] | None = None,
    cuts: Sequence[float] = held_out.CUTS,
    loss_column: str = "loss",
    read: ReadOptions = AS_IT_IS,
    jobs: int = 1,
) -> Backtest:
    """Hide the runs above the largest budget / cut, predict the gains there, and score the predictions.

    >>> import tempfile, cegain
    >>> from cegain.ladders.synthetic import table
    >>> path = tempfile.mkdtemp() + "/runs.csv"
    >>> _ = open(path, "w").write(table("constant", seed=1))
    >>> scores = cegain.backtest(path, cuts=[3])
    >>> {point.cut for point in scores.points}
    {3.0}

    Args:
        runs: a table of runs (path or DataFrame), or several.
        pairs: a file of arms to compare (columns set, baseline, treatment); None: every two arms of a table.
        cuts: factors above 1.
        loss_column: the column that holds the loss.
        read: what its names do not tell: `cegain.ReadOptions(columns={"C": "gflops*1e9"}, repeats="sweep")`.
        jobs: processes.

    Raises:
        QuestionError: everything wrong with the tables and the question.
    """
    problems = [f"cuts: a factor above 1 is needed (found {cut}). Try 10." for cut in cuts if not cut > 1]
    tables: list[RunTable] = []
    for each in [runs] if isinstance(runs, str | os.PathLike) or hasattr(runs, "to_csv") else runs:
        try:
            tables.append(_table(each, _how(read, loss_column)))
        except EvidenceError as error:
            problems += map(str, error.problems)
    try:
        every = [pair for table in tables for pair in held_out.all_pairs(table)] if pairs is None else []
        compared = held_out.read_pairs(Path(pairs)) if pairs is not None else every
    except EvidenceError as error:
        problems += map(str, error.problems)
    if problems:
        raise QuestionError(problems)
    if not compared:
        raise QuestionError(["runs: two arms or more are needed (found one). Add the other arm's runs."])
    cells: list[held_out.Cell] = []
    skipped: list[held_out.Skipped] = []
    start = forecasts.load_settings()
    for _, scored, left_out in held_out.hold_out(tables, compared, tuple(map(float, cuts)), start, workers=jobs):
        cells += scored
        skipped += left_out
    settings = {name: held_out.frozen(name) for name in dict.fromkeys(pair.set for pair in compared)}
    return Backtest(tuple(held_out.score(cells, held_out.frozen)), tuple(skipped), settings)


def compare(
    runs: Runs,
    other: Runs | None = None,
    variant: str | None = None,
    baseline: str | None = None,
    *,
    at_least: float = 1.0,
    level: float = comparisons.LEVEL,
    loss_noise: float | None = None,
    loss_column: str = "loss",
    read: ReadOptions = AS_IT_IS,
) -> Verdict:
    """Is the treatment better than the baseline, by a few seeds of each at one budget or several?

    >>> import tempfile, cegain
    >>> from cegain.ladders.synthetic import table
    >>> path = tempfile.mkdtemp() + "/runs.csv"
    >>> _ = open(path, "w").write(table("constant", seed=1))  # a gain of 2x everywhere
    >>> cegain.compare(path, variant="treatment", baseline="baseline").value.verdict
    'better'

    Args:
        runs: a table (path or DataFrame) of the baseline's runs, or of both arms'.
        other: a table of the treatment's runs; None where `runs` has both.
        variant: the arm with the algorithm, where its table has several.
        baseline: the arm without it.
        at_least: better means CEG > at_least, worse CEG < at_least.
        level: two-sided; each of the two is claimed at half of it.
        loss_noise: sd of one run's ln loss, where it is known.
        loss_column: the column that holds the loss.
        read: what its names do not tell: `cegain.ReadOptions(columns={"C": "1e19"}, repeats="seeds")`.

    Raises:
        QuestionError: everything wrong with the tables and the question.
    """
    rules = {"at_least": (at_least, math.inf, "1.05"), "level": (level, 1.0, "0.05")}
    rules |= {"loss_noise": (loss_noise, math.inf, "0.002")} if loss_noise is not None else {}
    problems = [
        f"{name}: a number above 0 and below {below:g} is needed (found {value}). Try {remedy}."
        for name, (value, below, remedy) in rules.items() if not 0 < value < below
    ]  # fmt: skip
    how = _how(read, loss_column)
    sources: list[arms.Source] = []
    for each in (runs, other):
        if each is not None:
            try:
                sources.append(_source(each, how))
            except EvidenceError as error:
                problems += map(str, error.problems)
    if other is None and sources:
        if baseline is None:
            problems.append("baseline: the arm to compare with is needed (found none). Name it.")
        variant = variant if variant is not None else _only_arm(sources[0].table, baseline, problems)
    if problems:
        raise QuestionError(problems)
    try:
        if other is None:
            both = arms.of_one(sources[0], str(baseline), str(variant))
        else:
            both = arms.of_two(sources[0], sources[1], baseline, variant)
        return Verdict(comparisons.compare(both, at_least, level, loss_noise))
    except EvidenceError as error:
        raise QuestionError([str(problem).replace("--", "") for problem in error.problems]) from None


def speedup(baseline_loss: float, loss: float, flops: float, **given: Any) -> Speedup:
    """CEG with a 90% interval from one pair of losses at the same compute.

    >>> import cegain
    >>> pair = cegain.speedup(baseline_loss=2.310, loss=2.290, flops=1e19)
    >>> pair.interval[0] < pair.median < pair.interval[1]
    True

    Args:
        baseline_loss: without the algorithm; nats per token, or bits per byte with `unit="bpb"`.
        loss: with it.
        flops: what each run spent (FLOP).
        given: baseline_at=[(FLOP, loss)], floor, floor_sd, exponent, exponent_sd, law, evaluation, unit, seed_noise,
            seed: see `cegain.ladders.one_pair.speedup`.

    Raises:
        QuestionError: every rule that the arguments break.
    """
    try:
        pair = one_pair.speedup(baseline_loss, loss, flops, **given)
    except ValueError as error:
        raise QuestionError(str(error).splitlines()) from None
    return Speedup(**vars(pair))


def _how(read: ReadOptions, loss_column: str) -> ReadOptions:
    return read if loss_column == "loss" else read._replace(columns={**read.columns, "loss": loss_column})


def _source(runs: Runs, how: ReadOptions) -> arms.Source:
    if not hasattr(runs, "to_csv"):
        return arms.read(runs, how)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "DataFrame.csv"
        runs.to_csv(path, index=False)
        return arms.read(path, how)


def _table(runs: Runs, how: ReadOptions) -> RunTable:
    """Read a table; a DataFrame goes through a file, so that the same rules hold for it."""
    if not hasattr(runs, "to_csv"):
        return ladder.read_runs(runs, how)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "DataFrame.csv"
        runs.to_csv(path, index=False)
        return ladder.read_runs(path, how)


def _only_arm(table: RunTable, baseline: str | None, problems: list[str]) -> str | None:
    """The one arm besides `baseline`."""
    variants = [v for v in table.variants() if v != baseline]
    if len(variants) == 1:
        return variants[0]
    shown = ", ".join(variants[:12]) + (", ..." if len(variants) > 12 else "")
    problems.append(f"variant: one arm is needed (the table has {len(variants)}: {shown}). Name one.")
    return None
