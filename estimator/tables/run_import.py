"""Somebody's table of runs as it is, turned into variant, N, D, C, loss: what was understood, left out, and refused.

Units that contradict each other are never passed on: a C that is a thousand times or a billionth of 6 N D, losses that
can be no nats per token. Rows without a result are left out and counted. Nothing is reduced that a reader did not ask
to be: checkpoints of one run are named.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain.common.arrays import Array
from cegain.tables import table_files
from cegain.tables.column_meanings import COUNTS, Formula, meaning
from cegain.tables.loose_numbers import numbers
from cegain.tables.problems import EvidenceError, Problem, refusal

FIELDS = ("variant", "N", "D", "C", "loss", "seed")
UNITS = {"N": "parameters", "D": "tokens", "C": "FLOP", "loss": "nats per token"}
FINISHED = frozenset(("", "finished", "finish", "completed", "complete", "done", "success", "succeeded", "ok"))
"""States of a run that ended by itself, in small letters."""
NEAR = 10.0
"""C within this factor of 6 N D is one count of the same work: attention, embeddings and routed experts explain it."""
CLOSE = 0.02
"""log10 of C / (6 N D) that is not worth a word: 5%."""
NATS = (1.3, 15.0)
"""Losses in nats per token of text lie between these, assumed; bits per byte below, perplexities above."""
UNIT_NAMES = {"nats": 1.0, "bits": math.log(2)}
MANY = 3
"""Evaluations of one run from which on it is called a run with checkpoints."""


class Runs(NamedTuple):
    """Runs of a table, n of them: cells by field (`FIELDS`), numbers as arrays [n] (NaN: not known), and words.

    understood: one line per column; remarks: what was left out or filled in; places: where each row stood; rows: which
    of the table's rows these are, and columns: all cells of these rows by name.
    """

    variant: list[str]
    seed: list[str]
    N: Array
    D: Array
    C: Array
    loss: Array
    understood: tuple[str, ...]
    remarks: tuple[str, ...]
    places: list[str]
    rows: list[int]
    columns: Mapping[str, Sequence[str]]

    def csv(self) -> str:
        """The table as `ceg fit` reads it; a column that nothing is known of is left out."""
        columns: dict[str, Sequence[object]] = {"variant": self.variant}
        for name in ("N", "D", "C", "loss"):
            values: Array = getattr(self, name)
            if np.isfinite(values).any():
                columns[name] = [f"{value:.10g}" if math.isfinite(value) else "" for value in values.tolist()]
        if any(self.seed):
            columns["seed"] = self.seed
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return stream.getvalue()


def read(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    unit: str = "nats",
    bytes_per_token: float | None = None,
    last: bool = False,
    strict: bool = False,
) -> Runs:
    """Read a table of runs of any kind that is known (`table_files`).

    Args:
        path: the file.
        columns: formulas by field, which come before names that are known (`column_meanings.Formula`).
        unit: of the losses: nats or bits per token; with `bytes_per_token` bits per byte.
        bytes_per_token: of the tokenizer, which turns bits per byte into nats per token.
        last: of several evaluations of one run keep the last.
        strict: refuse rows without a result instead of leaving them out.

    Raises:
        EvidenceError: all that is wrong, with rule, value and remedy.
    """
    table = table_files.read(path)
    chosen, understood = _chosen(path, table, columns or {})
    values, problems = _values(path, table, chosen)
    remarks: list[str] = []
    keep, left_out = _with_results(table, chosen, values)
    if left_out:
        told = ", ".join(f"{count} {why}" for why, count in left_out.items())
        if strict:
            problems.append(Problem(str(path), "every row is a finished run", told, "Leave --strict out to drop them."))
        remarks.append(f"{sum(left_out.values())} of {len(table)} rows left out: {told}")
    problems += _not_positive(path, table, chosen, values, keep)
    if not keep.any() and not problems:
        problems.append(Problem(str(path), "a table has at least one finished run", "none", "Add rows."))
    if problems:
        raise EvidenceError(problems)
    runs = _runs(path, table, chosen, values, keep)._replace(understood=tuple(understood))
    runs = _loss_in_nats(path, runs, unit, bytes_per_token, "bits_per_byte" in chosen and "loss" not in chosen)
    if "variant" not in (columns or {}) and _names_sizes(runs):
        runs = runs._replace(variant=[path.stem] * len(runs.variant))
        remarks.append(
            "each label has one size of its own: labels are sizes, and all runs one arm (--columns variant=...)"
        )
    runs, more = _filled(path, runs)
    agree(path, runs.N, runs.D, runs.C, runs.places)
    runs, said = _one_row_a_run(table, chosen, runs, keep, last)
    return runs._replace(remarks=(*remarks, *more, *_named_factors(runs), *said))


class _Column(NamedTuple):
    formula: Formula
    factor: float


def _chosen(path: Path, table: table_files.Table, given: Mapping[str, str]) -> tuple[dict[str, _Column], list[str]]:
    """The formula of every field, and a line that says so."""
    found: dict[str, _Column] = {}
    problems: list[Problem] = []
    for field, text in given.items():
        try:
            formula = Formula(text, table.columns)
        except ValueError as error:
            problems.append(Problem(f"--columns {field}", str(error), "", f"Try {field}=column*1e9."))
            continue
        for name in formula.columns:
            if name not in table.columns:
                there = ", ".join(table.columns)
                rule, remedy = "a formula names columns of the table", f"There are: {there}."
                problems.append(Problem(f"--columns {field}", rule, repr(name), remedy))
        found[field] = _Column(formula, 1.0)
    if problems:
        raise EvidenceError(problems)
    ranked: dict[str, list[tuple[int, str, float]]] = {}
    for name in table.columns:
        told = meaning(name)
        if told is not None and told.of not in found:
            ranked.setdefault(told.of, []).append((told.rank, name, told.factor))
    for field, names in ranked.items():
        if field == "variant":
            names = [entry for entry in names if _tells_arms(table.columns[entry[1]])]
            several = [entry for entry in names if len(set(table.columns[entry[1]])) > 1]
            names = several or names  # a name that is the same in all rows tells no arms apart
        if names:
            _, name, factor = min(names)
            found[field] = _Column(Formula(name, table.columns), factor)
    shown = []
    for field in ("variant", "N", "D", "C", "loss", "bits_per_byte", "seed", "state", "step", "run"):
        if field not in found or (field == "bits_per_byte" and "loss" in found):
            continue
        times = f" x {found[field].factor:g}" if found[field].factor != 1.0 else ""
        others = [name for _, name, _ in sorted(ranked.get(field, ())) if name != found[field].formula.text]
        beside = f" (not {', '.join(others)})" if others and field in UNITS else ""
        shown.append(f"{field} = {found[field].formula.text}{times}{beside}")
    if "loss" not in found and "bits_per_byte" not in found:
        there = ", ".join(table.columns)
        raise refusal(path, "a column holds the loss", f"the columns {there}", "Name it: --columns loss=NAME.")
    return found, shown


def _tells_arms(cells: Sequence[str]) -> bool:
    """Whether some of its cells stand in several rows: the name of a run does not tell arms apart."""
    return len(set(cells)) <= max(1, len(cells) // 2)


def _values(
    path: Path, table: table_files.Table, chosen: Mapping[str, _Column]
) -> tuple[dict[str, Array], list[Problem]]:
    """Numbers of the fields that hold some; one problem for each column that has a cell which is none."""
    problems, cache, values = [], {}, {}
    for field in ("N", "D", "C", "loss", "bits_per_byte", "step"):
        if field not in chosen:
            continue
        column = chosen[field]
        for name in column.formula.columns:
            if name in cache:
                continue
            try:
                cache[name] = numbers(table.columns[name])
            except ValueError as error:
                at = table.first + table.columns[name].index(str(error.args[0]))
                rule, remedy = "the cells are numbers", "Correct it, or name another column with --columns."
                where = f"{path}, {table.place} {at}, column {name}"
                problems.append(Problem(where, rule, repr(error.args[0]), remedy))
                cache[name] = np.full(len(table), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            values[field] = np.broadcast_to(column.formula.value(cache) * column.factor, (len(table),)).astype(float)
    return values, problems


def _with_results(
    table: table_files.Table, chosen: Mapping[str, _Column], values: Mapping[str, Array]
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which rows are finished runs with a loss, and how many are not, by what they are instead."""
    keep = np.ones(len(table), dtype=bool)
    why: Counter[str] = Counter()
    if "state" in chosen:
        states = [state.lower() for state in table.columns[chosen["state"].formula.text]]
        ended = np.array([state in FINISHED for state in states])
        why.update(state for state in states if state not in FINISHED)
        keep &= ended
    losses = [values[field] for field in ("loss", "bits_per_byte") if field in values]
    without = keep & ~np.any([np.isfinite(loss) for loss in losses], axis=0)
    if without.any():
        why["without a loss"] = int(without.sum())
    return keep & ~without, dict(why)


def _not_positive(
    path: Path,
    table: table_files.Table,
    chosen: Mapping[str, _Column],
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
            value = f"{values[field][bad[0]]:g} in {table.place} {table.first + bad[0]}, {len(bad)} in all"
            problems.append(Problem(where, "numbers are above 0", value, "Correct them, or leave these runs out."))
    return problems


def _runs(
    path: Path,
    table: table_files.Table,
    chosen: Mapping[str, _Column],
    values: Mapping[str, Array],
    keep: NDArray[np.bool_],
) -> Runs:
    kept = np.flatnonzero(keep)
    nothing = np.full(len(table), np.nan)

    def text(field: str, default: str) -> list[str]:
        if field not in chosen:
            return [default] * len(kept)
        cells = table.columns[chosen[field].formula.text]
        return [cells[i] or default for i in kept]

    loss = values.get("loss", values.get("bits_per_byte", nothing))[kept]
    found = {field: values.get(field, nothing)[kept] for field in COUNTS}
    places = [f"{table.place} {table.first + i}" for i in kept]
    return Runs(
        text("variant", path.stem),
        text("seed", ""),
        **found,
        loss=loss,
        understood=(),
        remarks=(),
        places=places,
        rows=kept.tolist(),
        columns=table.columns,
    )


def _loss_in_nats(path: Path, runs: Runs, unit: str, bytes_per_token: float | None, per_byte: bool) -> Runs:
    """Losses in nats per token, or refused if they can be none."""
    factor = UNIT_NAMES["bits"] if per_byte or bytes_per_token else UNIT_NAMES[unit]
    loss = runs.loss * factor * (bytes_per_token or 1.0)
    low, high = NATS
    if per_byte and not bytes_per_token:
        rule = "bits per byte become nats per token by the tokenizer's bytes per token"
        raise refusal(
            path, rule, f"{runs.loss.min():.4g} to {runs.loss.max():.4g}", "Give --bytes-per-token 4.3, or yours."
        )
    if np.median(loss) < low or np.median(loss) > high:
        rule = f"losses in nats per token of text lie within {low:g} to {high:g}"
        value = f"{loss.min():.4g} to {loss.max():.4g}"
        remedy = "Bits per byte: --bytes-per-token 4.3. Perplexities: take their logarithm."
        raise refusal(path, rule, value, remedy)
    return runs._replace(loss=loss)


def _filled(path: Path, runs: Runs) -> tuple[Runs, list[str]]:
    """What follows from the others: C = 6 N D, and N or D from C where the table has no column for it."""
    has = {field: bool(np.isfinite(getattr(runs, field)).all()) for field in COUNTS}
    if has["N"] and has["D"] and not np.isfinite(runs.C).any():
        return runs._replace(C=6 * runs.N * runs.D), ["no column of compute: C is 6 N D"]
    if has["C"] and has["N"] and not np.isfinite(runs.D).any():
        return runs._replace(D=runs.C / (6 * runs.N)), ["no column of tokens: D is C / (6 N)"]
    if has["C"] and has["D"] and not np.isfinite(runs.N).any():
        return runs._replace(N=runs.C / (6 * runs.D)), ["no column of parameters: N is C / (6 D)"]
    problems = []
    for field in COUNTS:
        missing = np.flatnonzero(~np.isfinite(getattr(runs, field)))
        if not len(missing) or (field == "D" and len(missing) == len(runs.loss)):
            continue
        rule, remedy = f"{field} ({UNITS[field]}) is known of every run", f"Name its column: --columns {field}=NAME."
        value = (
            "no column for it"
            if len(missing) == len(runs.loss)
            else f"none in {runs.places[missing[0]]}, {len(missing)} in all"
        )
        problems.append(Problem(str(path), rule, value, remedy))
    if problems:
        raise EvidenceError(problems)
    return runs, []


def _names_sizes(runs: Runs) -> bool:
    """Whether the labels of three arms or more only name sizes: each has one N, and no two the same."""
    sizes: dict[str, set[float]] = {}
    for variant, n in zip(runs.variant, runs.N.tolist(), strict=True):
        sizes.setdefault(variant, set()).add(n)
    if len(sizes) < MANY or not np.isfinite(runs.N).all() or any(len(of) > 1 for of in sizes.values()):
        return False
    return len(set.union(*sizes.values())) == len(sizes)


def _ratio(N: Array, D: Array, C: Array) -> Array:
    """log10 of C / (6 N D) of every run; without tokens, of C / (6 N x 20 N), which is only good for a unit."""
    tokens = np.where(np.isfinite(D), D, 20 * N)
    return np.asarray(np.log10(C) - np.log10(6 * N * tokens))


def agree(path: Path, N: Array, D: Array, C: Array, places: Sequence[str], *, units_only: bool = False) -> None:
    """Refuse counts [n] whose units contradict each other.

    places: of the rows, as a reader finds them. units_only: refuse only where all are off by one factor that is a unit.

    Raises:
        EvidenceError: C is far from 6 N D, or in some rows far from what it is in the others.
    """
    ratio = _ratio(N, D, C)
    known = bool(np.isfinite(D).all())
    if units_only and not (known and np.ptp(ratio) < math.log10(NEAR)):
        return
    near, spread = float(np.median(ratio)), float(np.ptp(ratio))
    if not math.isfinite(near) or not math.isfinite(spread):
        raise refusal(path, "counts are numbers that computers hold", "6 N D or C overflows", "Check N, D and C.")
    if known and abs(near) > math.log10(NEAR):
        thousands = round(near / 3) * 3
        if abs(near - thousands) < 0.7 and thousands:
            value = f"C is {10**near:.2g} times 6 N D"
            remedy = f"A unit? Try `ceg import` with {_guess(N, D, thousands)}."
            raise refusal(path, "C is near 6 N D", value, remedy)
        if units_only:
            return
        value = f"{10**near:.2g} times, the runs within a factor of {10**spread:.2g}"
        raise refusal(path, "C is near 6 N D", value, "Check N, D and C, or name their columns with --columns.")
    if known:
        off = np.flatnonzero(np.abs(ratio - near) > math.log10(NEAR))
        if len(off):
            value = f"{10 ** ratio[off[0]]:.2g} times in {places[off[0]]}, {len(off)} such row(s)"
            raise refusal(path, "C is near 6 N D in every row", value, "Correct these rows, or leave them out.")
    elif np.median(C / N) < 1e6:
        value = f"C = {C[0]:.3g} for N = {N[0]:.3g}"
        raise refusal(
            path,
            "a run takes millions of FLOP per parameter",
            value,
            "A unit? Try `ceg import` with --columns C=NAME*1e15.",
        )


def _guess(N: Array, D: Array, thousands: int) -> str:
    """The formula that would bring the counts together: of C, unless N or D look like thousands or millions."""
    size, tokens = float(np.median(N)), float(np.median(D))
    if thousands > 0 and tokens < 1e6:
        return (
            f"--columns D=NAME*1e{thousands}"
            if size > 1e5
            else f"--columns N=NAME*1e9,D=NAME*1e{max(thousands - 9, 9)}"
        )
    if thousands > 0 and size < 1e5:
        return f"--columns N=NAME*1e{thousands}"
    return f"--columns C=NAME*1e{-thousands}"


def _named_factors(runs: Runs) -> list[str]:
    """A remark on arms whose C is not counted as 6 N D."""
    if not np.isfinite(runs.D).all():
        return []
    ratio = _ratio(runs.N, runs.D, runs.C)
    of = {arm: ratio[[variant == arm for variant in runs.variant]] for arm in dict.fromkeys(runs.variant)}
    other = {arm: ratios for arm, ratios in of.items() if abs(np.median(ratios)) > CLOSE}
    if not other:
        return []
    low, high = (10**end for end in (min(map(np.min, other.values())), max(map(np.max, other.values()))))
    whose = f"of {', '.join(other)}" if len(other) <= MANY else f"of {len(other)} of {len(of)} arms"
    return [
        f"C {whose} is {low:.3g} to {high:.3g} times 6 N D (attention, embeddings or experts are counted otherwise)"
    ]


def _one_row_a_run(
    table: table_files.Table, chosen: Mapping[str, _Column], runs: Runs, keep: NDArray[np.bool_], last: bool
) -> tuple[Runs, list[str]]:
    """Several evaluations of one run, told by a column of steps: named, or reduced to the last."""
    if "step" not in chosen:
        return runs, []
    kept = np.flatnonzero(keep)
    steps = numbers(table.columns[chosen["step"].formula.text])[kept]
    names = [table.columns[chosen["run"].formula.text][i] for i in kept] if "run" in chosen else [""] * len(kept)
    groups: dict[tuple[str, str, float, str], list[int]] = {}
    # What was filled in tells no runs apart: a rounded C gives every row of one run another N.
    sizes = runs.N.tolist() if "N" in chosen else [0.0] * len(kept)
    for i, key in enumerate(zip(names, runs.variant, sizes, runs.seed, strict=True)):
        groups.setdefault(key, []).append(i)
    long = [rows for rows in groups.values() if len({steps[i] for i in rows}) >= MANY]
    if sum(map(len, long)) < len(kept) / 2:
        return runs, []
    said = f"{len(kept)} rows are evaluations of {len(groups)} run(s), by the column {chosen['step'].formula.text}"
    if not last:
        remedy = "`ceg import --last` keeps the last of each"
        return runs, [f"{said}: a run's checkpoints, whose schedule had not ended, are no runs ({remedy})"]
    ends = sorted(max(rows, key=lambda i: steps[i]) for rows in groups.values())
    N, D, C, loss = (values[ends] for values in (runs.N, runs.D, runs.C, runs.loss))
    variant, seed, places = ([texts[i] for i in ends] for texts in (runs.variant, runs.seed, runs.places))
    few = runs._replace(N=N, D=D, C=C, loss=loss, variant=variant, seed=seed, places=places)
    return few._replace(rows=[runs.rows[i] for i in ends]), [f"{said}: the last of each is kept"]
