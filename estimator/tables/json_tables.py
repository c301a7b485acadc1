"""JSON of any nesting as a table: objects per line, arrays, columns, a trainer's state, lists within objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cegain.tables.problems import EvidenceError, Problem, refusal

NO_NEST = "Give one object per run."
MOST_PROBLEMS = 5
"""Rows of a wrong kind that are named one by one."""
MOST_DEEP = 8
Record = dict[str, str]


class Columns(dict[str, list[str]]):
    """JSON that was an object of columns already."""


def records(path: Path, text: str) -> tuple[list[Record] | Columns, str, str]:
    """Cells of a file's records by name, what they are ("JSON lines"), and how a place in it is called ("line").

    Raises:
        EvidenceError: it is no JSON, or no record has a name.
    """
    try:
        whole = json.loads(text)
    except ValueError:
        return _lines(path, text), "JSON lines", "line"
    except RecursionError:
        raise refusal(path, "a table in JSON is objects with names", "objects without end", NO_NEST) from None
    try:
        found, kind = _of(whole)
    except RecursionError:
        raise refusal(path, "a table in JSON is objects with names", "objects without end", NO_NEST) from None
    if not found:
        raise refusal(path, "a table in JSON is objects with names", "something else", NO_NEST)
    return found, kind, "row" if isinstance(found, Columns) else "record"


def _of(whole: Any) -> tuple[list[Record] | Columns, str]:
    if isinstance(whole, Mapping) and isinstance(whole.get("log_history"), list):
        return _trainer(whole)
    if isinstance(whole, Mapping) and whole and all(isinstance(values, list) for values in whole.values()):
        plain = all(not isinstance(value, list | Mapping) for values in whole.values() for value in values)
        if plain and len({len(values) for values in whole.values()}) == 1:
            return Columns({str(name): [cell(v) for v in values] for name, values in whole.items()}), "JSON by columns"
    if isinstance(whole, Mapping):
        return _nested(whole)
    rows = whole if isinstance(whole, list) else []
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return [], "JSON"
    return [flat(row) for row in rows], "JSON"


def _nested(whole: Mapping[str, Any]) -> tuple[list[Record] | Columns, str]:
    """An object with one list of objects, or with lists of pairs (step, loss), and cells beside them."""
    beside = flat(whole)
    lists = dict(_lists(whole))
    objects = {name: rows for name, rows in lists.items() if rows and all(isinstance(row, Mapping) for row in rows)}
    if objects and _has_loss(beside) and not any(_has_loss(flat(row)) for rows in objects.values() for row in rows):
        return [beside], "JSON"  # one run with its loss; the lists are of something else
    if objects:
        name = max(objects, key=lambda each: len(objects[each]))
        others = [other for other in objects if other != name]
        kind = f"JSON: the list {name}" + (f" (not {', '.join(others)})" if others else "")
        return [{**beside, **flat(row)} for row in objects[name]], kind
    pairs = {
        name: rows
        for name, rows in lists.items()
        if rows and all(isinstance(row, list) and len(row) >= 2 and not isinstance(row[-1], list) for row in rows)
    }
    curves = {name: rows for name, rows in pairs.items() if "loss" in name.lower() or "bpb" in name.lower()}
    held_out = {name: rows for name, rows in curves.items() if "train" not in name.lower()}
    if curves:
        kept = held_out or curves
        by_step: dict[str, Record] = {}
        for name, rows in kept.items():
            label = name.rsplit("/", 1)[-1]
            for row in rows:
                record = by_step.setdefault(cell(row[0]), {**beside, "step": cell(row[0])})
                record[label] = cell(row[-1])
        return list(by_step.values()), f"JSON: the curve {', '.join(kept)}"
    return ([beside] if beside else []), "JSON"


def _has_loss(record: Record) -> bool:
    return any("loss" in name.lower() or "bpb" in name.lower() for name in record)


def _lists(node: Mapping[str, Any], before: str = "", depth: int = 0) -> list[tuple[str, list[Any]]]:
    """All lists within objects by name."""
    found: list[tuple[str, list[Any]]] = []
    for name, value in node.items():
        if isinstance(value, list):
            found.append((f"{before}{name}", value))
        elif isinstance(value, Mapping) and depth < MOST_DEEP:
            found += _lists(value, f"{before}{name}/", depth + 1)
    return found


def _trainer(whole: Mapping[str, Any]) -> tuple[list[Record], str]:
    """A trainer's state: one record for each step with an evaluation, of one set or of several."""
    log = [row for row in whole["log_history"] if isinstance(row, Mapping)]
    evaluated: dict[str, Record] = {}
    for i, row in enumerate(log):
        if any(str(name).startswith("eval_") and str(name).endswith("loss") for name in row):
            evaluated.setdefault(cell(row.get("step", i)), {}).update(flat(row))
    ends = {name: cell(whole[name]) for name in ("max_steps", "total_flos") if isinstance(whole.get(name), int | float)}
    if evaluated:
        return [{**ends, **row} for row in evaluated.values()], "a trainer's state: its evaluations"
    trained = [{("train_loss" if name == "loss" else name): c for name, c in flat(row).items()} for row in log]
    return [{**ends, **row} for row in trained if "train_loss" in row], "a trainer's state without evaluations"


def _lines(path: Path, text: str) -> list[Record]:
    rows: list[Any] = []
    problems: list[Problem] = []
    for i, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except RecursionError:
            problems.append(
                Problem(f"{path}, line {i}", "each line is one JSON object", "objects without end", NO_NEST)
            )
        except ValueError as error:
            rule, remedy = "each line is one JSON object", "Write it again, or give CSV."
            problems.append(Problem(f"{path}, line {i}", rule, str(error), remedy))
    more = len(problems) - MOST_PROBLEMS
    if more > 0:
        rest = Problem(str(path), "and so are the others", f"{more} more line(s) that are not", "")
        problems = [*problems[:MOST_PROBLEMS], rest]
    if not problems and not all(isinstance(row, Mapping) for row in rows):
        problems = [Problem(str(path), "a table in JSON is objects with names", "something else", NO_NEST)]
    if problems:
        raise EvidenceError(problems)
    return [flat(row) for row in rows]


def flat(row: Mapping[str, Any], before: str = "", depth: int = 0) -> Record:
    """Cells by name; those of an object within have its name before theirs, as in summary/loss. Lists are left out."""
    cells: Record = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            if depth < MOST_DEEP:
                cells |= flat(value, f"{before}{name}/", depth + 1)
        elif not isinstance(value, list):
            cells[f"{before}{name}"] = cell(value)
    return cells


def cell(value: object) -> str:
    """As text: numbers with all their digits, nothing for null."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value).strip()


def columns(rows: Sequence[Record]) -> dict[str, list[str]]:
    """Records as columns, empty where a record lacks a name."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name, "") for row in rows] for name in names}
