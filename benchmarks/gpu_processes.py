"""The slices of `gpu` that are other programs: tests, timed training steps, ladders. No torch here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from cegain.benchmarks import record
from cegain.benchmarks.record import Record
from cegain.kernels import tuned
from cegain.speed.measured_device import REPORTED
from cegain.tables import provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TABLE, RUNS, TESTS, LOG = "results.json", "tuned.json", "training_runs.csv", "tests.txt", "log.txt"
FAILURES = "failures.jsonl"
"""Files of --out."""
CEG = "from cegain.commands.ceg import ceg; ceg()"
ENDING = 15.0
"""Seconds for a process to end after it was asked to."""
STEPS = (
    ("baseline", "1e14", False), ("baseline", "1e18", False), ("baseline", "1e15", False), ("moe", "1e14", False),
    ("baseline", "1e15", True), ("baseline", "3e15", False), ("moe", "1e15", False), ("moe", "3e15", False),
    ("baseline", "1e19", False),
)  # fmt: skip
"""Arm, budget, and whether compiled, of the training steps that are timed: those of the ladders, and of models that are
large enough for the card."""
ALONE_FROM = 1e17
"""Budgets from which a model fills the card by itself."""
REHEARSED_STEPS = (("baseline", "1e10", False),)


class Ladder(NamedTuple):
    """Options of `ceg ablate`: learning rates are found at the first rung, where runs are cheap."""

    arms: str
    rungs: str
    seeds: str


LADDERS: Mapping[str, Ladder] = {
    "ladder-1e14": Ladder(
        "baseline,flash_attention,gqa,layernorm,moe,mqa,muon,rmsnorm,rope,sliding_window,sparse_attention,swiglu",
        "1e13,1e14", "1,3",
    ),
    "ladder-1e15": Ladder("baseline,layernorm,moe,rope", "1e13,1e14,1e15", "1,3"),
    "ladder-3e15": Ladder("baseline,moe", "1e13,1e14,1e15,3e15", "1,3"),
}  # fmt: skip
REHEARSED_LADDER = Ladder("baseline", "2e9", "1")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a session's things are, and how it was asked for. `work` is a rehearsal's own, or a measurement's."""

    out: Path
    work: Path
    corpus: Path
    jobs: int
    commit: str
    rehearsal: bool
    mps: bool
    force: bool

    def options(self) -> list[str]:
        """Those of `gpu` that make this place again."""
        return [
            "--out", str(self.out), "--work", str(self.work.parent), "--commit", self.commit,
            *(["--rehearse"] if self.rehearsal else []),
        ]  # fmt: skip

    def record(self) -> Record:
        """What was done, as it stands in the file."""
        return Record(self.work / RESULTS, self.rehearsal, [self.out / RESULTS])

    def write_table(self, table: object) -> None:
        """Write what was found by tuning, as `cegain.kernels.tuned` reads it."""
        record.write(self.work / TABLE, table, [self.out / TABLE])

    def environment(self, interpret: bool = False) -> dict[str, str]:
        """Of a process: caches that stay, the commit, and the configurations that were found by tuning."""
        work = self.work.absolute()
        made = {
            **os.environ, "PYTHONUNBUFFERED": "1", provenance.COMMIT: self.commit,
            "TRITON_CACHE_DIR": str(work / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        }  # fmt: skip
        if (work / TABLE).exists():
            made[tuned.VARIABLE] = str(work / TABLE)
        if self.rehearsal:
            made |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            if interpret:
                made["TRITON_INTERPRET"] = "1"
        return made

    def run(
        self, command: Sequence[str], deadline: float, *, interpret: bool = False, log: str = LOG, **more: str
    ) -> int:
        """Run a program until the deadline and keep what it says: its exit code, -1 where it was ended."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / log).open("ab") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**self.environment(interpret), **more}, stdout=stream,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            shown = (self.work / log).stat().st_size
            try:
                while process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.2 if self.rehearsal else 2.0)
                    shown = self._show(log, shown)
                    self._copy()
            finally:
                ended = process.poll() is None
                _end(process)
        self._show(log, shown)
        self._copy()
        return -1 if ended else process.returncode

    def _copy(self) -> None:
        """Copy what sweeps write: runs that ended, and those that failed."""
        record.copy(self.work / RUNS, self.out / RUNS)
        record.copy(self.work / "runs" / FAILURES, self.out / FAILURES)

    def _show(self, log: str, since: int) -> int:
        """Print what is new in a log, and copy it; its size."""
        with (self.work / log).open("rb") as stream:
            stream.seek(since)
            new = stream.read()
        if new:
            print(new.decode(errors="replace"), end="", flush=True)
            record.copy(self.work / log, self.out / log)
        return since + len(new)

    def model(self) -> str:
        """The name of this device in the step-time model; empty where it has none."""
        if self.rehearsal:
            return "cpu"
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            return REPORTED.get(said.splitlines()[0].strip() if said else "", "")
        return ""


def says(place: Place, line: str) -> None:
    """Print a line and keep it."""
    print(line, flush=True)
    place.work.mkdir(parents=True, exist_ok=True)
    with (place.work / LOG).open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    record.copy(place.work / LOG, place.out / LOG)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process, and end it and what it started where it does not end by itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the session that it was started in, and nothing else
    process.wait()


# Tests


def tests(place: Place, deadline: float) -> int:
    """Those of the kernels, a file at a time; the large ones by themselves first."""
    if find_spec("pytest") is None:
        place.run([sys.executable, "-m", "cegain.benchmarks.gpu_kernels"], deadline, log=TESTS)
        lines = (place.work / TESTS).read_text(errors="replace").splitlines()
        return 0 if any(line.startswith("ok: ") for line in lines) and not any("WRONG" in line for line in lines) else 1
    folder = ROOT / "tests" / "kernels"
    first = [folder / "test_gpu.py", *sorted(folder.glob("test_triton_*.py"))]
    files = [*first, *(path for path in sorted(folder.glob("test_*.py")) if path not in first)]
    if place.rehearsal:
        files = [folder / "test_gpu.py", folder / "test_launch.py"]
    named = {f"tests: {path.name}": path for path in files}
    done = place.record()
    for label in done.open(list(named)):
        if time.monotonic() > deadline:
            return 1
        path = named[label]
        many = min(12, os.cpu_count() or 1)
        spread = ["-n", str(many)] if path.name != "test_gpu.py" and many > 2 and find_spec("xdist") else []
        command = [sys.executable, "-m", "pytest", str(path), "-q", "-m", "not slow", "-p", "no:cacheprovider", *spread]
        done.begin(label)
        # One configuration each: what tuning would choose among is compiled for every shape of the tests.
        code = place.run(command, deadline, log=TESTS, CEG_AUTOTUNE="0")
        if code == -1:
            done.leave(label)
            return 1
        done.end(label, "passed" if code in (0, 5) else f"WRONG: pytest ended with {code}, see {TESTS}")
    how = done.document["done"]
    return 1 if any("WRONG" in how.get(label, "WRONG") for label in named) else 0


# Steps


def steps(place: Place, deadline: float) -> int:
    """Training steps as the ladders have them, alone and side by side, beside the step-time model's."""
    model = place.model()
    if not model:
        says(place, "steps: the step-time model knows no such device, so nothing stands beside the times (cpu's does)")
    done = place.record()
    asked = REHEARSED_STEPS if place.rehearsal else STEPS
    named = {
        f"steps: {arm} {rung}{' compiled' if compiled else ''}": (arm, rung, compiled) for arm, rung, compiled in asked
    }
    for label in done.open(list(named)):
        if time.monotonic() > deadline:
            return 1
        arm, rung, compiled = named[label]
        counts = "1" if float(rung) >= ALONE_FROM else "1,2" if place.rehearsal else f"1,{place.jobs}"
        command = [
            sys.executable, "-m", "cegain.training.sweeps.step_times", "--arms", arm, "--rungs", rung,
            "--together", counts, "--device", "cpu" if place.rehearsal else "cuda", "--model", model or "cpu",
            "--seconds", "0.1" if place.rehearsal else "5", *(["--compile"] if compiled else []),
        ]  # fmt: skip
        log = "steps.txt"
        (place.work / log).unlink(missing_ok=True)
        done.begin(label)
        with _mps(place) as shared:
            code = place.run(command, deadline, log=log, CEG_AUTOTUNE="0")
        lines = [
            json.loads(line) for line in (place.work / log).read_text(errors="replace").splitlines() if line[:1] == "{"
        ]
        done.document.setdefault("steps", [])
        done.document["steps"] += [{**line, "mps": shared, "model": model, "commit": place.commit} for line in lines]
        if code == -1:
            done.leave(label)
            return 1
        failed = [line["error"] for line in lines if "error" in line]
        done.end(label, f"WRONG: {failed[0] if failed else f'exit code {code}'}" if failed or code else "measured")
        for line in lines:
            if "error" not in line:
                ratio = line["seconds"] / line["predicted_s"]
                says(
                    place,
                    f"{label}, {line['processes']} at once: {1e3 * line['seconds']:.3g} ms, {ratio:.2f}x the model's",
                )
    how = done.document["done"]
    return 1 if any("WRONG" in how.get(label, "WRONG") for label in named) else 0


# Ladders


def ladder(name: str, place: Place, deadline: float) -> int:
    """Train many small models side by side, if they fit the time; rows come as runs end."""
    asked = REHEARSED_LADDER if place.rehearsal else LADDERS[name]
    corpus = place.corpus
    if place.rehearsal:
        corpus = place.work / "corpus"
        if not (corpus / "corpus.json").exists():
            place.run([sys.executable, "-m", "cegain.training.text.made_up", str(corpus)], deadline)
    if not (corpus / "corpus.json").is_file():
        says(
            place,
            f"--corpus: a prepared corpus is there (none in {corpus}). Bring one: "
            f"`ceg data pack library --tokens 4e7 --dir {corpus}`.",
        )
        return 2
    device = "cpu" if place.rehearsal else "cuda"
    command = [
        sys.executable, "-c", CEG, "ablate", "--stack", "bare", "--arms", asked.arms, "--rungs", asked.rungs,
        "--seeds", asked.seeds, "--learning-rates", "default" if place.rehearsal else "unchecked",
        "--corpus", str(corpus.absolute()), "--runs", str((place.work / "runs").absolute()),
        "--out", str((place.work / RUNS).absolute()), *(["--eval-tokens", "1024"] if place.rehearsal else []),
    ]  # fmt: skip
    with _mps(place) as shared:
        seconds, said = predicted(place, command, asked, shared)
        says(place, f"{name}: {said}")
        box = deadline - time.monotonic()
        if seconds > box and not place.force:
            wanted = f"--slice {name}: it fits its time ({seconds:.0f} s, for {box:.0f} s)"
            says(
                place,
                f"{wanted}. Give --force: runs that end count, and the same command goes on; or {name}:N seconds.",
            )
            return 2
        # One configuration in every process: equal bits, and nothing is tuned in the time of a run.
        code = place.run(
            [*command, "--device", device, "--jobs", str(2 if place.rehearsal else place.jobs), "--threads", "1"],
            deadline, CEG_AUTOTUNE="0",
        )  # fmt: skip
    return 0 if code == 0 else 1


def predicted(place: Place, command: Sequence[str], asked: Ladder, shared: bool = False) -> tuple[float, str]:
    """Seconds of what is still to be trained, and where they come from in words; `shared` is whether by `_mps`.

    That is the step-time model's, for one run after another; where steps were timed here (`--slice steps`), times what
    they took over what the model says of them, with as many side by side.
    """
    model = place.model() or "h200"
    dry = [*command, "--dry-run", "--on", model, "--json"]
    found = subprocess.run(dry, cwd=ROOT, env=place.environment(), capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{found.stderr.strip()}\n")
    groups: list[dict[str, Any]] = json.loads(found.stdout)["groups"]
    alone = sum(group["seconds"] for group in groups)
    runs = sum(group["runs"] for group in groups)
    said = f"{runs} runs, {alone:.0f} s one after another by the step-time model ({model})"
    rungs = set(map(float, asked.rungs.split(",")))
    lines = [
        line for line in place.record().document.get("steps", [])
        if "error" not in line and not line["compile"] and line["mps"] == shared and line["processes"] == place.jobs
    ]  # fmt: skip
    here = [line["seconds_per_step_of_all"] / line["predicted_s"] for line in lines if line["rung_flops"] in rungs]
    ratios = here or [line["seconds_per_step_of_all"] / line["predicted_s"] for line in lines]
    if not ratios:
        return (
            alone,
            f"{said}; steps this small wait for launches, and take a few times that: `--slice steps` measures it",
        )
    ratio = statistics.median(ratios)
    return alone * ratio, f"{said}; {alone * ratio:.0f} s with {place.jobs} at once, by steps timed here"


@contextlib.contextmanager
def _mps(place: Place) -> Iterator[bool]:
    """NVIDIA's multi-process service, for as long, if it is wanted: without it, processes take turns on the card.

    It changes no setting of the card, and is not needed: where it does not start, or no process can use the card
    through it, that is said, and False is given.
    """
    if not place.mps or place.rehearsal:
        yield False
        return
    folders = {
        f"CUDA_MPS_{kind}_DIRECTORY": str((place.work / f"mps-{kind.lower()}").absolute()) for kind in ("PIPE", "LOG")
    }
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ.update(folders)
    command = "nvidia-cuda-mps-control"
    try:
        subprocess.run([command, "-d"], check=True, timeout=30)
        subprocess.run([sys.executable, "-c", "import torch; torch.zeros(1).cuda()"], check=True, timeout=60)
        started = True
    except (OSError, subprocess.SubprocessError) as error:
        says(place, f"--mps: the service works here (it does not: {error}). Going on without.")
        _end_mps(command, folders)
        started = False
    try:
        yield started
    finally:
        if started:
            _end_mps(command, folders)


def _end_mps(command: str, folders: Mapping[str, str]) -> None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run([command], input=b"quit\n", check=True, timeout=30)
    for name in folders:
        os.environ.pop(name, None)
