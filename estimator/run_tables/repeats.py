"""What runs of one arm, size and budget are: seeds, whose losses are averaged, or a sweep, of which the best counts.

A sweep of learning rates averaged as if its runs were seeds says that the arm with the wider sweep is worse. Columns
tell where they can: a setting that differs within one size and budget (`column_meanings.SETTINGS`) is a sweep, else a
seed that differs makes seeds. Where no column tells, runs that lie within three times the seed noise are seeds;
others are `unclear`, and no answer from them is `ok`.

The best of many settings lies lower than the best of few. Where arms were tuned unlike, the arm tuned less might have
been better by what the other's sweep gained between so few and so many settings; both are widened by that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain.common.arrays import Array
from cegain.run_tables.run_import import Runs
from cegain.tables.column_meanings import ALIASES, is_setting, key_of

SEEDS, SWEEP = "seeds", "sweep"
CHOICES = (SEEDS, SWEEP)
TOLERANCE = 0.10
"""Budgets that differ by less than this share are one rung: published isoFLOP budgets scatter by a few percent."""
SAME_SIZE = 0.01
NOISE = 0.004
"""sd of ln loss of one run that is assumed where none is stated."""
WIDE = 3.0
"""Runs of one size and budget that spread by more than so many times the seed noise are hardly seeds alone."""
Group = NDArray[np.intp]


class Rule(NamedTuple):
    """What a table's owner says: seeds, sweep or None; columns that hold seeds, and columns that are swept."""

    repeats: str | None = None
    seed_columns: tuple[str, ...] = ()
    sweep_columns: tuple[str, ...] = ()


class Reduced(NamedTuple):
    """Runs that stand for an arm: their places [m], ascending; losses tried per size and budget (ln, each ascending).

    unclear: why the runs may be seeds or a sweep, where nothing tells; notes: what was done.
    """

    kept: Group
    tried: tuple[Array, ...]
    unclear: str
    notes: tuple[str, ...]


def reduced(groups: Sequence[Group], log_loss: Array, cells: Mapping[str, Sequence[str]], rule: Rule) -> Reduced:
    """Reduce an arm's runs to those that its ladder is read off.

    Args:
        groups: places of the runs of one size and budget, for every such pair.
        log_loss: ln loss [n] of all of the arm's runs.
        cells: their cells by column, [n] each.
        rule: what the owner says.
    """
    several = [group for group in groups if len(group) > 1]
    every = np.sort(np.concatenate([*groups, np.zeros(0, dtype=np.intp)])).astype(np.intp)
    if not several or rule.repeats == SEEDS:
        return Reduced(every, (), "", ())
    swept = rule.sweep_columns or tuple(
        name for name in cells if name not in rule.seed_columns and is_setting(name) and _differs(cells[name], several)
    )
    seeds = rule.seed_columns or tuple(name for name in cells if key_of(name) in ALIASES["seed"])
    if rule.repeats is None and not swept:
        if any(_differs(cells[name], several) for name in seeds if name in cells):
            return Reduced(every, (), "", ())
        spread = _spread(several, log_loss)
        if spread <= WIDE * NOISE:
            return Reduced(every, (), "", ())
        unclear = (
            f"runs of one size and budget spread by {spread:.1%} of the loss, more than {WIDE:g} times the seed noise "
            f"({NOISE:.1%}): seeds, or a sweep?"
        )
        return Reduced(every, (), unclear, ())
    kept: list[Group] = [group for group in groups if len(group) == 1]
    tried: list[Array] = []
    for group in several:
        settings = _settings(group, cells, swept, seeds)
        means = np.array([log_loss[runs].mean() for runs in settings])
        kept.append(settings[int(np.argmin(means))])
        tried.append(np.sort(means))
    tried += [log_loss[group] for group in groups if len(group) == 1]
    how_many = sorted(len(losses) for losses in tried)
    by = f" (by {', '.join(swept)})" if swept else ""
    most = f"{how_many[0]} to {how_many[-1]}" if how_many[0] < how_many[-1] else f"{how_many[0]}"
    note = f"the best of {most} settings{by} at each size and budget"
    return Reduced(np.sort(np.concatenate(kept)), tuple(tried), "", (note,))


def settled(runs: Runs, rule: Rule) -> Runs:
    """A table in which nobody need ask again: of a sweep the best runs, of seeds all, with a column `seed`.

    Runs of an arm that may be either are left as they are.
    """
    kept, seeds, remarks = [], list(runs.seed), []
    for arm in dict.fromkeys(runs.variant):
        at = np.array([i for i, variant in enumerate(runs.variant) if variant == arm], dtype=np.intp)
        sizes = np.log(runs.N[at]) if np.isfinite(runs.N).all() else np.zeros(len(at))
        groups = groups_of(sizes, np.log(runs.C[at]), TOLERANCE)
        each = at.tolist()
        cells = {name: [column[i] for i in each] for name, column in runs.columns.items()}
        found = reduced(groups, np.log(runs.loss[at]), cells, rule)
        kept += at[found.kept].tolist()
        remarks += [f"{arm}: {note}" for note in found.notes]
        if rule.repeats == SEEDS:
            for group in groups:
                for number, i in enumerate(at[group].tolist()):
                    seeds[i] = str(number)
        elif found.unclear:
            remarks.append(f"{arm}: {found.unclear} --repeats seeds or --repeats sweep settles it")
    return runs._replace(seed=seeds, remarks=(*runs.remarks, *remarks)).take(sorted(kept))


def groups_of(log_n: Array, log_c: Array, tolerance: float, same_size: float = SAME_SIZE) -> list[Group]:
    """Places of runs of one size and budget: ln N and ln C [n] that differ by less than the tolerances."""
    order = np.lexsort((log_n, log_c))
    budgets: list[list[int]] = []
    start = -math.inf
    for i in order.tolist():
        if log_c[i] > start + tolerance:
            budgets.append([])
            start = float(log_c[i])
        budgets[-1].append(i)
    found: list[Group] = []
    for budget in budgets:
        at = np.array(budget, dtype=np.intp)
        at = at[np.argsort(log_n[at], kind="stable")]
        found += np.split(at, np.flatnonzero(np.diff(log_n[at]) > same_size) + 1)
    return found


def uneven(first: Sequence[Array], second: Sequence[Array]) -> tuple[float, float, str]:
    """How much lower (sd of ln loss) each arm might have been, had it been tuned like the other; and a note.

    first, second: ln losses of the settings tried, per size and budget; empty where an arm was not swept.
    """
    if not first and not second:
        return 0.0, 0.0, ""
    tries = [round(float(np.mean([len(losses) for losses in tried]))) if tried else 1 for tried in (first, second)]
    if tries[0] == tries[1]:
        return 0.0, 0.0, ""
    fewer, wide = min(tries), (first if tries[0] > tries[1] else second)
    lost = [_best_of(fewer, losses) - float(losses[0]) for losses in wide if len(losses) > fewer]
    error = float(np.mean(lost)) if lost else 0.0
    note = (
        f"arms tuned unlike: the best of {tries[0]} against the best of {tries[1]} settings; widened by what the wider "
        f"sweep gained from that, {error:.2%} of the loss"
    )
    return (0.0, error, note) if tries[0] > tries[1] else (error, 0.0, note)


def _best_of(k: int, losses: Array) -> float:
    """Expected lowest of k settings drawn at random from those tried, ln losses ascending."""
    n = len(losses)
    weights = [math.comb(n - 1 - i, k - 1) for i in range(n - k + 1)]
    return float(np.dot(weights, losses[: len(weights)]) / math.comb(n, k))


def _settings(
    group: Group, cells: Mapping[str, Sequence[str]], swept: Sequence[str], seeds: Sequence[str]
) -> list[Group]:
    """The runs of a group by setting; without columns that tell, each run is a setting of its own."""
    if not swept:
        return [group[i : i + 1] for i in range(len(group))]
    by_setting: dict[tuple[str, ...], list[int]] = {}
    for i in group.tolist():
        by_setting.setdefault(tuple(cells[name][i] for name in swept), []).append(i)
    return [np.array(runs, dtype=np.intp) for runs in by_setting.values()]


def _differs(cells: Sequence[str], groups: Sequence[Group]) -> bool:
    """Whether a column tells runs of some group apart."""
    return any(len({cells[i] for i in group.tolist()}) > 1 for group in groups)


def _spread(groups: Sequence[Group], log_loss: Array) -> float:
    """sd of ln loss within groups, pooled."""
    squares = sum(float(np.square(log_loss[group] - log_loss[group].mean()).sum()) for group in groups)
    return math.sqrt(squares / sum(len(group) - 1 for group in groups))
