"""Gains read off two ladders at common losses, and how their errors hang together. Equations in `docs/ladders.md`.

A reading through noisy rungs is not linear in their noise: a rung that came out low is also read where its own noise
made it low. So each ladder is first fitted by a smooth curve, read there, and corrected by what its rungs deviate,
to first order. Where no smooth curve is near, the ladder is read as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from cegain.common.arrays import LN10, Array
from cegain.ladders.ladder import Ladder
from cegain.run_tables.repeats import NOISE, TOLERANCE

_NOISE_FACTORS = np.exp(0.5 * np.linspace(-3, 3, 9))
_BENDS = np.geomspace(1e-4, 1.0, 9)
"""Third derivatives of ln loss by log10 C that are tried: L = E + K C^-gamma has about 0.005."""
_FLATTEST = 0.15
"""A curve that anywhere falls at less than this share of its overall slope is taken to follow noise."""
_NEAR = 0.5
"""A straight line further from its ladder (root mean square) than this share of a mean step of ln loss is not taken."""
_SECOND_ORDER = 0.1
_BETWEEN_RUNGS = 0.02
"""What first-order reading leaves out: a share of a read's own variance, and an sd (ln CEG) for bends between rungs
half a decade apart. Reads a hair apart would else contradict each other beyond their errors, and pass for noise."""
_PROBE = 1e-4  # of the smallest step: how far a rung is moved to see what a reading does


class Reads(NamedTuple):
    """Gains read at common losses: midpoint m [n] (log10 FLOP, ascending), y [n] = ln CEG, and its error covariance.

    The covariance is `known` + noise^2 (`unit` - shared `cross`), [n, n] each, where `shared` is the share of a run's
    noise that both arms have in common at one budget. `treatment` [n] is log10 of the treatment's compute.
    """

    m: Array
    y: Array
    known: Array
    unit: Array
    cross: Array
    treatment: Array


def read_gains(baseline: Ladder, treatment: Ladder, noise: float = NOISE) -> Reads | None:
    """Gains at the rungs of either arm that lie inside the other's range of loss; None where there is none."""
    curves = smooth(baseline, noise), smooth(treatment, noise)
    low, high = max(c[-1] for c in curves), min(c[0] for c in curves)
    losses = np.unique(np.concatenate(curves))
    losses = losses[(losses >= low) & (losses <= high)][::-1]
    if not len(losses):
        return None
    arms = (baseline, treatment)
    jacobians = [_jacobian(arm.x, curve, losses) for arm, curve in zip(arms, curves, strict=True)]
    xb, xt = (
        _inverse(arm.x, curve, losses) + jacobian @ (arm.y - curve)
        for arm, curve, jacobian in zip(arms, curves, jacobians, strict=True)
    )
    m = (xb + xt) / 2 / LN10
    order = np.argsort(m, kind="stable")
    both = np.ix_(order, order)
    known, unit, cross = _covariances(baseline, treatment, *jacobians)
    return Reads(m[order], (xb - xt)[order], known[both], unit[both], cross[both], xt[order] / LN10)


def compute_at(arm: Ladder, log_loss: Array) -> Array:
    """ln C at which an arm reaches ln loss [p] inside its range: PCHIP of ln C on -ln loss, monotone by design."""
    return _inverse(arm.x, arm.y, log_loss)


def read_errors(baseline: Ladder, treatment: Ladder, log_loss: Array) -> tuple[Array, Array, Array]:
    """`known`, `unit` and `cross` (see `Reads`) of gains read by `compute_at` at ln loss [p]: [p, p] each."""
    jacobians = []
    for arm in (baseline, treatment):
        curve = smooth(arm)
        # A noisy rung must not decide how certain its own reading is: the same compute on the smooth curve does.
        there = np.interp(compute_at(arm, log_loss), arm.x, curve)
        jacobians.append(_jacobian(arm.x, curve, there))
    return _covariances(baseline, treatment, *jacobians)


def smooth(arm: Ladder, noise: float = NOISE) -> Array:
    """ln loss [n] of a smooth falling curve through an arm's rungs.

    Third differences of neighbouring rungs are noise or bends: both sizes are those that make the differences most
    probable (noise with a log-normal prior around `noise`), and the smoothest curve under them is taken (Whittaker's
    graduation, with a parabola where no bend is seen). A straight line, and at last the ladder itself, where noise
    makes that curve rise or go flat.
    """
    x, y = arm.x / LN10, arm.y
    n = len(x)
    if n < 4:
        return y
    differences = third_differences(x)
    seen = differences @ y
    noises, bends = (part.ravel() for part in np.meshgrid(noise * _NOISE_FACTORS, _BENDS, indexing="ij"))
    variance = arm.sd**2 + noises[:, None] ** 2 / arm.repeats
    covariance = (differences * variance[:, None, :]) @ differences.T + bends[:, None, None] ** 2 * np.eye(n - 3)
    solved = np.linalg.solve(covariance, np.broadcast_to(seen[:, None], (len(bends), n - 3, 1)))[..., 0]
    log_density = -0.5 * (np.linalg.slogdet(covariance)[1] + solved @ seen + (np.log(noises / noise) / 0.5) ** 2)
    best = int(log_density.argmax())
    curve: Array = y - variance[best] * (differences.T @ solved[best])
    if _falls(x, curve):
        return curve
    line = np.polynomial.Polynomial.fit(x, y, 1)(x)
    near = float(np.sqrt(np.mean((line - y) ** 2))) < _NEAR * (y[0] - y[-1]) / (n - 1)
    return line if near and _falls(x, line) else y


def third_differences(x: Array) -> Array:
    """Rows that turn values at x [n] into third derivatives of the cubics through four neighbours: [n - 3, n]."""
    rows = np.zeros((len(x) - 3, len(x)))
    for i in range(len(x) - 3):
        near = x[i : i + 4]
        rows[i, i : i + 4] = [6 / np.prod(near[j] - np.delete(near, j)) for j in range(4)]
    return rows


def _falls(x: Array, curve: Array) -> bool:
    slopes = np.diff(curve) / np.diff(x)
    return bool(slopes.max() <= _FLATTEST * (curve[-1] - curve[0]) / (x[-1] - x[0]) and slopes.max() < 0)


def _inverse(x: Array, y: Array, log_loss: Array) -> Array:
    return np.asarray(PchipInterpolator(-y, x)(-log_loss), dtype=np.float64)


def _jacobian(x: Array, y: Array, log_loss: Array) -> Array:
    """How the interpolated ln C at ln loss [p] answers to the rungs' ln loss y [n]: [p, n]."""
    step = _PROBE * float(np.min(-np.diff(y)))
    columns = [
        (_inverse(x, y + step * unit, log_loss) - _inverse(x, y - step * unit, log_loss)) / (2 * step)
        for unit in np.eye(len(x))
    ]
    return np.stack(columns, axis=1)


def _covariances(baseline: Ladder, treatment: Ladder, of_base: Array, of_treat: Array) -> tuple[Array, Array, Array]:
    known, unit = (
        (of_base * b) @ of_base.T + (of_treat * t) @ of_treat.T
        for b, t in ((baseline.sd**2, treatment.sd**2), (1 / baseline.repeats, 1 / treatment.repeats))
    )
    known, unit = (part + _SECOND_ORDER * np.diag(np.diag(part)) for part in (known, unit))
    same_budget = np.abs(baseline.x[:, None] - treatment.x) <= TOLERANCE
    between = same_budget / np.maximum(baseline.repeats[:, None], treatment.repeats)
    cross = of_base @ between @ of_treat.T
    for arm, of_arm in ((baseline, of_base), (treatment, of_treat)):
        shifted = of_arm.sum(1)  # what a shift of all its rungs does
        known = known + arm.tuning**2 * np.outer(shifted, shifted)
    return known + _BETWEEN_RUNGS**2 * np.eye(len(known)), unit, cross + cross.T
