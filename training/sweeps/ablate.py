"""Ladders of ablations: every arm at every budget with several seeds, each arm at a learning rate of its own.

What is still to be done follows from the table of runs alone (`Ladders.due`): a sweep that was killed goes on where it
stopped, and a run that is in the table is never trained again. Who trains is an engine's affair (`pool`).

An arm's learning rate is found at one rung, the lowest, with one seed: a grid of factors of two about the default grows
until its best is inside, and the minimum of the parabola through the best and its neighbours, in the logarithm of the
rate, is taken. At every other rung it stands to the default there as it does at that rung: it falls with the root of
the width. At the highest rung half and twice that rate are tried with one seed, to see whether the rule carries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from cegain.shapes import architecture
from cegain.shapes.architecture import Stack
from cegain.tables.training_runs import TrainingRun
from cegain.training.run import budget, config
from cegain.training.run.config import Config
from cegain.training.text import data
from cegain.training.text.data import Corpus

FACTOR = 2.0
"""Between neighbouring learning rates of a grid: the loss of small models changes by a few percent over it."""
FARTHEST = 6
"""Steps of FACTOR from the default at which the search for a learning rate is given up."""
DIGITS = 3
"""Of a learning rate."""

Ledger = Mapping[str, TrainingRun]
"""Runs that have ended, by run_id."""


class Job(NamedTuple):
    """A run to train, and what for (`training_runs.ROLES`)."""

    config: Config
    role: str


class Rate(NamedTuple):
    """An arm's learning rate over the default: `factor`, or None while jobs are to be trained first.

    `tried` holds (factor, held-out nats; inf if it diverged) in the order of factors; `jobs` are still missing; `wrong`
    says why none can be found.
    """

    factor: float | None
    tried: tuple[tuple[float, float], ...]
    jobs: tuple[Job, ...]
    wrong: str = ""


@dataclass(frozen=True, kw_only=True)
class Ladders:
    """A sweep. Budgets in useful FLOP, ascending; `seeds` runs per arm at each of them, counted from 0.

    `further` are budgets of single arms beyond, with the seeds of the last rung. `options` go to every run
    (`config.fill_in`). Without `find_rates` every run takes its default learning rate, and without `check_rates` no
    other one is tried at the highest rung. Models have `model_size` times
    the parameters of the rule, and see as many times fewer tokens.
    """

    corpus: Corpus
    stack: Stack
    arms: tuple[str, ...]
    rungs: tuple[float, ...]
    seeds: tuple[int, ...]
    further: tuple[tuple[str, float], ...] = ()
    find_rates: bool = True
    check_rates: bool = True
    model_size: float = 1.0
    compile: str = "auto"
    on_gpu: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def configuration(self, arm: str, rung: float, seed: int = 0, factor: float = 1.0) -> Config:
        """One run, at `factor` times the default learning rate.

        Raises:
            ValueError: as `config.resolve`.
        """
        key = arm, rung, seed, factor
        if key not in self._made:
            made = self._default(arm, rung)
            rate = float(f"{made.learning_rate * factor:.{DIGITS}g}")
            self._made[key] = config.with_learning_rate(config.with_seed(made, seed), rate)
        return self._made[key]

    def _default(self, arm: str, rung: float) -> Config:
        options = dict(self.options)
        if self.model_size != 1.0:
            sizes = {**options.get("sizes", {}), "vocab_size": self.corpus.vocab_size}
            shape = budget.shape_of_other_size(rung, self.stack, self.model_size, **sizes)
            taken = {"n_layers": shape.n_layers, "d_model": shape.d_model, "n_heads": shape.n_heads}
            options["sizes"] = {**options.get("sizes", {}), **taken}
        made = config.resolve(self.corpus, stack=self.stack, arm=arm, flops=rung, **options)
        return config.with_compile(made, self.compile, self.on_gpu)

    @cached_property
    def _made(self) -> dict[tuple[str, float, int, float], Config]:
        return {}

    def problems(self) -> list[str]:
        """What is wrong with any of its runs, all of it."""
        found = []
        for arm, rung in self.cells():
            try:
                self._default(arm, rung)
            except ValueError as error:
                found += str(error).splitlines()
        return list(dict.fromkeys(found))

    def strangers(self, ledger: Ledger) -> list[str]:
        """Why the rows of a table cannot stand in one ladder with this sweep's: another text, length or size of model,
        or a run of the ladder that these options would train again. The first of each kind is named.
        """
        here = [row for row in ledger.values() if row.stack == self.stack]
        length = self._default(*self.cells()[0]).shape.seq_len
        text = data.label(self.corpus.name, self.corpus.sha256), self.corpus.tokenizer
        found: dict[str, str] = {}
        for row in here:
            if (row.corpus, row.tokenizer) != text:
                found.setdefault("text", f"{row.run_id} was trained on {row.corpus}, tokenizer {row.tokenizer}")
            if row.seq_len != length:
                found.setdefault("length", f"{row.run_id} has sequences of {row.seq_len} tokens, not {length}")
        if not found:
            found = self._other_runs(here)
        remedy = "Give the options that made it, or a table of its own"
        return [f"a table holds one kind of ladder per stack ({said}). {remedy}." for said in found.values()]

    def _other_runs(self, here: Sequence[TrainingRun]) -> dict[str, str]:
        """As `strangers`, for rows of this text and length."""
        ledger = {row.run_id: row for row in here}
        cells, rates = set(self.cells()), self.rates(ledger)
        found: dict[str, str] = {}
        sizes: dict[tuple[str, float], int] = {}
        for row in here:
            cell = row.arm, row.rung_flops
            if cell not in sizes:
                try:
                    sizes[cell] = architecture.parameters(self._default(*cell).shape).total
                except ValueError:  # an arm or a budget that can no longer be asked for
                    sizes[cell] = row.n_params_total
            if row.n_params_total != sizes[cell]:
                found.setdefault("size", f"{row.run_id} has {row.n_params_total:,} parameters, not {sizes[cell]:,}")
            if row.role == "ladder" and cell in cells and row.seed < self.seeds_at(row.rung_flops):
                factor = rates[row.arm].factor
                if factor is None or self.configuration(*cell, row.seed, factor).run_id != row.run_id:
                    others = "another device, lowest rung, learning rate or evaluation"
                    found.setdefault("run", f"these options would train {row.run_id} again, with {others}")
        return {"size": found["size"]} if "size" in found else found

    def cells(self) -> list[tuple[str, float]]:
        """(arm, rung) of every place in the ladders, from the lowest rung up."""
        places = [(arm, rung) for rung in self.rungs for arm in self.arms]
        return sorted({**dict.fromkeys(places), **dict.fromkeys(self.further)}, key=lambda place: place[1])

    def seeds_at(self, rung: float) -> int:
        """Runs of an arm at a rung."""
        return self.seeds[min(self.rungs.index(rung), len(self.seeds) - 1)] if rung in self.rungs else self.seeds[-1]

    def rate(self, arm: str, ledger: Ledger) -> Rate:
        """What is known of an arm's learning rate."""
        if not self.find_rates:
            return Rate(1.0, (), ())
        grid = {k: self.configuration(arm, self.rungs[0], 0, FACTOR**k) for k in range(-FARTHEST, FARTHEST + 1)}
        known = {k: _loss(ledger[made.run_id]) for k, made in grid.items() if made.run_id in ledger}
        tried = tuple((FACTOR**k, known[k]) for k in sorted(known))
        missing = [k for k in (0, -1, 1) if k not in known]
        if missing:
            return Rate(None, tried, tuple(Job(grid[k], "learning_rate") for k in missing))
        if not any(map(math.isfinite, known.values())) and min(known) > -FARTHEST:  # the cure is a lower rate
            return Rate(None, tried, (Job(grid[min(known) - 1], "learning_rate"),))
        best = min(known, key=lambda k: (known[k], abs(k)))
        missing = [k for k in (best - 1, best + 1) if k in grid and k not in known]
        if missing:
            return Rate(None, tried, tuple(Job(grid[k], "learning_rate") for k in missing))
        if not math.isfinite(known[best]) or abs(best) == FARTHEST:
            ends = grid[min(known)].learning_rate, grid[max(known)].learning_rate
            wrong = f"no learning rate from {ends[0]:g} to {ends[1]:g} has a lower loss than both its neighbours"
            return Rate(None, tried, (), f"{arm} at {self.rungs[0]:g} FLOP: {wrong}")
        shift = vertex(known[best - 1], known[best], known[best + 1])
        return Rate(FACTOR ** (best + shift), tried, ())

    def rates(self, ledger: Ledger) -> dict[str, Rate]:
        """`rate` of every arm."""
        return {arm: self.rate(arm, ledger) for arm in dict.fromkeys(arm for arm, _ in self.cells())}

    def due(self, ledger: Ledger) -> list[Job]:
        """Runs that can be trained now, most urgent first: for learning rates, ladders from below, checks of rates."""
        return self._missing(self.rates(ledger), ledger)

    def ahead(self, ledger: Ledger) -> list[Job]:
        """Runs that are due now or will be, as far as can be told: learning rates that are not known count as the
        default, and a search as ended by its next runs."""
        rates = self.rates(ledger)
        known = {arm: rate if rate.factor or rate.wrong else rate._replace(factor=1.0) for arm, rate in rates.items()}
        return self._missing(known, ledger)

    def promoted(self, ledger: Ledger) -> list[TrainingRun]:
        """Rows made for a learning rate that turn out to stand in a ladder, as such."""
        jobs = self._ladder(self.rates(ledger))
        found = [ledger[job.config.run_id] for job in jobs if job.config.run_id in ledger]
        return [row._replace(role="ladder") for row in found if row.role != "ladder"]

    def _missing(self, rates: Mapping[str, Rate], ledger: Ledger) -> list[Job]:
        jobs = [job for rate in rates.values() for job in rate.jobs] + self._ladder(rates)
        jobs += [job for arm, rate in rates.items() if rate.factor for job in self._checks(arm, rate.factor)]
        missing: dict[str, Job] = {}  # a run wanted for two reasons is trained for the first
        for job in jobs:
            if job.config.run_id not in ledger:
                missing.setdefault(job.config.run_id, job)
        return list(missing.values())

    def _ladder(self, rates: Mapping[str, Rate]) -> list[Job]:
        """Runs of the ladders whose learning rate is known, rung by rung and seed by seed."""
        jobs = [
            (rung, seed, Job(self.configuration(arm, rung, seed, factor), "ladder"))
            for arm, rung in self.cells()
            if (factor := rates[arm].factor) is not None
            for seed in range(self.seeds_at(rung))
        ]
        return [job for _, _, job in sorted(jobs, key=lambda entry: entry[:2])]

    def _checks(self, arm: str, factor: float) -> list[Job]:
        """Half and twice the learning rate at the highest rung, and at the arm's budgets beyond the rungs."""
        if not (self.find_rates and self.check_rates):
            return []
        places = [rung for name, rung in self.further if name == arm and rung not in self.rungs]
        places += self.rungs[-1:] if arm in self.arms and len(self.rungs) > 1 else ()
        made = [self.configuration(arm, rung, 0, factor * by) for rung in sorted(places) for by in (1 / FACTOR, FACTOR)]
        return [Job(one, "learning_rate") for one in made]

    def carried(self, arm: str, factor: float, ledger: Ledger) -> tuple[float, float] | None:
        """How far the rule is off at the highest rung: the best factor there over the rule's, and the relative loss
        given away; NaN, NaN where the best is not inside; None before the runs are there."""
        made = [self.configuration(arm, self.rungs[-1], 0, factor * by) for by in (1 / FACTOR, 1.0, FACTOR)]
        if len(self.rungs) < 2 or any(one.run_id not in ledger for one in made):
            return None
        low, middle, high = (_loss(ledger[one.run_id]) for one in made)
        if not (middle <= low and middle <= high and math.isfinite(middle)):
            return math.nan, math.nan
        shift = vertex(low, middle, high)
        lowest = middle - (0.25 * (low - high) * shift if math.isfinite(low) and math.isfinite(high) else 0.0)
        return FACTOR**shift, middle / lowest - 1


def vertex(low: float, middle: float, high: float) -> float:
    """Where the parabola through (-1, low), (0, middle), (1, high) is lowest; middle is not above the others.

    An infinite neighbour (a run that diverged) leaves the minimum where it was seen.
    """
    curvature = low - 2 * middle + high
    return 0.5 * (low - high) / curvature if math.isfinite(curvature) and curvature > 0 else 0.0


def half_decades(low: float, high: float) -> list[float]:
    """Budgets from low to high, half a decade apart: 1e12, 3e12, 1e13; other starts go on by the root of ten."""
    budgets = []
    threes = f"{low:.6e}".startswith("3.000000")
    ones = f"{low:.6e}".startswith("1.000000")
    for i in range(2 * math.ceil(math.log10(high / low)) + 2):
        half = 10.0 ** (i // 2) * ((10 / 3 if threes else 3.0 if ones else math.sqrt(10)) if i % 2 else 1.0)
        budgets.append(float(f"{low * half:.3g}"))
    return [budget for budget in budgets if budget <= high * 1.01]


def _loss(run: TrainingRun) -> float:
    return run.loss_nats_per_token if run.status == "finished" else math.inf
