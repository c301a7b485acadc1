"""Scores of backtests that were stored, since their tables are not at hand or take long: `ceg backtest --scores`.

One entry for each call, known by the names of its tables: how far forecasts were off and how often their intervals
held, by set, cut and method; with the SHA-256 of everything that it was made of, and no path of anybody's machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cegain.checks import backtest
from cegain.checks.backtest import Point, Skipped
from cegain.common.scores import rounded
from cegain.ladders import forecast
from cegain.tables.files import DATA
from cegain.tables.problems import EvidenceError, refusal
from cegain.tables.provenance import version

SCORES = DATA / "backtest.json"
SCHEMA = "ceg.backtest_scores"

Entry = dict[str, Any]
"""command, version, tables and pairs (name, sha256), settings_sha256 (of `forecast.json`), summary, skipped, points: a
list for each of `COLUMNS`, as long as there are distinct points; gains as factors."""
COLUMNS = ("set", "decades", "actual", "low", "median", "high")


def entry(
    runs: Sequence[str | os.PathLike[str]],
    pairs: str | os.PathLike[str] | None,
    points: Sequence[Point],
    skipped: Sequence[Skipped],
) -> Entry:
    """The scores of one call of `ceg backtest` with the usual cuts.

    Args:
        runs: its tables.
        pairs: its file of pairs; None where every two arms were compared.
        points, skipped: what it found.
    """
    names = [Path(path).name for path in runs]
    command = ["ceg backtest", *names, *(["--pairs", Path(pairs).name] if pairs is not None else [])]
    return rounded(
        {
            "command": " ".join(command),
            "version": version("cegain"),
            "tables": [_file(path) for path in runs],
            "pairs": None if pairs is None else _file(pairs),
            "settings_sha256": sha256(forecast.SETTINGS),
            "summary": backtest.document(points, skipped, {})["summary"],
            "skipped": dict(sorted(Counter(s.why for s in skipped).items())),
            "points": columns(points),
        }
    )


def load(path: Path | None = None) -> list[Entry]:
    """The entries in `SCORES` or another file; none where there is no such file yet.

    Raises:
        EvidenceError: the file is there and is not one of scores.
    """
    path = SCORES if path is None else path
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _no_scores(path, str(error)) from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise _no_scores(path, "another document")
    found: list[Entry] = document.get("scores", [])
    lacking = sorted({key for entry in found for key in ("tables", "summary", "points") if key not in entry})
    if "scores" not in document or lacking:
        raise _no_scores(path, f"no {', '.join(lacking) or 'scores'}")
    return found


def content(entries: Sequence[Entry], new: Entry) -> bytes:
    """The file with a new entry in place of the one of the same tables, or behind the others."""
    by_tables = {tables(old): old for old in entries} | {tables(new): new}
    document = {"schema": SCHEMA, "schema_version": 1, "scores": list(by_tables.values())}
    return (json.dumps(document, indent=1) + "\n").encode()


def tables(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of an entry's tables."""
    return tuple(table["name"] for table in entry["tables"])


def sha256(path: str | os.PathLike[str]) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def columns(points: Sequence[Point]) -> dict[str, list[Any]]:
    """The forecasts with the ends of their 90% intervals, and what was found, for pictures."""
    rows = [
        (p.set, p.decades, *(math.exp(gain) for gain in (p.actual, p.forecast[0], p.forecast[2], p.forecast[-1])))
        for p in backtest.distinct(points)
    ]
    return {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}


def _file(path: str | os.PathLike[str]) -> dict[str, str]:
    return {"name": Path(path).name, "sha256": sha256(path)}


def _no_scores(path: Path, value: str) -> EvidenceError:
    return refusal(path, f"a file of scores has the schema {SCHEMA}", value, "Name another file, or a new one.")
