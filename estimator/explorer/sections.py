"""What the page of `ceg report` shows beside the curve and does not compute: evidence, checks, ladders, kernels.

Everything is plain JSON (no NaN: what is not known is null) and every string stands as it was given: the page escapes.
What takes long is read from where a command stored it (`coverage.COVERAGE_FILE`, `backtest_scores.SCORES`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cegain import algorithms
from cegain.checks import backtest, backtest_scores, coverage
from cegain.common.mixture import NORMAL_90
from cegain.common.text import finite
from cegain.gain import combinations, contrasts, question
from cegain.gain.contrasts import convert
from cegain.ladders import seed_ladder
from cegain.ladders.seed_ladder import Rung, StackRuns
from cegain.tables import kernel_times, training_runs
from cegain.tables.kernel_times import KernelTime
from cegain.tables.published_gains import Evidence, PublishedGain, kind_of
from cegain.views import classify, kernel_families, ladder_overview, listing

USES = LEVEL, GROWTH, CHECK, UNUSED = "level", "growth", "check", "unused"
"""What a row does for a question: it fixes the level; it tells of growth only; it shows the noise of a gain that is
exact; nothing. `why` says why in the last two cases."""

Section = dict[str, Any]


def document(tables: Evidence) -> Section:
    """All sections, each a plain JSON value; `docs/json.md` says what is in them.

    `tables` is the evidence of the page, a user's own included. Coverage, backtest, ladders and kernels are of this
    project's tables, whatever the evidence.

    Raises:
        EvidenceError: a shipped table, or a file of stored results, is bad.
    """
    return {
        "evidence": evidence(tables),
        "classes": classify.document(classify.classify(tables)),
        "coverage": coverage.load_stored(),
        "backtest": scores(),
        "ladders": ladders(),
        "kernels": kernels(),
    }


def evidence(tables: Evidence) -> Section:
    """Every row as it was given, what each does for every default question, and the combinations among them."""
    at = {row: i for i, row in enumerate(tables.rows)}
    return {
        "sha256": tables.sha256,
        "remarks": list(tables.remarks),
        "rows": [_row(row) for row in tables.rows],
        "questions": [
            _question(tables, name, currency, at) for name in algorithms.names() for currency in question.CURRENCIES
        ],
        "combinations": [row for currency in question.CURRENCIES for row in _combinations(tables, currency, at)],
    }


def _row(row: PublishedGain) -> Section:
    cells = {name: finite(value) if isinstance(value, float) else value for name, value in row._asdict().items()}
    return cells | {"kind": kind_of(row)}


def _question(tables: Evidence, name: str, currency: str, at: Mapping[PublishedGain, int]) -> Section:
    """The rows of an algorithm against its default baseline, heaviest first as `ceg show` has them."""
    entry = algorithms.get(name)
    lines = listing.weighed_rows(tables, name, currency)
    grows = {used.row for used in contrasts.tells_growth(line.used for line in lines)}
    exact = _is_exact(name, currency)
    rows = []
    for line in sorted(lines, key=lambda line: -abs(line.weight)):
        use, why = _use(line.used, line.used.row in grows, exact, entry.unlocking)
        known = line.used.contrast >= 0
        rows.append(
            {
                "row": at[line.used.row], "use": use, "why": why, "weight": line.weight,
                "conversion": line.used.conversion.how if known else "",
                **_converted(line.used.row, line.used.conversion.factor),
            }
        )  # fmt: skip
    fixing = [row for row in rows if row["use"] == LEVEL]
    points = [
        {"row": row["row"], "flops": published.flops, "kind": kind_of(published)}
        | {key: row[key] for key in ("ceg", "low", "high")}
        for row in fixing
        if (published := tables.rows[row["row"]]).flops == published.flops
    ]
    return {
        "algorithm": name, "baseline": entry.replaces[0], "currency": currency, "exact": exact,
        "rows": rows, "points": points, "points_without_flops": len(fixing) - len(points),
    }  # fmt: skip


def _is_exact(name: str, currency: str) -> bool:
    return currency == "flop" and algorithms.get(name).exact_in_flop


def _use(used: contrasts.UsedRow, grows: bool, exact: bool, unlocking: str) -> tuple[str, str]:
    """What a row does for a question, and why it is not used."""
    if used.contrast < 0:
        return UNUSED, used.why
    if exact:
        return CHECK, "the gain in FLOP is 1.0 by construction"
    if unlocking:
        return UNUSED, unlocking
    if used.fixes_level:
        return LEVEL, ""
    return (GROWTH, "") if grows else (UNUSED, "another baseline, at one budget: tells neither level nor growth")


def _converted(row: PublishedGain, factor: float) -> Section:
    """A published gain and its range in the currency of a question; null where it cannot be converted."""
    return {key: finite(getattr(row, key) * factor) for key in ("ceg", "low", "high")}


def _combinations(tables: Evidence, currency: str, at: Mapping[PublishedGain, int]) -> list[Section]:
    """Measured combinations that can be told in a currency; `used` where the interaction learns from them."""
    rows_used = {row for seen in combinations.observations(tables.rows, currency) for row, _ in seen.sources}
    rows = []
    for row in tables.rows:
        conversion = convert(row, currency)
        if "+" not in row.algorithm or math.isnan(conversion.factor):
            continue
        members = sorted(zip(row.algorithm.split("+"), row.baseline.split("+"), strict=True))
        rows.append(
            {
                "currency": currency,
                "algorithms": [name for name, _ in members],
                "baselines": [baseline for _, baseline in members],
                "parts": [name for name, _ in members if not _is_exact(name, currency)],
                "row": at[row], "flops": finite(row.flops), "kind": kind_of(row), "used": row in rows_used,
                "conversion": conversion.how,
                **_converted(row, conversion.factor),
            }
        )  # fmt: skip
    return rows


def scores() -> Section:
    """Stored scores of forecasts of ladders: `own`, this project's (null: none stored), and `public`, the others'."""
    entries = backtest_scores.load()
    own = (training_runs.TRAINING_RUNS.name,)
    return {
        "probabilities": list(backtest.PROBABILITIES),
        "enough_points": backtest.ENOUGH_POINTS,
        "own": next((entry for entry in entries if backtest_scores.tables(entry) == own), None),
        "public": [entry for entry in entries if backtest_scores.tables(entry) != own],
    }


def ladders() -> list[Section]:
    """One per stack of this project's runs: losses by arm and rung, gains, combinations, noise; none without runs."""
    path = training_runs.TRAINING_RUNS
    if not path.exists():
        return []
    table = training_runs.load(path)
    return [
        ladder_overview.document(runs, table) | {"arms": [_arm(runs, arm) for arm in runs.arms]}
        for runs in seed_ladder.load(path).values()
    ]


def _arm(runs: StackRuns, arm: str) -> Section:
    return {"arm": arm, "rungs": [_rung(runs, arm, rung) for rung in runs.arms[arm]]}


def _rung(runs: StackRuns, arm: str, rung: Rung) -> Section:
    """Mean loss over seeds; its standard error by the noise that gains are read with (`seed_noise.Noise.of_arm`)."""
    se = math.sqrt(runs.noise[rung.budget].of_arm(arm).variance / len(rung.losses))
    return {
        "rung_flops": rung.budget, "flops": rung.flops, "loss_nats_per_token": rung.loss,
        "ln_loss_se": finite(se), "loss_half_width_90": finite(NORMAL_90 * rung.loss * se), "seeds": len(rung.losses),
        "losses_by_seed": rung.losses, "learning_rates": list(rung.learning_rates),
    }  # fmt: skip


def kernels() -> list[Section]:
    """One per session of `kernel_times.csv` (device, versions, commit: rows that may be compared), the latest first."""
    table = kernel_times.KERNEL_TIMES
    sessions: dict[tuple[str, ...], list[KernelTime]] = {}
    for row in kernel_times.load(table) if table.exists() else []:
        sessions.setdefault(row.session(), []).append(row)
    latest = sorted(sessions.values(), key=lambda rows: max(row.date for row in rows), reverse=True)
    return [_session(rows) for rows in latest]


def _session(rows: list[KernelTime]) -> Section:
    roof = kernel_families.ceilings(rows)
    first = rows[0]
    return {
        "device": first.device, "torch": first.torch, "triton": first.triton, "driver": first.driver,
        "commit": first.commit, "date": max(row.date for row in rows),
        "ceilings": None if roof is None else roof._asdict(),
        "families": {
            name: {"title": family.title, "main": family.main, "x": family.x, "x_title": family.label}
            for name, family in kernel_families.FAMILIES.items()
            if any(family.belongs(row) for row in rows)
        },
        "rows": [_kernel(row, roof) for row in rows],
    }  # fmt: skip


def _kernel(row: KernelTime, roof: kernel_families.Ceilings | None) -> Section:
    """Times in seconds, rates in useful FLOP/s and bytes/s; without the sizes that an operation does not have."""
    family = next((name for name, family in kernel_families.FAMILIES.items() if family.belongs(row)), None)
    sizes = {name: getattr(row, name) for name in kernel_times.ALL_SIZES if getattr(row, name)}
    return {
        "op": row.op,
        "family": family,
        "panel": None if family is None else " ".join(kernel_families.panel_title(family, row).split()),
        "implementation": row.implementation,
        "ours": row.implementation in kernel_families.OURS,
        "pass": row.pass_, "pattern": row.pattern, "dtype": row.dtype,
        **sizes,
        "density": finite(row.density), "median_s": row.median_s, "p20_s": row.p20_s, "p80_s": row.p80_s,
        "flops_per_s": row.flops / row.median_s, "bytes_per_s": row.bytes / row.median_s,
        "flop_per_byte": row.flops / row.bytes, "roofline_s": None if roof is None else roof.least_seconds(row),
    }  # fmt: skip
