"""`studies.csv`: whose work a study is, and which algorithms its authors propose or sell themselves."""

from __future__ import annotations

import csv
import functools
from typing import NamedTuple

from cegain.tables.files import DATA

STUDIES = DATA / "studies.csv"


class Study(NamedTuple):
    """One row: `laboratory` is shared by studies of one group; `proposes` are names of the registry."""

    study: str
    laboratory: str
    proposes: tuple[str, ...]
    note: str


@functools.cache
def all_studies() -> dict[str, Study]:
    """The shipped studies by name."""
    with STUDIES.open(encoding="utf-8", newline="") as stream:
        rows = [
            Study(r["study"], r["laboratory"], tuple(r["proposes"].split("+")) if r["proposes"] else (), r["note"])
            for r in csv.DictReader(stream)
        ]
    return {row.study: row for row in rows}


def laboratory(study: str) -> str:
    """The group that made a study; one that is not listed is its own."""
    found = all_studies().get(study)
    return study if found is None else found.laboratory


def proposes(study: str, algorithm: str) -> bool:
    """Whether the authors of a study propose an algorithm (of a combination: any part) themselves."""
    found = all_studies().get(study)
    return found is not None and not set(found.proposes).isdisjoint(algorithm.split("+"))
