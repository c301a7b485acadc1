"""The commands: what they print, what they write, what they refuse."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cegain.commands.ceg import ceg
from cegain.ladders import ladder
from cegain.tables import training_runs
from cegain.training.text.data import Corpus
from tests.training.small_runs import run, small


def call(*arguments: str) -> Result:
    return CliRunner().invoke(ceg, arguments)


@pytest.fixture
def options(tiny_corpus: Corpus, tmp_path: Path) -> list[str]:
    return [
        "--corpus", str(tiny_corpus.folder), "--runs", str(tmp_path / "runs"), "--seq-len", "32", "--eval-tokens",
        "2048",
    ]  # fmt: skip


def test_train_runs_curves_collect_and_back_as_a_table_of_runs(options: list[str], tmp_path: Path) -> None:
    folder = ["--runs", str(tmp_path / "runs")]
    for arm in ("baseline", "rope"):
        for flops in ("2e8", "4e8", "8e8"):
            said = call("train", "--arm", arm, "--flops", flops, *options, "--json")
            assert said.exit_code == 0, said.output
            summary = json.loads(said.stdout)
            assert summary["status"] == "finished"
            assert summary["flops"] == pytest.approx(float(flops), rel=0.03)
    table = call("runs", *folder)
    assert table.exit_code == 0
    assert table.output.count("finished") == 6
    assert json.loads(call("runs", *folder, "--json").stdout)[0]["status"] == "finished"

    paths = sorted(map(str, (tmp_path / "runs").iterdir()))
    picture = tmp_path / "curves.svg"
    assert call("curves", *paths, "-o", str(picture)).exit_code == 0
    assert "rope on bare" in picture.read_text()

    csv = tmp_path / "training_runs.csv"
    assert "6 added, 0 there already" in call("collect", *folder, "--out", str(csv)).output
    before = csv.read_bytes()
    assert "0 added, 6 there already" in call("collect", *folder, "--out", str(csv)).output
    assert csv.read_bytes() == before
    rows = training_runs.load(csv)
    assert {(row.arm, row.algorithm) for row in rows} == {("baseline", "baseline"), ("rope", "rope")}
    assert ladder.read_runs(csv).variants() == ["baseline", "rope"]


def test_a_dry_run_trains_nothing(options: list[str], tmp_path: Path) -> None:
    said = call("train", "--flops", "1e9", *options, "--dry-run")
    assert said.exit_code == 0
    document = json.loads(said.stdout)
    assert document["tokens"] == document["steps"] * document["batch"] * 32
    assert not (tmp_path / "runs").exists()


def test_presets_are_complete_and_options_win(tiny_corpus: Corpus, options: list[str]) -> None:
    said = call("train", "--preset", "paper", "--corpus", str(tiny_corpus.folder), "--dry-run")
    paper = json.loads(said.stdout)
    shape = paper["shape"]
    assert [shape[k] for k in ("n_layers", "n_heads", "d_model", "seq_len")] == [8, 8, 512, 512]
    assert [paper[k] for k in ("batch", "micro_batch", "steps", "warmup_steps")] == [512, 64, 50_000, 1000]
    assert [paper[k] for k in ("learning_rate", "final_learning_rate", "dropout")] == [8e-4, 8e-5, 0.2]
    mini = json.loads(call("train", "--preset", "paper-mini", *options, "--lr", "0.01", "--dry-run").stdout)
    assert mini["learning_rate"] == 0.01
    assert mini["final_learning_rate"] == 8e-5
    assert mini["shape"]["d_model"] == 128


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arm", "ropee", "--flops", "1e9"], ["'ropee'", "did you mean rope"]),
        (["--arm", "pipeline_parallelism", "--flops", "1e9"], ["can be trained"]),
        (["--flops", "10"], ["must buy one step", "raise it"]),
        (["--flops", "1e9,1e10"], ["one budget"]),
        ([], ["--flops: a budget is needed"]),
        (["--flops", "1e9", "--stack", "middle"], ["--stack: one of bare, modern"]),
        (["--flops", "1e9", "--lr", "0"], ["learning_rate must be above 0"]),
        (["--flops", "1e9", "--batch", "8", "--micro-batch", "3"], ["micro_batch must divide"]),
        (["--flops", "1e9", "--dropout", "1"], ["--dropout: a share below 1"]),
        (["--flops", "1e9", "--seed", "-1"], ["--seed: a whole number of at least 0"]),
        (["--flops", "1e9", "--preset", "papre"], ["--preset: one of paper, paper-mini"]),
        (["--flops", "1e9", "--width", "30", "--layers", "2"], ["n_heads must divide d_model"]),
        (["--flops", "1e9", "--device", "tpu"], ["--device: one of auto, cpu, cuda"]),
        (["--flops", "1e9", "--corpus", "not-there"], ["ceg data prepare"]),
        (["--flops", "1e9", "--layers", "2"], ["n_layers and d_model must be given together"]),
        (["--flops", "1e9", "--warmup-steps", "10000"], ["warmup_steps must be from 1 to below"]),
        (["--flops", "1e9", "--backend", "triton"], ["--backend: triton needs a CUDA device"]),
        (["--flops", "1e9", "--checkpoint-seconds", "nan"], ["--checkpoint-seconds"]),
        (["--flops", "1e9", "--seed", str(10**20)], ["below 2^62"]),
        (["--flops", "x", "--lr", "y", "--stack", "z"], ["--flops", "--lr", "--stack"]),
    ],
)
def test_bad_input_is_refused_with_a_remedy_and_nothing_is_written(
    options: list[str], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    given = [*options[2:], *arguments] if "--corpus" in arguments else [*options, *arguments]
    said = call("train", *given)
    assert said.exit_code == 2, said.output
    for word in words:
        assert word in " ".join(said.output.split()), said.output
    assert "Traceback" not in said.output
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_is_full_is_one_error(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cegain.training.run import run_dir

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_dir, "write_atomically", full)
    said = call("train", "--flops", "2e8", *options)
    assert said.exit_code == 2
    assert "No space left on device" in said.output
    assert "give the same command again" in " ".join(said.output.split())


def test_collect_refuses_a_broken_run_and_writes_nothing(tiny_corpus: Corpus, tmp_path: Path) -> None:
    good, bad = (run(small(tiny_corpus, steps=2, seed=seed), tiny_corpus, tmp_path / "runs") for seed in (0, 1))
    (bad.path / "environment.json").unlink()
    out = tmp_path / "out.csv"
    said = call("collect", "--runs", str(tmp_path / "runs"), "--out", str(out))
    assert said.exit_code == 2
    assert bad.path.name in " ".join(said.output.split())
    assert not out.exists()
    assert good.read("summary")


@pytest.mark.parametrize("name", ["summary.json", "config.json", "environment.json"])
@pytest.mark.parametrize("content", ["[]", "{}", "{", ""])
def test_harmed_files_are_named_by_every_command(tiny_corpus: Corpus, tmp_path: Path, name: str, content: str) -> None:
    found = run(small(tiny_corpus, steps=2), tiny_corpus, tmp_path / "runs")
    (found.path / name).write_text(content)
    said = [call("collect", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out.csv"))]
    if name != "environment.json":
        said.append(call("runs", "--runs", str(tmp_path / "runs")))
    for result in said:
        assert result.exit_code == 2, result.output
        assert name in result.output.replace("\n", "")


def test_a_harmed_line_of_metrics_is_named(tiny_corpus: Corpus, tmp_path: Path) -> None:
    found = run(small(tiny_corpus, steps=3), tiny_corpus, tmp_path / "runs")
    lines = found.metrics_path.read_text().splitlines()
    found.metrics_path.write_text("\n".join([lines[0], "garbage", *lines[2:]]) + "\n")
    for result in (
        call("runs", "--runs", str(tmp_path / "runs")),
        call("curves", str(found.path), "-o", str(tmp_path / "x.png")),
    ):
        assert result.exit_code == 2
        assert "line 2 must be a line of metrics" in " ".join(result.output.split())


def test_a_table_is_asked_for_outside_the_checkout(
    tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small(tiny_corpus, steps=2), tiny_corpus, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    said = call("collect")
    assert said.exit_code == 2
    assert "--out: a table is needed outside the project's checkout" in " ".join(said.output.split())


def test_a_run_in_two_folders_is_collected_once(tiny_corpus: Corpus, tmp_path: Path) -> None:
    found = run(small(tiny_corpus, steps=2), tiny_corpus, tmp_path / "runs")
    shutil.copytree(found.path, tmp_path / "runs" / "copy")
    for expected in ("1 added, 1 there already", "0 added, 2 there already"):
        assert expected in call("collect", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "o.csv")).output


def test_a_package_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for module in [name for name in sys.modules if name.startswith("training.")]:
        monkeypatch.delitem(sys.modules, module)
    said = call("train", "--arm", "rope", "--flops", "3e11")
    assert said.exit_code == 2
    assert "pip install '.[torch]'" in " ".join(said.output.split())


def test_a_diverged_run_is_collected_without_a_loss(tiny_corpus: Corpus, tmp_path: Path) -> None:
    run(small(tiny_corpus, learning_rate=1e4, warmup_steps=1), tiny_corpus, tmp_path / "runs")
    out = tmp_path / "out.csv"
    assert call("collect", "--runs", str(tmp_path / "runs"), "--out", str(out)).exit_code == 0
    (row,) = training_runs.load(out)
    assert row.status == "diverged"
    assert row.loss_nats_per_token != row.loss_nats_per_token
    assert "diverged" in call("runs", "--runs", str(tmp_path / "runs")).output


@pytest.mark.parametrize(
    "arguments", [["runs"], ["collect"], ["curves", "x", "-o", "x.png"], ["curves", "-o", "x.png"]]
)
def test_where_there_are_no_runs(arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = call(*arguments)
    assert said.exit_code == 2
    assert list(tmp_path.iterdir()) == []
