"""Fit scaling laws to training runs: Chinchilla's L(N, D) and the compute frontier L(C).

- `chinchilla`: L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556), fitted as Besiroglu et al.
  2024 (arXiv 2404.10102) do: Huber loss of the log residual, delta 1e-3, *summed* over runs.
- `frontier`: L = E + K C^-gamma through the best runs of each budget.

>>> from cegain.ladders.scaling_law import Runs, fit
>>> result = fit(Runs(loss=loss, N=n_params, D=tokens))
>>> print(result)
>>> result.compute_optimal(1e24).n_params.value

Units: N parameters, D tokens, C FLOP, loss nats per token. What is wrong with the numbers themselves (NaN, zero,
lengths that differ) is an error; what they cannot answer (too few runs, N and D that move together) is a status.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cegain.common.arrays import Array
from cegain.common.text import finite
from cegain.ladders.solver import Box, Flags, PowerSum, grid_starts, minimise, minimise_from_afar
from cegain.tables.problems import EvidenceError, Problem

Form = Literal["chinchilla", "frontier"]
Status = Literal["converged", "bound_hit", "too_few_points", "degenerate_design", "not_converged"]
"""`bound_hit`: a parameter ran into its bound, so a term of the law is not visible in the runs;
`degenerate_design`: the runs cannot tell the terms apart; parameters are then NaN, as for `too_few_points`."""

DELTA = 1e-3
"""Huber's delta on the log residual (both papers)."""
FLOP_PER_PARAM_TOKEN = 6.0
"""C = 6 N D (Kaplan et al. 2020, arXiv 2001.08361)."""
EXPONENT_RANGE = (0.0, 4.0)
_SMALLEST_TERM = 1e-6
"""A term below this share of the smallest loss counts as gone: its parameter is on its bound."""
_LARGEST_TERM = 100.0
_EXPONENT_GRID = (0.03, 0.06, 0.12, 0.2, 0.35, 0.55, 0.8, 1.2)
_GRID_SURVIVORS = 4
_COLLINEAR = 1e-4
"""Smallest singular value of the standardised log design, relative to the largest, that still counts as full rank."""
_SAME_RATIO = 0.1
"""N and D that keep one power law between them to within this (sd of ln, across the law) count as moving together."""
_ILL_CONDITIONED = 1e-13
_FEW_CLUSTERS = 10
_CHUNK = 2048
"""Resamples drawn at a time, to bound memory; it does not change the draws."""


ENOUGH_FOR_ERRORS = 100
"""Resamples from which on their standard deviation is the error that is printed."""
CLIPPED = 0.005
"""Share of resamples at either end that is clipped for it: one that runs off would be the whole of it."""


class RunsError(EvidenceError):
    """Runs or options that cannot be used; `problems` holds all that is wrong."""


@dataclass(frozen=True)
class Runs:
    """Training runs, one entry per run in every array given.

    loss: [n] nats per token; N: [n] parameters; D: [n] tokens; C: [n] training FLOP (`chinchilla` needs N and D,
    `frontier` C); cluster: [n] labels of runs that share a curve or a seed and so are
    resampled together; weight: [n] relative weights (only ratios matter to the parameters).
    """

    loss: npt.ArrayLike
    N: npt.ArrayLike | None = None
    D: npt.ArrayLike | None = None
    C: npt.ArrayLike | None = None
    cluster: Sequence[object] | npt.NDArray[np.generic] | None = None
    weight: npt.ArrayLike | None = None

    def checked(self, needed: Sequence[str]) -> dict[str, Array]:
        """The columns as float arrays, `weight` filled with ones and `cluster` with one number per run.

        Raises:
            RunsError: a needed column is missing, is not one-dimensional, differs in length, is empty, or has values
                that are not finite and positive; all of it at once.
        """
        problems: list[Problem] = []
        columns: dict[str, Array] = {}
        for name in ("loss", "N", "D", "C", "weight"):
            values = getattr(self, name)
            if values is None:
                if name in needed:
                    problems.append(Problem(name, "this form needs it", "nothing", f"Give Runs({name}=...)."))
                continue
            try:
                column = np.asarray(values, dtype=np.float64)
            except (TypeError, ValueError):
                problems.append(Problem(name, "must be numbers", repr(values)[:40], "Convert it to floats."))
                continue
            if column.ndim != 1:
                shape = f"shape {column.shape}"
                problems.append(Problem(name, "must be one-dimensional", shape, "Give one value per run."))
                continue
            columns[name] = column
            bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
            if bad.size:
                remedy = "Drop diverged or missing runs." if name == "loss" else "Correct or drop these runs."
                remedy += " Indices start at 0."
                problems.append(Problem(name, "must be finite and positive", _places(column, bad), remedy))
        labels = None if self.cluster is None else np.asarray(self.cluster)
        lengths = {name: len(column) for name, column in columns.items()}
        if labels is not None:
            lengths["cluster"] = len(labels) if labels.ndim == 1 else -1
        if len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{name} {length}" for name, length in lengths.items())
            problems.append(Problem("runs", "all columns must have the same length", sizes, "Give one value per run."))
        elif lengths.get("loss") == 0:
            problems.append(Problem("runs", "there must be at least one run", "0", "Give the runs to fit."))
        if problems:
            raise RunsError(problems)
        n = lengths["loss"]
        columns.setdefault("weight", np.ones(n))
        if labels is not None:
            columns["cluster"] = np.unique(labels, return_inverse=True)[1].astype(np.float64)
        return columns


class Interval(NamedTuple):
    """A value with its percentile interval (NaN where there were no resamples); arrays of the shape asked for."""

    value: Array
    low: Array
    high: Array


class Allocation(NamedTuple):
    """The compute-optimal model for a budget: parameters, tokens, and the loss the law predicts for it."""

    flops: Array
    n_params: Interval
    tokens: Interval
    loss: Interval


_OfTheta = Callable[[Array], Array]
"""From parameters [s, p] to one quantity per row, [s, ...]."""


class _Form(NamedTuple):
    axes: tuple[str, ...]
    coefficients: tuple[str, ...]
    exponents: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters in the solver's order."""
        return (*self.coefficients, "E", *self.exponents)


_FORMS: dict[str, _Form] = {
    "chinchilla": _Form(("N", "D"), ("A", "B"), ("alpha", "beta")),
    "frontier": _Form(("C",), ("K",), ("gamma",)),
}


@dataclass(frozen=True)
class FitResult:
    """A fitted law. Prints a report; `as_dict` is for programs.

    parameters: by name (A, B, E, alpha, beta; or K, E, gamma); NaN where the status is too_few_points or
    degenerate_design. errors: standard errors (see `fit`). intervals: percentile intervals
    of `level` from `samples` [n_resamples, p] (columns as `parameters`), None without resamples.
    objective: sum of weighted Huber losses.
    """

    form: Form
    status: Status
    parameters: Mapping[str, float]
    errors: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] | None
    at_boundary: tuple[str, ...]
    fixed: tuple[str, ...]
    objective: float
    n_runs: int
    n_clusters: int
    delta: float
    level: float
    seed: int
    samples: Array = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def answers(self) -> bool:
        """Whether there are parameters to predict with."""
        return self.status in ("converged", "bound_hit", "not_converged")

    def predict(
        self, *, N: npt.ArrayLike | None = None, D: npt.ArrayLike | None = None, C: npt.ArrayLike | None = None
    ) -> Interval:
        """Loss at (N, D), or at a budget C: on the frontier, or for Chinchilla at the compute-optimal (N, D).

        Raises:
            ValueError: arguments that do not suit the form.
        """
        if self.form == "chinchilla" and C is not None and N is None and D is None:
            return self.compute_optimal(C).loss
        at = {"N": N, "D": D, "C": C}
        axes = _FORMS[self.form].axes
        if {name for name, value in at.items() if value is not None} != set(axes):
            wanted = "N and D, or C alone" if self.form == "chinchilla" else "C alone"
            raise ValueError(f"predict: a {self.form} law takes {wanted}. Pass those by name.")
        points = np.broadcast_arrays(*[np.asarray(at[a], dtype=np.float64) for a in axes])
        return self._interval(lambda theta: _law(theta, points, points[0].ndim))

    def compute_optimal(self, flops: npt.ArrayLike) -> Allocation:
        """N and D that minimise the law at C = 6 N D (Hoffmann et al. 2022, eq. 4), for one budget or an array.

        Raises:
            ValueError: the form has no N and D, or a budget is not positive.
        """
        if self.form != "chinchilla":
            raise ValueError(f"compute_optimal: a {self.form} law has no N and D. Fit form='chinchilla'.")
        budget = np.asarray(flops, dtype=np.float64)
        if not (np.isfinite(budget) & (budget > 0)).all():
            raise ValueError(f"compute_optimal: flops must be finite and positive (found {budget}). Give FLOP.")

        def n_params(theta: Array) -> Array:
            a, b, _, alpha, beta = (theta[:, i].reshape(-1, *[1] * budget.ndim) for i in range(5))
            log_ratio = np.log(alpha * a) - np.log(beta * b) + beta * np.log(budget / FLOP_PER_PARAM_TOKEN)
            return np.asarray(np.exp(log_ratio / (alpha + beta)))

        def tokens(theta: Array) -> Array:
            return np.asarray(budget / (FLOP_PER_PARAM_TOKEN * n_params(theta)))

        def loss(theta: Array) -> Array:
            return _law(theta, [n_params(theta), tokens(theta)], budget.ndim)

        return Allocation(budget, self._interval(n_params), self._interval(tokens), self._interval(loss))

    def _interval(self, function: _OfTheta) -> Interval:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = function(np.array([list(self.parameters.values())]))[0]
            if not len(self.samples):
                return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
            tail = (1 - self.level) / 2
            low, high = np.nanquantile(function(self.samples), [tail, 1 - tail], axis=0)
        return Interval(value, low, high)

    def as_dict(self) -> dict[str, object]:
        """Plain JSON types; what is not known is None."""
        return {
            "form": self.form, "status": self.status, "objective": finite(self.objective),
            "parameters": {name: finite(value) for name, value in self.parameters.items()},
            "errors": {name: finite(value) for name, value in self.errors.items()},
            "intervals": self.intervals and {name: [finite(x) for x in ends] for name, ends in self.intervals.items()},
            "level": self.level, "at_boundary": list(self.at_boundary), "fixed": list(self.fixed),
            "n_runs": self.n_runs, "n_clusters": self.n_clusters, "n_resamples": len(self.samples), "seed": self.seed,
            "delta": self.delta, "notes": list(self.notes),
        }  # fmt: skip

    def __str__(self) -> str:
        law = {"chinchilla": "L = E + A / N^alpha + B / D^beta", "frontier": "L = E + K C^-gamma"}[self.form]
        clusters = "" if self.n_clusters == self.n_runs else f" in {self.n_clusters} clusters"
        lines = [
            f"{law}   (Huber on ln loss, delta {self.delta:g})",
            f"status {self.status}; objective {self.objective:.10g}; {self.n_runs} runs{clusters}; "
            f"{len(self.samples)} resamples, seed {self.seed}",
            f"{'':8}{'value':>12}{'error':>12}   {self.level:.0%} interval",
        ]
        if not self.answers:
            return "\n".join([*lines[:2], *(f"note: {note}" for note in self.notes)])
        for name, value in self.parameters.items():
            line = f"{name:8}{value:12.6g}{self.errors[name]:12.3g}"
            if self.intervals is not None:
                low, high = self.intervals[name]
                line += f"   {low:.6g} to {high:.6g}"
            if name in self.fixed:
                line += "   (fixed)"
            if name in self.at_boundary:
                line += "   at boundary"
            lines.append(line)
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def fit(
    runs: Runs,
    form: Form = "chinchilla",
    *,
    fixed: Mapping[str, float] | None = None,
    delta: float = DELTA,
    resamples: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> FitResult:
    """Fit a scaling law.

    Args:
        runs: the runs; see `Runs`. Order does not matter. For `frontier`, one run (the best) per budget is expected.
        form: `chinchilla` or `frontier`.
        fixed: parameters held at a value, e.g. {"E": 1.69} or {"E": 0.0}: how much hangs on the floor?
        delta: of the Huber loss, in ln loss.
        resamples: bootstrap resamples (of clusters, where given), each refitted from the full optimum; 0 for none.
        level: probability content of the percentile intervals.
        seed: of the resamples.

    Returns:
        the result. `errors` are standard deviations over the resamples, `CLIPPED`; with fewer than 100 of them,
        sandwich standard errors, H^-1 (sum of squared cluster scores) H^-1, with a smoothed Hessian, which are of first
        order and were 0.5 to 0.9 of the others on the Chinchilla runs. A and B are skewed, so prefer the intervals.

    Raises:
        RunsError: unusable runs or options, all problems at once.
    """
    problems = _option_problems(form, fixed or {}, delta, resamples, level)
    if problems:
        raise RunsError(problems)
    case = _prepare(runs, _FORMS[form], dict(fixed or {}), delta)
    status, theta, objective, remarks = _optimum(case)
    samples = np.empty((0, len(theta)))
    if not remarks:
        samples, remarks = _bootstrap(case.problem, theta, case.weight, case.cluster, case.box, resamples, seed)
    names = case.kind.names
    natural, drawn = _natural(theta[None], case.centre)[0], _natural(samples, case.centre)
    intervals = None
    errors = _errors(case, theta, natural)
    if len(drawn) >= ENOUGH_FOR_ERRORS:
        errors = np.clip(drawn, *np.quantile(drawn, [CLIPPED, 1 - CLIPPED], axis=0)).std(axis=0)
    if len(drawn):
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0).tolist()
        intervals = dict(zip(names, zip(low, high, strict=True), strict=True))
    return FitResult(
        form=form,
        status=status,
        parameters={name: case.fixed.get(name, float(v)) for name, v in zip(names, natural, strict=True)},
        errors=dict(zip(names, errors.tolist(), strict=True)),
        intervals=intervals,
        at_boundary=tuple(name for name, flag in zip(names, case.at_bound(theta), strict=True) if flag),
        fixed=tuple(name for name in names if name in case.fixed),
        objective=objective,
        n_runs=len(case.weight), n_clusters=int(case.cluster.max()) + 1,
        delta=delta, level=level, seed=seed, samples=drawn, notes=(*case.notes, *remarks),
    )  # fmt: skip


class _Case(NamedTuple):
    """Runs in the solver's terms: weights [n] of mean 1 and their `scale`, clusters [n], what the logs are centred on,
    bounds, what is held fixed, and remarks."""

    kind: _Form
    problem: PowerSum
    weight: Array
    scale: float
    cluster: npt.NDArray[np.intp]
    centre: Array
    box: Box
    fixed: dict[str, float]
    notes: list[str]

    @property
    def free(self) -> Flags:
        """Which parameters [p] are fitted."""
        return np.asarray(self.box.low < self.box.high)

    def at_bound(self, theta: Array) -> Flags:
        """Which fitted parameters [p] of theta ran into a bound."""
        return np.asarray(self.free & ((theta <= self.box.low) | (theta >= self.box.high)))


def _prepare(runs: Runs, kind: _Form, fixed: dict[str, float], delta: float) -> _Case:
    columns = runs.checked(kind.axes)
    order = np.lexsort(list(columns.values()))
    columns = {name: column[order] for name, column in columns.items()}
    cluster = columns.pop("cluster", np.arange(len(order))).astype(np.intp)
    scale = columns["weight"].mean()
    log_x = np.log([columns[axis] for axis in kind.axes])
    # Centred logs make coefficient and exponent nearly uncorrelated; a coefficient that is held refers to x = 1.
    centre = np.array([0.0 if c in fixed else x.mean() for c, x in zip(kind.coefficients, log_x, strict=True)])
    problem = PowerSum(log_x - centre[:, None], np.log(columns["loss"]), delta)
    box = _box(kind, columns["loss"], fixed)
    notes = _remarks(columns, kind, fixed)
    return _Case(kind, problem, columns["weight"] / scale, scale, cluster, centre, box, fixed, notes)


def _optimum(case: _Case) -> tuple[Status, Array, float, list[str]]:
    """Status, parameters [p], objective; where the runs cannot tell, parameters are NaN and a remark says why."""
    free, box = case.free, case.box
    unknown = np.where(free, np.nan, box.low)
    distinct = len(np.unique(case.problem.log_x, axis=1).T)
    if distinct <= free.sum():
        why = f"{distinct} distinct runs cannot fix {free.sum()} parameters: give at least {free.sum() + 1}"
        return "too_few_points", unknown, math.nan, [why]
    if _rank_deficient(case.problem.log_x):
        why = f"{' and '.join(case.kind.axes)} do not vary independently: add runs that vary one at a time"
        return "degenerate_design", unknown, math.nan, [why]
    starts = grid_starts(case.problem, case.weight, box, _EXPONENT_GRID, _GRID_SURVIVORS)
    solutions = minimise_from_afar(case.problem, starts, case.weight[None], box)
    best = int(np.nanargmin(solutions.objective))
    theta = solutions.theta[best]
    if _ill_conditioned(case.problem, theta, case.weight, free & (theta > box.low) & (theta < box.high)):
        why = "the runs cannot tell the parameters apart: widen their range, or hold one with fixed="
        return "degenerate_design", unknown, math.nan, [why]
    converged: Status = "bound_hit" if case.at_bound(theta).any() else "converged"
    status = converged if solutions.converged[best] else "not_converged"
    return status, theta, float(solutions.objective[best]) * case.scale, []


def _errors(case: _Case, theta: Array, natural: Array) -> Array:
    """Standard errors [p] in natural units; NaN where there is no optimum, and where `_variance` has none."""
    free, m = case.free, len(case.centre)
    if not np.isfinite(theta[free]).all():
        return np.full(len(theta), np.nan)
    variance = _variance(case, theta, free & ~case.at_bound(theta))
    return np.asarray(np.append(natural[: m + 1], np.ones(m)) * np.sqrt(variance))


def _bootstrap(
    problem: PowerSum, theta: Array, weight: Array, cluster: npt.NDArray[np.intp], box: Box, resamples: int, seed: int
) -> tuple[Array, list[str]]:
    """Optima [resamples, p] of resampled clusters, started from theta [p], and remarks on them."""
    n_clusters = int(cluster.max()) + 1
    if resamples and n_clusters == 1:
        return np.empty((0, len(theta))), ["one cluster cannot be resampled: no intervals"]
    rng = np.random.default_rng(seed)
    parts, failed = [np.empty((0, len(theta)))], 0
    for first in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - first)
        counts = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=size)
        solution = minimise(problem, np.repeat(theta[None], size, axis=0), counts[:, cluster] * weight, box)
        parts.append(solution.theta)
        failed += int((~solution.converged).sum())
    samples = np.concatenate(parts)
    free = box.low < box.high
    bound = int((free & ((samples <= box.low) | (samples >= box.high))).any(axis=1).sum())
    remarks = []
    if failed:
        remarks.append(f"{failed} of {resamples} resamples did not converge; their last point is used")
    if bound:
        remarks.append(f"{bound} of {resamples} resamples end on a bound")
    if resamples and n_clusters < _FEW_CLUSTERS:
        remarks.append(f"intervals from {n_clusters} clusters tend to be too narrow")
    return samples, remarks


def _law(theta: Array, points: Sequence[Array], ndim: int) -> Array:
    """Loss [s, ...] for natural parameters [s, p] at points (one array per axis; `ndim` dimensions, or s before)."""
    m = len(points)
    column = [theta[:, i].reshape(-1, *[1] * ndim) for i in range(2 * m + 1)]
    powers = [column[j] * np.power(points[j], -column[m + 1 + j]) for j in range(m)]
    return np.asarray(sum(powers, column[m]))


def _natural(theta: Array, centre: Array) -> Array:
    """A, B, E, alpha, beta (or K, E, gamma) from the solver's centred parameters [s, p]."""
    m = len(centre)
    result: Array = theta.copy()
    result[:, :m] = np.exp(theta[:, :m] + theta[:, m + 1 :] * centre)
    result[:, m] = np.exp(theta[:, m])
    return result


def _box(kind: _Form, loss: Array, fixed: Mapping[str, float]) -> Box:
    m = len(kind.axes)
    low = np.append(np.full(m + 1, math.log(_SMALLEST_TERM * loss.min())), np.full(m, EXPONENT_RANGE[0]))
    high = np.append(np.full(m + 1, math.log(_LARGEST_TERM * loss.max())), np.full(m, EXPONENT_RANGE[1]))
    for i, name in enumerate(kind.names):
        if name in fixed:
            value = fixed[name]
            low[i] = high[i] = value if i > m else (math.log(value) if value > 0 else -math.inf)
    return Box(low, high)


def _variance(case: _Case, theta: Array, free: Flags) -> Array:
    """Sandwich variances [p] of (ln A, ln B, ln E, alpha, beta); NaN where held, on a bound, or not a minimum."""
    problem, weight, cluster, centre = case.problem, case.weight, case.cluster, case.centre
    m, p = len(centre), len(theta)
    result = np.full(p, np.nan)
    residual = problem.log_loss - np.log(problem.shares(theta[None])[0][0])
    bandwidth = 2 * 1.4826 * float(np.median(np.abs(residual))) * len(residual) ** -0.2
    hessian = problem.smoothed_hessian(theta, weight, bandwidth)[np.ix_(free, free)]
    if not free.any() or np.linalg.eigvalsh(hessian)[0] <= 0:
        return result
    scores = np.zeros((int(cluster.max()) + 1, p))
    np.add.at(scores, cluster, problem.scores(theta, weight))
    bread = np.linalg.inv(hessian)
    half = np.zeros((p, len(scores)))
    half[free] = bread @ scores[:, free].T
    half[:m] += centre[:, None] * half[m + 1 :]
    result[free] = (half[free] ** 2).sum(axis=1)
    return result


def _rank_deficient(log_x: Array) -> bool:
    """Whether an axis is constant or the axes move together, [m, n] logs."""
    spread = log_x.std(axis=1)
    if (spread <= 1e-9).any():
        return True
    standard = (log_x - log_x.mean(axis=1, keepdims=True)) / spread[:, None]
    singular = np.linalg.svd(standard, compute_uv=False)
    if singular[-1] < _COLLINEAR * singular[0]:
        return True
    across = np.linalg.svd(log_x - log_x.mean(axis=1, keepdims=True), compute_uv=False)[-1] / math.sqrt(log_x.shape[1])
    return len(log_x) > 1 and across < _SAME_RATIO


def _ill_conditioned(problem: PowerSum, theta: Array, weight: Array, free: Flags) -> bool:
    """Whether the law's own Jacobian at theta [p] is singular in the free parameters."""
    metric = problem.metric(theta[None], weight[None])[0][np.ix_(free, free)]
    size = np.sqrt(np.diag(metric))
    if not size.size or (size == 0).any():
        return bool(size.size)
    eigenvalues = np.linalg.eigvalsh(metric / np.outer(size, size))
    return bool(eigenvalues[0] < _ILL_CONDITIONED * eigenvalues[-1])


def _remarks(columns: Mapping[str, Array], kind: _Form, fixed: Mapping[str, float]) -> list[str]:
    notes = []
    used = np.stack([columns[name] for name in (*kind.axes, "loss")])
    duplicates = used.shape[1] - np.unique(used, axis=1).shape[1]
    if duplicates:
        notes.append(f"{duplicates} runs repeat another one exactly; all are kept")
    if kind.axes == ("C",):
        rising = int((np.diff(columns["loss"][np.argsort(columns["C"], kind="stable")]) > 0).sum())
        if rising:
            notes.append(f"the frontier is not monotone: loss rises with C at {rising} of {used.shape[1] - 1} steps")
    if fixed.get("E", 0.0) >= columns["loss"].min():
        notes.append("E is held above the smallest loss")
    return notes


def _option_problems(
    form: str, fixed: Mapping[str, float], delta: float, resamples: int, level: float
) -> list[Problem]:
    if form not in _FORMS:
        return [Problem("form", f"must be one of {', '.join(_FORMS)}", repr(form), "Choose one of these.")]
    names = _FORMS[form].names
    problems = []
    for name, value in fixed.items():
        if name not in names:
            rule = f"the {form} law has no such parameter"
            problems.append(Problem("fixed", rule, repr(name), f"Use {', '.join(names)}."))
        elif not (math.isfinite(value) and (value > 0 or (name == "E" and value == 0))):
            rule = "must be finite and " + ("not negative" if name == "E" else "positive")
            problems.append(Problem(f"fixed[{name!r}]", rule, f"{value}", "Correct it."))
    if len(set(fixed) & set(names)) == len(names):
        problems.append(Problem("fixed", "at least one parameter must be free", "all held", "Release one."))
    if not (math.isfinite(delta) and delta > 0):
        problems.append(Problem("delta", "must be finite and positive", f"{delta}", f"Leave it at {DELTA:g}."))
    if resamples < 0:
        problems.append(Problem("resamples", "must not be negative", f"{resamples}", "Give 0 for no intervals."))
    if not 0 < level < 1:
        problems.append(Problem("level", "must lie between 0 and 1", f"{level}", "Give 0.9 for 90% intervals."))
    return problems


def _places(column: Array, bad: npt.NDArray[np.intp]) -> str:
    shown = ", ".join(f"[{i}] = {column[i]:g}" for i in bad[:5])
    return shown + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
