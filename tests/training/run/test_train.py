"""The training loop: what is learnt, what is repeated exactly, what survives a kill, what is refused."""

import contextlib
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from cegain.shapes import arms
from cegain.training.commands.train import train_command
from cegain.training.models import model
from cegain.training.run import train
from cegain.training.run.processes import Processes
from cegain.training.run.run_dir import RunDir, RunError
from cegain.training.text.data import Batches, Corpus, open_corpus
from cegain.training.text.prepare import prepare
from tests.training.conftest import made_up
from tests.training.small_runs import ONE, run, small, without_clock


def test_a_run_learns_and_leaves_its_folder(tiny_corpus: Corpus, tmp_path: Path) -> None:
    made = small(tiny_corpus, steps=150, learning_rate=1e-2)
    found = run(made, tiny_corpus, tmp_path)
    assert {path.name for path in found.path.iterdir()} == {
        ".lock", "config.json", "environment.json", "metrics.jsonl", "summary.json", "loss.png", "checkpoints",
    }  # fmt: skip
    summary, metrics = found.read("summary"), found.metrics()
    assert summary is not None
    assert summary["status"] == "finished"
    assert metrics[0]["loss"] == pytest.approx(math.log(256), rel=0.1)
    assert summary["loss_nats_per_token"] < tiny_corpus.unigram_entropy - 0.3
    expected = summary["loss_nats_per_token"] / math.log(2) / tiny_corpus.bytes_per_token
    assert summary["loss_bits_per_byte"] == pytest.approx(expected)
    assert summary["flops"] == made.flops == metrics[-1]["flops"]
    assert summary["tokens"] == 150 * 4 * 32 == metrics[-1]["tokens"]
    assert sum("validation_loss" in line for line in metrics) == 3
    assert all(line["mfu"] > 0 and line["tokens_per_s"] > 0 for line in metrics)


def test_what_a_run_was_asked_is_on_disk_before_its_first_step(
    tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small(tiny_corpus)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "accumulate", stop)
    with pytest.raises(KeyboardInterrupt):
        run(made, tiny_corpus, tmp_path)
    folder = RunDir(tmp_path / made.run_id)
    config, environment = folder.read("config"), folder.read("environment")
    assert config is not None
    assert environment is not None
    assert config["corpus_sha256"] == tiny_corpus.sha256
    assert config["shape"]["d_model"] == 16
    assert environment["torch"] == torch.__version__
    assert environment["gemm_flops_per_s"] > 1e8


def test_one_seed_is_one_run_and_another_is_another(tiny_corpus: Corpus, tmp_path: Path) -> None:
    made = small(tiny_corpus, dropout=0.1)
    first, second = (run(made, tiny_corpus, tmp_path / name) for name in "ab")
    assert without_clock(first) == without_clock(second)
    other = run(small(tiny_corpus, dropout=0.1, seed=1), tiny_corpus, tmp_path)
    assert other.metrics()[0]["loss"] != first.metrics()[0]["loss"]


def test_a_finished_run_is_not_repeated(tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small(tiny_corpus, steps=3)
    found = run(made, tiny_corpus, tmp_path)
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("trained again"))
    assert train.train(made, tiny_corpus, found, ONE) == found.read("summary")


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("harm", ["", "truncate", "flip"])
def test_a_run_goes_on_where_its_newest_sound_checkpoint_was(tiny_corpus: Corpus, tmp_path: Path, harm: str) -> None:
    made = small(tiny_corpus, dropout=0.1, arm="muon+moe")
    whole = run(made, tiny_corpus, tmp_path / "whole")
    seen: list[int] = []

    def kill_at(step: int) -> Any:
        def report(progress: train.Progress) -> None:
            seen.append(progress.step)
            if progress.step == step:
                raise _KilledError

        return report

    folder = tmp_path / "killed"
    for step in (7, 8, 19):
        with pytest.raises(_KilledError):
            run(made, tiny_corpus, folder, checkpoint_seconds=0.0, report=kill_at(step))
    killed = RunDir(folder / made.run_id)
    assert seen == [*range(1, 8), *range(7, 9), *range(8, 20)]  # each time from the checkpoint before
    if harm:
        newest = killed.checkpoints()[0]
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 255
        newest.write_bytes(content if harm == "flip" else content[:-100])
    with pytest.warns(UserWarning, match="truncated or changed") if harm else contextlib.nullcontext():
        run(made, tiny_corpus, folder, report=kill_at(-1))
    assert seen[21] == (18 if harm else 19)
    assert without_clock(killed) == without_clock(whole)


def _command(corpus: Corpus, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "cegain.training", "--corpus", str(corpus.folder), "--runs", str(folder),
        "--layers", "2", "--width", "16", "--heads", "2", "--seq-len", "32", "--batch", "4", "--eval-tokens", "2048",
        *more,
    ]  # fmt: skip


def _killed_and_resumed(corpus: Corpus, folder: Path, kills: int, seed: int, *more: str) -> RunDir:
    """Give the command again and again, killing it a random time after its first step."""
    draw = random.Random(seed)
    command = _command(corpus, folder, "--checkpoint-seconds", "0.05", *more)
    left = kills
    while left:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        (before,) = [sum(1 for _ in p.open()) for p in folder.glob("*/metrics.jsonl")] or [0]
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            (lines,) = [sum(1 for _ in p.open()) for p in folder.glob("*/metrics.jsonl")] or [0]
            if lines > before:
                break
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.6))
        assert process.poll() is None, f"ended before it was killed: {process.communicate()}"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        left -= 1
    subprocess.run(command, check=True, capture_output=True, text=True)
    return RunDir(next(folder.glob("*")))


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "steps"), [pytest.param(1, 500, id="one"), pytest.param(10, 6000, id="ten")])
def test_killed_at_random_moments_a_run_is_the_uninterrupted_one(
    tiny_corpus: Corpus, tmp_path: Path, kills: int, steps: int
) -> None:
    killed = _killed_and_resumed(tiny_corpus, tmp_path / "killed", kills, 0, "--steps", str(steps))
    command = _command(tiny_corpus, tmp_path / "whole", "--steps", str(steps))
    assert CliRunner().invoke(train_command, command[3:]).exit_code == 0
    whole = RunDir(next((tmp_path / "whole").glob("*")))
    assert without_clock(killed) == without_clock(whole)
    steps_seen = [line["step"] for line in killed.metrics()]
    assert steps_seen == sorted(set(steps_seen))


@pytest.mark.parametrize("stack", ["bare", pytest.param("modern", marks=pytest.mark.slow)])
def test_every_arm_trains_to_a_finite_loss(tiny_corpus: Corpus, tmp_path: Path, stack: Any) -> None:
    for arm in arms.arms(stack):
        made = small(tiny_corpus, stack=stack, arm=arm, steps=4, sizes={
            "n_layers": 1, "d_model": 32, "n_heads": 4, "seq_len": 32,
        })  # fmt: skip
        summary = run(made, tiny_corpus, tmp_path).read("summary")
        assert summary is not None
        assert summary["status"] == "finished", arm
        assert math.isfinite(summary["loss_nats_per_token"]), arm


def test_a_run_that_diverges_says_so_and_keeps_its_record(tiny_corpus: Corpus, tmp_path: Path) -> None:
    made = small(tiny_corpus, learning_rate=1e4, warmup_steps=1)
    found = run(made, tiny_corpus, tmp_path)
    summary, metrics = found.read("summary"), found.metrics()
    assert summary is not None
    assert summary["status"] == "diverged"
    assert summary["loss_nats_per_token"] is None
    assert metrics[-1]["step"] == summary["steps"] < 30
    assert json.loads(found.metrics_path.read_text().splitlines()[-1])  # no NaN, which JSON lacks


@pytest.mark.parametrize("arm", ["baseline", "moe+rope"])
def test_micro_batches_are_one_batch(tiny_corpus: Corpus, arm: str) -> None:
    made = small(tiny_corpus, arm=arm, precision="float64")
    gradients = []
    for micro in (4, 2, 1):
        lm = model.build(made.shape, seed=0).double()
        # A mixture's balance loss is over a micro-batch, so without it.
        objective = train.Objective(lm, None)
        batches = Batches(tiny_corpus, "train", made.shape.seq_len, 0)
        nats = train.accumulate(objective, batches, dataclasses.replace(made, micro_batch=micro), 3, ONE)
        gradients.append((nats, [p.grad for n, p in lm.named_parameters() if "router" not in n or arm == "baseline"]))
    if arm == "baseline":
        torch.testing.assert_close(gradients[1:], [gradients[0]] * 2, rtol=1e-10, atol=1e-12)
    else:
        assert [float(nats) for nats, _ in gradients] == pytest.approx([float(gradients[0][0])] * 3, rel=1e-12)


def _one_of_two(rank: int, folder: str, corpus: str, arm: str, precision: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(
        _gradients(open_corpus(corpus), arm, precision, Processes(rank, 2, torch.device("cpu"))), f"{folder}/{rank}"
    )
    distributed.destroy_process_group()


def _gradients(corpus: Corpus, arm: str, precision: Any, processes: Processes) -> dict[str, torch.Tensor]:
    made = small(corpus, arm=arm, precision=precision, processes=processes.world)
    lm = model.build(made.shape, seed=0).to(getattr(torch, precision))
    objective = train.Objective(lm, None)
    trained = DistributedDataParallel(objective) if processes.world > 1 else objective
    train.accumulate(trained, Batches(corpus, "train", made.shape.seq_len, 0), made, 0, processes)
    return {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("arm", "precision", "bound"),
    [
        ("baseline", "float64", 1e-10),
        pytest.param("moe", "float64", 1e-10, marks=pytest.mark.slow),
        pytest.param("baseline", "float32", 1e-5, marks=pytest.mark.slow),
        pytest.param("moe", "float32", 1e-5, marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_gradients_of_one(
    tiny_corpus: Corpus, tmp_path: Path, arm: str, precision: str, bound: float
) -> None:
    multiprocessing.spawn(_one_of_two, (str(tmp_path), str(tiny_corpus.folder), arm, precision), nprocs=2)
    one = _gradients(tiny_corpus, arm, precision, ONE)
    for rank in range(2):
        found = torch.load(tmp_path / str(rank), weights_only=True)
        assert found.keys() == one.keys()
        for name, gradient in one.items():
            assert (found[name] - gradient).norm() <= bound * gradient.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["layernorm", "moe"])
def test_twenty_steps_of_torchrun_are_those_of_one_process(tiny_corpus: Corpus, tmp_path: Path, arm: str) -> None:
    options = ("--arm", arm, "--steps", "20", "--precision", "float32")
    losses = []
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2"])):
        command = _command(tiny_corpus, tmp_path / name, *options)
        subprocess.run([sys.executable, *launcher, *command[1:]], check=True, capture_output=True, text=True)
        found = RunDir(next((tmp_path / name).glob("*")))
        summary = found.read("summary")
        assert summary is not None
        losses.append((found.metrics()[-1]["loss"], summary["loss_nats_per_token"]))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_corpus_that_changed_under_a_run_is_refused(tiny_corpus: Corpus, tmp_path: Path) -> None:
    made = small(tiny_corpus, steps=3)
    found = run(made, tiny_corpus, tmp_path)
    before = found.read("summary")
    other = dataclasses.replace(tiny_corpus, sha256="0" * 64, vocab_size=4096)
    with pytest.raises(RunError, match=r"tiny has changed .* vocabulary had 256 entries, now 4096.*Restore the corpus"):
        train.train(made, other, found, ONE)
    assert found.read("summary") == before


def test_a_configuration_that_was_edited_is_refused(tiny_corpus: Corpus, tmp_path: Path) -> None:
    made = small(tiny_corpus, steps=3)
    found = run(made, tiny_corpus, tmp_path)
    document = found.read("config")
    assert document is not None
    found.write("config", {**document, "seed": 7})
    with pytest.raises(RunError, match=r"config.json' differs in seed|differs in seed"):
        train.train(made, tiny_corpus, found, ONE)


def test_validation_depends_on_neither_batch_nor_interval(tiny_corpus: Corpus, tmp_path: Path) -> None:
    first = run(small(tiny_corpus, learning_rate=1e-9), tiny_corpus, tmp_path)
    second = run(small(tiny_corpus, learning_rate=1e-9, batch=2, eval_every=3), tiny_corpus, tmp_path)
    one, two = (found.read("summary") for found in (first, second))
    assert one is not None
    assert two is not None
    assert one["loss_nats_per_token"] == pytest.approx(two["loss_nats_per_token"], rel=1e-6)
    assert sum("validation_loss" in line for line in second.metrics()) == 9


def test_a_checkpoint_of_another_run_is_refused(tiny_corpus: Corpus, tmp_path: Path) -> None:
    other, made = small(tiny_corpus, seed=1), small(tiny_corpus)
    run(other, tiny_corpus, tmp_path, checkpoint_seconds=0.0)
    (tmp_path / other.run_id / "summary.json").rename(tmp_path / "summary.json")
    (tmp_path / other.run_id).rename(tmp_path / made.run_id)
    config = json.loads((tmp_path / made.run_id / "config.json").read_text())
    RunDir(tmp_path / made.run_id).write("config", {**config, "seed": 0, "run_id": made.run_id})
    with pytest.raises(RunError, match=f"a checkpoint belongs to its run; .* {other.run_id} .*vocabulary 256"):
        run(made, tiny_corpus, tmp_path)


def test_text_that_changed_under_a_corpus_is_noticed(tmp_path: Path) -> None:
    corpus = prepare(tmp_path / "corpus", "tiny", made_up(n_bytes=100_000))
    made = small(corpus, steps=3)
    run(made, corpus, tmp_path)
    path = corpus.folder / "train.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"train.bin must have SHA-256"):
        run(made, corpus, tmp_path)


def test_lost_lines_of_metrics_are_made_again(tiny_corpus: Corpus, tmp_path: Path) -> None:
    made = small(tiny_corpus)
    whole = run(made, tiny_corpus, tmp_path / "whole")
    cut = run(made, tiny_corpus, tmp_path / "cut", checkpoint_seconds=0.0)
    (cut.path / "summary.json").unlink()
    cut.metrics_path.write_text("".join(cut.metrics_path.read_text().splitlines(keepends=True)[:5]))
    with pytest.warns(UserWarning, match=r"is past step 5, where metrics.jsonl ends"):
        run(made, tiny_corpus, tmp_path / "cut")
    assert without_clock(cut) == without_clock(whole)


def test_what_blows_up_at_its_last_step_has_diverged(tiny_corpus: Corpus, tmp_path: Path) -> None:
    found = run(small(tiny_corpus, steps=1, learning_rate=1e10), tiny_corpus, tmp_path).read("summary")
    assert found is not None
    assert found["status"] == "diverged"
    assert found["loss_nats_per_token"] is None


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_learning_rate_rises_then_falls_from_the_first_step_that_it_may(tiny_corpus: Corpus, schedule: Any) -> None:
    made = small(tiny_corpus, steps=100, warmup_steps=2, schedule=schedule, learning_rate=1.0)
    rates = [made.learning_rate_at(step) for step in range(100)]
    assert rates[:2] == [0.5, 1.0]
    top = [step for step in range(100) if rates[step] == 1.0]
    assert top[-1] == (2 if schedule == "cosine" else 70)
    assert sorted(rates[2:], reverse=True) == rates[2:]
    assert rates[-1] == pytest.approx(made.final_learning_rate, abs=0.04)
    assert rates[-1] > 0


def test_arms_share_their_dropout_whatever_their_number_of_steps() -> None:
    seeds = {train._dropout_seed(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(2)}
    assert len(seeds) == 500
