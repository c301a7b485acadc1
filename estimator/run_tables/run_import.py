"""Somebody's table of runs as it is, turned into variant, N, D, C, loss: what was understood, left out, and refused.

Columns are found in `run_columns`, units checked in `run_units`, compute converted in `flop_conventions`. Rows without
a result are left out and counted. Checkpoints of one run are named, and reduced where a reader asks for it or where the
whole file is the history of one run.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain.common.arrays import Array
from cegain.run_tables import flop_conventions, run_columns, run_units
from cegain.tables import table_files
from cegain.tables.cells import Words, factorized, take
from cegain.tables.column_meanings import is_setting, yardstick
from cegain.tables.problems import EvidenceError, Problem, refusal

FINISHED = frozenset(("", "finished", "finish", "completed", "complete", "done", "success", "succeeded", "ok"))
"""States of a run that ended by itself, in small letters."""
UNITS = ("nats", "bits")
MANY = 3
"""Evaluations of one run from which on it is called a run with checkpoints."""
DONE = 0.98
"""Share of its steps from which on a run counts as finished: last evaluations stand a little before the end."""


class ReadOptions(NamedTuple):
    """How to read a table of runs, where its names do not tell.

    columns: formulas by field (`run_columns.FIELDS`). unit: of the losses, nats or bits per token; None: not said.
    bytes_per_token: the losses are bits per byte of text, and a token has so many bytes. convention: how C was counted
    (`flop_conventions.CONVENTIONS`). last: of several evaluations of one run keep the last, or the mean of the last
    `smooth`. strict: refuse rows without a result instead of leaving them out. repeats: what runs of one size and
    budget are, seeds or sweep; None: what the table tells (`repeats`). seed_columns, sweep_columns: what tells.
    """

    columns: Mapping[str, str] = MappingProxyType({})
    unit: str | None = None
    bytes_per_token: float | None = None
    convention: str = "auto"
    last: bool = False
    smooth: int = 1
    strict: bool = False
    repeats: str | None = None
    seed_columns: tuple[str, ...] = ()
    sweep_columns: tuple[str, ...] = ()


AS_IT_IS = ReadOptions()


class Places(NamedTuple):
    """Where runs stood in a table: their rows [n] there."""

    table: table_files.Table
    rows: NDArray[np.intp]

    def __getitem__(self, run: int) -> str:  # type: ignore[override]
        """Of one run, as a reader finds it."""
        return self.table.at(int(self.rows[run]))


class Runs(NamedTuple):
    """Runs of a table, n of them: cells by field, numbers as arrays [n] (NaN: not known), and words.

    understood: one line per column; remarks: what was left out or filled in; places: where each row stood; columns: all
    cells of these rows by name.
    """

    variant: Sequence[str]
    seed: Sequence[str]
    N: Array
    D: Array
    C: Array
    loss: Array
    understood: tuple[str, ...]
    remarks: tuple[str, ...]
    places: Places
    columns: Mapping[str, Sequence[str]]

    def csv(self) -> str:
        """The table as every command reads it, with what tells seeds from sweeps and how losses were measured; a
        column that nothing is known of is left out.
        """
        columns: dict[str, Sequence[object]] = {"variant": self.variant}
        for name in ("N", "D", "C", "loss"):
            values: Array = getattr(self, name)
            if np.isfinite(values).any():
                columns[name] = [f"{value:.10g}" if math.isfinite(value) else "" for value in values.tolist()]
        if any(self.seed):
            columns["seed"] = self.seed
        for name, cells in self.columns.items():
            if name not in columns and (is_setting(name) or yardstick(name)) and any(cells):
                columns[name] = cells
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return stream.getvalue()

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> Runs:
        """Some of the runs, in this order."""
        at = np.asarray(rows, dtype=np.intp)
        return self._replace(
            variant=take(self.variant, at),
            seed=take(self.seed, at),
            N=self.N[at],
            D=self.D[at],
            C=self.C[at],
            loss=self.loss[at],
            places=Places(self.places.table, self.places.rows[at]),
            columns={name: take(cells, at) for name, cells in self.columns.items()},
        )


def read(path: Path, options: ReadOptions = AS_IT_IS, more: Sequence[Path] = ()) -> Runs:
    """Read a table of runs of any kind that is known (`table_files`).

    Args:
        path: a file, or a folder of them.
        options: what its names do not tell.
        more: further files, read as one table with the first.

    Raises:
        EvidenceError: all that is wrong, with rule, value and remedy.
    """
    table = table_files.read_all([path, *more])
    chosen, understood, remarks = run_columns.choose(path, table, options.columns)
    understood.insert(0, f"{table.kind}, {len(table)} rows")
    values, problems = run_columns.values(path, table, chosen)
    keep, left_out = _with_results(table, chosen, values)
    if left_out:
        told = ", ".join(f"{count} {why}" for why, count in left_out.items())
        if options.strict:
            problems.append(Problem(str(path), "every row is a finished run", told, "Leave --strict out to drop them."))
        remarks.append(f"{sum(left_out.values())} of {len(table)} rows left out: {told}")
    problems += _not_positive(path, table, chosen, values, keep)
    if not keep.any() and not problems:
        problems.append(Problem(str(path), "a table has at least one finished run", "none", "Add rows."))
    if problems:
        raise EvidenceError(problems)
    runs = _runs(path, table, chosen, values, keep)._replace(understood=tuple(understood))
    per_byte = "bits_per_byte" in chosen and "loss" not in chosen
    told_by = chosen["variant"].formula.text if "variant" in chosen else ""
    loss, said = run_units.in_nats(
        path, runs.loss, options.unit, options.bytes_per_token, per_byte, runs.columns, told_by
    )
    runs = runs._replace(loss=loss)
    remarks += said
    if "variant" not in options.columns and _names_sizes(runs):
        runs = runs._replace(variant=[path.stem] * len(runs.variant))
        remarks.append(
            "each label has one size of its own: labels are sizes, and all runs one arm (--columns variant=...)"
        )
    N, D, C, said = run_units.filled(path, runs.N, runs.D, runs.C, runs.places)
    remarks += said
    run_units.agree(path, N, D, C, runs.places)
    C, said = flop_conventions.converted(path, options.convention, runs.variant, (N, D, C), runs.columns)
    remarks += said
    runs = runs._replace(N=N, D=D, C=C)
    steps = values["step"][keep] if "step" in values else None
    runs, said = _one_row_a_run(chosen, runs, steps, _done(values, keep), options)
    return runs._replace(remarks=(*remarks, *_named_factors(runs), *said))


def _with_results(
    table: table_files.Table, chosen: Mapping[str, run_columns.Column], values: Mapping[str, Array]
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which rows are finished runs with a loss, and how many are not, by what they are instead."""
    keep = np.ones(len(table), dtype=bool)
    why: Counter[str] = Counter()
    if "state" in chosen:
        states = [state.lower() for state in table.columns[chosen["state"].formula.text]]
        why.update(state for state in states if state not in FINISHED)
        keep &= np.array([state in FINISHED for state in states])
    losses = [values[field] for field in ("loss", "bits_per_byte") if field in values]
    without = keep & ~np.any([np.isfinite(loss) for loss in losses], axis=0)
    if without.any():
        why["without a loss"] = int(without.sum())
        keep &= ~without
    if "step" in values:
        # An evaluation of the untrained model has spent no compute.
        nothing = np.any([values[field] == 0 for field in ("C", "D", "step") if field in values], axis=0)
        before = keep & (values["step"] <= 0) & nothing
        if before.any():
            why["before the first step"] = int(before.sum())
            keep &= ~before
    return keep, dict(why)


def _not_positive(
    path: Path,
    table: table_files.Table,
    chosen: Mapping[str, run_columns.Column],
    values: Mapping[str, Array],
    keep: NDArray[np.bool_],
) -> list[Problem]:
    """One problem per column with numbers that are not above 0 in rows that are kept."""
    problems = []
    for field in ("N", "D", "C", "loss", "bits_per_byte"):
        if field not in values:
            continue
        with np.errstate(invalid="ignore"):
            bad = np.flatnonzero(keep & (np.isfinite(values[field]) & (values[field] <= 0)))
        if len(bad):
            where = f"{path}, column {chosen[field].formula.text}"
            value = f"{values[field][bad[0]]:g} in {table.at(int(bad[0]))}, {len(bad)} in all"
            problems.append(Problem(where, "numbers are above 0", value, "Correct them, or leave these runs out."))
    return problems


def _runs(
    path: Path,
    table: table_files.Table,
    chosen: Mapping[str, run_columns.Column],
    values: Mapping[str, Array],
    keep: NDArray[np.bool_],
) -> Runs:
    kept = np.flatnonzero(keep)
    every = len(kept) == len(table)
    nothing = np.full(len(table), np.nan)

    def of(cells: Sequence[str]) -> Sequence[str]:
        return cells if every else take(cells, kept)

    def text(field: str, default: str) -> Sequence[str]:
        if field not in chosen:
            return Words([default], np.zeros(len(kept), np.intp))
        cells = of(table.columns[chosen[field].formula.text])
        if isinstance(cells, Words):
            return Words([word or default for word in cells.words], cells.which)
        return [cell or default for cell in cells]

    loss = values.get("loss", values.get("bits_per_byte", nothing))[kept]
    return Runs(
        text("variant", path.stem),
        text("seed", ""),
        N=values.get("N", nothing)[kept],
        D=values.get("D", nothing)[kept],
        C=values.get("C", nothing)[kept],
        loss=loss,
        understood=(),
        remarks=(),
        places=Places(table, kept),
        columns={name: of(cells) for name, cells in table.columns.items()},
    )


def _names_sizes(runs: Runs) -> bool:
    """Whether the labels of three arms or more only name sizes: each has one N, and no two the same."""
    labels, which = factorized(runs.variant)
    if len(labels) < MANY or not np.isfinite(runs.N).all():
        return False
    low, high = np.full(len(labels), np.inf), np.full(len(labels), -np.inf)
    np.minimum.at(low, which, runs.N)
    np.maximum.at(high, which, runs.N)
    return bool((low == high).all()) and len(np.unique(low)) == len(labels)


def _named_factors(runs: Runs) -> list[str]:
    """A remark on arms whose C is not counted as 6 N D."""
    other = run_units.factors(runs.variant, runs.N, runs.D, runs.C)
    if not other:
        return []
    low, high = min(ends[0] for ends in other.values()), max(ends[1] for ends in other.values())
    arms = len(set(runs.variant))
    whose = f"of {', '.join(other)}" if len(other) <= MANY else f"of {len(other)} of {arms} arms"
    return [
        f"C {whose} is {low:.3g} to {high:.3g} times 6 N D (attention, embeddings or experts are counted otherwise)"
    ]


def _done(values: Mapping[str, Array], keep: NDArray[np.bool_]) -> Array | None:
    """How far each kept row's run was, as a share of its steps; None where the table does not say."""
    if "share_done" in values:
        return values["share_done"][keep]
    if "step" in values and "steps_in_all" in values:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(values["step"][keep] / values["steps_in_all"][keep])
    return None


def _one_row_a_run(
    chosen: Mapping[str, run_columns.Column], runs: Runs, steps: Array | None, done: Array | None, options: ReadOptions
) -> tuple[Runs, list[str]]:
    """Several evaluations of one run, told by a column of steps: named, or reduced to the last of finished runs."""
    if steps is None:
        asked = options.last or options.smooth > 1
        return runs, ["no column of steps tells a run's evaluations apart: every row is a run"] if asked else []
    labels = runs.columns[chosen["run"].formula.text] if "run" in chosen else [""] * len(steps)
    groups: dict[tuple[object, ...], list[int]] = {}
    # What was filled in tells no runs apart: a rounded C gives every row of one run another N.
    sizes = runs.N.tolist() if "N" in chosen else [0.0] * len(steps)
    tuned = [runs.columns[name] for name in runs.columns if is_setting(name) and "run" not in chosen]
    if "steps_in_all" in chosen and "run" not in chosen:
        tuned.append(runs.columns[chosen["steps_in_all"].formula.text])
    for i, key in enumerate(zip(labels, runs.variant, sizes, runs.seed, *tuned, strict=True)):
        groups.setdefault(key, []).append(i)
    each = steps.tolist()
    many = 2 if runs.places.table.is_history else MANY
    long = [rows for rows in groups.values() if len({each[i] for i in rows}) >= many]
    if sum(map(len, long)) < len(steps) / 2:
        return runs, []
    said = f"{len(steps)} rows are evaluations of {len(groups)} run(s), by the column {chosen['step'].formula.text}"
    history = len(groups) == 1 and all(a < b for a, b in itertools.pairwise(each))
    if not (options.last or options.smooth > 1 or history):
        return runs, [
            f"{said}: a run's checkpoints, whose schedule had not ended, are no runs (--last keeps the last of each)"
        ]
    last, loss, unfinished = [], runs.loss.copy(), 0
    for rows in groups.values():
        ordered = sorted(rows, key=lambda i: each[i])
        if done is not None and done[ordered[-1]] < DONE and not history:
            unfinished += 1
            continue
        last.append(ordered[-1])
        loss[ordered[-1]] = runs.loss[ordered[-options.smooth :]].mean()
    which = "the last" if options.smooth == 1 else f"the mean of the last {options.smooth}"
    remarks = [f"{said}: {which} of each is kept"]
    if unfinished and not last:
        raise refusal("--last", "some run has finished its steps", f"{unfinished} that have not", "Leave it out.")
    if unfinished:
        remarks.append(f"{unfinished} run(s) that had not finished their steps left out")
    if history and done is not None and done[last[0]] < DONE:
        remarks.append("the run had not finished its steps")
    return runs._replace(loss=loss).take(sorted(last)), remarks
