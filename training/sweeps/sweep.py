"""Running a sweep: jobs to an engine, rows to the table, failures on record, one line of progress."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import NamedTuple

from cegain.tables import training_runs
from cegain.tables.training_runs import TrainingRun
from cegain.training.run import repeat
from cegain.training.run.run_dir import RunDir, RunError
from cegain.training.sweeps.ablate import Job, Ladders
from cegain.training.sweeps.pool import Engine, JobError

LOOK_SECONDS = 2.0
"""Between looks at running jobs."""
FAILURES = "failures.jsonl"
"""In the folder of runs: a line per job that ended without a row."""


class Progress(NamedTuple):
    """Of a sweep: runs that have ended in this call, runs still due (running ones included), seconds left, failures,
    and the runs being trained."""

    ended: int
    due: int
    seconds_left: float
    failed: int
    running: tuple[str, ...]


class Outcome(NamedTuple):
    """What a sweep did: rows added, and (job, error) of every failure."""

    added: int
    failed: tuple[tuple[Job, str], ...]


def read(table: Path) -> dict[str, TrainingRun]:
    """A table's rows by run_id; none where there is no table yet.

    Raises:
        EvidenceError: the table is bad.
    """
    return {row.run_id: row for row in training_runs.load(table)} if table.exists() else {}


def run(
    ladders: Ladders,
    table: Path,
    runs: Path,
    engine: Engine,
    seconds: Callable[[Job], float],
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Train all that is due, and add each row to the table when its run ends.

    Args:
        ladders: the sweep.
        table: a `training_runs.csv`; made if it is not there.
        runs: folder of run folders.
        engine: trains; closed at the end.
        seconds: guess of a job's time, for the time that is left.
        report: called every few seconds.

    Raises:
        EvidenceError: the table is bad.
        OSError: it cannot be made.
        RunError: another sweep works in the folder, or it cannot be written.
    """
    failed: dict[str, tuple[Job, str]] = {}
    running: dict[Future[TrainingRun], Job] = {}
    found: dict[str, float] = {}  # share of a run that was there before this call
    added, began, work = 0, time.monotonic(), 0.0
    ledger = read(table)

    def fail(job: Job, error: str) -> None:
        failed[job.config.run_id] = job, error
        line = {"date": _now(), "run_id": job.config.run_id, "command": repeat.command(job.config), "error": error}
        with contextlib.suppress(OSError), (runs / FAILURES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def add(rows: list[TrainingRun]) -> int:
        if not rows and table.exists():
            return 0  # reading a long table for nothing would keep workers waiting
        new = training_runs.append(table, rows)
        ledger.update(read(table))
        return new

    with _alone(runs):
        try:
            while True:
                add(ladders.promoted(ledger))
                held = {job.config.run_id for job in running.values()} | failed.keys()
                due = [job for job in ladders.due(ledger) if job.config.run_id not in held]
                for job in due[: max(0, engine.slots - len(running))]:  # nodes may have gone
                    found[job.config.run_id] = _share_done(runs, job)
                    running[engine.submit(job)] = job
                if not running:
                    return Outcome(added, tuple(failed.values()))
                shares = {job: _share_done(runs, job) for job in running.values()}
                done = work + sum(seconds(job) * (share - found[job.config.run_id]) for job, share in shares.items())
                ahead = [job for job in ladders.ahead(ledger) if job.config.run_id not in failed]
                left = sum(map(seconds, ahead)) - sum(seconds(job) * share for job, share in shares.items())
                left /= done / (time.monotonic() - began) if work and done > 0 else engine.slots
                names = tuple(job.config.run_id for job in running.values())
                report(Progress(added, len(ahead), max(0.0, left), len(failed), names))
                for future in wait(running, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    try:
                        added += add([future.result()])
                        work += seconds(job) * (1 - found[job.config.run_id])
                    except JobError as error:
                        fail(job, str(error))
                    except OSError as error:  # the next call finds the run ended, and adds its row
                        fail(job, f"its row must be written to {table}, the system says: {error.strerror}; make room")
        finally:
            engine.close()


def _share_done(runs: Path, job: Job) -> float:
    """Of a run's steps, as its metrics say."""
    try:
        lines = RunDir(runs / job.config.run_id).metrics()
    except RunError:
        return 0.0
    return float(lines[-1]["step"] / job.config.steps) if lines else 0.0


@contextlib.contextmanager
def _alone(runs: Path) -> Iterator[None]:
    """Hold a folder of runs against a second sweep."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        file = (runs / ".sweep.lock").open("w")
    except OSError as error:
        raise RunError(f"runs must be written in {runs}, the system says: {error.strerror}; choose another") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"a folder of runs has one sweep at a time, {runs} has another; wait for it") from None
        yield


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
