"""Leave one study out, predict its rows: are the predictive intervals honest on the literature itself?

For each study in turn, scatter and slope settings are fitted again without it, every algorithm it measured is
predicted from the other studies, and its rows are scored against the interval that would be printed. A study has one
vote, however many rows it has. The rival is one normal fitted to all other studies' ln gains in the same currency,
whatever the algorithm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from cegain import algorithms
from cegain.common.scores import binomial_range, interval_score, rounded
from cegain.common.text import span, wrap
from cegain.gain import contrasts, method, prior
from cegain.gain.curve import Curve
from cegain.gain.study import X0
from cegain.tables.files import DATA
from cegain.tables.problems import refusal
from cegain.tables.provenance import version
from cegain.tables.published_gains import Evidence, PublishedGain, is_own

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COVERAGE_FILE = DATA / "coverage.json"
"""The check on the shipped literature, made by `ceg coverage --write`: it takes too long to be made anew for a page."""
SCHEMA = "ceg.coverage"
ENOUGH_STUDIES = 10
CUTS = tuple(10.0**x for x in range(13, 24))
"""FLOP above which the upward check hides everything, in turn."""
_STORED = ("schema", "interval_probability", "summary", "studies", "rows")
"""Keys without which a stored document cannot be shown."""


class Score(NamedTuple):
    """One held-out row: ln gain, the predicted interval of ln gain, the rival's, and where it stands."""

    study: str
    algorithm: str
    currency: str
    value: float
    low: float
    high: float
    rival_low: float
    rival_high: float

    @property
    def inside(self) -> bool:
        """Whether the gain lies in the predicted interval."""
        return self.low <= self.value <= self.high

    def document(self) -> dict[str, object]:
        """As JSON has it, gains as factors."""
        factors = {name: math.exp(value) for name, value in self._asdict().items() if isinstance(value, float)}
        return self._asdict() | factors


class Summary(NamedTuple):
    """Scores over studies, each one vote. Widths and scores are of intervals of ln gain."""

    studies: int
    rows: int
    votes: float
    coverage: float
    coverage_range: tuple[float, float]
    median_width_factor: float
    interval_score: float
    rival_coverage: float
    rival_interval_score: float


class Report(NamedTuple):
    """All scores, the studies that could not be scored, the probability of the intervals, and the scores of the upward
    check, empty where it was not made."""

    scores: tuple[Score, ...]
    unscored: tuple[str, ...]
    content: float
    upward: tuple[Score, ...] = ()


def studies(rows: Iterable[PublishedGain]) -> list[str]:
    """The studies to leave out, in turn."""
    return sorted({row.study for row in rows})


def leave_one_study_out(
    rows: Sequence[PublishedGain], left_out: Iterable[str] | None = None, content: float = 0.9
) -> Report:
    """Score every row whose algorithm another study also measured against its default baseline.

    `left_out` names the studies to score, all of them by default; `content` is the probability of the intervals.
    """
    scores: list[Score] = []
    unscored = []
    for study in studies(rows) if left_out is None else left_out:
        of_study = [row for row in rows if row.study == study]
        others = [row for row in rows if row.study != study]
        study_scores: list[Score] = []
        spread = None
        for name, currency, left in _questions(of_study):
            if spread is None:
                spread = prior.fit_spread(others)
                weights = prior.kind_weights(others, spread)
            question = contrasts.question(others, name, algorithms.get(name).replaces[0], currency)
            if question.rows is None:
                continue
            known = weights.get(prior.key(name, currency), weights.get(prior.kind_key(name, currency)))
            curve = method.fit_curve(question, spread, prior.prior_weights() if known is None else known)
            if curve is not None:
                rival = _rival(others, currency, content)
                study_scores += _score((study, name, currency), left, curve, rival, content)
        scores += study_scores
        if not study_scores:
            unscored.append(study)
    return Report(tuple(scores), tuple(unscored), content)


def hide_above(rows: Sequence[PublishedGain], cuts: Iterable[float] | None = None, content: float = 0.9) -> Report:
    """The upward check: hide everything above a compute, predict what was published there, for every cut in `CUTS`.

    Settings are fitted on what is left, too, and rows of unknown compute are left out. Gains that no answer would be
    given for (toys alone, far below) are not scored.

    Args:
        rows: published ones are scored; this project's own runs are evidence like any other.
        cuts: FLOP, `CUTS` by default.
        content: probability of the intervals.
    """
    scores: list[Score] = []
    known = [row for row in rows if row.flops == row.flops]
    published = [row for row in known if not is_own(row)]
    for cut in CUTS if cuts is None else cuts:
        hidden = [row for row in published if row.flops > cut]
        left = [row for row in known if row.flops <= cut]
        spread = prior.fit_spread([row for row in published if row.flops <= cut])
        weights = prior.kind_weights([row for row in published if row.flops <= cut], spread)
        for name, currency, question in _questions(hidden):
            seen = contrasts.question(left, name, algorithms.get(name).replaces[0], currency)
            known_weights = weights.get(prior.key(name, currency), weights.get(prior.kind_key(name, currency)))
            curve = method.fit_curve(seen, spread, prior.prior_weights() if known_weights is None else known_weights)
            if curve is None:
                continue
            told = question._replace(used=tuple(u for u in question.used if not method.unanswered(curve, u.row.flops)))
            rival = _rival(left, currency, content)
            for study in dict.fromkeys(u.row.study for u in told.used):
                of_study = told._replace(used=tuple(u for u in told.used if u.row.study == study))
                scores += _score((study, name, currency), of_study, curve, rival, content)
    return Report(tuple(scores), tuple(sorted(set(studies(published)) - {s.study for s in scores})), content)


def _questions(rows: Sequence[PublishedGain]) -> Iterator[tuple[str, str, contrasts.QuestionRows]]:
    """Those of `prior.questions` whose level some of `rows` fix."""
    for name, currency, question in prior.questions(rows):
        if question.rows is not None and question.rows.fixes_level.any():
            yield name, currency, question


def summarise(scores: Sequence[Score], content: float = 0.9) -> Summary:
    """Coverage with its exact binomial 95% range, width and interval score, each study one vote.

    The vote of a study is the share of its rows inside. The Clopper-Pearson range (1934) is taken at the whole
    number of votes below for its lower end and above for its upper end, which can only widen it.
    """
    groups = list(by_study(scores).values())
    n, penalty = len(groups), 2 / (1 - content)

    def vote(value: Callable[[Score], float]) -> float:
        return float(np.mean([np.mean([value(s) for s in group]) for group in groups]))

    coverage = vote(lambda s: s.inside)
    return Summary(
        studies=n,
        rows=len(scores),
        votes=coverage * n,
        coverage=coverage,
        coverage_range=binomial_range(coverage * n, n),
        median_width_factor=math.exp(float(np.median([s.high - s.low for s in scores]))),
        interval_score=vote(lambda s: float(interval_score(s.low, s.high, s.value, penalty))),
        rival_coverage=vote(lambda s: float(s.rival_low <= s.value <= s.rival_high)),
        rival_interval_score=vote(lambda s: float(interval_score(s.rival_low, s.rival_high, s.value, penalty))),
    )


def _score(
    key: tuple[str, str, str], left: contrasts.QuestionRows, curve: Curve, rival: tuple[float, float], content: float
) -> list[Score]:
    """Scores of the rows that were left out, under their study, algorithm and currency."""
    scores = []
    for used in (u for u in left.used if u.contrast >= 0):
        if not used.fixes_level:
            continue
        flops = used.row.flops
        if math.isnan(flops):
            flops = 10.0 ** float(np.median(curve.reach)) if len(curve.reach) else 10.0**X0
        there = curve.elsewhere(np.nan_to_num(contrasts.covariates_at(used.row)), used.row.seq_len)
        interval = there.predictive(flops).central(content)
        gain = math.log(used.row.ceg * used.conversion.factor)
        scores.append(Score(*key, gain, *interval, *rival))
    return scores


def _rival(others: Sequence[PublishedGain], currency: str, content: float) -> tuple[float, float]:
    """One normal over ln gains of all rows that set a level in this currency, each study weighing the same."""
    values: dict[str, list[float]] = {}
    for _, its_currency, question in _questions(others):
        for used in question.used:
            if its_currency == currency and used.contrast >= 0 and used.fixes_level:
                values.setdefault(used.row.study, []).append(math.log(used.row.ceg * used.conversion.factor))
    weights = np.concatenate([np.full(len(v), 1 / len(v)) for _, v in sorted(values.items())])
    gains = np.concatenate([np.array(sorted(v)) for _, v in sorted(values.items())])
    mean = float(np.average(gains, weights=weights))
    n = len(values)
    variance = float(np.average((gains - mean) ** 2, weights=weights)) * n / max(n - 1, 1)
    half = float(ndtri(0.5 + content / 2)) * math.sqrt(variance)
    return mean - half, mean + half


def document(report: Report) -> dict[str, object]:
    """The report as JSON: gains as factors, scores and widths of ln gain."""
    return {
        "schema": SCHEMA, "schema_version": 1, "interval_probability": report.content,
        "summary": {name: s._asdict() for name, s in summaries(report).items()},
        "studies": [
            {
                "study": study,
                "algorithms": [
                    {"algorithm": name, "currency": currency}
                    for name, currency in dict.fromkeys((s.algorithm, s.currency) for s in scores)
                ],
                "rows": len(scores), "inside": sum(s.inside for s in scores),
                "published": _published(scores), "predicted": _predicted(scores),
            }
            for study, scores in by_study(report.scores).items()
        ],
        "unscored_studies": list(report.unscored),
        "rows": [score.document() for score in report.scores],
    }  # fmt: skip


def stored(tables: Evidence, report: Report) -> dict[str, object]:
    """Content of `COVERAGE_FILE`: the report as JSON, what it was made of and how."""
    provenance = {
        "command": "ceg coverage", "version": version("cegain"), "evidence_sha256": tables.sha256,
        "enough_studies": ENOUGH_STUDIES,
    }  # fmt: skip
    return rounded(provenance | document(report))


def load_stored(path: Path | None = None) -> dict[str, Any]:
    """What `stored` made, from `COVERAGE_FILE` or another file.

    Raises:
        EvidenceError: the file is missing, unreadable, or another document.
    """
    path = COVERAGE_FILE if path is None else path
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
        missing = [key for key in _STORED if key not in report]
        why = f"no {', '.join(missing)}" if missing else "" if report["schema"] == SCHEMA else "another document"
    except OSError as error:
        why = error.strerror or str(error)
    except (TypeError, ValueError) as error:  # no JSON, or a number
        why = f"no JSON object: {error}"
    if why:
        rule = f"stored coverage is a file with the schema {SCHEMA}"
        raise refusal(path, rule, why, "Make it again with `ceg coverage --write`.")
    return report


def by_study(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """Scores by what has one vote."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.study, []).append(score)
    return groups


def _published(scores: Sequence[Score]) -> tuple[float, float]:
    """The lowest and the highest gain (factors)."""
    return math.exp(min(s.value for s in scores)), math.exp(max(s.value for s in scores))


def _predicted(scores: Sequence[Score]) -> tuple[float, float]:
    """From the lowest to the highest end of the intervals (factors)."""
    return math.exp(min(s.low for s in scores)), math.exp(max(s.high for s in scores))


def summaries(report: Report) -> dict[str, Summary]:
    """Over everything, and by currency."""
    groups = {"all": list(report.scores)}
    for currency in ("flop", "time"):
        groups[currency] = [s for s in report.scores if s.currency == currency]
    groups["upward"] = list(report.upward)
    return {name: summarise(scores, report.content) for name, scores in groups.items() if scores}


def print_report(console: Console, report: Report) -> None:
    """Coverage by study, and the summary."""
    table = score_table(("study left out", "algorithms"), "published")
    for study, scores in by_study(report.scores).items():
        names = ", ".join(dict.fromkeys(f"{s.algorithm} ({s.currency})" for s in scores))
        table.add_row(study, names, *cells(scores))
    console.print(table)
    for name, summary in summaries(report).items():
        text = summary_text(summary, report.content, "studies", "one normal for all other studies")
        label = "upward, everything above a compute hidden in turn" if name == "upward" else name
        console.print(f"\n{label}: {text}")
        if summary.studies < ENOUGH_STUDIES:
            console.print(
                f"  Only {summary.studies} studies scored, fewer than {ENOUGH_STUDIES}: too few to trust a coverage."
            )
    outside = [f"{study} ({', '.join(names)})" for study, names in _outside(report.scores).items()]
    console.print()
    console.print(wrap(f"With a row outside: {'; '.join(outside) or 'none'}.", console.width))
    console.print(f"\nNo other study to predict them from: {', '.join(report.unscored) or 'none'}.")


def _outside(scores: Sequence[Score]) -> dict[str, list[str]]:
    """Algorithms by study of which some row lies outside its interval."""
    found: dict[str, list[str]] = {}
    for score in scores:
        if not score.inside and score.algorithm not in found.setdefault(score.study, []):
            found[score.study].append(score.algorithm)
    return found


def score_table(names: Sequence[str], measured: str, title: str | None = None) -> Table:
    """An empty table for rows of names and `cells`; `measured` heads the measured gains."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in (*names, "rows", "inside", measured, "predicted"):
        table.add_column(name, justify="right" if name in ("rows", "inside") else "left")
    return table


def cells(scores: Sequence[Score]) -> tuple[str, ...]:
    """Of what has one vote: rows, those inside, the span of their gains and that of the intervals."""
    inside = sum(s.inside for s in scores)
    return str(len(scores)), str(inside), span(_published(scores)), span(_predicted(scores))


def summary_text(summary: Summary, content: float, voters: str, rival: str) -> str:
    """Coverage in two lines, beside the rival's."""
    low, high = summary.coverage_range
    return (
        f"{100 * content:g}% predictive intervals cover {summary.votes:.1f} of {summary.studies} {voters} "
        f"= {summary.coverage:.2f} (exact binomial 95% range {low:.2f} - {high:.2f}), {summary.rows} rows\n"
        f"  median width factor {summary.median_width_factor:.1f}; interval score (ln) {summary.interval_score:.2f}, "
        f"{rival} {summary.rival_interval_score:.2f} (covers {summary.rival_coverage:.2f})"
    )
