"""The folder of one run: what it was asked, where it ran, what it measured, and where to go on from.

    config.json environment.json    written before step 0
    metrics.jsonl                   one line per logged step or evaluation
    checkpoints/step-00001200.pt    the two newest
    summary.json loss.png           written at the end

Everything is written so that a process killed at any moment leaves the old file or the new.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cegain.tables.files import write_atomically

CLOCK_FIELDS = ("seconds", "tokens_per_s", "mfu")
"""Of metrics and summary: what differs between two runs of one configuration on one machine."""
NEEDED: Mapping[str, tuple[str, ...]] = {
    "config": ("run_id", "corpus_sha256", "stack", "arm", "seed", "shape", "steps", "corpus"),
    "environment": ("device", "torch", "commit", "date", "gemm_flops_per_s"),
    "summary": (
        "run_id", "status", "steps", "tokens", "flops", "loss_nats_per_token", "loss_bits_per_byte", "seconds",
        "tokens_per_s", "mfu",
    ),
}  # fmt: skip
"""What must be in a document for the rest to work."""
_DIGEST = hashlib.sha256().digest_size


class RunError(Exception):
    """A run that cannot go on: one sentence with rule, value and remedy."""


class RunDir:
    """A run's folder. Nothing is created before `create` or `locked`.

    `patience` is how many seconds to wait for another process that holds the run.
    """

    def __init__(self, path: Path, patience: float = 0.0) -> None:
        self.path = path
        self.patience = patience
        self.metrics_path = path / "metrics.jsonl"

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object in `name`.json, or None if there is no such file.

        Raises:
            RunError: the file is not JSON, or not what a run writes.
        """
        path = self.path / f"{name}.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"{path} must be JSON that can be read ({error}); restore it, or remove the run") from None
        missing = [key for key in NEEDED[name] if not isinstance(document, dict) or key not in document]
        if missing:
            raise RunError(f"{path} must be an object with {', '.join(missing)}; restore it, or remove the run")
        found: dict[str, Any] = document
        return found

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Write `name`.json atomically.

        Raises:
            RunError: the disk refuses.
        """
        with self._refused(f"{name}.json"):
            write_atomically(self.path / f"{name}.json", (json.dumps(document, indent=2) + "\n").encode())

    def create(self) -> None:
        """Make the folder.

        Raises:
            RunError: the disk refuses.
        """
        with self._refused("checkpoints"):
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second process that would train the same run.

        Raises:
            RunError: another process holds it.
        """
        self.create()
        with self._refused(".lock"):
            file = (self.path / ".lock").open("w")
        with file:
            until = time.monotonic() + self.patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > until:
                        raise RunError(
                            f"a run is trained by one process at a time, {self.path} is held by another; wait for it"
                        ) from None
                time.sleep(0.2)
            for left in (*self.path.glob(".*.*.*"), *self.path.glob("checkpoints/.*.*")):
                left.unlink()  # what a killed process was writing
            yield

    # Metrics

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines, in order; a last line that was cut off is left out."""
        if not self.metrics_path.exists():
            return []
        found = []
        for number, line in enumerate(self.metrics_path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]):
            try:
                found.append(json.loads(line))
                found[-1]["step"], found[-1]["flops"], found[-1]["loss"]
            except (ValueError, KeyError, TypeError):
                raise RunError(
                    f"{self.metrics_path}, line {number + 1} must be a line of metrics, got {line[:60]!r}; remove the "
                    "line and all after it: they are made again from a checkpoint before"
                ) from None
        return found

    def keep_metrics(self, last_step: int) -> None:
        """Drop lines past a step, which will be made again."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= last_step]
        with self._refused("metrics.jsonl"):
            write_atomically(self.metrics_path, "".join(kept).encode())

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line.

        Raises:
            RunError: the disk refuses.
        """
        with self._refused("metrics.jsonl"), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    # Checkpoints: what torch.save writes, then the SHA-256 of it

    def checkpoints(self) -> list[Path]:
        """Newest first."""
        return sorted((self.path / "checkpoints").glob("step-*.pt"), reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint atomically, metrics first, and remove all but it and the one before.

        Raises:
            RunError: the disk refuses; older checkpoints are still there.
        """
        with self._refused("metrics.jsonl"), self.metrics_path.open("a") as file:
            os.fsync(file.fileno())
        import torch

        buffer = io.BytesIO()
        torch.save({"step": step, **state}, buffer)
        content = buffer.getvalue()
        with self._refused("a checkpoint"):
            target = self.path / "checkpoints" / f"step-{step:08d}.pt"
            write_atomically(target, content + hashlib.sha256(content).digest())
        for old in self.checkpoints()[2:]:
            old.unlink()

    def load(self) -> dict[str, Any] | None:
        """The newest sound checkpoint; None where there is none.

        Warns about each that is truncated or changed, or that metrics do not reach, and goes on with the one before.
        """
        import torch

        reached = max((line["step"] for line in self.metrics()), default=0)
        for path in self.checkpoints():
            content = path.read_bytes()
            body, digest = content[:-_DIGEST], content[-_DIGEST:]
            if hashlib.sha256(body).digest() == digest:
                state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
                if state["step"] <= reached:
                    return state
                wrong = f"is past step {reached}, where metrics.jsonl ends"
            else:
                wrong = "is truncated or changed: its contents do not have the SHA-256 that it was written with"
            warnings.warn(f"{path} {wrong}. Going on from the one before, or from the start.", stacklevel=2)
        return None

    def drop_checkpoints(self, after: int) -> None:
        """Remove checkpoints past a step: those found unsound."""
        for path in self.checkpoints():
            if int(path.stem.removeprefix("step-")) > after:
                path.unlink()

    @contextlib.contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{what} must be written in {self.path}, the system says: {error.strerror}. Nothing that was there is "
                "lost; make room or choose another folder, and give the same command again to go on"
            ) from error


def digest(document: dict[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a JSON document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:8]


def write_picture(path: Path, content: bytes) -> None:
    """A picture that may fail without harm to the run."""
    with contextlib.suppress(OSError):
        write_atomically(path, content)


def runs(folder: Path) -> list[RunDir]:
    """All runs in a folder, by name."""
    return [RunDir(path.parent) for path in sorted(folder.glob("*/config.json"))]


def is_writable(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that exists, can be written."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
