"""Names of arms -> fields of `ModelShape`, from the registry: a new file in `estimator/algorithms` is a new arm.

An arm is the stack with something changed:

* `baseline`: the stack itself.
* an algorithm's name or alias: the stack with the fields of its `arm`.
* what an algorithm with a `baseline_arm` replaces, by its first name (`lstm`): the stack with those fields.
* `no_` or `without_` and an algorithm that the stack has: its fields as the bare stack has them (leave one out).
* several of these, joined by `+`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from typing import Any, get_args

from cegain import algorithms
from cegain.algorithms import UnknownAlgorithm
from cegain.shapes.architecture import STACKS, ExpertActivation, ModelShape, Stack

BASELINE = "baseline"
WITHOUT = "no_"
COMBINATIONS = ("layernorm+rope+flash_attention",)
"""Several algorithms that are an arm: the source paper's (Sanderson et al. 2025, arXiv 2505.04075), in its order."""
LSTM_FIELDS = ("kind", "norm", "optimizer", "tied_head", "biases")
"""What an LSTM has a use for, so what may be combined with it."""

_LONG_WITHOUT = "without_"
_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(ModelShape)}


def arms(stack: Stack) -> tuple[str, ...]:
    """Every single arm that can be trained on a stack, and the combinations that are; the baseline first.

    Raises:
        ValueError: unknown stack.
    """
    _check_stack(stack)
    names = [*_replaced(), *algorithms.names(), *COMBINATIONS, *(WITHOUT + name for name in algorithms.names())]
    fields_of: dict[str, dict[str, Any]] = {BASELINE: {}}
    for name in names:
        try:
            fields = arm_shape_fields(stack, name)
        except ValueError:
            continue
        if fields not in fields_of.values():  # without Transformer is the LSTM
            fields_of[name] = fields
    return tuple(fields_of)


def canonical(stack: Stack, arm: str) -> str:
    """The one name of an arm: canonical names of its parts, in the order of COMBINATIONS or of the alphabet.

    Raises:
        ValueError: as `arm_shape_fields`.
    """
    arm_shape_fields(stack, arm)
    parts = [_part(part)[0] for part in _split(arm)]
    for combination in COMBINATIONS:
        if set(parts) == set(combination.split("+")):
            return combination
    return "+".join(sorted(parts))


def arm_shape_fields(stack: Stack, arm: str) -> dict[str, Any]:
    """The fields of `ModelShape` that an arm changes on a stack, with their values; none for the baseline.

    A mixture's experts have the activation of the dense layer that they replace, the stack's or that of another part
    of the arm, so that a mixture changes nothing else.

    Raises:
        ValueError: unknown stack or arm (with the nearest names), a part that changes nothing there or has no arm,
            parts that contradict each other; all of them at once.
    """
    _check_stack(stack)
    problems: list[str] = []
    parts: dict[str, Mapping[str, Any]] = {}
    for text in _split(arm):
        try:
            name, fields = _part(text)
        except ValueError as error:
            problems.append(str(error))
            continue
        changed = {field: value for field, value in fields.items() if of_stack(stack, field) != value}
        if name in parts:
            problems.append(f"arm must name each part once, got {text!r} again in {arm!r}; leave it out")
        elif name.startswith(WITHOUT) and not has(stack, name.removeprefix(WITHOUT)):
            problems.append(f"arm must leave out what its stack has, got {text!r}; the {stack} stack is without it")
        elif name != BASELINE and not changed:
            problems.append(_nothing(stack, text, name))
        parts[name] = changed
    if BASELINE in parts and len(parts) > 1:
        problems.append(f"arm must not combine {BASELINE} with others, got {arm!r}; leave it out")
    mixed, contradictions = _combine(stack, parts)
    idle = [field for field in mixed if mixed.get("kind") == "lstm" and field not in LSTM_FIELDS]
    if idle:
        problems.append(f"arm must not change {', '.join(idle)} of an LSTM, which has none, got {arm!r}; leave it out")
    if problems or contradictions:
        raise ValueError("\n".join([*problems, *contradictions]))
    return mixed


def algorithm(arm: str) -> str:
    """Registry names of what an arm is about, joined by `+`: `transformer` for `lstm`, `rope` for `no_rope`.

    Raises:
        ValueError: unknown arm.
    """
    names = []
    for text in _split(arm):
        name = _part(text)[0].removeprefix(WITHOUT)
        owners = [n for n in algorithms.names() if name in _replaced() and algorithms.get(n).replaces[0] == name]
        names.append(owners[0] if owners else name)
    return "+".join(names)


def _split(arm: str) -> list[str]:
    return [part.strip().lower().replace("-", "_").replace(" ", "_") for part in arm.split("+")]


def _part(text: str) -> tuple[str, Mapping[str, Any]]:
    """Canonical name and fields of one part, whatever the stack."""
    if text == BASELINE:
        return BASELINE, {}
    if text in _replaced():
        return text, _replaced()[text]
    prefix = next((prefix for prefix in (WITHOUT, _LONG_WITHOUT) if text.startswith(prefix)), "")
    name = _resolve(text.removeprefix(prefix), text)
    entry = algorithms.get(name)
    if not entry.arm and not entry.baseline_arm:
        gap = next(gap for gap in entry.gaps if gap.startswith("no training arm: "))
        raise ValueError(f"arm must be an algorithm that can be trained, got {text!r}, which has {gap}")
    if not prefix:
        return name, entry.arm
    if not entry.arm:
        return entry.replaces[0], entry.baseline_arm
    return WITHOUT + name, {field: of_stack("bare", field) for field in entry.arm}


def has(stack: Stack, name: str) -> bool:
    """Whether a stack contains an algorithm."""
    return all(of_stack(stack, field) == value for field, value in algorithms.get(name).arm.items())


def _resolve(name: str, text: str) -> str:
    try:
        return algorithms.resolve(name)
    except UnknownAlgorithm as error:
        others = difflib.get_close_matches(text, [BASELINE, *_replaced()], n=1)
        prefix = text.removesuffix(name)
        near = [*others, *(prefix + suggestion for suggestion in error.suggestions)]
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"arm must be {BASELINE}, {', '.join(_replaced())}, an algorithm of the registry, {WITHOUT}ALGORITHM, or "
            f"several joined by +, got {text!r}{hint}; `ceg list` shows all"
        ) from None


def _replaced() -> Mapping[str, Mapping[str, Any]]:
    """Baselines that are no stack and no algorithm, by name: {"lstm": {"kind": "lstm"}}."""
    return _replaced_beside(tuple(algorithms.own().items()))


@functools.cache
def _replaced_beside(own: object) -> Mapping[str, Mapping[str, Any]]:
    """The same; `own` are the algorithms beside the registry, by which it is remembered."""
    entries = [algorithms.get(name) for name in algorithms.names()]
    known = set(algorithms.names())
    return {e.replaces[0]: e.baseline_arm for e in entries if e.baseline_arm and e.replaces[0] not in known}


def _nothing(stack: Stack, text: str, name: str) -> str:
    """Why a part that changes nothing is refused."""
    elsewhere = [other for other in STACKS if name not in _replaced() and not has(other, name)]
    remedies = [f"use {WITHOUT}{name} to leave it out", *(f"the {other} stack to add it" for other in elsewhere)]
    return f"arm must change something, got {text!r}, which the {stack} stack has; {', or '.join(remedies)}"


def _combine(stack: Stack, parts: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """All fields together, and what contradicts."""
    mixed: dict[str, Any] = {}
    owner: dict[str, str] = {}
    problems: list[str] = []
    mixtures = [name for name, fields in parts.items() if fields.get("feed_forward") == "moe"]
    activation = of_stack(stack, "feed_forward")
    for name, fields in parts.items():
        for field, value in fields.items():
            if mixtures and field in ("feed_forward", "expert_activation"):
                if name not in mixtures:
                    activation = value
                continue
            if mixed.get(field, value) != value:
                problems.append(
                    f"arm must set {field} once, got {mixed[field]!r} by {owner[field]} and {value!r} by {name}; "
                    "leave one out"
                )
            mixed[field], owner[field] = value, name
    if mixtures:
        mixed["feed_forward"] = "moe"
        if activation in get_args(ExpertActivation):
            mixed["expert_activation"] = activation
        else:
            problems.append(
                f"arm must give experts an activation of {', '.join(get_args(ExpertActivation))}, got {activation!r}; "
                f"leave out {' or '.join(name for name in parts if name not in mixtures)}"
            )
    return mixed, problems


def of_stack(stack: Stack, field: str) -> Any:
    """What a stack has in a field of `ModelShape`."""
    return STACKS[stack].get(field, _DEFAULTS[field])


def on_bare(name: str) -> str:
    """What the bare stack has in place of an algorithm that it lacks, by the name in the algorithm's `replaces`:
    `no_norm` for RMSNorm, and not `layernorm`, which is an algorithm itself."""
    replaces = algorithms.get(name).replaces
    return next((baseline for baseline in replaces if baseline not in algorithms.names()), replaces[0])


def _check_stack(stack: str) -> None:
    if stack not in STACKS:
        raise ValueError(f"stack must be one of {', '.join(STACKS)}, got {stack!r}; use one of these")
