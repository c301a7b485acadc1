"""Tables of runs as evidence."""

from __future__ import annotations

from pathlib import Path

import pytest

from cegain import estimate
from cegain.gain.evidence import load
from cegain.ladders import synthetic
from cegain.ladders.runs_as_evidence import gains
from cegain.tables.problems import EvidenceError


def table(path: Path, treatment: str = "moe", baseline: str = "dense", truth: str = "constant") -> Path:
    text = synthetic.table(truth, rungs=8, noise=0.0005, seed=1)
    path.write_text(text.replace("\ntreatment", f"\n{treatment}").replace("\nbaseline", f"\n{baseline}"))
    return path


@pytest.mark.parametrize("baseline", ["dense", "baseline"])
def test_the_known_gain_is_read_at_every_budget(tmp_path: Path, baseline: str) -> None:
    rows = gains(table(tmp_path / "mine.csv", baseline=baseline))
    assert len(rows) >= 6
    assert {(r.algorithm, r.baseline, r.study, r.currency) for r in rows} == {("moe", "dense", "mine", "flop")}
    for row in rows:
        assert row.low < 2.0 < row.high
        assert row.ceg == pytest.approx(2.0, rel=0.05)


def test_the_estimate_uses_them(tmp_path: Path) -> None:
    path = table(tmp_path / "mine.csv")
    alone = estimate("moe", 1e19, evidence=path, only_evidence=True)
    assert alone.median == pytest.approx(2.0, rel=0.05)
    beside, without = estimate("moe", 1e19, evidence=path).median, estimate("moe", 1e19).median
    assert beside is not None
    assert without is not None
    assert 2.0 < beside < without


def test_a_folder_may_mix_gains_and_runs(tmp_path: Path) -> None:
    table(tmp_path / "runs.csv", treatment="rope", baseline="learned_positions")
    header = (
        "algorithm,treatment,baseline,study,flops,flops_convention,ceg,low,high,interval,currency,basis,source,note"
    )
    (tmp_path / "gains.csv").write_text(f"{header}\nrope,t,learned_positions,s,1e18,useful,1.5,,,,flop,measured,me,\n")
    rows = load([tmp_path], shipped=False).rows
    assert {row.study for row in rows} == {"runs", "s"}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="Rename the arm"):
        gains(table(tmp_path / "a.csv", treatment="mystery"))
    with pytest.raises(EvidenceError, match="has its baseline, called 'dense' or 'baseline'"):
        gains(table(tmp_path / "b.csv", baseline="control"))
    bad = tmp_path / "c.csv"
    bad.write_text("variant,N,D,C,loss\nmoe,1,1,1,nan\n")
    with pytest.raises(EvidenceError, match="line 2"):
        load([bad])


def test_an_algorithm_that_is_the_baseline_of_another_is_no_treatment(tmp_path: Path) -> None:
    rows = gains(table(tmp_path / "norms.csv", treatment="rmsnorm", baseline="layernorm"))
    assert {row.algorithm for row in rows} == {"rmsnorm"}


def _own(path: Path, arms: dict[str, tuple[str, str, float]]) -> Path:
    """Rows of our own format; arms: variant of the made-up table -> (stack, arm, factor on compute)."""
    made = [line.split(",") for line in synthetic.table("constant", rungs=8, noise=0.0005, seed=1).splitlines()]
    header, rows = made[0], made[1:]
    lines = ["stack,arm,n_params_active,tokens,flops,loss_nats_per_token,status"]
    for variant, (stack, arm, factor) in arms.items():
        for row in rows:
            cell = dict(zip(header, row, strict=True))
            if cell["variant"] == variant.split()[0]:
                lines.append(
                    f"{stack},{arm},{cell['N']},{cell['D']},{factor * float(cell['C'])},{cell['loss']},finished"
                )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_stacks_are_kept_apart(tmp_path: Path) -> None:
    rows = gains(
        _own(
            tmp_path / "training_runs.csv",
            {
                "baseline": ("bare", "baseline", 1.0),
                "treatment": ("bare", "rope", 1.0),
                "treatment again": ("modern", "baseline", 1.0),
                "baseline again": ("modern", "no_rope", 1.5),
                "baseline twice": ("modern", "lstm", 3.0),
            },
        )
    )
    found: dict[tuple[str, str, str], list[float]] = {}
    for r in rows:
        against, unread = r.note.removeprefix("read off ladders against ").split("; ")
        assert unread.startswith("1 of 8 budgets not read")  # the top one: its loss is below the baseline's ladder
        found.setdefault((r.algorithm, r.treatment, against), []).append(r.ceg)
    medians = {key: sorted(values)[len(values) // 2] for key, values in found.items()}
    assert medians == {
        ("rope", "rope", "baseline on the bare stack"): pytest.approx(2.0, rel=0.05),
        ("rope", "rope", "no_rope on the modern stack"): pytest.approx(3.0, rel=0.05),
        ("transformer", "transformer", "lstm on the modern stack"): pytest.approx(6.0, rel=0.05),
    }
