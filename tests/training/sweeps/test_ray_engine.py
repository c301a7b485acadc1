import collections
import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cegain.commands.ceg import ceg
from cegain.tables import training_runs
from cegain.tables.training_runs import TrainingRun
from cegain.training.run.run_dir import RunDir
from cegain.training.sweeps import pool, ray_engine, sweep
from cegain.training.sweeps.ablate import Ladders
from cegain.training.text.data import Corpus
from tests.training.sweeps.test_ablate import ablation, ladders, losses

CLOCK = ("wall_s", "tokens_per_s", "date")
SMALL = {"include_dashboard": False, "object_store_memory": ray_engine.OBJECT_STORE}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers of `cluster` stand: what is under /proc/self/cwd is not the driver's for them."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def cluster(elsewhere: Path) -> Iterator[Any]:
    """Ray, connected to a cluster of this process, in the folder and with the cache of another machine."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install '.[sweeps]')")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        patch.setenv("CEG_CACHE", str(elsewhere / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("TRITON_INTERPRET", raising=False)  # tests of kernels set it, and workers would have it
        ray_engine.connect("local")
    yield ray
    ray_engine.disconnect()


def run(engine: pool.Engine, made: Ladders, folder: Path) -> sweep.Outcome:
    return sweep.run(made, folder / "training_runs.csv", folder / "runs", engine, lambda job: 1.0)


def rows(folder: Path) -> dict[str, TrainingRun]:
    found = {row.run_id: row for row in training_runs.load(folder / "training_runs.csv")}
    return {name: row._replace(**dict.fromkeys(CLOCK, 0)) for name, row in sorted(found.items())}


def failures(folder: Path) -> dict[str, str]:
    lines = map(json.loads, (folder / "runs" / sweep.FAILURES).read_text().splitlines())
    return {line["run_id"]: line["error"] for line in lines}


def workers() -> set[int]:
    """Processes that train for a Ray cluster of this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_train_job"):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def kill_workers_of(doomed: str, times: int, tries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first `times` workers of one run be killed in the middle of it. Every try of any run adds its run_id as a
    line to `tries`, also one that Ray would start by itself."""

    def train_or_die(place: Any, parts: Any, job: Any) -> Any:  # is sent to workers as code: they have no tests
        from cegain.training.sweeps import ray_engine

        with tries.open("a") as file:
            file.write(f"{job.config.run_id}\n")
        if job.config.run_id != doomed or tries.read_text().split().count(doomed) > times:
            return ray_engine._train_job(place, parts, job)

        def die() -> None:
            while not (place.runs / doomed / "metrics.jsonl").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        death = threading.Thread(target=die)
        death.start()
        ray_engine._train_job(place, parts, job)
        death.join()  # however short the run, its result is not handed over
        raise AssertionError("the worker is dead")

    monkeypatch.setattr(ray_engine, "_train_job", train_or_die)


def until(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# Without Ray


def test_the_driver_imports_no_torch() -> None:
    code = "import sys; from cegain.training import commands, sweeps; from cegain.training.commands import ablate; "
    code += "from cegain.training.sweeps import pace, ray_engine, sweep; "
    subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=True)


def test_without_ray_the_remedy_is_said(tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    found = CliRunner().invoke(ceg, [*ablation(tiny_corpus, tmp_path), "--ray", "auto"])
    assert found.exit_code == 2
    assert "--ray: Ray is installed (found none). Try: pip install '.[sweeps]' in the checkout." in found.output


def test_options_that_say_nothing_are_refused_at_once(tiny_corpus: Corpus, tmp_path: Path) -> None:
    wrong = ["--gpus-per-run", "1.5", "--time-limit", "0", "--on", "h100x"]
    found = CliRunner().invoke(ceg, [*ablation(tiny_corpus, tmp_path), *wrong])
    assert found.exit_code == 2
    for text in ("--gpus-per-run: it goes with --ray", "whole GPUs", "--time-limit: a number above 0",
                 "--on: it goes with --dry-run", "did you mean 'h100'?"):  # fmt: skip
        assert text in found.output


def test_a_run_ends_at_its_time_limit_and_goes_on_from_its_checkpoint(tiny_corpus: Corpus, tmp_path: Path) -> None:
    (job,) = ladders(tiny_corpus, find_rates=False, arms=("baseline",), rungs=(3e8,), seeds=(1,)).due({})
    folder, before = tiny_corpus.folder, signal.getsignal(signal.SIGALRM)
    found = pool.train_job(job, folder, tmp_path, "cpu", 1, seconds=0.01)
    assert isinstance(found, str)
    assert "a run may take 0.01 s (--time-limit)" in found
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    row = pool.train_job(job, folder, tmp_path, "cpu", 1, seconds=600)
    assert isinstance(row, TrainingRun)
    assert row.status == "finished"


def test_a_pool_ends_its_own_processes_and_no_others(tiny_corpus: Corpus, tmp_path: Path) -> None:
    import multiprocessing

    bystander = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    bystander.start()
    try:
        engine = pool.LocalPool(2, tiny_corpus.folder, tmp_path / "runs")
        for job in ladders(tiny_corpus, find_rates=False).due({})[:2]:
            engine.submit(job)
        own = set(multiprocessing.active_children()) - {bystander}
        assert len(own) == 2
        engine.close()
        until(lambda: not own & set(multiprocessing.active_children()))
        assert bystander.is_alive()
    finally:
        bystander.kill()


def test_a_plan_for_a_gpu_that_is_not_here(tiny_corpus: Corpus, tmp_path: Path) -> None:
    from cegain.speed import hardware, step_time, step_work

    arguments = [*ablation(tiny_corpus, tmp_path), "--dry-run", "--json", "--on", "h100"]
    arguments[arguments.index("--rungs") + 1] = "1e15"
    found = CliRunner().invoke(ceg, arguments)
    assert found.exit_code == 0, found.output
    plan = json.loads(found.stdout)
    jobs = ladders(tiny_corpus, find_rates=False, rungs=(1e15,), seeds=(2,)).due({})
    device, seconds = hardware.find("h100"), 0.0
    for job in jobs:
        how = step_work.Plan(device=device, devices=1, sharding="none", micro_batch=job.config.batch)
        seconds += job.config.steps * step_time.training_step(job.config.shape, how).seconds
    assert plan["total"]["gpu_hours"] == pytest.approx(seconds / 3600, rel=1e-6)
    assert plan["total"]["usd"] == pytest.approx(seconds / 3600 * device.price.usd_per_hour, rel=1e-6)


# With Ray


def test_no_cluster_is_said_with_the_remedy(tiny_corpus: Corpus, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install '.[sweeps]')")
    began = time.monotonic()
    found = CliRunner().invoke(ceg, [*ablation(tiny_corpus, tmp_path), "--ray", "127.0.0.1:9"])
    assert found.exit_code == 2
    assert "--ray: a Ray cluster answers at '127.0.0.1:9'" in found.output
    assert "ray start --head" in found.output
    assert time.monotonic() - began < 30


def test_ray_and_the_local_pool_give_identical_records(tiny_corpus: Corpus, tmp_path: Path, cluster: Any) -> None:
    made = ladders(tiny_corpus, find_rates=False, rungs=(1e8,), seeds=(1,))
    assert (
        run(pool.LocalPool(2, tiny_corpus.folder, tmp_path / "a" / "runs", threads=1), made, tmp_path / "a").added == 2
    )
    engine = ray_engine.RayEngine(tiny_corpus, tmp_path / "b" / "runs", slots=2)
    assert run(engine, made, tmp_path / "b") == sweep.Outcome(2, ())
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    for row in rows(tmp_path / "b"):  # the folders are shared: nothing was sent, checkpoints are there
        assert RunDir(tmp_path / "b" / "runs" / row).checkpoints()


def test_without_shared_folders_the_corpus_is_sent_and_results_come_back(
    tiny_corpus: Corpus, tmp_path: Path, cluster: Any, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/self/cwd is the driver's folder for the driver, and `elsewhere` for a worker, as on another machine."""
    import dataclasses

    here = Path("/proc/self/cwd")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").symlink_to(tiny_corpus.folder)
    corpus = dataclasses.replace(tiny_corpus, folder=here / "text")
    made = ladders(corpus, find_rates=False, rungs=(1e8,), seeds=(1,))
    engine = ray_engine.RayEngine(corpus, here / "runs", slots=2)
    assert engine.pace(made, []).seconds(made.due({})[0]) > 0
    assert run(engine, made, tmp_path) == sweep.Outcome(2, ())
    (kept,) = (elsewhere / "cache" / "corpora").iterdir()
    assert (kept / "train.bin").read_bytes() == (tiny_corpus.folder / "train.bin").read_bytes()
    for row in rows(tmp_path):
        there, brought = elsewhere / "runs" / row, tmp_path / "runs" / row
        names = {path.name for path in brought.iterdir()}
        assert names == {"config.json", "environment.json", "metrics.jsonl", "summary.json", "loss.png"}
        assert all((brought / name).read_bytes() == (there / name).read_bytes() for name in names)
        assert RunDir(there).checkpoints()


def test_what_fails_is_named_and_the_rest_goes_on(tiny_corpus: Corpus, tmp_path: Path, cluster: Any) -> None:
    """A run folder that is broken, a full disk, an arm that always fails; one run in peace."""
    options = (*ladders(tiny_corpus).options, ("backend", "triton"))
    made = ladders(
        tiny_corpus, find_rates=False, arms=("baseline", "flash_attention"), rungs=(1e8,), seeds=(3,), options=options
    )
    names = {(job.config.arm, job.config.seed): job.config.run_id for job in made.due({})}
    broken, full = (tmp_path / "runs" / names["baseline", seed] for seed in (0, 1))
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(full)], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        outcome = run(ray_engine.RayEngine(tiny_corpus, tmp_path / "runs", slots=2), made, tmp_path)
        assert outcome.added == 1
        assert set(rows(tmp_path)) == {names["baseline", 2]}
        said = failures(tmp_path)
        assert {job.config.run_id: error for job, error in outcome.failed} == said
        assert set(said) == set(names.values()) - {names["baseline", 2]}
        assert "must be JSON" in said[broken.name]
        assert f"must be written in {full}, the system says: No space left on device" in said[full.name]
        for seed in range(3):
            assert "backend 'triton' must get CUDA tensors" in said[names["flash_attention", seed]]
    finally:
        subprocess.run(["umount", str(full)], check=True)
    (broken / "config.json").unlink()
    again = run(ray_engine.RayEngine(tiny_corpus, tmp_path / "runs", slots=2), made, tmp_path)
    assert again.added == 2


def test_a_folder_of_runs_that_is_full_fails_every_run_by_name(
    tiny_corpus: Corpus, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ray_engine, "write_atomically", full)
    made = ladders(tiny_corpus, find_rates=False, arms=("baseline",), rungs=(1e8,), seeds=(2,))
    outcome = run(ray_engine.RayEngine(tiny_corpus, tmp_path / "runs", slots=2), made, tmp_path)
    assert len(outcome.failed) == 2
    assert all("must be written, the system says: No space left on device" in error for _, error in outcome.failed)
    assert len(failures(tmp_path)) == 2


def test_a_run_that_no_node_can_hold_is_refused(tiny_corpus: Corpus, tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(
        ray_engine.ClusterError, match=r"a node holds a run's 1000 CPU \(found at most \d+ CPU in one\)"
    ):
        ray_engine.RayEngine(tiny_corpus, tmp_path / "runs", threads=1000)


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_is_trained_again_and_is_in_the_table_once(
    tiny_corpus: Corpus, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ladders(tiny_corpus, find_rates=False, arms=("baseline",), rungs=(1e9,), seeds=(3,))
    names = [job.config.run_id for job in made.due({})]
    undisturbed, disturbed, tries = tmp_path / "undisturbed", tmp_path / "disturbed", tmp_path / "tries"
    assert run(pool.LocalPool(2, tiny_corpus.folder, undisturbed / "runs", threads=1), made, undisturbed).added == 3
    kill_workers_of(names[0], 1, tries, monkeypatch)
    outcome = run(ray_engine.RayEngine(tiny_corpus, disturbed / "runs", slots=2), made, disturbed)
    assert outcome == sweep.Outcome(3, ())
    assert sorted(row.run_id for row in training_runs.load(disturbed / "training_runs.csv")) == sorted(names)
    assert rows(disturbed) == rows(undisturbed)
    counts = collections.Counter(tries.read_text().split())
    assert counts[names[0]] >= 2
    assert all(1 <= counts[name] <= ray_engine.RETRIES + 1 for name in names)


@pytest.mark.slow
def test_a_run_that_kills_its_workers_is_given_up(
    tiny_corpus: Corpus, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ladders(tiny_corpus, find_rates=False, arms=("rope",), rungs=(1e9,), seeds=(1,))
    (name,) = (job.config.run_id for job in made.due({}))
    kill_workers_of(name, sys.maxsize, tmp_path / "tries", monkeypatch)
    outcome = run(ray_engine.RayEngine(tiny_corpus, tmp_path / "runs", slots=1), made, tmp_path)
    ((job, error),) = outcome.failed
    assert (outcome.added, job.config.run_id) == (0, name)
    assert f"lost {ray_engine.RETRIES + 1} times" in error
    assert failures(tmp_path) == {name: error}
    assert name not in rows(tmp_path)
    assert 1 <= len((tmp_path / "tries").read_text().split()) <= ray_engine.RETRIES + 1


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of a head that trains nothing and two nodes with one CPU each, on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install '.[sweeps]')")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    for _ in range(2):
        made.add_node(num_cpus=1, **{k: v for k, v in SMALL.items() if k != "include_dashboard"})
    yield made
    made.shutdown()


def sweeping(corpus: Corpus, folder: Path, address: str) -> list[str]:
    """The command of a sweep on a cluster."""
    arguments = [*ablation(corpus, folder), "--ray", address]
    return [sys.executable, "-c", "from cegain.commands.ceg import ceg; ceg()", *arguments]


def whole(folder: Path) -> bool:
    """Whether every run has metrics without a step twice."""
    for name in losses(folder):
        steps = [line["step"] for line in RunDir(folder / "runs" / name).metrics()]
        if steps != sorted(set(steps)):
            return False
    return True


@pytest.mark.slow
def test_killed_drivers_and_nodes_leave_every_run_once(tiny_corpus: Corpus, tmp_path: Path, nodes: Any) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    assert CliRunner().invoke(ceg, ablation(tiny_corpus, undisturbed)).exit_code == 0

    # A driver that is killed takes its workers with it, and not those of another driver.
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(sweeping(tiny_corpus, folders[0], nodes.address), **quiet)
    second = subprocess.Popen(sweeping(tiny_corpus, folders[1], nodes.address), **quiet)
    until(lambda: list((folders[0] / "runs").glob("*/metrics.jsonl")), 300)
    first.kill()
    first.wait()
    assert second.wait(timeout=600) == 0
    until(lambda: not workers())
    assert losses(folders[1]) == losses(undisturbed)

    # A node that is killed gives its run to another one.
    command = [*sweeping(tiny_corpus, folders[0], nodes.address), "--json"]
    third = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    until(lambda: workers(), 300)
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    said, _ = third.communicate(timeout=600)
    assert third.returncode == 0
    assert json.loads(said)["failed"] == []
    nodes.add_node(num_cpus=1, object_store_memory=ray_engine.OBJECT_STORE)
    assert losses(folders[0]) == losses(undisturbed)
    assert whole(folders[0])
    assert whole(folders[1])
    assert all(math.isfinite(loss) for loss in losses(folders[0]).values())
    assert not (folders[0] / "runs" / sweep.FAILURES).exists()
