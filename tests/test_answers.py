"""No answer moves while the code is rearranged: every number as commit 67f0c12 gave it (`python -m tests.answers`)."""

import gzip
import json
import math
import sys
from pathlib import Path

import pytest

from tests.answers import STORED, ask, questions

BIN = Path(sys.executable).parent
TOLERANCE = 1e-9
FAST = ("estimate moe flop", "estimate layernorm+rope time", "own runs modern moe")


def _different(names: list[str]) -> list[str]:
    before = json.loads(gzip.decompress(STORED.read_bytes()))
    now = ask(BIN, names)
    found = []
    for name in names:
        for path, value in before[name].items():
            new = now[name].get(path, "missing")
            same = new == value
            if not same and isinstance(value, float | int) and isinstance(new, float | int):
                same = math.isclose(value, new, rel_tol=TOLERANCE, abs_tol=0.0)
            if not same:
                found.append(f"{name} {path}: {value} before, {new} now")
    return found


def test_answers_are_those_of_the_commit_before() -> None:
    assert _different(list(FAST)) == []


@pytest.mark.slow
def test_all_answers_are_those_of_the_commit_before() -> None:
    before = json.loads(gzip.decompress(STORED.read_bytes()))
    assert set(before) == set(questions())
    assert sum(map(len, before.values())) > 5000
    assert _different(list(before)) == []
