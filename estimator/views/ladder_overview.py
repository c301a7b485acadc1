"""`ceg ladder` without an algorithm: all gains of a stack, the noise behind them, and the learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cegain.common.console import empty_table
from cegain.common.mixture import NORMAL_90
from cegain.common.text import finite, number, wrap
from cegain.ladders import arm_names, own_gains, seed_ladder
from cegain.ladders.seed_ladder import GainAt, StackRuns
from cegain.paper import tables
from cegain.tables.training_runs import TrainingRun

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class Rates(NamedTuple):
    """Learning rates of an arm tried at one rung with one seed: (rate, nats per token; inf if it diverged), ascending,
    and the one that the ladder takes there."""

    arm: str
    budget: float
    tried: tuple[tuple[float, float], ...]
    taken: float

    @property
    def interior(self) -> bool:
        """Whether the best lies between two that are worse."""
        losses = [loss for _, loss in self.tried]
        best = losses.index(min(losses))
        return 0 < best < len(losses) - 1

    @property
    def given_away(self) -> float:
        """Relative loss of the ladder's rate over the best that was tried; NaN where the ladder has none there."""
        taken = [loss for rate, loss in self.tried if rate == self.taken]
        return taken[0] / min(loss for _, loss in self.tried) - 1 if taken else math.nan


def rates(table: Iterable[TrainingRun], stack: str) -> list[Rates]:
    """Every search for a learning rate on a stack, by arm and rung: runs made for it, and the ladder's of that seed."""
    rows = [row for row in table if row.stack == stack]
    searched = dict.fromkeys((r.arm, r.rung_flops, r.seed) for r in rows if r.role == "learning_rate")
    searches = []
    for arm, budget, seed in sorted(searched, key=lambda key: (key[1], key[0])):
        here = [r for r in rows if (r.arm, r.rung_flops, r.seed) == (arm, budget, seed)]
        taken = [r.learning_rate for r in here if r.role == "ladder"]
        tried = sorted((r.learning_rate, r.loss_nats_per_token if r.status == "finished" else math.inf) for r in here)
        searches.append(Rates(arm, budget, tuple(tried), taken[0] if taken else math.nan))
    return searches


class Ratio(NamedTuple):
    """An algorithm's gain on a stack over its gain on the bare one at one budget: ln, and its standard error. The two
    ladders share no run, so their errors are taken to be independent."""

    algorithm: str
    budget: float
    log: float
    error: float


def over_bare(runs: StackRuns, bare: StackRuns | None) -> list[Ratio]:
    """Every gain with a standard error that was read on both stacks at one budget, against one baseline."""
    if bare is None or runs.stack == bare.stack:
        return []
    gains = {
        (algorithm, arm_names.baseline_of(algorithm, against, bare.stack), at.rung.budget): at.read
        for (algorithm, _, against), ladder in own_gains.read_all(bare).items()
        for at in ladder
        if at.read is not None and not at.why
    }
    ratios = []
    for (algorithm, _, against), ladder in own_gains.read_all(runs).items():
        for at in ladder:
            base = gains.get((algorithm, arm_names.baseline_of(algorithm, against, runs.stack), at.rung.budget))
            if base is not None and at.read is not None and not at.why:
                apart = at.read.log_gain - base.log_gain
                ratios.append(Ratio(algorithm, at.rung.budget, apart, math.hypot(at.read.se, base.se)))
    return ratios


def print_overview(
    console: Console, runs: StackRuns, table: Sequence[TrainingRun], bare: StackRuns | None = None
) -> None:
    """Gains by arm and rung, over those of `bare` if that is another stack; noise by rung, learning rates by arm."""
    budgets = sorted({rung.budget for _, treatment, _ in runs.pairs for rung in runs.arms[treatment]})
    title = f"Gains in FLOP on the {runs.stack} stack (se of ln CEG)"
    gains = _by_budget(title, "arm, against baseline", budgets)
    why: dict[str, None] = {}
    for _, treatment, against in runs.pairs:
        at = {gain.rung.budget: gain for gain in seed_ladder.gains(runs, treatment, against)}
        arm = treatment if against == arm_names.BASELINE else f"{treatment}, against {against}"
        gains.add_row(arm, *(_cell(at.get(budget), why) for budget in budgets))
    console.print(gains)
    for line in why:
        console.out(wrap(line, console.width), highlight=False)
    console.print()

    for further in (_combinations(runs, budgets), _ratio_table(over_bare(runs, bare)), _beside_paper(runs)):
        if further is not None:
            console.print(further)
            console.print()
    columns = ("rung", "runs", "arms", "ln loss", "nats", "degrees of freedom")
    noise = empty_table(columns, title="Seed noise (sd of one run)")
    for budget, of_rung in sorted(runs.noise.items()):
        rungs = [rung for arm in runs.arms.values() for rung in arm if rung.budget == budget]
        sd = of_rung.pooled.sd if of_rung.pooled.freedom else math.nan
        nats = sd * math.fsum(rung.loss for rung in rungs) / len(rungs)
        noise.add_row(
            number(budget), str(sum(len(rung.losses) for rung in rungs)), str(len(rungs)),
            *(("-", "-", "0") if math.isnan(sd) else (f"{sd:.4f}", f"{nats:.4f}", f"{of_rung.pooled.freedom:.0f}")),
        )  # fmt: skip
    console.print(noise)

    searches = rates(table, runs.stack)
    if searches:
        console.print()
        console.print(_rate_table(searches))
        console.out(
            wrap(
                "Nats per token by learning rate, one seed; the ladder's in brackets. An end that is best is no "
                "optimum. Given away: of the loss, by the ladder's rate against the best of these, noise included.",
                console.width,
            ),
            highlight=False,
        )
    for remark in runs.remarks:
        console.out(f"Note: {remark}.", highlight=False)


def _by_budget(title: str, first: str, budgets: Iterable[float]) -> Table:
    """A table with one left column, and one for each budget."""
    columns = (first, *map(number, budgets))
    return empty_table(columns, left=[first], title=title, padding=(0, 1, 0, 0), collapse_padding=True)


def _cell(gain: GainAt | None, why: dict[str, None]) -> str:
    if gain is None:
        return "-"
    if gain.read is None:
        mark = "below" if "below" in gain.why else "above" if "above" in gain.why else "none"
        if mark != "none":
            why[f"{mark}: the loss lies {mark} all of the other arm's, so the gain is not read"] = None
        return mark
    error = f"({gain.read.se:.2g})" if not gain.why else "(one seed)"
    return f"{math.exp(gain.read.log_gain):.2f}x {error}"


def _combinations(runs: StackRuns, budgets: Sequence[float]) -> Table | None:
    """Combinations over the product of their parts, and of three over their pairs too; None where none was read."""
    gains = own_gains.read_all(runs)
    rows: dict[str, dict[float, own_gains.Excess]] = {}
    for pair in runs.pairs:
        kinds = {pair[1]: own_gains.excess, f"{pair[1]}, beyond its pairs": own_gains.excess_over_pairs}
        for label, excess in kinds.items():
            by_budget = {budget: at for budget in budgets if (at := excess(runs, gains, pair, budget)) is not None}
            rows |= {label: by_budget} if by_budget else {}
    read = [budget for budget in budgets if any(budget in by_budget for by_budget in rows.values())]
    shown = _by_budget("Combinations over the product of their parts (se of ln)", "arm", read)
    for label, by_budget in rows.items():
        cells = (by_budget.get(budget) for budget in read)
        shown.add_row(label, *(f"{math.exp(at.log):.2f}x ({at.error:.2g})" if at else "-" for at in cells))
    return shown if rows else None


def _ratio_table(ratios: Sequence[Ratio]) -> Table | None:
    """Gains over those on the bare stack; None where there are none."""
    if not ratios:
        return None
    budgets = sorted({ratio.budget for ratio in ratios})
    shown = _by_budget("Gains over those on the bare stack (se of ln)", "algorithm", budgets)
    cells = {(r.algorithm, r.budget): f"{math.exp(r.log):.2f}x ({r.error:.2g})" for r in ratios}
    for algorithm in dict.fromkeys(ratio.algorithm for ratio in ratios):
        shown.add_row(algorithm, *(cells.get((algorithm, budget), "-") for budget in budgets))
    return shown


def _beside_paper(runs: StackRuns) -> Table | None:
    """The source paper's ablations in FLOP beside ours at the highest budgets; None where no arm is in both."""
    if runs.stack != "bare":
        return None
    # FlashAttention computes the same function: an arm with it is, in FLOP, the arm without it.
    paper = tables.load_table3()
    arms = {arm.algorithm.replace("+flash_attention", ""): arm for arm in paper.arms.values() if arm.algorithm}
    title = f"Beside LLM-e Guess, table III (up to {number(tables.paper_flops())} FLOP, one seed), gains in FLOP"
    shown = empty_table(("arm", "at", "ours", "90%", "paper's, 25k steps", "50k steps"), left=["arm"], title=title)
    for algorithm, treatment, against in runs.pairs:
        read = [gain for gain in seed_ladder.gains(runs, treatment, against) if gain.read and not gain.why]
        if algorithm not in arms or against != arm_names.BASELINE or not read:
            continue
        top, arm = read[-1], arms[algorithm]
        assert top.read is not None
        low, high = top.read.interval()
        theirs = [paper.gain(arm.key, which) for which in tables.CHECKPOINTS]
        doubtful = " (see `ceg paper`, 8)" if arm.key == "mqa" else ""
        shown.add_row(
            treatment + doubtful, number(top.rung.budget), f"{math.exp(top.read.log_gain):.2f}x",
            f"{low:.2f}x - {high:.2f}x",
            *(f"{gain.iterations:.2f}x" if gain else "-" for gain in theirs),
        )  # fmt: skip
    return shown if shown.row_count else None


def _rate_table(searches: Iterable[Rates]) -> Table:
    columns = ("rung", "arm", "interior", "given away", "tried")
    shown = empty_table(columns, left=("arm", "interior", "tried"), wrapped=["tried"], title="Learning rates")
    for search in searches:
        tried = [
            f"[{rate:g}: {loss:.3f}]" if rate == search.taken else f"{rate:g}: {loss:.3f}"
            for rate, loss in search.tried
        ]
        lost = "-" if math.isnan(search.given_away) else f"{search.given_away:.2%}"
        shown.add_row(number(search.budget), search.arm, "yes" if search.interior else "NO", lost, "  ".join(tried))
    return shown


def document(runs: StackRuns, table: Sequence[TrainingRun], bare: StackRuns | None = None) -> dict[str, object]:
    """`ceg ladder --json` without an algorithm; `bare` as for `print_overview`."""
    gains = own_gains.read_all(runs)
    return {
        "schema": "ceg.ladder_overview",
        "schema_version": 1,
        "stack": runs.stack,
        "gains": [
            {
                "algorithm": pair[0],
                "treatment": pair[1],
                "baseline": pair[2],
                "rungs": [
                    {
                        "rung_flops": gain.rung.budget,
                        "ceg": math.exp(gain.read.log_gain) if gain.read else None,
                        "ln_ceg_se": gain.read.se if gain.read and not gain.why else None,
                        "ceg_interval_90": gain.read.interval() if gain.read and not gain.why else None,
                        "over_parts": _excess_document(own_gains.excess(runs, gains, pair, gain.rung.budget)),
                        "over_pairs": _excess_document(
                            own_gains.excess_over_pairs(runs, gains, pair, gain.rung.budget)
                        ),
                        "why": gain.why,
                    }
                    for gain in ladder
                ],
            }
            for pair, ladder in gains.items()
        ],
        "over_bare": [
            {"algorithm": r.algorithm, "rung_flops": r.budget, "ratio": math.exp(r.log), "ln_ratio_se": r.error}
            for r in over_bare(runs, bare)
        ],
        "noise_ln_loss": [
            {"rung_flops": budget, "sd": noise.pooled.sd, "degrees_of_freedom": noise.pooled.freedom}
            for budget, noise in sorted(runs.noise.items())
            if noise.pooled.freedom
        ],
        "learning_rates": [
            {
                "arm": search.arm,
                "rung_flops": search.budget,
                "tried": [[rate, finite(loss)] for rate, loss in search.tried],
                "ladder": finite(search.taken),
                "interior": search.interior,
                "given_away": finite(search.given_away),
            }
            for search in rates(table, runs.stack)
        ],
    }


def _excess_document(excess: own_gains.Excess | None) -> dict[str, object] | None:
    if excess is None:
        return None
    ends = [math.exp(excess.log + sign * NORMAL_90 * excess.error) for sign in (-1, 1)]
    return {"ratio": math.exp(excess.log), "ln_ratio_se": excess.error, "ratio_interval_90": ends}
