"""What `ceg fit` says about a table of runs: the law of one arm, or the gain between two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import LN10, Array
from cegain.common.text import finite, number, span
from cegain.common.verdict import FAR_DECADES
from cegain.ladders import forecast, frontier_ratio, ladder, optimum, scaling_law
from cegain.ladders.ladder import Ladder, RunTable
from cegain.ladders.scaling_law import FitResult, Interval, Runs
from cegain.run_tables import repeats
from cegain.tables.cells import take as cells_of

STEPS = (1.0, 10.0, 100.0)
"""Budgets of the gain when none are named: the largest of the treatment, and ten and a hundred times as much."""


SEEDS_NEEDED = 6
"""Degrees of freedom from which the scatter of seeds states the noise."""
_SAY = "Say which: --repeats seeds or --repeats sweep"


class OneArm(NamedTuple):
    """An arm's ladder and the laws fitted to it; `chinchilla` is None where the table has no sizes or tokens.

    `if_sweep` is the same with the best of each size and budget, where it is not known whether these are seeds. `runs`
    are those behind the laws.
    """

    arm: str
    rungs: Ladder
    chinchilla: FitResult | None
    frontier: FitResult
    runs: RunTable
    if_sweep: OneArm | None = None


class TwoArms(NamedTuple):
    """The forecast of a gain, and the ratio of two frontiers at the same budgets by what is assumed of the floor
    (`frontier_ratio.floor_sensitivity`). `if_sweep` as in `OneArm`.
    """

    forecast: forecast.Forecast
    floors: dict[str, list[float]]
    arms: tuple[Ladder, Ladder]
    if_sweep: TwoArms | None = None


def restrict(table: RunTable, max_flops: float | None, drop_highest: int) -> RunTable:
    """Runs up to a budget, without the `drop_highest` highest losses (early, unstable or undertrained runs)."""
    kept = np.ones(len(table.loss), bool)
    if max_flops is not None:
        kept &= max_flops * (1 + repeats.TOLERANCE / 2) >= table.C
    if drop_highest:
        kept[np.argsort(table.loss, kind="stable")[-drop_highest:]] = False
    return take(table, kept)


def take(table: RunTable, kept: Array) -> RunTable:
    """The runs of a table where `kept` [n] is true."""
    at = np.flatnonzero(kept)
    return table._replace(
        variant=cells_of(table.variant, at),
        N=table.N[at],
        D=table.D[at],
        C=table.C[at],
        loss=table.loss[at],
        cells={name: cells_of(cells, at) for name, cells in table.cells.items()},
    )


def one_arm(table: RunTable, arm: str, resamples: int, seed: int) -> OneArm:
    """Fit an arm's runs: the law in N and D where tokens are known, and the compute frontier on its ladder."""
    at, _ = ladder.representatives(table, arm)
    runs = table._replace(N=table.N[at], D=table.D[at], C=table.C[at], loss=table.loss[at])
    rungs = ladder.ladder(table, arm)
    chinchilla = None
    if np.isfinite(runs.D).all() and np.isfinite(runs.N).all():
        chinchilla = scaling_law.fit(Runs(loss=runs.loss, N=runs.N, D=runs.D), resamples=resamples, seed=seed)
    frontier = Runs(loss=np.exp(rungs.y), C=np.exp(rungs.x))
    law = scaling_law.fit(frontier, form="frontier", resamples=resamples, seed=seed)
    other = one_arm(_as_a_sweep(table), arm, resamples, seed) if rungs.doubt is not None else None
    return OneArm(arm, rungs, chinchilla, law, runs, other)


def _as_a_sweep(table: RunTable) -> RunTable:
    return table._replace(repeats=table.repeats._replace(repeats=repeats.SWEEP))


def two_arms(
    table: RunTable, baseline: str, treatment: str, budgets: Sequence[float], loss_noise: float | None
) -> TwoArms:
    """Forecast the gain of one arm over another at some budgets (FLOP), `STEPS` past the last rung if none."""
    arms = ladder.pair(table, baseline, treatment)
    if not budgets and len(arms[1].x):
        budgets = [float(f"{math.exp(arms[1].x[-1]) * step:.3g}") for step in STEPS]
    if loss_noise is None:
        loss_noise = seed_scatter(table, (baseline, treatment))
    found = forecast.forecast(*arms, budgets, loss_noise=loss_noise)
    floors = frontier_ratio.floor_sensitivity(*arms, budgets) if found.at else {}
    unclear = table.repeats.repeats is None and any(
        ladder.representatives(table, a)[1].unclear for a in (baseline, treatment)
    )
    other = two_arms(_as_a_sweep(table), baseline, treatment, budgets, loss_noise) if unclear else None
    return TwoArms(found, floors, arms, other)


class Model(NamedTuple):
    """A size (parameters) and a count of tokens whose loss is asked for."""

    n_params: float
    tokens: float


def of_models(found: OneArm, models: Sequence[Model]) -> list[dict[str, object]]:
    """Loss of models of a given size and tokens by the law in N and D, with 90% intervals; `status` is ok,
    far_extrapolation (`FAR_DECADES` past the runs in size, tokens or compute) or the law's own where it does not
    answer. The intervals are of the law's mean, by its resamples: a single run scatters about that.
    """
    law, rows = found.chinchilla, []
    for model in models:
        row: dict[str, object] = {
            "n_params": model.n_params,
            "tokens": model.tokens,
            "loss": None,
            "loss_interval_90": None,
        }
        if law is None or not law.answers:
            rows.append(row | {"status": "no_law" if law is None else law.status, "past_runs": None})
            continue
        loss = law.predict(N=np.array([model.n_params]), D=np.array([model.tokens]))
        value, low, high = (float(np.ravel(part)[0]) for part in loss)
        sizes, tokens = found.runs.N, found.runs.D
        past = max(
            _decades_outside(model.n_params, sizes),
            _decades_outside(model.tokens, tokens),
            _decades_outside(model.n_params * model.tokens, sizes * tokens),
        )
        status = "ok" if past <= FAR_DECADES else "far_extrapolation"
        ends = [low, high] if math.isfinite(low) else None
        rows.append(row | {"loss": value, "loss_interval_90": ends, "status": status, "past_runs": past})
    return rows


def _decades_outside(value: float, column: Array) -> float:
    return max(0.0, math.log10(value / float(column.max())), math.log10(float(column.min()) / value))


def _models_text(found: OneArm, models: Sequence[Model]) -> list[str]:
    lines = []
    for row, model in zip(of_models(found, models), models, strict=True):
        where = f"{number(model.n_params)} parameters, {number(model.tokens)} tokens"
        if row["loss"] is None:
            rule = "the table has no sizes and tokens" if row["status"] == "no_law" else f"status {row['status']}"
            lines.append(f"at {where}: no answer, {rule}")
            continue
        ends = row["loss_interval_90"]
        interval = "" if ends is None else f" (90%, of the mean: {ends[0]:.4g} - {ends[1]:.4g})"  # type: ignore[index]
        past = float(row["past_runs"])  # type: ignore[arg-type]
        far = "inside the runs' sizes and tokens" if not past else f"{past:.1f} decades past the runs"
        lines.append(f"at {where}: loss {row['loss']:.4g}{interval}; {row['status']}, {far}")
    return lines


def _optimum(found: OneArm, budgets: Sequence[float]) -> optimum.Optimum:
    runs = found.runs
    at = list(budgets) or ([math.exp(found.rungs.x[0]), math.exp(found.rungs.x[-1])] if len(found.rungs.x) else [])
    return optimum.optimum(found.chinchilla, runs.N, runs.D, runs.C, np.log(runs.loss), at)


def seed_scatter(table: RunTable, arms: Sequence[str]) -> float | None:
    """sd of one run's ln loss over seeds, pooled over budgets and sizes of some arms; None with fewer than
    `SEEDS_NEEDED` degrees of freedom, or where the runs may be a sweep.
    """
    squares, freedom = 0.0, 0
    for arm in arms:
        at, reduced = ladder.representatives(table, arm)
        if reduced.unclear:
            return None
        n, c, y = table.N[at], np.log(table.C[at]), np.log(table.loss[at])
        sizes = np.log(n) if np.isfinite(n).all() else np.zeros(len(n))
        for group in repeats.groups_of(sizes, c, repeats.TOLERANCE):
            if len(group) > 1:
                squares += float(((y[group] - y[group].mean()) ** 2).sum())
                freedom += len(group) - 1
    return math.sqrt(squares / freedom) if freedom >= SEEDS_NEEDED and squares > 0 else None


def one_arm_text(found: OneArm, budgets: Sequence[float], models: Sequence[Model] = ()) -> str:
    """The laws of one arm, its compute-optimal runs, its loss at each budget and of each model."""
    lines = [f"{found.arm}: {len(found.rungs.x)} rungs, {_range(found.rungs)} FLOP"]
    if found.rungs.doubt is not None:
        lines.append(f"status: {found.rungs.doubt[0]} - {found.rungs.doubt[1]} ({_SAY})")
    lines += [f"note: {note}" for note in found.rungs.notes]
    if found.chinchilla is not None:
        lines += ["", str(found.chinchilla)]
    lines += ["", str(found.frontier)]
    if best := optimum.text(_optimum(found, budgets)):
        lines += ["", *best]
    if models:
        lines += ["", *_models_text(found, models)]
    if budgets:
        lines.append("")
    for c in budgets:
        decades = max(0.0, math.log10(c) - found.rungs.x[-1] / LN10) if len(found.rungs.x) else math.inf
        far = f"; far_extrapolation: {decades:.1f} decades past the runs" if decades > FAR_DECADES else ""
        law = found.chinchilla if found.chinchilla is not None and found.chinchilla.answers else found.frontier
        said = f"status {law.status}: no answer" if not law.answers else _at(law, c)
        lines.append(f"at {number(c)} FLOP: {said} ({law.form} law{far})")
    if found.if_sweep is not None:
        lines += [
            "",
            "If they are a sweep, the best of each size and budget:",
            one_arm_text(found.if_sweep, budgets, models),
        ]
    return "\n".join(lines)


def _at(law: FitResult, flops: float) -> str:
    """Loss at a budget, with the compute-optimal run where the law knows N and D; 90% intervals where resampled."""
    if law.form != "chinchilla":
        return f"loss {_value(law.predict(C=np.array([flops])), 4)}"
    best = law.compute_optimal(flops)
    return (
        f"{_value(best.n_params)} parameters, {_value(best.tokens)} tokens, loss {_value(best.loss, 4)}; "
        f"status {law.status}"
    )


def _value(found: Interval, digits: int = 2) -> str:
    value, low, high = (float(np.ravel(part)[0]) for part in (found.value, found.low, found.high))
    shown = f"{value:.{digits}g}".replace("e+", "e")
    if not math.isfinite(low):
        return shown
    return shown + f" ({low:.{digits}g} - {high:.{digits}g})".replace("e+", "e")


def one_arm_document(found: OneArm, budgets: Sequence[float] = (), models: Sequence[Model] = ()) -> dict[str, object]:
    """`ceg fit --json` of one arm: the law in N and D at the top (the frontier where there is none)."""
    law = found.chinchilla or found.frontier
    return {
        "schema": "ceg.fit",
        "schema_version": 1,
        "arm": found.arm,
        "rungs": len(found.rungs.x),
        **law.as_dict(),
        "frontier": found.frontier.as_dict(),
        "ladder_notes": list(found.rungs.notes),
        "compute_optimal": optimum.document(_optimum(found, budgets)),
        "models": of_models(found, models),
    } | _doubted(
        found.rungs.doubt, None if found.if_sweep is None else one_arm_document(found.if_sweep, budgets, models)
    )


def _doubted(doubt: tuple[str, str] | None, if_sweep: dict[str, object] | None) -> dict[str, object]:
    """Nothing where there is no doubt; else the status, why, and the answer if the runs are a sweep."""
    if doubt is None:
        return {}
    return {"runs_status": doubt[0], "runs_reason": doubt[1], "if_sweep": if_sweep}


def two_arms_text(found: TwoArms) -> str:
    """The gain at each budget, with the rival rule and the floor's sensitivity beside it."""
    f = found.forecast
    lines = [f"{f.treatment} against {f.baseline}", f"status: {f.status}" + (f" - {f.reason}" if f.reason else "")]
    if found.if_sweep is not None:
        lines.append(f"Below as seeds, averaged; then as a sweep, the best of each size and budget. {_SAY}.")
    if f.read_range is not None:
        lines.append(f"{f.reads} reads, {span(f.read_range, '')} FLOP (midpoints of the two arms)")
    for i, at in enumerate(f.at):
        headline = f"CEG {number(at.median)}x    90%: {span(at.interval_90)}    50%: {span(at.interval_50)}"
        if at.status != "ok":
            headline = (
                f"CEG 90%: {span(at.interval_90)}    (median {number(at.median)}x)    50%: {span(at.interval_50)}"
            )
        lines += [
            "",
            f"at {number(at.flops)} FLOP: {headline}",
            f"  {at.decades:.1f} decades past the reads; {at.status}" + (f": {at.reason}" if at.reason else ""),
        ]
        if at.decades:
            lines.append(f"  the last gain, kept: {number(at.last)}x    90%: {span(at.last_90)}")
        floors = ", ".join(f"{name} {_gain(gains[i])}" for name, gains in found.floors.items())
        lines.append(f"  ratio of frontier fits, by floor: {floors}")
    if f.classes is not None:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in f.classes.items())
        lines += ["", f"class: {f.label} ({shares})"]
    lines += [f"note: {note}" for note in f.notes]
    if found.if_sweep is not None:
        lines += ["", "If they are a sweep:", two_arms_text(found.if_sweep)]
    return "\n".join(lines)


def two_arms_document(found: TwoArms) -> dict[str, object]:
    """`ceg fit --json` of two arms: gains are factors, flops in FLOP; null where there is no number."""
    f = found.forecast
    at = []
    for i, a in enumerate(f.at):
        by_floor = {name: finite(gains[i]) for name, gains in found.floors.items()}
        at.append(
            a.to_dict() | {"last_ceg": a.last, "last_ceg_interval_90": a.last_90, "frontier_ceg_by_floor": by_floor}
        )
    return {
        "schema": "ceg.fit",
        "schema_version": 1,
        "method": forecast.METHOD,
        "baseline": f.baseline,
        "treatment": f.treatment,
        "status": f.status,
        "reason": f.reason,
        "reads": f.reads,
        "read_range_flops": f.read_range,
        "read_gains": [{"flops": c, "ceg": g} for c, g in f.read_gains],
        "class": f.label,
        "class_probabilities": f.classes,
        "estimates": at,
        "notes": list(f.notes),
    } | ({} if found.if_sweep is None else {"if_sweep": two_arms_document(found.if_sweep)})


def _range(rungs: Ladder) -> str:
    return span((math.exp(rungs.x[0]), math.exp(rungs.x[-1])), "") if len(rungs.x) else "no"


def _gain(value: float) -> str:
    return "none" if not math.isfinite(value) else f"{number(value)}x"
