"""Training many runs at once on this machine, a process each: the local engine of a sweep.

An engine has `slots`, how many jobs it can hold, `submit`, which promises a row, and `close`. `ray_engine` is
one that has more than this machine.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from cegain.tables.training_runs import TrainingRun
from cegain.training.sweeps.ablate import Job

PATIENCE = 10.0
"""Seconds to wait for a run that another process still holds, such as one whose sweep was killed a moment ago."""
GRACE = 60.0
"""Seconds past its time limit after which a run that does not come back to Python is ended with its process."""


class JobError(Exception):
    """A job that ended without a row: one sentence."""


class Engine(Protocol):
    """Where jobs are trained."""

    @property
    def slots(self) -> int:
        """Jobs that it can hold now."""

    def submit(self, job: Job) -> Future[TrainingRun]:
        """Start a job; its future raises JobError where the run ends without a row."""

    def close(self) -> None:
        """Stop everything; runs go on from their checkpoints when they are submitted again."""


class LocalPool:
    """`slots` processes that stay, each for one job at a time: one that dies takes no other with it.

    `corpus` is its folder, `runs` where run folders go; `threads` of each process, None for its share of the cores;
    `seconds` is what a run may take, None for any time.
    """

    def __init__(
        self,
        slots: int,
        corpus: Path,
        runs: Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        seconds: float | None = None,
    ) -> None:
        self.slots = slots
        threads = threads if threads is not None else max(1, (os.cpu_count() or 1) // slots)
        self._where = corpus, runs, device, threads, seconds
        self._free: list[ProcessPoolExecutor] = []
        # Not a fork: torch's threads do not survive one.
        self._context = multiprocessing.get_context("spawn")
        # Workers hold one end and end when the other is closed, which the system does for a process that is killed.
        self._held, self._alive = self._context.Pipe(duplex=False)

    def submit(self, job: Job) -> Future[TrainingRun]:
        """See `Engine`."""
        worker = self._free.pop() if self._free else self._worker()
        promise: Future[TrainingRun] = Future()

        def ended(done: Future[TrainingRun | str]) -> None:
            error = done.exception()
            if isinstance(error, BrokenProcessPool):
                worker.shutdown(wait=False)
                promise.set_exception(JobError(f"its process was killed ({why_lost(self._where[-1])})"))
                return
            self._free.append(worker)
            found = done.result() if error is None else f"{type(error).__name__}: {error}"
            if isinstance(found, str):
                promise.set_exception(JobError(found))
            else:
                promise.set_result(found)

        try:
            under_way = worker.submit(train_job, job, *self._where)
        except BrokenProcessPool:  # killed while it had nothing to do
            worker.shutdown(wait=False)
            worker = self._worker()
            under_way = worker.submit(train_job, job, *self._where)
        under_way.add_done_callback(ended)
        return promise

    def close(self) -> None:
        """See `Engine`. Its processes end at once, and no others."""
        self._alive.close()

    def _worker(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, initializer=_end_with, initargs=(self._held,))


def why_lost(seconds: float | None) -> str:
    """What may have killed a process that says nothing any more; `seconds` is its time limit."""
    return "out of memory?" if seconds is None else "out of memory, or hung past --time-limit?"


def train_job(
    job: Job, corpus: Path, runs: Path, device: str, threads: int, seconds: float | None = None
) -> TrainingRun | str:
    """Train a run in this process, or find it trained, and return its row; else what went wrong."""
    from cegain.training.run import collect, processes
    from cegain.training.run.run_dir import RunDir, RunError
    from cegain.training.run.train import train
    from cegain.training.text.data import CorpusError, open_corpus

    made = job.config
    run = RunDir(runs / made.run_id, patience=PATIENCE)
    try:
        text = open_corpus(str(corpus), made.tokenizer)
        processes.set_threads(made, threads)
        with processes.joined(device) as group, _limited(seconds):
            train(made, text, run, group)
        row = collect.row(run, job.role)
        return row if row is not None else "it has no summary"
    except _OutOfTime:
        return (
            f"a run may take {seconds:g} s (--time-limit), this one took longer; give it more, and the same command "
            "goes on from its last checkpoint"
        )
    except (RunError, CorpusError) as error:
        return str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"


class _OutOfTime(BaseException):
    """Not an Exception: nothing on the way may take it for a failure of its own."""


@contextlib.contextmanager
def _limited(seconds: float | None) -> Iterator[None]:
    """Raise _OutOfTime in the main thread, which this must be, after so many seconds."""
    if seconds is None:
        yield
        return

    def out(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, out)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)  # what hangs outside Python hears no signal
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _end_with(held: Connection) -> None:
    """End this process as soon as the other end is closed, as it is when its holder is killed: an orphan would hold
    its run. Ctrl-C is the parent's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with contextlib.suppress(EOFError):
            held.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
