"""What a session on a GPU has done so far: one JSON file, written after every case, as pytest-benchmark writes its own.

A process that is killed at any moment, or that a kernel takes down, leaves everything that was measured before, and the
name of what it was in. That is tried once more, after all else, and then left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cegain.tables.files import write_atomically

TRIES = 2
"""Of a case in which the process ended."""
Document = dict[str, Any]


class Record:
    """Cases of one kind of results, by name.

    The file is {"rehearsal": bool, "done": {case: how it went}, "ended_in": {case: how often the process ended in it},
    "benchmarks": [what pytest-benchmark writes of each]}, and what `put` adds. Every write is copied to `copies`.
    """

    def __init__(self, path: Path, rehearsal: bool, copies: Sequence[Path] = ()) -> None:
        self.path, self.copies = path, copies
        self.document: Document = {"rehearsal": rehearsal, "done": {}, "ended_in": {}, "benchmarks": []}
        if path.exists():
            self.document = json.loads(path.read_text(encoding="utf-8"))
        if self.document["rehearsal"] != rehearsal:
            said = "a rehearsal" if not rehearsal else "a measurement"
            raise ValueError(f"--work: results are all rehearsed or all measured ({path} is of {said}). Name another.")

    def open(self, names: Sequence[str]) -> list[str]:
        """What is still to be done of some cases, in their order; those in which the process ended come last."""
        ended: Mapping[str, int] = self.document["ended_in"]
        left = [name for name in names if name not in self.document["done"] and ended.get(name, 0) < TRIES]
        return sorted(left, key=lambda name: ended.get(name, 0))

    def begin(self, name: str) -> None:
        """Note that the process is in a case from here on, until `end`."""
        self.document["ended_in"][name] = self.document["ended_in"].get(name, 0) + 1
        self.write()

    def end(self, name: str, how: str, benchmarks: Sequence[Document] = ()) -> None:
        """Note that a case is done, how it went in words, and what was measured."""
        self.document["ended_in"].pop(name, None)
        self.document["done"][name] = how
        self.document["benchmarks"] += benchmarks
        self.write()

    def leave(self, name: str) -> None:
        """Note that a case was left undone, through no fault of its own."""
        self.document["ended_in"].pop(name, None)
        self.write()

    def put(self, key: str, value: object) -> None:
        """Set something else in the file."""
        self.document[key] = value
        self.write()

    def write(self) -> None:
        """Write the file, and then its copies, each whole or not at all."""
        write(self.path, self.document, self.copies)


def write(path: Path, document: object, copies: Sequence[Path] = ()) -> None:
    """Write JSON atomically, to `path` and then to each of `copies`; folders are made."""
    content = (json.dumps(document, indent=1) + "\n").encode()
    for target in (path, *copies):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)


def copy(source: Path, target: Path) -> None:
    """Copy a file if it is there, so that a reader of the copy sees the old content or the new."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}")
        shutil.copyfile(source, partial)
        partial.replace(target)
