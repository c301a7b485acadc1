"""The registry: one file per algorithm, and the file's name is the name that `--algo` takes.

A file holds one constant, `ALGORITHM`, and no code. To add an algorithm, copy the nearest file and change the
data; `tests/estimator/test_algorithms.py` says what is missing. Reading the list of names imports none of the
files, and `get` imports only the one that is asked for, so that `ceg-estimate` starts quickly.

`beside` adds algorithms of the user's own for a while: those of a folder, or those that only a table of gains names.
"""

import contextlib
import difflib
import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

PaperClass = Literal["dependent", "independent", "unlocking", "not_studied"]
Stack = Literal["bare", "modern"]
Kind = Literal[
    "normalisation", "position", "activation", "attention", "sparsity", "optimizer", "architecture", "objective",
    "precision", "parallelism", "other",
]  # fmt: skip
OTHER: Kind = "other"
"""Of an algorithm of which nothing but gains is known: its studies scatter as those of algorithms in general."""

MAX_SUGGESTIONS = 3
MIN_SIMILARITY = 0.65  # of difflib; at its default of 0.6 unrelated names come along


@dataclass(frozen=True)
class Algorithm:
    """What is known of one algorithm before any run or measurement: its place in the model and its costs.

    Symbols in `costs` are the fields of `cegain.shapes.architecture.ModelShape`; the numbers are computed there.
    An algorithm has an arm if `arm` or `baseline_arm` is not empty: the ablation trains the `stack` with
    `baseline_arm` against the same stack with `arm`. `tests/estimator/test_algorithms.py` holds these rules.
    """

    title: str
    """Name for people, as its paper writes it."""
    paper: str
    """Authors, year and arXiv id of the paper that introduced it, and of the one the arm follows."""
    summary: str
    """One sentence for a reader who trains no models."""
    replaces: tuple[str, ...]
    """Canonical baseline names; the first is the default. Only a contrast with the baseline that is asked for
    sets the level of the gain."""
    kind: Kind
    """What is changed. How far studies disagree is shared among algorithms of one kind."""
    paper_class: PaperClass = "not_studied"
    """What the source paper (Sanderson et al. 2025, arXiv 2505.04075) called it, before any fit of ours."""
    costs: str = "not stated."
    """What it changes in FLOPs, bytes and parameters."""
    saves_only: bool = False
    """It only takes FLOP away: no parameter and no better rule comes in their place. So at equal loss its gain in FLOP
    is at most what it saves (`cegain.gain.capped`)."""
    aliases: tuple[str, ...] = ()
    """Other names that `--algo` takes, in the normal form of `resolve`; unique in the registry."""
    stack: Stack = "modern"
    """What every arm of its ablation shares."""
    arm: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Overrides of `ModelShape` fields on `stack`: the model with the algorithm."""
    baseline_arm: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Overrides of `ModelShape` fields on `stack`: the model without it. Empty if that is the stack."""
    exact_in_flop: bool = False
    """It computes the same function with the same useful FLOP, so its gain in FLOP is 1 by definition."""
    unlocking: str = ""
    """Why no gain is estimated, and what the algorithm unlocks. Not empty exactly for `unlocking` ones."""
    kernels: tuple[str, ...] = ()
    """`implementation` names in `kernel_times.csv` that time it."""
    kernel_baselines: tuple[str, ...] = ()
    """`implementation` names that those times are compared with."""
    gaps: tuple[str, ...] = ()
    """What is missing, each a sentence. One opens with `no training arm:` if there is no arm, and one with
    `no kernel:` if nothing times it."""


class UnknownAlgorithm(ValueError):  # noqa: N818
    """No algorithm has this name or alias; `suggestions` are the nearest canonical names, best first."""

    def __init__(self, value: str, suggestions: tuple[str, ...]) -> None:
        self.value = value
        self.suggestions = suggestions
        nearest = f" Did you mean {' or '.join(suggestions)}?" if suggestions else ""
        super().__init__(
            f"The algorithm must be a name or alias in the registry, got {value!r}.{nearest}"
            " Run `ceg list` to see all names."
        )


_NONE: Mapping[str, Algorithm] = MappingProxyType({})
_beside: ContextVar[Mapping[str, Algorithm]] = ContextVar("algorithms beside the registry", default=_NONE)


def own() -> Mapping[str, Algorithm]:
    """The user's own algorithms that are known now, by canonical name."""
    return _beside.get()


@contextlib.contextmanager
def beside(more: Mapping[str, Algorithm]) -> Iterator[None]:
    """Within the block the registry also has `more`, by canonical names that it does not have itself."""
    before = _beside.set({**own(), **more}) if more else None
    try:
        yield
    finally:
        if before is not None:
            _beside.reset(before)


def add(more: Mapping[str, Algorithm]) -> None:
    """As `beside`, to the end of the process: for workers that are started within such a block."""
    _beside.set({**own(), **more})


def names() -> tuple[str, ...]:
    """Canonical names in alphabetical order, read from the file names; imports no algorithm."""
    listed = _listed(tuple(__path__))
    return tuple(sorted((*listed, *own()))) if own() else listed


def normal(name: str) -> str:
    """A name in small letters, with `_` for `-` and spaces."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def get(name: str) -> Algorithm:
    """Return the algorithm called `name` (see `resolve`).

    Raises UnknownAlgorithm if there is none.
    """
    return _load(resolve(name))


def find(name: str) -> str | None:
    """Return the canonical name of `name`: any case, `-` or a space for `_`, an alias or a title; None of others."""
    key = normal(name)
    if key in own() or key in names():  # before the aliases, which have to import every algorithm
        return key
    return _all_aliases().get(key) or {normal(_load(known).title): known for known in names()}.get(key)


def resolve(name: str) -> str:
    """Return what `find` does.

    Raises UnknownAlgorithm if there is none.
    """
    if (known := find(name)) is not None:
        return known
    targets = {**{known: known for known in names()}, **_all_aliases()}
    close = difflib.get_close_matches(normal(name), targets, n=2 * MAX_SUGGESTIONS, cutoff=MIN_SIMILARITY)
    raise UnknownAlgorithm(name, tuple(dict.fromkeys(targets[match] for match in close))[:MAX_SUGGESTIONS])


@functools.cache
def _listed(folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(folders)))


def _load(name: str) -> Algorithm:
    if name in own():
        return own()[name]
    algorithm: Algorithm = importlib.import_module(f"{__name__}.{name}").ALGORITHM
    return algorithm


def _all_aliases() -> Mapping[str, str]:
    return {**_aliases(), **{alias: name for name, entry in own().items() for alias in entry.aliases}}


@functools.cache
def _aliases() -> Mapping[str, str]:
    """Those of the registry itself."""
    return {alias: name for name in _listed(tuple(__path__)) for alias in _load(name).aliases}
