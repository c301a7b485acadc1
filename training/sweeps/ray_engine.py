"""Training many runs at once on a Ray cluster: the engine of a sweep that has more than this machine.

A run is a task. Ray keeps the processes of tasks, so that torch is imported once in each; on GPUs a process takes one
run, for a process keeps the GPU that it was given first. Nothing is retried but what was lost with its process or node:
a run that fails by itself is an answer. Corpus and run folders are found by their paths where nodes share them; else
the corpus is shipped once, and what a run leaves comes back, but for its checkpoints. The driver needs no torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cegain.tables.files import write_atomically
from cegain.tables.training_runs import TrainingRun
from cegain.training.sweeps import pool
from cegain.training.sweeps.ablate import Job, Ladders
from cegain.training.sweeps.pace import Measured
from cegain.training.sweeps.pool import JobError
from cegain.training.text import data
from cegain.training.text.data import Corpus, CorpusError

RETRIES = 3
"""Times that a run is given to another process after its process or node was lost."""
OBJECT_STORE = 100_000_000
"""Bytes of shared memory for what a cluster started here passes around: rows, and at times a corpus, part by part."""
PART = 16_000_000
"""Bytes of a corpus in one object."""
MARK = ".shared"
"""In the folder of runs: what a worker must see to know that it is the driver's."""
_SUMMARY = "summary.json"


class ClusterError(Exception):
    """A cluster that cannot be had: one sentence with rule, value and remedy."""


def connect(address: str) -> None:
    """Connect this process to a cluster: "auto", HOST:PORT, or "local" for one that is started here and ends with it.

    Raises:
        ClusterError: Ray is not installed, or no cluster answers.
    """
    if find_spec("ray") is None:
        raise ClusterError("Ray is installed (found none). Try: pip install '.[sweeps]' in the checkout.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    import ray

    host, _, port = address.rpartition(":")
    here = address == "local"
    options = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if here else {}
    for last in (False, True) if here else (True,):  # it gives itself half a minute, too little on a busy machine
        try:
            if host and port.isdecimal():  # Ray itself would try for a minute
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception as error:  # of many kinds, plain Exception among them
            ray.shutdown()
            if last:
                remedy = "Wait until this machine has less to do" if here else "Use `ray start --head`, or --ray local"
                raise ClusterError(f"a Ray cluster answers at {address!r} ({_first_line(error)}). {remedy}.") from None


def disconnect() -> None:
    """End the connection of this process, if there is one, and a cluster that `connect` started."""
    import ray

    ray.shutdown()


def has_gpus() -> bool:
    """Whether the cluster that this process is connected to has GPUs."""
    import ray

    return bool(ray.cluster_resources().get("GPU"))


@dataclass(frozen=True)
class _Place:
    """What a worker is told beside its job. `mark` is what it finds in MARK if `runs` is the driver's folder."""

    corpus: Path
    about: Corpus
    runs: Path
    mark: str
    device: str
    threads: int
    seconds: float | None


class RayEngine:
    """Jobs as tasks on the cluster that this process is connected to (`connect`).

    Args:
        corpus: what is trained on.
        runs: folder of run folders.
        device: "cpu" or "cuda".
        threads: CPUs of a run.
        gpus: of a run on CUDA; several share one GPU if it is a fraction.
        slots: most runs at once; None for as many as the nodes hold.
        seconds: that a run may take; None for any time.

    Raises:
        ClusterError: no node that is there could ever hold a run.
    """

    def __init__(
        self,
        corpus: Corpus,
        runs: Path,
        *,
        device: str = "cpu",
        threads: int = 1,
        gpus: float = 1.0,
        slots: int | None = None,
        seconds: float | None = None,
    ) -> None:
        import ray

        self._ray = ray
        self._most = slots
        self._needs = {"CPU": float(threads), **({"GPU": gpus} if device == "cuda" else {})}
        if not self._fitting():
            asked = " and ".join(f"{amount:g} {name}" for name, amount in self._needs.items())
            most = {name: max((n.get(name, 0.0) for n in self._nodes()), default=0.0) for name in self._needs}
            held = ", ".join(f"{amount:g} {name}" for name, amount in most.items())
            raise ClusterError(
                f"a node holds a run's {asked} (found at most {held} in one). Lower --threads or --gpus-per-run, or "
                "start such a node first."
            )
        folder = corpus.folder.absolute()
        self._place = _Place(folder, corpus, runs.absolute(), uuid.uuid4().hex, device, threads, seconds)
        self._marked, self._marking = False, threading.Lock()
        self._parts: list[tuple[str, list[Any]]] | None = None
        self._shipping = threading.Lock()
        self._closed = False
        self._under_way: dict[Any, threading.Thread] = {}
        # Ray would retry what runs out of memory for ever: who is lost is counted here.
        how = {"num_cpus": threads, "num_gpus": self._needs.get("GPU", 0), "max_retries": 0}
        self._remote = {function: ray.remote(**how)(function) for function in (_train_job, _measure)}

    @property
    def slots(self) -> int:
        """See `Engine`: what the nodes that are alive hold, at least one."""
        fit = self._fitting()
        return max(1, fit if self._most is None else min(fit, self._most))

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fitting(self) -> int:
        """Runs that the nodes hold."""
        held = [min(node.get(name, 0.0) / amount for name, amount in self._needs.items()) for node in self._nodes()]
        return sum(int(many + 1e-9) for many in held)  # 1 / 0.1 runs are ten

    def submit(self, job: Job) -> Future[TrainingRun]:
        """See `Engine`."""
        promise: Future[TrainingRun] = Future()

        def supervise() -> None:
            try:
                self._mark()
                promise.set_result(self._train(job))
            except Exception as error:
                promise.set_exception(error if isinstance(error, JobError) else JobError(_first_line(error)))

        # Not a pool of threads: at exit Python would wait for those.
        threading.Thread(target=supervise, daemon=True).start()
        return promise

    def pace(self, ladders: Ladders, table: Iterable[TrainingRun]) -> Measured:
        """`pace.measure` where jobs are trained.

        Raises:
            JobError: it cannot be measured.
        """
        found: Measured = self._call(_measure, ladders, list(table))
        return found

    def close(self) -> None:
        """See `Engine`. The connection stays."""
        self._closed = True
        for reference, thread in list(self._under_way.items()):
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
            thread.join(timeout=10)

    def _train(self, job: Job) -> TrainingRun:
        found, files = self._call(_train_job, job)
        if isinstance(found, str):
            raise JobError(found)
        folder = self._place.runs / job.config.run_id
        try:
            for name in sorted(files, key=lambda name: name == _SUMMARY):  # last: it says that the run has ended
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / name, files[name])
        except OSError as error:
            raise JobError(
                f"its files must be written to {folder}, the system says: {error.strerror}; make room"
            ) from None
        row: TrainingRun = found
        return row

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function returns in a worker, given another one if that is lost, and the corpus if it has none."""
        errors = self._ray.exceptions
        lost, parts = 0, None
        while True:
            reference = self._remote[function].remote(self._place, parts, *args)
            self._under_way[reference] = threading.current_thread()
            try:
                found = self._ray.get(reference)
            except errors.RayTaskError as error:
                raise JobError(f"{_first_line(error.cause)} (on a worker)") from None
            except (errors.TaskCancelledError, errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
                raise JobError(_first_line(error)) from None
            except errors.RayError as error:  # its process or node died, or what it returned is gone
                lost += 1
                if lost > RETRIES or self._closed:
                    name = type(error).__name__
                    raise JobError(
                        f"its process or node was lost {lost} times, at last: {name} "
                        f"({pool.why_lost(self._place.seconds)})"
                    ) from None
                continue
            finally:
                del self._under_way[reference]
            if found is not None:
                return found
            parts = self._shipped()

    def _mark(self) -> None:
        """Leave the mark in the folder of runs, now that the sweep holds it."""
        with self._marking:
            if self._marked:
                return
            try:
                write_atomically(self._place.runs / MARK, self._place.mark.encode())
            except OSError as error:
                where = self._place.runs
                raise JobError(f"{where} must be written, the system says: {error.strerror}; make room") from None
            self._marked = True

    def _shipped(self) -> list[tuple[str, list[Any]]]:
        """(name, parts) of every file of the corpus, put into the cluster's shared memory once."""
        with self._shipping:
            if self._parts is None:
                files = [self._place.corpus / name for name in ("corpus.json", *self._place.about.about["sha256"])]
                self._parts = [(path.name, [self._ray.put(part) for part in _parts(path)]) for path in files]
            return self._parts


def _parts(path: Path) -> Iterable[np.ndarray[Any, np.dtype[np.uint8]]]:
    mapped = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)
    for start in range(0, len(mapped), PART):
        yield np.array(mapped[start : start + PART])


# In a worker


def _train_job(
    place: _Place, parts: list[tuple[str, list[Any]]] | None, job: Job
) -> tuple[TrainingRun | str, dict[str, bytes]] | None:
    """The row, or what went wrong, and the files of the run that the driver must write; None: no corpus here."""
    text = _corpus(place, parts)
    if text is None:
        return None
    found = pool.train_job(job, text.folder, place.runs, place.device, place.threads, place.seconds)
    with contextlib.suppress(OSError):
        if (place.runs / MARK).read_text() == place.mark:
            return found, {}
    if isinstance(found, str):
        return found, {}
    files = [path for path in (place.runs / job.config.run_id).iterdir() if path.is_file() and path.name[0] != "."]
    return found, {path.name: path.read_bytes() for path in files}


def _measure(
    place: _Place, parts: list[tuple[str, list[Any]]] | None, ladders: Ladders, table: list[TrainingRun]
) -> Measured | None:
    """As `pace.measure`; None: no corpus here."""
    import torch

    from cegain.training.sweeps import pace

    text = _corpus(place, parts)
    return None if text is None else pace.measure(replace(ladders, corpus=text), table, torch.device(place.device))


def _corpus(place: _Place, parts: list[tuple[str, list[Any]]] | None) -> Corpus | None:
    """The driver's corpus: where the driver has it, or where this node keeps what it was sent; None if in neither."""
    about = place.about
    kept = data.corpus_folder(f"{about.name}-{about.sha256[:12]}", about.tokenizer)
    for folder in (place.corpus, kept):
        with contextlib.suppress(CorpusError):
            if (found := data.open_corpus(folder)).sha256 == about.sha256:
                return found
    if parts is None:
        return None
    import ray

    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, ignore_cleanup_errors=True) as made:
        for name, references in parts:
            with (Path(made) / name).open("wb") as file:
                for reference in references:
                    file.write(ray.get(reference))
        with contextlib.suppress(OSError):  # another worker of this node was first
            Path(made).rename(kept)
    return data.open_corpus(kept)


def _first_line(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
