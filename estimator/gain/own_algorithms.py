"""Algorithms that are not in the registry: those that only rows of a table name, and those that a folder describes.

A folder of `ceg ... --registry DIR` has one file per algorithm, of the kind that the registry itself has: Python with a
constant `ALGORITHM`. The file's name is the algorithm's. These files are run, so a folder is somebody's own code.
"""

from __future__ import annotations

import os
import re
import runpy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from cegain import algorithms
from cegain.algorithms import Algorithm
from cegain.tables.problems import EvidenceError, Problem, refusal
from cegain.tables.published_gains import UNSTATED

UNNAMED = "baseline"
"""What an algorithm of a table is compared with where no row says."""
EXAMPLE = "Write ALGORITHM = Algorithm(...) as the files of cegain.algorithms do (docs/python.md)."
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_WORDS = {"paper_class": algorithms.PaperClass, "kind": algorithms.Kind, "stack": algorithms.Stack}
_TEXTS = ("title", "paper", "summary", "costs")
_LISTS = ("replaces", "aliases", "kernels", "kernel_baselines", "gaps")
_SHAPES = ("arm", "baseline_arm")


def of_rows(name: str, baselines: Counter[str]) -> Algorithm:
    """An algorithm of which a table's rows are all that is known; `baselines`: how often they name each."""
    stated = [baseline for baseline, _ in baselines.most_common() if baseline != UNSTATED]
    return Algorithm(
        title=name,
        paper="none, only a table of gains",
        summary="It is not in the registry.",
        replaces=tuple(stated) or (UNNAMED,),
        paper_class="not_studied",
        kind=algorithms.OTHER,
        costs="not known.",
        gaps=(
            "no training arm: the registry does not have it; describe it in a folder (--registry DIR).",
            "no kernel: the registry does not have it.",
        ),
    )


def of_folder(folder: str | os.PathLike[str]) -> dict[str, Algorithm]:
    """The algorithms that the files `*.py` of a folder describe, by name; those that begin with `_` are left out.

    Raises:
        EvidenceError: the folder has none, or some file is no algorithm or clashes with another; all problems.
    """
    path = Path(folder)
    where = f"registry {os.fspath(folder)!r}"
    try:
        files = sorted(p for p in path.iterdir() if p.suffix == ".py" and not p.name.startswith("_"))
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise refusal(where, "it is a folder that can be read", detail, "Name a folder of algorithms.") from None
    if not files:
        raise refusal(where, "a folder has a file NAME.py per algorithm", "none", EXAMPLE)
    problems: list[Problem] = []
    entries: dict[str, Algorithm] = {}
    owner = _taken()
    for file in files:
        entry = _read(file, problems)
        if entry is None:
            continue
        for word in dict.fromkeys((file.stem, *entry.aliases, algorithms.normal(entry.title))):
            if owner.setdefault(word, file.stem) != file.stem or algorithms.find(word) is not None:
                rule, remedy = "a name, alias or title stands for one algorithm", "Give it another."
                problems.append(Problem(str(file), rule, f"{word!r}, which is {owner[word]}'s", remedy))
        entries[file.stem] = entry
    if problems:
        raise EvidenceError(problems)
    return entries


def _taken() -> dict[str, str]:
    """Names, aliases and titles of the registry, by the algorithm that each is of."""
    owner: dict[str, str] = {}
    for name in algorithms.names():
        entry = algorithms.get(name)
        owner |= dict.fromkeys((name, *entry.aliases, algorithms.normal(entry.title)), name)
    return owner


def _read(file: Path, problems: list[Problem]) -> Algorithm | None:
    """The algorithm of one file; None, with problems added, where it is none."""
    before = len(problems)
    where = str(file)
    if not _NAME.fullmatch(file.stem):
        rule = "a file's name is the algorithm's: small letters, digits and _"
        problems.append(Problem(where, rule, file.name, "Rename it."))
    try:
        entry: Any = runpy.run_path(where, run_name=f"{__name__}.{file.stem}").get("ALGORITHM")
    except (Exception, SystemExit) as error:  # whatever somebody's file does
        at = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        value = f"{at}{type(error).__name__}: {getattr(error, 'msg', None) or error}"
        problems.append(Problem(where, "a file of the registry runs", value.splitlines()[0][:300], EXAMPLE))
        return None
    if not isinstance(entry, Algorithm):
        value = "none" if entry is None else type(entry).__name__
        problems.append(Problem(where, "a file has a constant ALGORITHM, an Algorithm", value, EXAMPLE))
        return None
    for field, rule, value, remedy in _wrong(entry):
        problems.append(Problem(f"{where}, {field}", rule, value[:300], remedy))
    return entry if len(problems) == before else None


def _wrong(entry: Algorithm) -> list[tuple[str, str, str, str]]:
    """What is wrong with an algorithm: field, rule, value, remedy."""
    wrong = []
    for field in _TEXTS:
        if not isinstance(text := getattr(entry, field), str) or not text.strip():
            wrong.append((field, "it is text", repr(text), "Say it in a line."))
    for field, words in _WORDS.items():
        if (word := getattr(entry, field)) not in get_args(words):
            wrong.append((field, f"it is one of {', '.join(get_args(words))}", repr(word), "Use one of them."))
    for field in _LISTS:
        parts = getattr(entry, field)
        if not isinstance(parts, tuple) or not all(isinstance(part, str) and part for part in parts):
            wrong.append((field, "it is a tuple of text", repr(parts), 'Write ("dense",), with the comma.'))
        elif field in ("replaces", "aliases") and not all(map(_NAME.fullmatch, parts)):
            wrong.append((field, "names have small letters, digits and _", repr(parts), "Rename them."))
    if entry.replaces == ():
        wrong.append(("replaces", "at least one baseline is named", "()", 'Write ("dense",), or what it replaces.'))
    for field in ("exact_in_flop", "saves_only"):
        if not isinstance(flag := getattr(entry, field), bool):
            wrong.append((field, "it is True or False", repr(flag), "Leave it out."))
    if not isinstance(entry.unlocking, str):
        wrong.append(("unlocking", "it is text", repr(entry.unlocking), "Leave it out."))
    return wrong or _wrong_shapes(entry)


def _wrong_shapes(entry: Algorithm) -> list[tuple[str, str, str, str]]:
    """What is wrong with the arms: whether a model of the stack can have them."""
    from cegain.shapes import architecture

    wrong = []
    for field in _SHAPES:
        arm = getattr(entry, field)
        if not arm:
            continue
        try:
            if not isinstance(arm, Mapping):
                raise TypeError("it is no mapping")
            architecture.stack(entry.stack, **arm)
        except (TypeError, ValueError) as error:
            rule = f"it changes fields of a model of the {entry.stack} stack (ModelShape)"
            lines = str(error).splitlines()
            wrong.append((field, rule, "; ".join(lines[1:] or lines), "Correct it, or leave it out."))
    if entry.saves_only and not (entry.arm.get("heads") or entry.arm.get("pattern")):
        rule = "what only saves FLOP has an arm with an attention pattern or shared heads"
        wrong.append(("saves_only", rule, "True", "Leave it out, or give the arm."))
    return wrong
