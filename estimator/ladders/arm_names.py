"""What the names of arms tell: which arm has which algorithm, and which arm is its baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from cegain import algorithms
from cegain.shapes import arms
from cegain.shapes.architecture import STACKS, ModelShape
from cegain.tables.problems import Problem

BASELINE = "baseline"
WITHOUT = "no_"


def pairs(path: Path, variants: Sequence[str], problems: list[Problem], stack: str = "") -> list[tuple[str, str, str]]:
    """(algorithm, arm with it, arm without it) for every contrast that the names of a stack's arms tell.

    A contrast with anything but the algorithm's default baseline, or what the bare stack has in its place, is none:
    on a known `stack`, LayerNorm in place of RMSNorm says nothing of LayerNorm in place of no norm. Arms that lack
    their baseline are added to `problems`, with `path` as the place.
    """
    names = {variant: _algorithm(variant) for variant in variants}
    baselines = {replaced(name) for name in names.values() if name}
    contrasts = []
    for variant, name in names.items():
        if name is None:
            continue
        default = replaced(name)
        others = {v.lower(): v for v in names if v != variant}
        if default in others:
            contrasts.append((name, variant, others[default]))
        elif BASELINE in others:
            if _is_default(name, _fields(stack)):
                contrasts.append((name, variant, others[BASELINE]))
        elif name not in baselines:  # else it is there as the baseline of another arm
            rule = f"a table with the arm {variant!r} has its baseline, called {default!r} or {BASELINE!r}"
            problems.append(Problem(str(path), rule, ", ".join(names), "Add the baseline's runs, or rename its arm."))
    if BASELINE in variants:
        without = {replaced(n): n for n in algorithms.names() if algorithms.get(n).baseline_arm}
        for variant in variants:
            if names.get(variant) is not None or "+" in variant:
                continue
            name = without.get(variant)
            if name is None and variant.startswith(WITHOUT):
                name = _algorithm(variant.removeprefix(WITHOUT))
                if name is not None and stack in STACKS and not arms.has(stack, name):  # type: ignore[arg-type]
                    continue  # nothing was taken out
            if name is not None and name not in names.values():
                contrasts.append((name, BASELINE, variant))
    return contrasts


def _fields(stack: str, without: str | None = None) -> Mapping[str, object]:
    """Model fields of a stack, those of one algorithm as the bare stack has them; none where the stack is not known."""
    if stack not in STACKS:
        return {}
    bare = {field.name: field.default for field in dataclasses.fields(ModelShape)} | dict(STACKS["bare"])
    changed = algorithms.get(without).arm if without else ()
    return bare | dict(STACKS[stack]) | {field: bare[field] for field in changed}  # type: ignore[index]


def _is_default(name: str, fields: Mapping[str, object]) -> bool:
    """Whether a model with these fields (if any are known) is what every part of `name` replaces by default."""

    def has(arm: Mapping[str, object]) -> bool:
        return all(fields[field] == value for field, value in arm.items())

    if not fields:
        return True
    entries = {part: algorithms.get(part) for part in name.split("+")}
    rivals = [entry for n in algorithms.names() if n not in entries and (entry := algorithms.get(n)).arm]
    return all(
        has(entry.baseline_arm) and not any(entry.replaces[0] in rival.replaces and has(rival.arm) for rival in rivals)
        for entry in entries.values()
    )


def replaced(name: str) -> str:
    """The default baseline of an algorithm, of every part of a combination in its order."""
    return "+".join(algorithms.get(part).replaces[0] for part in name.split("+"))


def baseline_of(name: str, against: str, stack: str) -> str:
    """What a pair's gain is over: the default baseline of every part, or what is there once the only part is taken out
    of a known stack (`against` is its "no_" arm)."""
    if against.startswith(WITHOUT) and not _is_default(name, _fields(stack, name)):
        return arms.on_bare(name)
    return replaced(name)


def _algorithm(variant: str) -> str | None:
    """The registry's name of an arm, or names joined by "+" in the arm's order; None where there is none."""
    try:
        parts = [algorithms.resolve(part) for part in variant.split("+")]
    except algorithms.UnknownAlgorithm:
        return None
    return "+".join(parts) if len(set(parts)) == len(parts) else None
