"""Tables of training runs, and ladders read off them: ln loss against ln compute, one rung per budget.

A table of runs is a CSV file with one finished run per row: `variant,N,D,C,loss` (parameters, tokens, FLOP, nats per
token or any other positive loss), in any order, other columns ignored unless an arm is selected by them. The project's
own `training_runs.csv` is read by its own column names.

An arm is a selection of rows, `variant` or `column=pattern[&column=pattern...]` with the wildcards of the shell. Its
ladder has one rung per budget: seeds averaged; where a budget has runs of several N the minimum of a local parabola of
ln loss in ln N with its error (Hoffmann et al. 2022, arXiv 2203.15556, approach 2), or the best run where a parabola
has no minimum, or one that lies below every run. Where a dearer rung is no better than a cheaper one, the two are
averaged if N grows with C (a ladder: that is noise). If not (a grid of sizes and tokens), most runs are off the
frontier: what lies above the lower convex hull of ln loss over ln C is left out.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import Array
from cegain.common.text import as_number
from cegain.run_tables import repeats, run_import, run_units, yardsticks
from cegain.run_tables.repeats import SAME_SIZE, TOLERANCE
from cegain.run_tables.run_import import AS_IT_IS, ReadOptions
from cegain.tables import csv_file, table_files
from cegain.tables.cells import Cells, Words, factorized, take
from cegain.tables.column_meanings import ALIASES, key_of, meaning
from cegain.tables.problems import EvidenceError, Problem, refusal

WINDOW = 0.45 * math.log(10)
"""Half-width (ln N) of the parabola: beyond this the loss is visibly not a parabola in ln N."""
PARABOLA_SD = 0.003
"""Scatter (ln loss) assumed about a parabola when no budget has runs to spare for measuring it; seed noise of small
language models is 0.001-0.005."""
DEEP = 0.005
"""A parabola's minimum is at most this far (ln loss) below its best run: sizes a factor of two apart cost half as much,
and deeper ones lie in a gap between sizes, or follow runs of unlike shape."""
ABOVE_HULL = 0.005
"""Runs of a grid this far (ln loss) above the hull, beyond their own error, are off the frontier."""
OF_A_GRID = 0.003
"""Error (ln loss) of what is left: how far a coarse grid's best run is above the true frontier differs from budget to
budget. With it 88% to 94% of true gains lay inside 90% intervals on 600 made-up grids, without it 83% to 90%."""
EDGE_SD = 0.01
"""Error (ln loss) of a rung whose best run has the smallest or largest N tried: the true minimum lies beyond."""
OWN_COLUMNS = {"variant": "arm", "N": "n_params_active", "D": "tokens", "C": "flops", "loss": "loss_nats_per_token"}
"""What this project's `training_runs.csv` calls the columns of a table of runs."""
MOST_RUNGS = 64
"""Tables of more budgets than this are read with budgets pooled: a forecast takes the cube of their number."""
LADDER_ROLE = "ladder"
"""The `role` of a run that is a point of its arm's ladder; others looked for a learning rate."""


class RunTable(NamedTuple):
    """Runs of a table: variant [n], N, D, C, loss [n], every cell by column name, remarks for the reader, file stem.

    N in parameters and D in tokens (NaN where the table has no such column), C in FLOP, loss in the table's unit.
    `repeats` says what runs of one size and budget are, where the table's owner said it.
    """

    variant: Sequence[str]
    N: Array
    D: Array
    C: Array
    loss: Array
    cells: dict[str, Sequence[str]]
    remarks: tuple[str, ...]
    name: str
    repeats: repeats.Rule = repeats.Rule()

    def variants(self) -> list[str]:
        """Distinct variants in order of first appearance."""
        return list(dict.fromkeys(self.variant.words if isinstance(self.variant, Words) else self.variant))

    def only(self, column: str, cell: str) -> RunTable:
        """The runs that have this cell in a column."""
        kept = np.array([value == cell for value in self.cells[column]])
        return self._replace(
            variant=tuple(v for v, keep in zip(self.variant, kept, strict=True) if keep),
            N=self.N[kept],
            D=self.D[kept],
            C=self.C[kept],
            loss=self.loss[kept],
            cells={
                name: tuple(c for c, keep in zip(cells, kept, strict=True) if keep)
                for name, cells in self.cells.items()
            },
        )


class Ladder(NamedTuple):
    """One arm: x = ln C [n] ascending, y = ln loss [n] descending, sd [n] of y known from the runs themselves.

    `repeats` [n] counts the seeds behind a rung; the noise of a single run (divided by sqrt(repeats)) comes on top
    of `sd` and is for the user of the ladder to state. `budgets` counts rungs before dominated ones were dropped.
    `tried` has ln losses of the settings behind it, where the arm was swept; `tuning` is the sd of ln loss that all its
    rungs have in common because the other arm was tuned more. `doubt`: the status that no answer is better than, and
    why; None where there is none.
    """

    name: str
    x: Array
    y: Array
    sd: Array
    repeats: Array
    budgets: int
    notes: tuple[str, ...]
    tried: tuple[Array, ...] = ()
    tuning: float = 0.0
    doubt: tuple[str, str] | None = None

    def below(self, flops: float) -> Ladder:
        """The rungs up to a budget (FLOP), which counts as its own rung (within `TOLERANCE` / 2)."""
        kept = self.x <= math.log(flops) + TOLERANCE / 2
        return self._replace(x=self.x[kept], y=self.y[kept], sd=self.sd[kept], repeats=self.repeats[kept])


def read_runs(path: str | os.PathLike[str], options: ReadOptions = AS_IT_IS) -> RunTable:
    """Read and check a table of runs. CRLF line ends, a byte-order mark, any order and duplicates are accepted.

    Args:
        path: CSV file with the columns variant, N, C and loss (D optional); this project's `training_runs.csv`, of
            which diverged runs and runs that no ladder is made of (their `role` is not `ladder`) are left out, with a
            remark; or any other table that `run_tables.run_import` understands.
        options: what its names do not tell.

    Raises:
        EvidenceError: unreadable, empty, not text, missing columns, or any bad row (all of them).
    """
    file = Path(path)
    rule = repeats.Rule(options.repeats, options.seed_columns, options.sweep_columns)
    loss_column = options.columns.get("loss", "loss").strip(" {}")
    told = {field for field in ReadOptions._fields if field not in ("columns", *_RULE_FIELDS)}
    by_hand = bool(set(options.columns) - {"loss"}) or any(getattr(options, n) != getattr(AS_IT_IS, n) for n in told)
    by_hand |= loss_column != "loss" and loss_column not in _header(file)  # a formula, or a table split otherwise
    if by_hand or _is_long(file):
        return _as_people_have_it(file, options)._replace(repeats=rule)
    try:
        table = _in_our_columns(file, loss_column, rule.seed_columns)
        ours = OWN_COLUMNS["C"] in table.cells
        if ours and rule.repeats is None:  # its runs of the role `ladder` are tuned, and differ in the seed alone
            rule = rule._replace(repeats=repeats.SEEDS)
        if ours or not any((known := meaning(name)) and known.of in _OF_HISTORIES for name in table.cells):
            return table._replace(repeats=rule)
        return _as_people_have_it(file, options)._replace(repeats=rule)
    except EvidenceError as error:
        if not _other_table(file, loss_column):
            raise
        try:
            return _as_people_have_it(file, options)._replace(repeats=rule)
        except EvidenceError as other:
            raise (other if _foreign(file, loss_column) else error) from None


def _is_long(file: Path) -> bool:
    """Whether a table is so long that it is read all at once, and not row by row; one of this project's never is."""
    try:
        return file.stat().st_size > table_files.LONG and not set(OWN_COLUMNS.values()) <= set(_header(file))
    except (OSError, ValueError):
        return False


_OF_HISTORIES = ("step", "share_done", "state")
"""Columns of tables whose rows may be no finished runs."""
_RULE_FIELDS = ("repeats", "seed_columns", "sweep_columns")


def _in_our_columns(file: Path, loss_column: str, seed_columns: Sequence[str]) -> RunTable:
    """A CSV table with the columns that the commands name."""
    problems: list[Problem] = []
    text = csv_file.text_of(file, "a table of runs", ("variant", "N", "D", "C", "loss"))
    header, lines = csv_file.read(file, text, problems)
    rows = list(lines)
    names = _columns(file, header, loss_column)
    remarks: list[str] = []
    own = names["C"] == OWN_COLUMNS["C"]
    if own and "role" in header:
        at = header.index("role")
        of_ladder = [(line, cells) for line, cells in rows if cells[at] == LADDER_ROLE]
        if len(of_ladder) < len(rows):
            others = ", ".join(dict.fromkeys(repr(cells[at]) for _, cells in rows if cells[at] != LADDER_ROLE))
            remarks.append(f"{len(rows) - len(of_ladder)} run(s) with the role {others} left out")
        rows = of_ladder
    if own and "status" in header:
        at = header.index("status")
        finished = [(line, cells) for line, cells in rows if cells[at] != "diverged"]
        if len(finished) < len(rows):
            remarks.append(f"{len(rows) - len(finished)} diverged run(s) left out")
        rows = finished
    values: dict[str, list[float]] = {"N": [], "D": [], "C": [], "loss": []}
    for line, cells in rows:
        if not cells[header.index(names["variant"])]:
            where = f"{file}, line {line}, column {names['variant']}"
            problems.append(Problem(where, "a run names its arm", "''", "Fill the cell."))
        for key, numbers in values.items():
            if key == "D" and names["D"] not in header:
                numbers.append(math.nan)
                continue
            cell = cells[header.index(names[key])]
            value = _positive(cell)
            if math.isnan(value):
                where = f"{file}, line {line}, column {names[key]}"
                remedy = (
                    "Correct the number, or remove the run and say why." if key == "loss" else "Correct the number."
                )
                problems.append(Problem(where, "the cell is a finite number above 0", repr(cell), remedy))
            numbers.append(value)
    if not rows and not problems:
        problems.append(Problem(str(file), "a table has at least one finished run", "none", "Add rows."))
    if problems:
        raise EvidenceError(problems)
    variant = tuple(cells[header.index(names["variant"])] for _, cells in rows)
    C, loss = np.array(values["C"]), np.array(values["loss"])
    # A NaN is equal to itself only, and stands for tokens that no row has.
    tokens = values["D"] if names["D"] in header else [0.0] * len(rows)
    # Two seeds may round to one loss: they are two runs.
    of_seeds = [i for i, name in enumerate(header) if name in seed_columns or key_of(name) in ALIASES["seed"]]
    seeds = [tuple(cells[i] for i in of_seeds) for _, cells in rows]
    places: dict[tuple[object, ...], int] = {}
    for i, run in enumerate(zip(variant, values["N"], tokens, values["C"], values["loss"], seeds, strict=True)):
        places.setdefault(run, i)
    kept = np.array(list(places.values()))
    if len(kept) < len(rows):
        remarks.append(f"{len(rows) - len(kept)} duplicated row(s) count once")
    N, D = np.array(values["N"]), np.array(values["D"])
    if not own and names["D"] in header:
        run_units.agree(file, N, D, C, [f"line {line}" for line, _ in rows], units_only=True)
    return RunTable(
        tuple(variant[i] for i in kept),
        N[kept],
        D[kept],
        C[kept],
        loss[kept],
        {name: tuple(rows[i][1][j] for i in kept) for j, name in enumerate(header)},
        tuple(remarks),
        file.stem,
    )


def _header(file: Path) -> list[str]:
    """The first line's cells if they are split by commas; nothing of what is no text."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            return [name.strip() for name in stream.readline(100_000).split(",")]
    except (OSError, UnicodeDecodeError):
        return []


def _foreign(file: Path, loss_column: str) -> bool:
    """Whether a table is somebody's own: it has not two of the columns that the commands name, or a loss beside others,
    and what is wrong with it is then for `run_import` to say.
    """
    header = set(_header(file))
    ours = {"variant", "N", "C", loss_column}
    return len(ours.intersection(header)) < 2 or (loss_column in header and not ours <= header)


def _other_table(file: Path, loss_column: str) -> bool:
    """Whether a file that is not in our columns may still be somebody's table of runs."""
    try:
        there = file.is_file() or file.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False
    if not there or set(OWN_COLUMNS.values()) <= set(_header(file)):
        return False
    return loss_column == "loss" or loss_column in _header(file)


def _as_people_have_it(file: Path, options: ReadOptions) -> RunTable:
    """Any table of runs that `run_import` understands; what was understood is a remark."""
    found = run_import.read(file, options)
    remarks = [f"read as {', '.join(found.understood)}", *found.remarks]
    told_apart = [found.variant, found.seed, *(found.columns[n] for n in options.seed_columns if n in found.columns)]
    codes = [factorized(cells)[1] for cells in told_apart]
    distinct = _first_of_each(*codes, found.N, found.D, found.C, found.loss)
    if len(distinct) < len(found.loss):
        remarks.append(f"{len(found.loss) - len(distinct)} duplicated row(s) count once")
        found = found.take(distinct)
    return RunTable(
        found.variant if isinstance(found.variant, Words) else tuple(found.variant),
        found.N,
        found.D,
        found.C,
        found.loss,
        {name: cells if isinstance(cells, Cells | Words) else tuple(cells) for name, cells in found.columns.items()},
        tuple(remarks),
        file.stem,
    )


def _first_of_each(*columns: np.ndarray) -> np.ndarray:
    """Places [m], ascending, of rows that differ from all before them."""
    bits = [column.astype(np.float64, copy=False).view(np.uint64) for column in columns]
    mixed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in bits:
        mixed ^= column
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    # Equal rows have equal numbers; few are left to be looked at.
    numbers = np.sort(mixed)
    if (numbers[1:] != numbers[:-1]).all():
        return np.arange(len(mixed))
    twice = np.unique(numbers[1:][np.diff(numbers) == 0])
    several = twice[np.minimum(np.searchsorted(twice, mixed), len(twice) - 1)] == mixed
    kept = ~several
    at = np.flatnonzero(several)
    first: dict[tuple[int, ...], int] = {}
    for i, row in zip(at.tolist(), zip(*(column[at].tolist() for column in bits), strict=True), strict=True):
        first.setdefault(row, i)
    kept[list(first.values())] = True
    return np.flatnonzero(kept)


def select(runs: RunTable, arm: str) -> np.ndarray:
    """Which rows [n] an arm holds: its variant, or `column=pattern` parts joined by `&` (all must hold).

    Raises:
        EvidenceError: no row is selected, or there is no such column; what there is, is said.
    """
    exact = np.array([v == arm for v in runs.variant], dtype=bool)
    if exact.any():
        return exact
    kept = np.ones(len(runs.variant), dtype=bool)
    if "=" not in arm:
        kept = np.array([fnmatchcase(v, arm) for v in runs.variant])
    else:
        for part in arm.split("&"):
            column, _, pattern = part.partition("=")
            if column not in runs.cells:
                rule = "an arm names columns of the table"
                raise refusal(f"arm {arm!r}", rule, repr(column), _nearest(column, runs.cells))
            kept &= np.array([_cell_matches(cell, pattern) for cell in runs.cells[column]])
    if not kept.any():
        raise refusal(f"arm {arm!r}", "an arm selects at least one run", "none", _nearest(arm, runs.variants()))
    return kept


def ladder(runs: RunTable, arm: str, tolerance: float = TOLERANCE) -> Ladder:
    """The ladder of one arm (see the head of this file). Rungs are sorted; dominated ones are dropped with a note.

    Raises:
        EvidenceError: the arm selects no run.
    """
    at, found = representatives(runs, arm, tolerance)
    log_n = _sizes(runs.N[at])
    log_c = np.log(runs.C[at])
    notes = list(found.notes)
    while len(_budgets(np.sort(log_c), tolerance)) > MOST_RUNGS:
        tolerance *= 2
    if tolerance > TOLERANCE:
        notes.append(f"budgets within {math.expm1(tolerance):.0%} of each other are pooled: there are many")
    made = build(arm, log_n, log_c, np.log(runs.loss[at]), tolerance)
    doubt = ("ambiguous_repeats", f"{arm}: {found.unclear}") if found.unclear else None
    return made._replace(notes=(*notes, *made.notes), tried=found.tried, doubt=doubt)


def representatives(runs: RunTable, arm: str, tolerance: float = TOLERANCE) -> tuple[np.ndarray, repeats.Reduced]:
    """Which rows [m] stand for an arm, all of its runs or the best of a sweep at each size and budget, and why.

    Raises:
        EvidenceError: the arm selects no run.
    """
    at = np.flatnonzero(select(runs, arm))
    log_loss = np.log(runs.loss[at])
    groups = repeats.groups_of(_sizes(runs.N[at]), np.log(runs.C[at]), tolerance)
    cells: dict[str, Sequence[str]] = {}
    if any(len(group) > 1 for group in groups):
        cells = {name: take(column, at) for name, column in runs.cells.items()}
    found = repeats.reduced(groups, log_loss, cells, runs.repeats)
    return at[found.kept], found


def pair(runs: RunTable, baseline: str, treatment: str) -> tuple[Ladder, Ladder]:
    """The ladders of two arms that are to be compared: by one yardstick, and with the error of unlike tuning.

    Raises:
        EvidenceError: an arm selects no run.
    """
    arms = (baseline, treatment)
    told_by = [
        name
        for name, cells in runs.cells.items()
        if not isinstance(cells, Cells) and tuple(cells) == tuple(runs.variant)
    ]
    told_by += [part.partition("=")[0] for arm in arms if "=" in arm for part in arm.split("&")]
    alike = yardsticks.compared(runs.cells, select(runs, baseline), select(runs, treatment), told_by)
    if alike.loss is not None:
        runs = runs._replace(loss=alike.loss)
    ladders = ladder(runs, baseline), ladder(runs, treatment)
    first, second, note = repeats.uneven(ladders[0].tried, ladders[1].tried)
    said = alike.notes + ((note,) if note else ())
    doubt = ("unlike_yardsticks", alike.unlike) if alike.unlike else None
    return (
        ladders[0]._replace(tuning=first, doubt=doubt or ladders[0].doubt),
        ladders[1]._replace(tuning=second, doubt=doubt or ladders[1].doubt, notes=ladders[1].notes + said),
    )


def _sizes(N: Array) -> Array:
    """ln N [n]; all alike where it is not known."""
    return np.log(N) if np.isfinite(N).all() else np.zeros(len(N))


def build(name: str, log_n: Array, log_c: Array, log_loss: Array, tolerance: float = TOLERANCE) -> Ladder:
    """A ladder from runs: ln N, ln C, ln loss, each [n]; order does not matter."""
    order = np.lexsort((log_loss, log_n, log_c))
    log_n, log_c, log_loss = log_n[order], log_c[order], log_loss[order]
    starts = _budgets(log_c, tolerance)
    groups = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(log_c)], strict=True)]
    slope = _overall_slope(log_c, log_loss)
    notes: list[str] = []
    points: list[_Point] = []
    for group in groups:
        centre = float(log_c[group].mean())
        sizes, losses, counts = _average_seeds(log_n[group], log_loss[group] - slope * (log_c[group] - centre))
        points.append(_budget(centre, sizes, losses, counts))
    residuals = np.concatenate([p.residuals for p in points])
    freedom = sum(p.freedom for p in points)
    scatter = math.sqrt(float(residuals @ residuals) / freedom) if freedom > 0 else PARABOLA_SD
    edges = sum(p.edge for p in points)
    deep = sum(p.deep for p in points)
    if deep:
        notes.append(f"{deep} budget(s) have a parabola that dips below every run: the best run is taken")
    if edges:
        notes.append(f"{edges} budget(s) have their lowest loss at the smallest or largest N tried")
    x, y = np.array([p.x for p in points]), np.array([p.y for p in points])
    sd = np.array([math.hypot(p.factor * scatter, EDGE_SD if p.edge or p.deep else 0.0) for p in points])
    repeats = np.array([p.repeats for p in points])
    grows = np.array([p.size for p in points])
    if (np.diff(grows) >= -SAME_SIZE).all():
        index = _pooled(y)
        x, y, sd, repeats = _merge(index, x, y, sd, repeats)
        if len(x) < len(points):
            notes.append(
                f"loss does not fall with compute everywhere: {len(points)} budgets averaged to {len(x)} rungs (if "
                "runs diverged, leave them out and say so)"
            )
    else:
        on = _on_frontier(x, y, sd)
        lone = np.array([p.factor == 0 for p in points])
        x, y, sd, repeats = x[on], y[on], np.hypot(sd, OF_A_GRID * lone)[on], repeats[on]
        if not on.all():
            notes.append(f"{int((~on).sum())} of {len(on)} budgets of a grid lie off its frontier and are left out")
    return Ladder(name, x, y, sd, repeats, len(points), tuple(notes))


def _on_frontier(x: Array, y: Array, sd: Array) -> np.ndarray:
    """Which budgets [n] of a grid may lie on its frontier: ln loss y [n] falls with ln C x [n], and is no further above
    the lower convex hull than its error sd [n] explains. A frontier E + K C^-gamma is convex in these.
    """
    falling = np.flatnonzero(y < np.minimum.accumulate(np.concatenate([[np.inf], y[:-1]])))
    hull: list[int] = []
    for i in falling.tolist():
        while len(hull) > 1:
            a, b = hull[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    above = y - np.interp(x, x[hull], y[hull])
    on = np.zeros(len(x), dtype=bool)
    on[falling] = above[falling] <= ABOVE_HULL + 2 * sd[falling]
    return on


def _budgets(log_c: Array, tolerance: float) -> list[int]:
    """Where each budget starts among ln C [n], ascending. It spans `tolerance` in all, so that a dense table does not
    become one long rung.
    """
    starts, values = [0], log_c.tolist()
    for i, value in enumerate(values):
        if value > values[starts[-1]] + tolerance:
            starts.append(i)
    return starts


def _pooled(y: Array) -> list[list[int]]:
    """Neighbouring rungs that must be averaged for ln loss [n] to fall (pool adjacent violators)."""
    blocks: list[list[int]] = []
    for i in range(len(y)):
        blocks.append([i])
        while len(blocks) > 1 and y[blocks[-1]].mean() >= y[blocks[-2]].mean():
            last = blocks.pop()
            blocks[-1] += last
    return blocks


def _merge(blocks: list[list[int]], *columns: Array) -> tuple[Array, Array, Array, Array]:
    """x, y averaged over blocks, sd of the average, repeats summed."""
    x, y, sd, repeats = columns
    return (
        np.array([x[b].mean() for b in blocks]),
        np.array([y[b].mean() for b in blocks]),
        np.array([math.sqrt(float((sd[b] ** 2).sum())) / len(b) for b in blocks]),
        np.array([repeats[b].sum() for b in blocks]),
    )


class _Point(NamedTuple):
    """One budget: ln C, ln loss, ln N, error per scatter, seeds, residuals and their freedom; whether the minimum is at
    the edge, and whether it would be below every run.
    """

    x: float
    y: float
    size: float
    factor: float
    repeats: float
    residuals: Array
    freedom: int
    edge: bool
    deep: bool = False


def _budget(x: float, sizes: Array, losses: Array, counts: Array) -> _Point:
    """The loss at one budget: sizes = ln N, losses = ln loss, counts = seeds, each [m], sizes ascending."""
    best = int(np.argmin(losses))
    lone = _Point(x, float(losses[best]), float(sizes[best]), 0.0, float(counts[best]), np.zeros(0), 0, False)
    if len(sizes) < 3:
        return lone
    if best in (0, len(sizes) - 1):
        return lone._replace(edge=True)
    distance = np.abs(sizes - sizes[best])
    near = distance <= max(WINDOW, float(np.sort(distance)[min(3, len(sizes) - 1)]) + 1e-9)
    near[[best - 1, best + 1]] = True
    t = sizes[near] - sizes[best]
    weights = counts[near]
    design = np.stack([np.ones_like(t), t, t * t], axis=1)
    precision = design.T @ (design * weights[:, None])
    covariance = np.linalg.inv(precision)
    b = covariance @ (design.T @ (weights * losses[near]))
    if b[2] <= 0:
        return lone
    at = float(np.clip(-b[1] / (2 * b[2]), t.min(), t.max()))
    h = np.array([1.0, at, at * at])  # the minimum's place does not matter to first order
    if h @ b < losses[best] - DEEP:
        return lone._replace(deep=True)
    residuals = np.sqrt(weights) * (losses[near] - design @ b)
    size = float(sizes[best]) + at
    return _Point(x, float(h @ b), size, math.sqrt(float(h @ covariance @ h)), 1.0, residuals, len(t) - 3, False)


def _average_seeds(sizes: Array, losses: Array) -> tuple[Array, Array, Array]:
    """Runs of one size (within `SAME_SIZE`) averaged: sizes, losses, counts; `sizes` need not be sorted."""
    order = np.argsort(sizes, kind="stable")
    sizes, losses = sizes[order], losses[order]
    starts = np.concatenate([[True], np.diff(sizes) > SAME_SIZE])
    index = np.cumsum(starts) - 1
    counts = np.bincount(index).astype(float)
    return np.bincount(index, sizes) / counts, np.bincount(index, losses) / counts, counts


def _overall_slope(log_c: Array, log_loss: Array) -> float:
    """d ln loss / d ln C of the best runs: brings runs whose budgets differ by a few percent to one budget."""
    if log_c[-1] - log_c[0] < 1.0:
        return 0.0
    front = log_loss <= np.minimum.accumulate(log_loss)
    x, y = log_c[front], log_loss[front]
    return 0.0 if len(x) < 3 else min(0.0, float(np.polyfit(x, y, 1)[0]))


def _columns(file: Path, header: Sequence[str], loss_column: str) -> dict[str, str]:
    """Where variant, N, D, C and loss stand; the project's own names where the table uses those."""
    names = {"variant": "variant", "N": "N", "D": "D", "C": "C", "loss": loss_column}
    if "C" not in header and OWN_COLUMNS["C"] in header:
        own = dict(OWN_COLUMNS)
        if loss_column != "loss":
            own["loss"] = loss_column
        names = own
    missing = [name for key, name in names.items() if key != "D" and name not in header]
    if missing:
        hint = "Separate cells by commas." if len(header) == 1 else _nearest(missing[0], header)
        raise refusal(f"{file}, line 1", "the columns are variant,N,D,C,loss", f"no {', '.join(missing)}", hint)
    return names


def _positive(cell: str) -> float:
    value = as_number(cell)
    return value if 0 < value < math.inf and "_" not in cell else math.nan


def _cell_matches(cell: str, pattern: str) -> bool:
    """Text by wildcard; numbers by value, so that `M=20` finds 20.0."""
    if fnmatchcase(cell, pattern):
        return True
    try:
        return math.isclose(float(cell), float(pattern), rel_tol=1e-9)
    except ValueError:
        return False


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, list(known), 1)
    if near:
        return f"Did you mean {near[0]}?"
    return f"There are: {', '.join(list(known)[:12])}{', ...' if len(known) > 12 else ''}."
