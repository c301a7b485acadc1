"""Two arms of a few seeds: tests, gains, what is said and what is withheld."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cegain.comparison import arms, compare, difference, report, worth
from cegain.comparison.arms import Arms
from cegain.comparison.compare import Comparison
from cegain.ladders import one_pair
from cegain.run_tables.run_import import AS_IT_IS, ReadOptions
from cegain.tables.problems import EvidenceError

Row = tuple[str, float, float, float, object]


def table(path: Path, rows: Sequence[Row], more: str = "", cell: str = "") -> Path:
    """variant, N, C, loss, seed."""
    lines = [f"{v},{n:g},{c / 6 / n:.12g},{c:.12g},{loss!r},{seed}{cell}" for v, n, c, loss, seed in rows]
    path.write_text("\n".join([f"variant,N,D,C,loss,seed{more}", *lines, ""]))
    return path


def read(path: Path, how: ReadOptions = AS_IT_IS) -> Arms:
    return arms.of_one(arms.read(path, how), "a", "b")


def answer(path: Path, at_least: float = 1.0, level: float = 0.05, noise: float | None = None) -> Comparison:
    return compare.compare(read(path), at_least, level, noise)


A, B = (2.310013, 2.312034, 2.309027, 2.314081), (2.295061, 2.301043, 2.296019, 2.297094)


def one_budget(path: Path, first: Sequence[float] = A, second: Sequence[float] = B, shift: int = 0) -> Path:
    rows: list[Row] = [("a", 1e8, 1e19, loss, i) for i, loss in enumerate(first)]
    return table(path, [*rows, *(("b", 1e8, 1e19, loss, i + shift) for i, loss in enumerate(second))])


def test_paired_seeds_are_a_paired_t_test(tmp_path: Path) -> None:
    found = answer(one_budget(tmp_path / "x.csv"))
    assert found.budgets[0].difference.test == "paired"
    assert found.p_value == pytest.approx(stats.ttest_rel(np.log(A), np.log(B)).pvalue, rel=1e-3)
    assert found.budgets[0].p_value == pytest.approx(found.p_value)


def test_other_seeds_are_welchs_test(tmp_path: Path) -> None:
    found = answer(one_budget(tmp_path / "x.csv", A, B[:3], shift=7))
    assert found.budgets[0].difference.test == "welch"
    expected = stats.ttest_ind(np.log(A), np.log(B[:3]), equal_var=False).pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-3)


def test_swapped_arms_are_the_opposite(tmp_path: Path) -> None:
    forth = answer(one_budget(tmp_path / "x.csv"))
    back = answer(one_budget(tmp_path / "y.csv", B, A))
    assert (forth.verdict, back.verdict) == ("better", "worse")
    assert forth.p_better == pytest.approx(back.p_worse)
    assert forth.relative == pytest.approx(-back.relative)
    assert forth.gain.median > 1 > back.gain.median


def test_verdict_and_interval_never_contradict_each_other(tmp_path: Path) -> None:
    path = one_budget(tmp_path / "x.csv")
    low, high = answer(path, level=0.1).gain.interval_90
    for factor, verdict in ((low * 0.99, "better"), (low * 1.01, "not shown"), (high * 0.99, "not shown"),
                            (high * 1.01, "worse")):  # fmt: skip
        assert answer(path, factor, 0.1).verdict == verdict


def test_several_budgets_are_stouffers_sum(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for k, c in enumerate((1e19, 1e20, 1e21)):
        for s in range(3):
            rows += [(v, 1e8 * 3**k, c, 2.5 * c**-0.02 * math.exp(g + 0.002 * rng.normal()), s)
                     for v, g in (("a", 0.0), ("b", -0.003))]  # fmt: skip
    found = answer(table(tmp_path / "x.csv", rows))
    z = [stats.norm.isf(stats.ttest_1samp(
        [x - y for x, y in zip(at.pair.baseline.log_loss, at.pair.treatment.log_loss, strict=True)], 0.0,
        alternative="greater").pvalue) for at in found.budgets]  # fmt: skip
    assert found.p_better == pytest.approx(stats.norm.sf(sum(z) / math.sqrt(3)), rel=1e-6)
    assert found.curve is not None
    assert found.curve.source == "frontier"


def exact(path: Path, gain: float, budgets: int, unequal: float = 1.0, gamma: float = 0.05) -> Comparison:
    """Arms whose seeds lie 1e-5 of the loss about a power law; the treatment spends `unequal` as much."""
    rows: list[Row] = []
    for k in range(budgets):
        c = 1e19 * 10 ** (k / 2)
        for s, e in enumerate((-1e-5, 0.0, 1e-5)):
            rows.append(("a", 1e8 * 3**k, c, 2.5 * (c / 1e19) ** -gamma * (1 + e), s))
            rows.append(("b", 1e8 * 3**k, c * unequal, 2.5 * (c * unequal * gain / 1e19) ** -gamma * (1 - e), s + 9))
    return answer(table(path, rows))


@pytest.mark.parametrize("budgets", [2, 3, 6])
@pytest.mark.parametrize("gain", [0.8, 1.1, 3.0])
@pytest.mark.parametrize("unequal", [1.0, 1.04, 2.0])
def test_a_known_gain_is_read_off_the_frontier(tmp_path: Path, budgets: int, gain: float, unequal: float) -> None:
    found = exact(tmp_path / "x.csv", gain, budgets, unequal)
    assert found.gain.median == pytest.approx(gain, rel=0.01)
    assert found.gain.interval_90[0] < gain < found.gain.interval_90[1]
    assert found.verdict == ("better" if gain > 1 else "worse")
    assert any("budgets differ" in note for note in found.notes) == (unequal > 1)
    top = found.budgets[-1]
    more = top.gain.median * top.pair.treatment.flops / top.pair.baseline.flops
    tokens = top.pair.baseline.tokens * more ** (math.log(10**0.5 / 3) / math.log(10**0.5))
    assert report.equals(found, top)["tokens"] == pytest.approx(tokens, rel=1e-3)


def test_one_budget_takes_the_usual_slope_and_counts_noise_once(tmp_path: Path) -> None:
    found = answer(one_budget(tmp_path / "x.csv"))
    assert found.curve is not None
    assert found.curve.source == "prior"
    means = [math.exp(float(np.log(losses).mean())) for losses in (A, B)]
    silent = answer(one_budget(tmp_path / "y.csv", *([m * (1 + 1e-8 * i) for i in range(4)] for m in means)))
    assert silent.gain.median == pytest.approx(found.gain.median, rel=0.01)
    pair = one_pair.speedup(*means, 1e19, seed_noise=0.0)
    assert silent.gain.median == pytest.approx(pair.median, rel=0.01)
    assert silent.gain.interval_90 == pytest.approx(pair.interval, rel=0.03)
    noise = found.budgets[0].difference.se * means[0] / math.sqrt(2)
    pair = one_pair.speedup(*means, 1e19, seed_noise=noise)
    wider = answer(one_budget(tmp_path / "x.csv"), noise=found.budgets[0].difference.se * math.sqrt(2))
    assert wider.gain.interval_90 == pytest.approx(pair.interval, rel=0.03)


def test_budgets_too_far_apart_share_nothing(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 1e8, 1e19, 2.31, 0), ("b", 1e8, 1e20, 2.2, 0)]
    with pytest.raises(EvidenceError, match="budget in common"):
        read(table(tmp_path / "x.csv", rows))


def test_one_seed_has_a_noise_that_is_named(tmp_path: Path) -> None:
    lone = answer(one_budget(tmp_path / "x.csv", A[:1], B[:1]))
    assert lone.budgets[0].difference.test == difference.ASSUMED
    assert any("0.4%" in note and "assumed" in note for note in lone.notes)
    half = answer(one_budget(tmp_path / "x.csv", A[:1], B, shift=9))
    assert half.budgets[0].difference.test == difference.LONE
    assert half.budgets[0].difference.freedom == 3
    stated = answer(one_budget(tmp_path / "x.csv", A[:1], B[:1]), noise=0.0005)
    assert stated.verdict == "better"
    assert stated.budgets[0].difference.test == difference.GIVEN
    assert lone.verdict == "not shown"


def test_one_seed_at_a_budget_takes_the_noise_of_others(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 1e8, 1e19, loss, i) for i, loss in enumerate(A)]
    rows += [("b", 1e8, 1e19, loss, i) for i, loss in enumerate(B)]
    rows += [("a", 3e8, 1e20, 2.11, 0), ("b", 3e8, 1e20, 2.1, 0)]
    found = answer(table(tmp_path / "x.csv", rows))
    assert [at.difference.test for at in found.budgets] == ["paired", "other budgets"]
    assert any("other budgets" in note for note in found.notes)


def test_digits_that_were_cut_off_are_noise(tmp_path: Path) -> None:
    cut = answer(one_budget(tmp_path / "x.csv", (2.31, 2.31, 2.31), (2.3, 2.3, 2.3)))
    assert cut.budgets[0].difference.noise > 0.001
    same = answer(one_budget(tmp_path / "x.csv", A, A))
    assert (same.verdict, same.p_value, same.gain.median) == ("not shown", 1.0, pytest.approx(1.0))


def test_a_seed_that_stands_twice_counts_once(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 1e8, 1e19, loss, seed) for loss, seed in ((2.31, 0), (2.312, 0), (2.309, 1))]
    rows += [("b", 1e8, 1e19, loss, seed) for loss, seed in ((2.29, 0), (2.292, 1))]
    found = answer(table(tmp_path / "x.csv", rows))
    assert found.budgets[0].difference.runs == (2, 2)
    assert any("twice" in note for note in found.notes)


def test_a_run_without_a_partner_is_said(tmp_path: Path) -> None:
    found = answer(one_budget(tmp_path / "x.csv", A, B[:3]))
    assert found.budgets[0].difference.runs == (3, 3)
    assert any("without a partner" in note for note in found.notes)


def test_sizes_at_one_budget_are_compared_with_their_like(tmp_path: Path) -> None:
    rows: list[Row] = []
    for n, lift in ((1e8, 0.03), (2e8, 0.0), (4e8, 0.03)):
        rows += [("a", n, 1e19, loss + lift, i) for i, loss in enumerate(A)]
        if n < 4e8:
            rows += [("b", n * 1.02, 1e19, loss + lift, i) for i, loss in enumerate(B)]
    found = answer(table(tmp_path / "x.csv", rows))
    assert len(found.budgets) == 2
    assert any("size" in note for note in found.notes)


def test_other_yardsticks_are_no_verdict(tmp_path: Path) -> None:
    first = table(tmp_path / "a.csv", [("a", 1e8, 1e19, x, i) for i, x in enumerate(A)], ",corpus", ",web")
    second = table(tmp_path / "b.csv", [("b", 1e8, 1e19, x, i) for i, x in enumerate(B)], ",corpus", ",books")
    sources = [arms.read(path, AS_IT_IS) for path in (first, second)]
    found = compare.compare(arms.of_two(sources[0], sources[1], None, None))
    assert (found.status, found.verdict) == ("unlike_yardsticks", "not shown")
    assert found.p_value < 0.01
    bare = arms.read(table(tmp_path / "c.csv", [("b", 1e8, 1e19, x, i) for i, x in enumerate(B)]), AS_IT_IS)
    found = compare.compare(arms.of_two(sources[0], bare, None, None))
    assert found.verdict == "better"
    assert any("only one arm says its corpus" in note for note in found.notes)


def test_runs_that_may_be_a_sweep_are_no_verdict(tmp_path: Path) -> None:
    rows = [f"a,1e8,1e19,{x}" for x in (2.31, 2.41, 2.33)] + [f"b,1e8,1e19,{x}" for x in (2.01, 2.02, 2.015)]
    path = tmp_path / "x.csv"
    path.write_text("variant,N,C,loss\n" + "\n".join(rows) + "\n")
    assert answer(path).status == "ambiguous_repeats"
    assert answer(path).verdict == "not shown"
    told = arms.of_one(arms.read(path, ReadOptions(repeats="seeds")), "a", "b")
    assert compare.compare(told).verdict == "better"


def test_an_arm_that_was_tuned_more_is_held_back(tmp_path: Path) -> None:
    rows = ["a,1e8,1e19,2.310,1e-3", "a,1e8,1e19,2.350,2e-3"]
    rows += [f"b,1e8,1e19,{x},{lr}" for x, lr in ((2.295, 1e-3), (2.33, 2e-3), (2.34, 3e-3), (2.39, 4e-3))]
    path = tmp_path / "x.csv"
    path.write_text("variant,N,C,loss,lr\n" + "\n".join(rows) + "\n")
    found = answer(path, noise=0.001)
    assert found.arms.favours[0] > 0
    plain = compare.compare(read(path)._replace(favours=(0.0, 0.0)), loss_noise=0.001)
    assert found.p_better > plain.p_better


@pytest.mark.parametrize(("whose", "verdict"), [("b", "not shown"), ("a", "better")])
def test_who_lost_runs_does_not_win_by_it(tmp_path: Path, whose: str, verdict: str) -> None:
    rows = [f"{v},1e8,1e19,{x},{i},finished" for v, of in (("a", A), ("b", B)) for i, x in enumerate(of)]
    rows.append(f"{whose},1e8,1e19,,9,diverged")
    path = tmp_path / "x.csv"
    path.write_text("variant,N,C,loss,seed,state\n" + "\n".join(rows) + "\n")
    found = answer(path)
    assert (found.status, found.verdict) == ("lost_runs", verdict)
    assert found.arms.lost == ((1, 0) if whose == "a" else (0, 1))


def test_more_seeds_are_about_as_many_as_are_needed(tmp_path: Path) -> None:
    path = one_budget(tmp_path / "x.csv", (2.31, 2.315), (2.305, 2.312), shift=5)
    found = answer(path)
    assert found.verdict == "not shown"
    assert found.seeds is not None
    d = found.budgets[0].difference
    rng = np.random.default_rng(0)
    draws = d.value + d.noise * (rng.normal(size=(2, 4000, found.seeds)) * np.array([1, -1])[:, None, None])
    p = stats.ttest_ind(draws[0], draws[1] - d.value, axis=1, equal_var=False).pvalue
    assert 0.7 < (p < 0.05).mean() < 0.9


def test_losses_of_another_unit_have_a_verdict_and_no_gain(tmp_path: Path) -> None:
    path = one_budget(tmp_path / "x.csv", [x / 3 for x in A], [x / 3 for x in B])
    found = answer(path)
    assert found.verdict == "better"
    assert (found.curve, math.isnan(found.gain.median)) == (None, True)
    assert report.document(found)["ceg_median"] is None
    assert "no gain in compute" in report.text(found)
    with pytest.raises(EvidenceError, match="second budget"):
        answer(path, 1.05)


def test_shapes_of_usual_laws_lie_within_what_is_allowed() -> None:
    off = []
    for gamma in (0.08, 0.12, 0.2):
        for share in (0.3, 0.7):
            x = np.arange(9) * math.log(10) / 2
            for n in (2, 3, 5, 9):
                at = x[:n]
                y = np.log(2.5 * share + 2.5 * (1 - share) * np.exp(-gamma * at))
                y2 = np.log(2.5 * share + 2.5 * (1 - share) * np.exp(-gamma * (at + math.log(2))))
                pairs = tuple(
                    arms.Pair(*(arms.Sample(np.array([v, v]), (), 1e19 * math.exp(c), *(math.nan,) * 3) for v in vs))
                    for c, vs in zip(at, zip(y, y2, strict=True), strict=True)
                )
                both = Arms(("a", "b"), pairs, (at + math.log(1e19), y, np.full(n, 9.0)), 0, (0, 0), (), (0, 0), ())
                curve, _ = worth.curve(both, difference.differences(both, 1e-6)[0])
                assert curve is not None
                start = at + math.log(1e19)
                wrong = curve.falls(start, start + math.log(2)) / (y - y2) - 1
                off += (wrong / np.log(curve.scales).std()).tolist()
    assert np.sqrt(np.mean(np.square(off))) < 1.2


def test_budgets_that_contradict_each_other_are_no_verdict(tmp_path: Path) -> None:
    def compared(gains: Sequence[float]) -> Comparison:
        rows: list[Row] = []
        for k, gain in enumerate(gains):
            c = 1e19 * 10 ** (k / 2)
            for s, e in enumerate((-1e-4, 3e-5, 1e-4, 5e-5)):
                rows.append(("a", 1e8 * 3**k, c, 2.5 * (c / 1e19) ** -0.05 * (1 + e), s))
                rows.append(("b", 1e8 * 3**k, c, 2.5 * (c * gain / 1e19) ** -0.05 * (1 - e), s + 9))
        return answer(table(tmp_path / "x.csv", rows))

    crossing = compared((1.3, 1.3, 0.8))
    assert (crossing.status, crossing.verdict) == ("budgets_disagree", "not shown")
    assert crossing.p_value < 0.05
    growing = compared((1.1, 1.3, 1.6))
    assert (growing.status, growing.verdict) == ("ok", "better")
    alike = compared((1.3, 1.3, 1.3))
    said = [any("do not agree" in note for note in found.notes) for found in (crossing, growing, alike)]
    assert said == [True, True, False]
