"""Leave one measured combination out and predict it: are the intervals of stacks honest?

Two questions per combination of a study, each with the combination's rows there left out. Its gain, as an answer would
print it: parts from all studies, interaction from the other combinations. And its excess over the product of the parts
that the same study measured, from the other combinations alone. The rival of both is the plain product: for the gain,
the parts' own uncertainty, for the excess, reading errors only. Every combination of a study has one vote. Our own runs
take part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cegain.checks import coverage
from cegain.checks.coverage import Score, Summary
from cegain.common import mixture
from cegain.gain import combinations, interaction, method, prior
from cegain.gain.combinations import Observation
from cegain.gain.contrasts import convert
from cegain.tables.published_gains import PublishedGain

if TYPE_CHECKING:
    from rich.console import Console

CURRENCY = "flop"
GAIN, EXCESS = "gain of the stack", "excess over its parts"


class Report(NamedTuple):
    """Scores of both questions, combinations without an answer, and the probability of the intervals.

    A score's `study` names the combination too: both together have one vote.
    """

    scores: dict[str, tuple[Score, ...]]
    unscored: tuple[str, ...]
    content: float

    def summaries(self) -> dict[str, Summary]:
        """One per question that has scores."""
        return {what: coverage.summarise(scores, self.content) for what, scores in self.scores.items() if scores}


def leave_one_combination_out(rows: Sequence[PublishedGain], content: float = 0.9) -> Report:
    """Score every combination whose parts its study measured, by intervals of probability `content`; gains in FLOP."""
    observations = combinations.observations(rows, CURRENCY)
    gains: list[Score] = []
    excesses: list[Score] = []
    unscored = []
    for study, label in dict.fromkeys((o.study, o.label) for o in observations):
        left_out = [o for o in observations if (o.study, o.label) == (study, label)]
        others = [o for o in observations if (o.study, o.label) != (study, label)]
        excesses += _excesses(left_out, others, content)
        if left_out[0].context:
            continue  # a part's gain, which `coverage.leave_one_study_out` scores
        scores = _gains(rows, [o.sources[0][0] for o in left_out], label, content)
        gains += scores
        if not scores:
            unscored.append(f"{label} ({study})")
    return Report({GAIN: tuple(gains), EXCESS: tuple(excesses)}, tuple(unscored), content)


def _gains(rows: Iterable[PublishedGain], left_out: Sequence[PublishedGain], label: str, content: float) -> list[Score]:
    """A study's combination, at each of its budgets, from everything but its rows."""
    study, algorithm, baseline = left_out[0].study, left_out[0].algorithm, left_out[0].baseline
    others = [r for r in rows if (r.study, r.algorithm, r.baseline) != (study, algorithm, baseline)]
    names, baselines = zip(*sorted(zip(algorithm.split("+"), baseline.split("+"), strict=True)), strict=True)
    prepared = method.prepare(others, names, baselines, currency=CURRENCY, spread=prior.frozen())
    if prepared.missing:
        return []
    scores = []
    for row in left_out:
        value = math.log(row.ceg * convert(row, CURRENCY).factor)
        predicted = method.distributions(prepared, row.flops)[1].central(content)
        plain = mixture.total(curve.predictive(row.flops) for curve in prepared.curves).central(content)
        scores.append(Score(f"{study}: {label}", label, CURRENCY, value, *predicted, *plain))
    return scores


def _excesses(left_out: Sequence[Observation], others: Sequence[Observation], content: float) -> list[Score]:
    """A study's excesses from those of other combinations; reading errors included."""
    scores = []
    for o, error in zip(left_out, combinations.noise(left_out).diagonal() ** 0.5, strict=True):
        there = interaction.from_observations(others, o.pairs).at(o.flops).predictive.widened(float(error))
        plain = mixture.point(0.0).widened(float(error)).central(content)
        scores.append(Score(f"{o.study}: {o.label}", o.label, CURRENCY, o.value, *there.central(content), *plain))
    return scores


def document(report: Report) -> dict[str, object]:
    """The report as JSON: gains as factors, scores and widths of ln gain."""
    return {
        "schema": "ceg.coverage_of_stacks", "schema_version": 1, "interval_probability": report.content,
        "summary": {what: summary._asdict() for what, summary in report.summaries().items()},
        "unscored": list(report.unscored),
        "rows": [{"question": what, **s.document()} for what, scores in report.scores.items() for s in scores],
    }  # fmt: skip


def print_report(console: Console, report: Report) -> None:
    """Both questions by combination, and the summaries."""
    for what, summary in report.summaries().items():
        table = coverage.score_table(["study: combination left out"], "measured", title=what)
        for name, scores in coverage.by_study(report.scores[what]).items():
            table.add_row(name, *coverage.cells(scores))
        console.print(table)
        console.print(coverage.summary_text(summary, report.content, "combinations", "plain product") + "\n")
    studies = len({s.study.partition(":")[0] for scores in report.scores.values() for s in scores})
    console.print(
        f"The combinations are of {studies} studies; those of one share runs, which the binomial range ignores."
    )
    votes = min((s.studies for s in report.summaries().values()), default=0)
    if votes < coverage.ENOUGH_STUDIES:
        console.print(f"{votes} combinations, fewer than {coverage.ENOUGH_STUDIES}: too few to trust a coverage.")
    if report.unscored:
        console.print(f"No answer without them: {', '.join(report.unscored)}.")
