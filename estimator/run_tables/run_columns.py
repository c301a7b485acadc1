"""Which column of somebody's table of runs is what: named by hand, by names that are known, or by what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import Array
from cegain.tables import column_meanings, table_files
from cegain.tables.cells import Cells, distinct
from cegain.tables.column_meanings import Formula, is_setting, meaning, yardstick
from cegain.tables.loose_numbers import numbers
from cegain.tables.problems import EvidenceError, Problem, refusal

FIELDS = ("variant", "N", "D", "C", "loss", "seed", "run", "step", "state")
"""What `--columns` may name."""
NUMBERS = ("N", "D", "C", "loss", "bits_per_byte", "step", "steps_in_all", "share_done")
_SHOWN = ("variant", "N", "D", "C", "loss", "bits_per_byte", "seed", "state", "step", "run")
_TOLD_BESIDE = ("variant", "N", "D", "C", "loss")
"""Of these the columns that might have been meant as well are named."""
MOST_NAMES = 8


class Column(NamedTuple):
    """How a field is made of columns, and what it is multiplied by."""

    formula: Formula
    factor: float


class Chosen(NamedTuple):
    """Columns by field, a line of words for each, and remarks."""

    columns: dict[str, Column]
    understood: list[str]
    remarks: list[str]


def choose(path: Path, table: table_files.Table, by_hand: Mapping[str, str]) -> Chosen:
    """Find the columns of a table.

    Args:
        path: of the table, for messages.
        table: its cells.
        by_hand: formulas by field, which come before names that are known.

    Raises:
        EvidenceError: a formula is none or names no column, or nothing holds the loss.
    """
    found = _by_hand(table, by_hand)
    remarks: list[str] = []
    ranked: dict[str, list[tuple[int, str, float]]] = {}
    for name in table.columns:
        known = meaning(name)
        if known is not None and known.of not in found:
            ranked.setdefault(known.of, []).append((known.rank, name, known.factor))
    for field, names in ranked.items():
        if field == "variant":
            names = [entry for entry in names if entry[1].lower() in ARMS or _tells_arms(table.columns[entry[1]])]
            several = [entry for entry in names if len(distinct(table.columns[entry[1]])) > 1]
            names = several or names  # a name that is the same in all rows tells no arms apart
        if names:
            _, name, factor = min(names)
            found[field] = Column(Formula(name, table.columns), factor)
    if "loss" not in found and "bits_per_byte" not in found:
        found["loss"] = _only_loss(path, table, remarks)
    elif "loss" in found and column_meanings.key_of(found["loss"].formula.text) in column_meanings.TRAINING_LOSSES:
        remarks.append("the losses are those of training: no evaluation in the table")
    if "variant" not in found and (may_be := _may_tell_arms(table, found)):
        remarks.append(f"all runs are one arm: no column is known to name it (--columns variant=NAME: {may_be}?)")
    if "loss" in by_hand:  # the loss that was named is the one that is meant
        found.pop("bits_per_byte", None)
    understood = []
    for field in _SHOWN:
        if field not in found or (field == "bits_per_byte" and "loss" in found):
            continue
        times = f" x {found[field].factor:g}" if found[field].factor != 1.0 else ""
        others = [name for _, name, _ in sorted(ranked.get(field, ())) if name != found[field].formula.text]
        beside = f" (not {_listed(others)})" if others and field in _TOLD_BESIDE else ""
        understood.append(f"{field} = {found[field].formula.text}{times}{beside}")
    return Chosen(found, understood, remarks)


def _may_tell_arms(table: table_files.Table, found: Mapping[str, Column]) -> str:
    """Columns of words, a few of them and each in several rows, that nothing else is read from."""
    taken = {name for column in found.values() for name in column.formula.columns}
    names = []
    for name, cells in table.columns.items():
        if name in taken or isinstance(cells, Cells) or yardstick(name) or is_setting(name):
            continue
        words = distinct(cells)
        if 1 < len(words) <= len(cells) // 2 and not any(cell[:1].isdigit() for cell in words):
            names.append(name)
    return _listed(names)


def _by_hand(table: table_files.Table, by_hand: Mapping[str, str]) -> dict[str, Column]:
    found: dict[str, Column] = {}
    problems: list[Problem] = []
    for field, text in by_hand.items():
        try:
            formula = Formula(text, table.columns)
        except ValueError as error:
            problems.append(Problem(f"--columns {field}", str(error), "", f"Try {field}=column*1e9."))
            continue
        for name in formula.columns:
            if name not in table.columns:
                rule, remedy = "a formula names columns of the table", f"There are: {_listed(list(table.columns))}."
                problems.append(Problem(f"--columns {field}", rule, repr(name), remedy))
        found[field] = Column(formula, 1.0)
    if problems:
        raise EvidenceError(problems)
    return found


def _only_loss(path: Path, table: table_files.Table, remarks: list[str]) -> Column:
    """The one column that looks like a loss though its name is not known, said; refused where there are several."""
    like = [name for name in table.columns if column_meanings.looks_like_a_loss(name)]
    if len(like) == 1:
        formula = Formula(like[0], table.columns)
        if column_meanings.is_perplexity(like[0]):
            formula = Formula(f"log({{{like[0]}}})", table.columns)
            remarks.append(f"{like[0]} is taken for perplexities: the loss is their logarithm")
        else:
            remarks.append(f"{like[0]} is taken for the loss, in nats per token")
        return Column(formula, 1.0)
    shown = like or list(table.columns)
    rule = f"one column holds the loss, of {len(table.columns)}"
    named = shown[0] if shown[0].isidentifier() else f"{{{shown[0]}}}"
    formula_text = f"log({named})" if like and column_meanings.is_perplexity(shown[0]) else named
    remedy = f'Name it: --columns "loss={formula_text if like else "NAME"}".'
    raise refusal(path, rule, _listed(shown), remedy)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


ARMS = ("variant", "arm")
"""Columns that name arms whatever their cells: this project's own words."""


def _tells_arms(cells: Sequence[str]) -> bool:
    """Whether some of its cells stand in several rows: the name of a run does not tell arms apart."""
    return len(distinct(cells)) <= max(1, len(cells) // 2)


def values(
    path: Path, table: table_files.Table, chosen: Mapping[str, Column]
) -> tuple[dict[str, Array], list[Problem]]:
    """Numbers [n] of the fields that hold some; one problem for each column that has a cell which is none."""
    problems: list[Problem] = []
    cache: dict[str, Array] = {}
    found: dict[str, Array] = {}
    for field in NUMBERS:
        if field not in chosen:
            continue
        column = chosen[field]
        for name in column.formula.columns:
            if name in cache:
                continue
            try:
                cache[name] = numbers(table.columns[name])
            except ValueError as error:
                cache[name] = np.full(len(table), np.nan)
                if field in ("steps_in_all", "share_done"):  # of use where they are numbers, and else nobody's concern
                    continue
                at = list(table.columns[name]).index(str(error.args[0]))
                rule, remedy = "the cells are numbers", "Correct it, or name another column with --columns."
                problems.append(Problem(f"{path}, {table.at(at)}, column {name}", rule, repr(error.args[0]), remedy))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = column.formula.value(cache) * column.factor
        value = np.broadcast_to(value, (len(table),)).astype(float)
        found[field] = np.where(np.isfinite(value), value, np.nan)
    return found, problems
