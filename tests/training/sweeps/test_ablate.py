import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cegain.commands.ceg import ceg
from cegain.shapes import architecture
from cegain.tables import training_runs
from cegain.tables.training_runs import TrainingRun
from cegain.training.run import config, repeat
from cegain.training.sweeps import ablate, pool, sweep
from cegain.training.sweeps.ablate import Job, Ladders
from cegain.training.text import data
from cegain.training.text.data import Corpus

OPTIONS = {"sizes": {"seq_len": 32}, "eval_tokens": 2048}


def ladders(corpus: Corpus, **given: Any) -> Ladders:
    """Two arms on two rungs of a second or less each."""
    settings: dict[str, Any] = {
        "stack": "bare", "arms": ("baseline", "rope"), "rungs": (1e8, 3e8), "seeds": (2, 1),
        "options": tuple(OPTIONS.items()),
    }  # fmt: skip
    return Ladders(corpus=corpus, **{**settings, **given})


def ended(job: Job, loss: float, role: str | None = None) -> TrainingRun:
    """The row of a job, as if it had been trained to this loss; it diverged where that is infinite."""
    made, finished = job.config, math.isfinite(loss)
    return TrainingRun(
        run_id=made.run_id, stack=made.stack, algorithm=made.arm, arm=made.arm, seed=made.seed,
        rung_flops=made.rung_flops, n_params_active=1, n_params_total=1, tokens=made.tokens, seq_len=32, vocab=256,
        flops=made.flops, status="finished" if finished else "diverged",
        loss_nats_per_token=loss if finished else math.nan, loss_bits_per_byte=loss if finished else math.nan,
        learning_rate=made.learning_rate, wall_s=1.0, device="cpu", tokens_per_s=1.0, corpus="tiny@0", tokenizer="byte",
        torch="0", commit="0", date="2026-01-01", role=role or job.role, command="ceg train",
    )  # fmt: skip


def train_all(made: Ladders, loss: Callable[[Job], float]) -> dict[str, TrainingRun]:
    """The ledger of a sweep whose losses are given; it ends when nothing is due."""
    ledger: dict[str, TrainingRun] = {}
    for _ in range(1000):
        ledger |= {row.run_id: row for row in made.promoted(ledger)}
        due = made.due(ledger)
        if not due:
            return ledger
        ledger[due[0].config.run_id] = ended(due[0], loss(due[0]))
    raise AssertionError("the sweep does not end")


def parabola(corpus: Corpus, best: float) -> Callable[[Job], float]:
    """Loss by the learning rate over the default there: lowest, 2 nats, at `best`."""
    plain = ladders(corpus)

    def loss(job: Job) -> float:
        default = plain.configuration(job.config.arm, job.config.rung_flops).learning_rate
        return 2 + 0.1 * math.log2(job.config.learning_rate / default / best) ** 2

    return loss


@pytest.mark.parametrize("best", [0.05, 0.4, 1.0, 1.3, 3.0, 20.0])
def test_the_learning_rate_is_where_the_parabola_is_lowest(tiny_corpus: Corpus, best: float) -> None:
    made = ladders(tiny_corpus)
    ledger = train_all(made, parabola(tiny_corpus, best))
    for arm, rate in made.rates(ledger).items():
        assert rate.factor == pytest.approx(best, rel=0.01)
        assert min(rate.tried)[0] < best < max(rate.tried)[0]
        carried = made.carried(arm, rate.factor, ledger)
        assert carried is not None
        assert carried[0] == pytest.approx(1.0, rel=0.01)
        assert carried[1] == pytest.approx(0.0, abs=1e-4)
    ladder = [row for row in ledger.values() if row.role == "ladder"]
    assert Counter((row.arm, row.rung_flops) for row in ladder) == {
        (arm, rung): n for arm in ("baseline", "rope") for rung, n in ((1e8, 2), (3e8, 1))
    }
    for row in ladder:
        default = made.configuration(row.arm, row.rung_flops).learning_rate
        assert row.learning_rate / default == pytest.approx(best, rel=0.01)


def test_rates_that_are_not_checked_are_those_of_the_lowest_rung(tiny_corpus: Corpus) -> None:
    made = ladders(tiny_corpus, check_rates=False)
    ledger = train_all(made, parabola(tiny_corpus, 1.3))
    assert {row.rung_flops for row in ledger.values() if row.role == "learning_rate"} == {1e8}
    checked = train_all(ladders(tiny_corpus), parabola(tiny_corpus, 1.3))
    runs = [{key for key, row in one.items() if row.role == "ladder"} for one in (ledger, checked)]
    assert runs[0] == runs[1]


def test_a_rule_that_does_not_carry_is_told(tiny_corpus: Corpus) -> None:
    made = ladders(tiny_corpus)
    at_bottom, at_top = parabola(tiny_corpus, 1.0), parabola(tiny_corpus, 1.3)
    ledger = train_all(made, lambda job: (at_top if job.config.rung_flops == 3e8 else at_bottom)(job))
    off, lost = made.carried("rope", 1.0, ledger) or (0, 0)
    assert off == pytest.approx(1.3, rel=0.02)
    assert lost == pytest.approx(0.05 * math.log2(1.3) ** 2, rel=0.05)
    far = parabola(tiny_corpus, 4.0)
    ledger = train_all(made, lambda job: (far if job.config.rung_flops == 3e8 else at_bottom)(job))
    assert math.isnan((made.carried("rope", 1.0, ledger) or (0, 0))[0])


def test_a_run_that_diverged_is_the_end_of_the_grid(tiny_corpus: Corpus) -> None:
    made, smooth = ladders(tiny_corpus), parabola(tiny_corpus, 4.0)
    default = made.configuration("rope", 1e8).learning_rate

    def loss(job: Job) -> float:
        return math.inf if job.config.learning_rate > 1.5 * default else smooth(job)

    rate = made.rates(train_all(made, loss))["rope"]
    assert rate.factor == 1.0  # the last that did not; the parabola has no third point
    assert rate.tried[-1] == (2.0, math.inf)


def test_a_grid_that_diverges_goes_down_until_it_does_not(tiny_corpus: Corpus) -> None:
    made, smooth = ladders(tiny_corpus), parabola(tiny_corpus, 1 / 16)
    default = made.configuration("rope", 1e8).learning_rate
    ledger = train_all(made, lambda job: math.inf if job.config.learning_rate > 0.2 * default else smooth(job))
    assert made.rates(ledger)["rope"].factor == pytest.approx(1 / 16, rel=0.01)


def test_an_arm_without_an_optimum_is_left_out_and_the_others_go_on(tiny_corpus: Corpus) -> None:
    made, smooth = ladders(tiny_corpus), parabola(tiny_corpus, 1.0)
    ledger = train_all(made, lambda job: math.inf if job.config.arm == "rope" else smooth(job))
    rates = made.rates(ledger)
    assert rates["rope"].factor is None
    assert "rope at 1e+08 FLOP: no learning rate from" in rates["rope"].wrong
    # Nothing higher was tried, and every lower one: what diverges asks for less.
    assert [factor for factor, _ in rates["rope"].tried] == [2.0**k for k in range(-ablate.FARTHEST, 2)]
    assert {row.arm for row in ledger.values() if row.role == "ladder"} == {"baseline"}


def test_every_run_is_wanted_once_and_one_of_the_search_may_stand_in_the_ladder(tiny_corpus: Corpus) -> None:
    made = ladders(tiny_corpus, further=(("baseline", 1e9),))
    ledger = train_all(made, parabola(tiny_corpus, 1.0))
    grid = {job.config.run_id for job in made.due({})}
    assert len(grid) == 6
    promoted = [row for row in ledger.values() if row.run_id in grid and row.role == "ladder"]
    assert {row.arm for row in promoted} == {"baseline", "rope"}
    assert all(row.learning_rate == made.configuration(row.arm, 1e8).learning_rate for row in promoted)
    # 3 of the search and 2 of the check per arm, 3 in the ladder (one of them from the search); beyond 1 and its check
    assert sorted(row.role for row in ledger.values() if row.rung_flops == 1e9) == ["ladder", *["learning_rate"] * 2]
    assert len(ledger) == 2 * (3 + 2 + 3 - 1) + 3
    assert not made.ahead(ledger)


def test_a_larger_model_sees_fewer_tokens_at_the_same_flop(tiny_corpus: Corpus) -> None:
    rule, twice = (ladders(tiny_corpus, model_size=size).configuration("rope", 1e12) for size in (1.0, 2.0))
    sizes = [architecture.parameters(made.shape).total for made in (rule, twice)]
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.3)
    assert twice.tokens / rule.tokens == pytest.approx(sizes[0] / sizes[1], rel=0.15)
    assert twice.flops == pytest.approx(rule.flops, rel=0.01)
    assert ladders(tiny_corpus, model_size=0.99).problems() == [
        "model_size must lead to another shape, got 0.99: the nearest at 1e+08 FLOP is the rule's (2 layers, 32 wide); "
        "give one farther from 1, or another budget",
        "model_size must lead to another shape, got 0.99: the nearest at 3e+08 FLOP is the rule's (2 layers, 32 wide); "
        "give one farther from 1, or another budget",
    ]


def test_runs_of_another_ladder_are_refused(tiny_corpus: Corpus) -> None:
    made = ladders(tiny_corpus)
    text = data.label(tiny_corpus.name, tiny_corpus.sha256)
    shapes = {place: architecture.parameters(made.configuration(*place).shape).total for place in made.cells()}
    ledger = {
        run_id: row._replace(corpus=text, n_params_total=shapes[row.arm, row.rung_flops])
        for run_id, row in train_all(made, parabola(tiny_corpus, 1.3)).items()
    }
    assert made.strangers(ledger) == []
    for more in (
        {"further": (("baseline", 1e9),)}, {"arms": ("baseline", "rope", "swiglu")}, {"seeds": (3, 2)},
        {"stack": "modern", "arms": ("baseline",)},
    ):  # fmt: skip
        assert ladders(tiny_corpus, **more).strangers(ledger) == []
    assert made.strangers({}) == []

    def refused(**options: Any) -> str:
        (said,) = ladders(tiny_corpus, **options).strangers(ledger)
        return said

    assert "parameters, not" in refused(model_size=3.0)
    # Elsewhere in the ladder, or another arm at the same rung: the same curve would be read off two sizes.
    assert "parameters, not" in refused(model_size=3.0, arms=("baseline",), rungs=(1e12,))
    assert "parameters, not" in refused(model_size=3.0, arms=("swiglu",))
    assert "has sequences of 32 tokens, not 64" in refused(options=(("sizes", {"seq_len": 64}),))
    for other in (
        {"find_rates": False}, {"rungs": (3e7, 1e8, 3e8)},
        {"options": (*OPTIONS.items(), ("precision", "bfloat16"))},
        {"options": tuple({**OPTIONS, "eval_tokens": 1024}.items())},
    ):  # fmt: skip
        assert "these options would train bare-" in refused(**other)
    elsewhere = {run_id: row._replace(corpus="library@1", tokenizer="bpe") for run_id, row in ledger.items()}
    (said,) = made.strangers(elsewhere)
    assert "was trained on library@1, tokenizer bpe" in said


def test_default_learning_rates_need_no_search(tiny_corpus: Corpus) -> None:
    made = ladders(tiny_corpus, find_rates=False)
    ledger = train_all(made, lambda job: 2.0)
    assert len(ledger) == 6
    assert {row.role for row in ledger.values()} == {"ladder"}


def test_half_decades() -> None:
    assert ablate.half_decades(3e11, 3e12) == [3e11, 1e12, 3e12]
    assert ablate.half_decades(1e12, 1e13) == [1e12, 3e12, 1e13]
    assert ablate.half_decades(2e12, 2e13) == [2e12, 6.32e12, 2e13]
    assert ablate.half_decades(1e12, 1e12) == [1e12]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"arm": "layernorm+rope", "flops": 3e9, "seed": 3, "learning_rate": 0.00123},
        {"arm": "moe", "stack": "modern", "learning_rate": 1 / 3, "precision": "bfloat16", "compile": True},
        {"sizes": {"seq_len": 32}, "batch": 2, "steps": 7, "schedule": "cosine", "eval_tokens": 2048},
        {"sizes": {"n_layers": 1, "d_model": 32, "n_heads": 2}, "warmup_steps": 9, "dropout": 0.1, "weight_decay": 0.0},
        {"flops": None, "sizes": {"n_layers": 2, "d_model": 16, "n_heads": 2, "seq_len": 32}, "batch": 4, "steps": 30},
        {"log_every": 1, "eval_every": 3, "final_learning_rate": 1e-5, "micro_batch": 1, "backend": "reference"},
    ],
)
def test_the_command_of_a_run_repeats_it(tiny_corpus: Corpus, options: dict[str, Any]) -> None:
    made = config.resolve(tiny_corpus, **{"stack": "bare", "arm": "baseline", "flops": 1e9, **options})
    said = repeat.command(made, threads=1).replace("--corpus tiny", f"--corpus {tiny_corpus.folder}")
    program, name, *arguments = said.split()
    assert (program, name) == ("ceg", "train")
    found = CliRunner().invoke(ceg, [name, *arguments, "--dry-run"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["run_id"] == made.run_id


def test_a_configuration_that_no_command_gives_is_refused(tiny_corpus: Corpus) -> None:
    import dataclasses

    made = config.resolve(tiny_corpus, stack="bare", arm="baseline", flops=1e9)
    with pytest.raises(ValueError, match="has fields set by hand"):
        repeat.command(dataclasses.replace(made, decay_steps=made.decay_steps + 1))


# Sweeps that train


def ablation(corpus: Corpus, folder: Path) -> list[str]:
    """A command line with 2 arms, 2 rungs, 2 seeds and no search."""
    return [
        "ablate", "--arms", "baseline,rope", "--rungs", "3e8,1e9", "--seeds", "2", "--learning-rates", "default",
        "--corpus", str(corpus.folder), "--seq-len", "32", "--eval-tokens", "2048", "--device", "cpu", "--jobs", "2",
        "--runs", str(folder / "runs"), "--out", str(folder / "training_runs.csv"),
    ]  # fmt: skip


def losses(folder: Path) -> dict[str, float]:
    rows = training_runs.load(folder / "training_runs.csv")
    assert len({row.run_id for row in rows}) == len(rows)
    return {row.run_id: row.loss_nats_per_token for row in rows}


@pytest.fixture(scope="module")
def undisturbed(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    found = CliRunner().invoke(ceg, ablation(tiny_corpus, folder))
    assert found.exit_code == 0, found.output
    return folder


def test_a_sweep_ends_with_every_run_once_and_is_not_repeated(tiny_corpus: Corpus, undisturbed: Path) -> None:
    rows = training_runs.load(undisturbed / "training_runs.csv")
    assert Counter((row.arm, row.rung_flops) for row in rows) == {
        (arm, rung): 2 for arm in ("baseline", "rope") for rung in (3e8, 1e9)
    }
    assert all(row.status == "finished" and row.command.startswith("ceg train --stack bare") for row in rows)
    before = (undisturbed / "training_runs.csv").read_bytes()
    found = CliRunner().invoke(ceg, ablation(tiny_corpus, undisturbed))
    assert found.exit_code == 0, found.output
    assert "0 runs added" in found.output
    assert (undisturbed / "training_runs.csv").read_bytes() == before


def test_a_row_can_be_repeated_to_the_bit(tiny_corpus: Corpus, undisturbed: Path, tmp_path: Path) -> None:
    row = training_runs.load(undisturbed / "training_runs.csv")[-1]
    arguments = row.command.replace("--corpus tiny", f"--corpus {tiny_corpus.folder}").split()[1:]
    subprocess.run(
        [sys.executable, "-c", "from cegain.commands.ceg import ceg; ceg()", *arguments, "--runs", str(tmp_path)],
        check=True,
    )
    summary = json.loads((tmp_path / row.run_id / "summary.json").read_text())
    assert summary["loss_nats_per_token"] == row.loss_nats_per_token


@pytest.mark.slow
def test_a_run_that_fails_is_recorded_and_the_rest_goes_on(
    tiny_corpus: Corpus, undisturbed: Path, tmp_path: Path
) -> None:
    run_ids = sorted(losses(undisturbed))
    broken = tmp_path / "runs" / run_ids[0]
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    found = CliRunner().invoke(ceg, ablation(tiny_corpus, tmp_path))
    assert found.exit_code == 1, found.output
    assert f"failed: {run_ids[0]}: {broken / 'config.json'} must be JSON" in found.stderr
    assert sorted(losses(tmp_path)) == run_ids[1:]
    (line,) = map(json.loads, (tmp_path / "runs" / sweep.FAILURES).read_text().splitlines())
    assert line["run_id"] == run_ids[0]
    (broken / "config.json").unlink()
    assert CliRunner().invoke(ceg, ablation(tiny_corpus, tmp_path)).exit_code == 0
    assert losses(tmp_path) == losses(undisturbed)


@pytest.mark.slow
def test_a_worker_that_dies_takes_no_other_run_with_it(tiny_corpus: Corpus, tmp_path: Path) -> None:
    import multiprocessing

    made = ladders(tiny_corpus, find_rates=False, seeds=(1,))
    engine = pool.LocalPool(2, tiny_corpus.folder, tmp_path / "runs")
    killed: list[int] = []
    others = {child.pid for child in multiprocessing.active_children()}

    def report(progress: sweep.Progress) -> None:
        children = [child for child in multiprocessing.active_children() if child.pid not in others]
        if not killed and children:
            killed.append(int(children[0].pid or 0))
            os.kill(killed[0], signal.SIGKILL)

    outcome = sweep.run(made, tmp_path / "runs.csv", tmp_path / "runs", engine, lambda job: 1.0, report)
    assert killed
    (failure,) = outcome.failed
    assert "killed" in failure[1]
    assert outcome.added == 3
    again = sweep.run(
        made, tmp_path / "runs.csv", tmp_path / "runs", pool.LocalPool(2, tiny_corpus.folder, tmp_path / "runs"),
        lambda job: 1.0,
    )  # fmt: skip
    assert (again.added, again.failed) == (1, ())


@pytest.mark.slow
def test_a_worker_that_dies_with_nothing_to_do_is_replaced(tiny_corpus: Corpus, tmp_path: Path) -> None:
    import multiprocessing

    first, second = ladders(tiny_corpus, find_rates=False, rungs=(1e8,), seeds=(1,)).due({})
    before = {child.pid for child in multiprocessing.active_children()}
    engine = pool.LocalPool(1, tiny_corpus.folder, tmp_path / "runs")
    assert engine.submit(first).result().status == "finished"
    (worker,) = (child for child in multiprocessing.active_children() if child.pid not in before)
    os.kill(int(worker.pid or 0), signal.SIGKILL)
    worker.join()
    time.sleep(1)  # until its pool has seen it
    assert engine.submit(second).result().status == "finished"
    engine.close()


def test_two_sweeps_in_one_folder_are_refused(tiny_corpus: Corpus, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "runs").mkdir()
    with (tmp_path / "runs" / ".sweep.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = CliRunner().invoke(ceg, ablation(tiny_corpus, tmp_path))
    assert found.exit_code == 2
    assert "one sweep at a time" in found.output


@pytest.mark.slow
def test_killed_at_random_moments_a_sweep_ends_with_every_run_once(
    tiny_corpus: Corpus, undisturbed: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from cegain.commands.ceg import ceg; ceg()", *ablation(tiny_corpus, tmp_path)]
    kills, draw, done = 5, random.Random(0), 0

    def written() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "runs").glob("*/*"))

    for _ in range(20 * kills):
        before = written()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Starting takes a few seconds; the kill falls between the first work done after it and the end.
        while process.poll() is None and written() == before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.6))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        done += 1
        if done == kills:
            break
    assert done == kills, "the sweep ended before it could be killed"
    subprocess.run(command, check=True)
    assert losses(tmp_path) == losses(undisturbed)
    for row in training_runs.load(tmp_path / "training_runs.csv"):
        steps = [json.loads(line)["step"] for line in (tmp_path / "runs" / row.run_id / "metrics.jsonl").open()]
        assert steps == sorted(set(steps))


def test_a_plan_counts_runs_flop_time_and_disk(tiny_corpus: Corpus, tmp_path: Path) -> None:
    found = CliRunner().invoke(ceg, [*ablation(tiny_corpus, tmp_path), "--dry-run", "--json"])
    assert found.exit_code == 0, found.output
    plan = json.loads(found.stdout)
    assert [(group["rung_flops"], group["runs"]) for group in plan["groups"]] == [(3e8, 4), (1e9, 4)]
    assert plan["total"]["flops"] == pytest.approx(4 * 3e8 + 4 * 1e9, rel=0.01)
    assert plan["total"]["seconds"] > 0
    assert not (tmp_path / "training_runs.csv").exists()
    assert not (tmp_path / "runs").exists()


def test_the_plan_after_a_sweep_is_empty(tiny_corpus: Corpus, undisturbed: Path) -> None:
    found = CliRunner().invoke(ceg, [*ablation(tiny_corpus, undisturbed), "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "0 runs, 0 FLOP" in found.output


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        ceg,
        ["ablate", "--stack", "tall", "--rungs", "1e13:1e12", "--seeds", "0", "--jobs", "x", "--further", "baseline",
         "--out", "runs.txt", "--device", "tpu"],
    )  # fmt: skip
    assert found.exit_code == 2
    for option in ("--stack", "--rungs", "--seeds", "--jobs", "--further", "--out", "--device"):
        assert f"{option}: " in found.output


def test_unknown_arms_are_said_at_once(tiny_corpus: Corpus, tmp_path: Path) -> None:
    arguments = ablation(tiny_corpus, tmp_path)
    arguments[arguments.index("--arms") + 1] = "baseline,roep,mqq"
    found = CliRunner().invoke(ceg, arguments)
    assert found.exit_code == 2
    assert "did you mean rope?" in found.output
    assert "'mqq'" in found.output
