"""Where an arm spends its compute best: N*(C), D*(C), their exponents, and tokens per parameter.

Two ways, which are told apart: from the law L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556,
approach 3), and, where runs of several sizes share a budget, from the minima of parabolas of ln loss in ln N (approach
2). In both N* ~ C^a and D* ~ C^b; where C is 6 N D, b = 1 - a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from cegain.common.arrays import Array
from cegain.common.text import number
from cegain.ladders.ladder import WINDOW
from cegain.ladders.scaling_law import FitResult, Interval
from cegain.run_tables.repeats import SAME_SIZE, TOLERANCE

LEAST_SIZES = 4
"""Sizes that a budget needs near its best one: three fix a parabola and show nothing of its error."""
WIDEST = math.log(10.0)
"""A minimum whose 90% interval is wider (ln N) than this to either side is none."""


class Minimum(NamedTuple):
    """The best size at one budget (FLOP): parameters, tokens there, and 90% intervals of both."""

    flops: float
    n_params: Interval
    tokens: Interval


class Exponents(NamedTuple):
    """N* ~ C^a and D* ~ C^b with 90% intervals."""

    a: Interval
    b: Interval


class Optimum(NamedTuple):
    """Of one arm: exponents and best runs by the law (None without sizes and tokens) and by parabolas (None with fewer
    than three minima), and whether C is 6 N D within 10%.
    """

    of_law: Exponents | None
    by_law: tuple[Minimum, ...]
    of_minima: Exponents | None
    minima: tuple[Minimum, ...]
    six_nd: bool


def optimum(law: FitResult | None, n: Array, d: Array, c: Array, log_loss: Array, budgets: Sequence[float]) -> Optimum:
    """The best allocation of an arm's compute.

    Args:
        law: a Chinchilla law of the arm, or None.
        n, d, c: parameters, tokens and FLOP of its runs [n]; NaN where they are not known.
        log_loss: ln loss of its runs [n].
        budgets: where to answer by the law (FLOP).
    """
    known = np.isfinite(n).all() and np.isfinite(d).all()
    six_nd = bool(known and (np.abs(np.log(c / (6 * n * d))) < 0.1).all())
    of_law: Exponents | None = None
    by_law: tuple[Minimum, ...] = ()
    if law is not None and law.answers and law.form == "chinchilla":
        of_law = _of_law(law)
        best = law.compute_optimal(np.array(budgets, dtype=np.float64))
        by_law = tuple(
            Minimum(float(flops), _at(best.n_params, i), _at(best.tokens, i)) for i, flops in enumerate(best.flops)
        )
    minima = tuple(_minima(np.log(n), np.log(d), np.log(c), log_loss)) if known else ()
    return Optimum(of_law, by_law, _of_minima(minima), minima, six_nd)


def _of_law(law: FitResult) -> Exponents:
    """a = beta / (alpha + beta), b = alpha / (alpha + beta)."""
    alpha, beta = law.parameters["alpha"], law.parameters["beta"]
    names = list(law.parameters)
    drawn = [law.samples[:, names.index(name)] for name in ("alpha", "beta")] if len(law.samples) else None
    tail = (1 - law.level) / 2

    def share(value: float, part: int) -> Interval:
        if drawn is None:
            return Interval(np.array(value), np.array(math.nan), np.array(math.nan))
        low, high = np.quantile(drawn[part] / (drawn[0] + drawn[1]), [tail, 1 - tail])
        return Interval(np.array(value), np.array(low), np.array(high))

    return Exponents(share(beta / (alpha + beta), 1), share(alpha / (alpha + beta), 0))


def _minima(log_n: Array, log_d: Array, log_c: Array, log_loss: Array) -> list[Minimum]:
    """Vertices of parabolas at budgets with enough sizes on both sides of the best one; errors from all residuals."""
    order = np.argsort(log_c, kind="stable")
    found: list[tuple[float, float, float, float]] = []  # ln C, ln N*, its sd per residual sd, ln (N* D*)
    squares, freedom = 0.0, 0
    for group in _groups(log_c, order):
        sizes, where = np.unique(np.round(log_n[group] / SAME_SIZE), return_inverse=True)
        if len(sizes) < LEAST_SIZES:
            continue
        counts = np.bincount(where).astype(float)
        t, y = np.bincount(where, log_n[group]) / counts, np.bincount(where, log_loss[group]) / counts
        best = int(y.argmin())
        if best in (0, len(t) - 1):
            continue
        near = np.abs(t - t[best]) <= max(WINDOW, float(np.sort(np.abs(t - t[best]))[LEAST_SIZES - 1]) + 1e-9)
        near[[best - 1, best + 1]] = True
        u, w = t[near] - t[best], counts[near]
        design = np.stack([np.ones_like(u), u, u * u], axis=1)
        covariance = np.linalg.inv(design.T @ (design * w[:, None]))
        _, slope, bend = covariance @ (design.T @ (w * y[near]))
        if bend <= 0 or not u.min() <= -slope / (2 * bend) <= u.max():
            continue
        at = -slope / (2 * bend)
        gradient = np.array([0.0, -1 / (2 * bend), -at / bend])
        residuals = y[near] - design @ (covariance @ (design.T @ (w * y[near])))
        squares += float(w @ residuals**2)
        freedom += len(u) - 3
        budget = float(log_c[group].mean())
        product = float((log_n[group] + log_d[group]).mean())
        found.append((budget, float(t[best] + at), math.sqrt(float(gradient @ covariance @ gradient)), product))
    if not freedom:
        return []
    scatter, t90 = math.sqrt(squares / freedom), float(stdtrit(freedom, 0.95))
    minima = []
    for budget, size, factor, product in found:
        half = t90 * scatter * factor
        if half <= WIDEST:
            sizes_ = Interval(*(np.exp(np.array(x)) for x in (size, size - half, size + half)))
            tokens = Interval(*(np.exp(np.array(product - x)) for x in (size, size + half, size - half)))
            minima.append(Minimum(math.exp(budget), sizes_, tokens))
    return minima


def _groups(log_c: Array, order: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Runs of one budget each."""
    starts = [0]
    for i, at in enumerate(order):
        if log_c[at] > log_c[order[starts[-1]]] + TOLERANCE:
            starts.append(i)
    return [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]


def _of_minima(minima: Sequence[Minimum]) -> Exponents | None:
    """A line through ln N* over ln C by the minima's own errors; its error by its own scatter where that is larger."""
    if len(minima) < 3:
        return None
    x = np.log([m.flops for m in minima])

    def slope(values: Sequence[Interval]) -> Interval:
        y = np.log([float(v.value) for v in values])
        sd = np.array([max(1e-9, math.log(float(v.high) / float(v.low)) / 3.29) for v in values])
        w = 1 / sd**2
        middle = float(w @ x / w.sum())
        spread = float(w @ (x - middle) ** 2)
        b = float(w @ ((x - middle) * y) / spread)
        residuals = y - float(w @ y / w.sum()) - b * (x - middle)
        rough = float(w @ residuals**2) / (len(x) - 2)
        half = float(stdtrit(len(x) - 2, 0.95)) * math.sqrt(max(1.0, rough) / spread)
        return Interval(np.array(b), np.array(b - half), np.array(b + half))

    return Exponents(slope([m.n_params for m in minima]), slope([m.tokens for m in minima]))


def _at(interval: Interval, i: int) -> Interval:
    return Interval(*(part[i] for part in interval))


def text(found: Optimum) -> list[str]:
    """Lines for `ceg fit`: exponents and best runs, by law and by parabolas."""
    lines: list[str] = []
    for name, exponents, rows in (
        ("by the law", found.of_law, found.by_law),
        ("by parabolas", found.of_minima, found.minima),
    ):
        if exponents is not None:
            a, b = (_exponent(part) for part in exponents)
            lines.append(f"compute-optimal, {name}: N* ~ C^{a}, D* ~ C^{b}")
        elif rows:
            lines.append(f"compute-optimal, {name}: {len(rows)} of 3 budgets that exponents take")
        for m in rows:
            n, d = float(m.n_params.value), float(m.tokens.value)
            size, tokens = (_counted(part) for part in (m.n_params, m.tokens))
            lines.append(f"  {number(m.flops)} FLOP: {size} parameters, {tokens} tokens, {d / n:.3g} tokens each")
    if lines and not found.six_nd:
        lines.append("note: C of these runs is not 6 N D; the law's optimum is that of 6 N D")
    return lines


def document(found: Optimum) -> dict[str, object]:
    """The same for JSON: parameters, tokens and FLOP, with 90% intervals."""

    def of(exponents: Exponents | None, rows: Sequence[Minimum]) -> dict[str, object] | None:
        if exponents is None and not rows:
            return None
        return {
            "exponents": None if exponents is None else {n: _plain(e) for n, e in zip("ab", exponents, strict=True)},
            "at": [
                {"flops": m.flops, "n_params": _plain(m.n_params), "tokens": _plain(m.tokens),
                 "tokens_per_param": float(m.tokens.value) / float(m.n_params.value)} for m in rows
            ],
        }  # fmt: skip

    return {
        "six_nd": found.six_nd,
        "by_law": of(found.of_law, found.by_law),
        "by_parabolas": of(found.of_minima, found.minima),
    }


def _plain(value: Interval) -> dict[str, float | None]:
    low, high = (float(end) if math.isfinite(float(end)) else None for end in (value.low, value.high))
    return {"value": float(value.value), "low": low, "high": high}


def _exponent(value: Interval) -> str:
    ends = "" if math.isnan(float(value.low)) else f" ({float(value.low):.3f} - {float(value.high):.3f})"
    return f"{float(value.value):.3f}{ends}"


def _counted(value: Interval) -> str:
    ends = "" if math.isnan(float(value.low)) else f" ({number(float(value.low))} - {number(float(value.high))})"
    return f"{number(float(value.value))}{ends}"
