"""`ceg ladder`: what our own runs say about one algorithm, the forecast beyond them, and the literature beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cegain import algorithms
from cegain.common.console import empty_table
from cegain.common.text import finite, number, span, wrap
from cegain.gain import contrasts
from cegain.gain.contrasts import UsedRow
from cegain.ladders import arm_names, forecast, ladder, seed_ladder
from cegain.ladders.fit_report import STEPS
from cegain.ladders.seed_ladder import GainAt, Rung, StackRuns
from cegain.ladders.seed_noise import Noise, Spread
from cegain.tables.published_gains import PublishedGain, is_own

if TYPE_CHECKING:
    from rich.console import Console


class Report(NamedTuple):
    """One contrast of a stack: gains by rung, the forecast at some budgets, and the published rows in FLOP."""

    runs: StackRuns
    algorithm: str
    treatment: str
    against: str
    gains: tuple[GainAt, ...]
    forecast: forecast.Forecast
    literature: tuple[UsedRow, ...]

    @property
    def title(self) -> str:
        """The algorithms by their names, and the stack."""
        names = " + ".join(algorithms.get(name).title for name in self.algorithm.split("+"))
        return f"{names} on the {self.runs.stack} stack" if self.runs.stack else names


def report(
    runs: StackRuns, pair: tuple[str, str, str], budgets: Sequence[float], evidence: Iterable[PublishedGain]
) -> Report:
    """Gains, forecast and literature of a contrast on a stack.

    `pair` is (algorithm, arm with it, arm without it); the forecast is at `budgets` (FLOP), or `fit_report.STEPS` past
    the treatment's last rung if there are none; of the shipped `evidence`, the algorithm's rows not our own are kept.
    """
    algorithm, treatment, against = pair
    arms = ladder.pair(runs.table, against, treatment)
    top = max(rung.flops for rung in runs.arms[treatment])
    at = list(budgets) or [float(f"{top * step:.3g}") for step in STEPS]
    return Report(
        runs,
        *pair,
        seed_ladder.gains(runs, treatment, against),
        forecast.forecast(arms[0], arms[1], at, loss_noise=runs.run_noise()),
        _literature(algorithm, evidence, against, runs.stack),
    )


def _literature(algorithm: str, evidence: Iterable[PublishedGain], against: str, stack: str) -> tuple[UsedRow, ...]:
    """Published rows that set the level of an algorithm's gain in FLOP, a combination's in any order of its parts."""
    rows = [row for row in evidence if set(row.algorithm.split("+")) == set(algorithm.split("+")) and not is_own(row)]
    literature: list[UsedRow] = []
    for name in dict.fromkeys(row.algorithm for row in rows):
        question = contrasts.question(rows, name, arm_names.baseline_of(name, against, stack), "flop")
        literature += [used for used in question.used if used.fixes_level]
    return tuple(literature)


def print_report(console: Console, report: Report) -> None:
    """The table of rungs, the noise behind it, the forecast and the literature."""
    columns = ("rung", "seeds", "loss", f"{report.against}'s", "CEG", "se (ln)", "90%", "noise: own", "rung", "paired")
    rungs = empty_table(columns, title=f"{report.title}: {report.treatment} against {report.against}")
    for at in report.gains:
        noise = report.runs.noise[at.rung.budget]
        read = at.read
        rungs.add_row(
            number(at.rung.budget),
            str(len(at.rung.losses)) + (f", {len(at.baseline.losses)}" if at.baseline else ", -"),
            f"{at.rung.loss:.4f}",
            f"{at.baseline.loss:.4f}" if at.baseline else "-",
            f"{math.exp(read.log_gain):.2f}x" if read else "none",
            f"{read.se:.3f}" if read and not at.why else "-",
            span(read.interval()) if read and not at.why else "-",
            _noise(noise.arms[report.treatment]),
            _noise(noise.pooled),
            _noise(noise.difference(report.treatment, report.against)) if at.baseline else "-",
        )
    console.print(rungs)
    lines = [f"{number(at.rung.budget)} FLOP: {at.why}." for at in report.gains if at.why]
    more = [
        rung for rung in report.runs.arms[report.against] if all(rung.budget != at.rung.budget for at in report.gains)
    ]
    lines += [f"{report.against} alone: " + ", ".join(map(_alone, more)) + "."] if more else []
    r = report.runs.correlation
    share = "no two arms have two seeds in common" if math.isnan(r) else f"arms with one seed correlate by {r:.2f}"
    lines += [
        "",
        "Losses in nats per token, exp of the mean over seeds (ours, the other arm's). Noise: sd of one run's ln loss "
        "(degrees of freedom) in this arm, in all arms of the rung, and of the difference of both arms at equal seeds; "
        f"{share}.",
        "",
        *_forecast(report.forecast),
        "",
        *_published(report),
        *(f"Note: {remark}." for remark in report.runs.remarks),
    ]
    console.out("\n".join(wrap(line, console.width) for line in lines), highlight=False)


def _forecast(predicted: forecast.Forecast) -> list[str]:
    lines = [
        f"Forecast: {predicted.status}" + (f" - {predicted.reason}" if predicted.reason and not predicted.at else "")
    ]
    for at in predicted.at:
        gain = f"CEG {number(at.median)}x    90%: {span(at.interval_90)}    50%: {span(at.interval_50)}"
        lines.append(f"  at {number(at.flops)} FLOP: {gain}    {at.status}")
        if at.reason:
            lines.append(f"    {at.decades:.1f} decades past the reads; {at.reason}")
    return [*lines, *(f"  note: {note}" for note in predicted.notes)]


def _published(report: Report) -> list[str]:
    """The literature, one line per study and kind."""
    if not report.literature:
        return ["Literature: no published gain in FLOP against the same baseline."]
    groups: dict[tuple[str, str], list[UsedRow]] = {}
    for used in report.literature:
        groups.setdefault((used.row.study, used.row.basis), []).append(used)
    lines = ["Literature, at its own budgets (not in the figures above):"]
    for (study, basis), rows in groups.items():
        gains = sorted(used.row.ceg * used.conversion.factor for used in rows)
        flops = contrasts.budgets(rows) or sorted(u.row.flops for u in rows if u.row.flops == u.row.flops)
        where = "compute not stated"
        if flops:
            where = (
                f"at {number(flops[0])} FLOP" if flops[0] == flops[-1] else f"{span((flops[0], flops[-1]), '')} FLOP"
            )
        gain = f"{number(gains[0])}x" if len(rows) == 1 else span((gains[0], gains[-1]))
        lines.append(f"  {gain} {basis}, {study}, {where}" + (f", {len(rows)} rows" if len(rows) > 1 else ""))
    return lines


def _noise(spread: Spread) -> str:
    return f"{spread.sd:.4f} ({spread.freedom:.0f})" if spread.freedom else "-"


def _alone(rung: Rung) -> str:
    return f"{rung.loss:.4f} at {number(rung.budget)} FLOP ({len(rung.losses)} seed(s))"


def document(report: Report) -> dict[str, object]:
    """`ceg ladder --json`: gains are factors, flops in FLOP, losses in nats per token; null where nothing is known."""
    f = report.forecast
    return {
        "schema": "ceg.ladder",
        "schema_version": 1,
        "algorithm": report.algorithm,
        "stack": report.runs.stack,
        "treatment": report.treatment,
        "baseline": report.against,
        "seed_correlation": finite(report.runs.correlation),
        "run_noise_ln_loss": report.runs.run_noise(),
        "rungs": [_at_rung(report, at) for at in report.gains],
        "arms": {arm: [_rung(rung) for rung in report.runs.arms[arm]] for arm in (report.treatment, report.against)},
        "forecast": {
            "method": forecast.METHOD,
            "status": f.status,
            "reason": f.reason,
            "class": f.label,
            "class_probabilities": f.classes,
            "estimates": [at.to_dict() for at in f.at],
            "notes": list(f.notes),
        },
        "literature": [
            {
                "study": used.row.study,
                "basis": used.row.basis,
                "flops": finite(used.row.flops),
                "ceg_flop": used.row.ceg * used.conversion.factor,
                "source": used.row.source,
            }
            for used in report.literature
        ],
        "notes": list(report.runs.remarks),
    }


def _at_rung(report: Report, at: GainAt) -> dict[str, Any]:
    noise, read = report.runs.noise[at.rung.budget], at.read
    known = read is not None and not at.why
    return {
        "rung_flops": at.rung.budget,
        "flops": at.rung.flops,
        "seeds": len(at.rung.losses),
        "baseline_seeds": len(at.baseline.losses) if at.baseline else 0,
        "loss": at.rung.loss,
        "baseline_loss": at.baseline.loss if at.baseline else None,
        "ceg": math.exp(read.log_gain) if read else None,
        "ln_ceg_se": read.se if read and known else None,
        "degrees_of_freedom": read.freedom if read and known else None,
        "ceg_interval_90": read.interval() if read and known else None,
        "why": at.why,
        "noise_ln_loss": {
            "arm": _spread(noise.arms[report.treatment]),
            "rung": _spread(noise.pooled),
            "paired_difference": _difference(noise, report.treatment, report.against),
        },
    }


def _rung(rung: Rung) -> dict[str, object]:
    rates = list(rung.learning_rates)
    return {"rung_flops": rung.budget, "flops": rung.flops, "losses_by_seed": rung.losses, "learning_rates": rates}


def _difference(noise: Noise, a: str, b: str) -> dict[str, float] | None:
    return _spread(noise.difference(a, b)) if b in noise.losses else None


def _spread(spread: Spread) -> dict[str, float] | None:
    return {"sd": spread.sd, "degrees_of_freedom": spread.freedom} if spread.freedom else None
