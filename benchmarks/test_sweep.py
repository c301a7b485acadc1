"""A sweep on a Ray cluster of this machine against the same runs in a row in one warm process.

    OMP_NUM_THREADS=1 pytest benchmarks/test_sweep.py --benchmark-only -s --full              # 500 runs of a second
    OMP_NUM_THREADS=1 pytest benchmarks/test_sweep.py --benchmark-only -s --full --rounds 4   # 100

Blocks of runs take turns: trained in a row in this process by `pool.train_job`, then the same configurations by
`sweep.run` with the Ray engine, one at a time, table included. Then a driver of its own adds one run to the whole
table, for its peak memory. Aims, not asserted: at most 15% more than the runs themselves, and a driver below 300 MB. No
time is taken before both have left equal losses.
"""

from __future__ import annotations

import functools
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cegain.training.run.run_dir import RunDir
from cegain.training.sweeps import pool, ray_engine, sweep
from cegain.training.sweeps.ablate import Ladders
from cegain.training.text.corpora import Source
from cegain.training.text.prepare import prepare

RUNG, SEQ_LEN, EVAL_TOKENS = 3e8, 32, 2048
DRIVER = (
    "from cegain.commands.ceg import ceg; ceg(standalone_mode=False); "
    "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
)


def made_up_text() -> Source:
    """300 kB of words in no order."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 8))) for _ in range(500)]
    texts = [" ".join(draw.choices(words, k=100)) for _ in range(600)]
    return Source({"name": "made up", "licence": "none"}, lambda: iter(texts))


@pytest.mark.benchmark(group="a sweep on Ray, one run at a time, per block")
def test_sweep_on_ray(benchmark: Any, capsys: Any, full: bool, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Blocks in a row and by the engine, in turns."""
    if not full:
        pytest.skip("a quarter of an hour; --full measures it, --rounds 4 a fifth of it")
    pytest.importorskip("ray", reason="Ray is not installed (pip install '.[sweeps]')")
    rounds, block = request.config.getoption("--rounds") or 20, 25
    corpus = prepare(tmp_path / "text-byte", "text", [made_up_text()])
    table = tmp_path / "training_runs.csv"
    spent: dict[str, list[float]] = {"in a row": [], "on Ray": []}
    # Runs in this process set its threads; what is timed after this must not inherit them.
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    request.addfinalizer(ray_engine.disconnect)
    began = time.perf_counter()
    ray_engine.connect("local")
    start = time.perf_counter() - began

    def ladders(blocks: int) -> Ladders:
        options = (("sizes", {"seq_len": SEQ_LEN}), ("eval_tokens", EVAL_TOKENS))
        return Ladders(
            corpus=corpus, stack="bare", arms=("baseline",), rungs=(RUNG,), seeds=(block * blocks,), find_rates=False,
            options=options,
        )  # fmt: skip

    def in_a_row() -> None:
        made = ladders(len(spent["in a row"]) + 1)
        jobs = made.due(sweep.read(table))
        begin = time.perf_counter()
        for job in jobs:
            row = pool.train_job(job, corpus.folder, tmp_path / "row", "cpu", 1)
            assert not isinstance(row, str), row
        spent["in a row"].append(time.perf_counter() - begin)
        assert len(jobs) == block

    def on_ray() -> None:
        made = ladders(len(spent["on Ray"]) + 1)
        engine = ray_engine.RayEngine(corpus, tmp_path / "ray", slots=1)
        begin = time.perf_counter()
        outcome = sweep.run(made, table, tmp_path / "ray", engine, lambda job: 1.0)
        spent["on Ray"].append(time.perf_counter() - begin)
        assert outcome == sweep.Outcome(block, ())

    benchmark.pedantic(on_ray, setup=in_a_row, rounds=rounds, warmup_rounds=1)
    ray_engine.disconnect()
    for run_id, row in sweep.read(table).items():
        twin = RunDir(tmp_path / "row" / run_id).read("summary") or {}
        assert row.loss_nats_per_token == twin["loss_nats_per_token"]

    arguments = [
        "ablate", "--arms", "baseline", "--rungs", f"{RUNG:g}", "--seeds", str(block * (rounds + 1) + 1),
        "--learning-rates", "default", "--corpus", str(corpus.folder), "--seq-len", str(SEQ_LEN), "--eval-tokens",
        str(EVAL_TOKENS), "--device", "cpu", "--runs", str(tmp_path / "ray"), "--out", str(table), "--ray", "local",
    ]  # fmt: skip
    said = subprocess.run([sys.executable, "-c", DRIVER, *arguments], capture_output=True, text=True, check=True).stdout
    assert ": 1 runs added" in said
    peak = int(said.split()[-1]) * 1024

    plain, ours = (times[1:] for times in spent.values())  # without the warm-up
    each, over = sum(plain) / block / rounds, sum(ours) / sum(plain) - 1
    ratios = [mine / theirs - 1 for mine, theirs in zip(ours, plain, strict=True)]
    benchmark.extra_info |= {"runs": block * rounds, "start_s": start, "over_in_a_row": over, "driver_bytes": peak}
    with capsys.disabled():
        print(
            f"\n{block * rounds} runs of {each:.2f} s: {over:+.1%} on Ray, aim at most +15% (blocks of {block}: "
            f"{min(ratios):+.1%} to {max(ratios):+.1%}, median {statistics.median(ratios):+.1%})\n"
            f"Ray starts in {start:.1f} s; driver at most {peak / 1e6:.0f} MB, aim 300 ({len(sweep.read(table))} rows)"
        )
