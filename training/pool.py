"""Training many runs at once on this machine, a process each: the local engine of a sweep.

An engine has `slots`, how many jobs it can hold, `submit`, which promises a row, and `close`. One that has more than
this machine can take its place.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

from estimator.training_runs import TrainingRun
from training.ablate import Job

PATIENCE = 10.0
"""Seconds to wait for a run that another process still holds, such as one whose sweep was killed a moment ago."""


class JobError(Exception):
    """A job that ended without a row: one sentence."""


class Engine(Protocol):
    """Where jobs are trained."""

    slots: int

    def submit(self, job: Job) -> Future[TrainingRun]:
        """Start a job; its future raises JobError where the run ends without a row."""

    def close(self) -> None:
        """Stop everything; runs go on from their checkpoints when they are submitted again."""


class LocalPool:
    """`slots` processes that stay, each for one job at a time: one that dies takes no other with it.

    `corpus` is its folder, `runs` where run folders go; `threads` of each process, None for its share of the cores.
    """

    def __init__(
        self, slots: int, corpus: Path, runs: Path, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        self.slots = slots
        threads = threads if threads is not None else max(1, (os.cpu_count() or 1) // slots)
        self._where = corpus, runs, device, threads
        self._free: list[ProcessPoolExecutor] = []

    def submit(self, job: Job) -> Future[TrainingRun]:
        """See `Engine`."""
        worker = self._free.pop() if self._free else self._worker()
        promise: Future[TrainingRun] = Future()

        def ended(done: Future[TrainingRun | str]) -> None:
            error = done.exception()
            if isinstance(error, BrokenProcessPool):
                worker.shutdown(wait=False)
                promise.set_exception(JobError("its process was killed (out of memory?)"))
                return
            self._free.append(worker)
            found = done.result() if error is None else f"{type(error).__name__}: {error}"
            if isinstance(found, str):
                promise.set_exception(JobError(found))
            else:
                promise.set_result(found)

        worker.submit(train_job, job, *self._where).add_done_callback(ended)
        return promise

    def close(self) -> None:
        """See `Engine`. Jobs that are running are killed."""
        for process in multiprocessing.active_children():
            process.kill()

    def _worker(self) -> ProcessPoolExecutor:
        # Not a fork: torch's threads do not survive one.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=_end_with, initargs=(os.getpid(),))


def train_job(job: Job, corpus: Path, runs: Path, device: str, threads: int) -> TrainingRun | str:
    """Train a run in this process, or find it trained, and return its row; else what went wrong."""
    from training import collect, processes
    from training.data import CorpusError, open_corpus
    from training.run_dir import RunDir, RunError
    from training.train import train

    made = job.config
    run = RunDir(runs / made.run_id, patience=PATIENCE)
    try:
        text = open_corpus(str(corpus), made.tokenizer)
        processes.set_threads(made, threads)
        with processes.joined(device) as group:
            train(made, text, run, group)
        row = collect.row(run, job.role)
        return row if row is not None else "it has no summary"
    except (RunError, CorpusError) as error:
        return str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"


def _end_with(parent: int) -> None:
    """End this process soon after its parent has, even by kill -9: an orphan would hold its run. Ctrl-C is the
    parent's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
