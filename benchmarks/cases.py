"""What a benchmark is made of: a shape, the operation on it, and the implementations that are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from cegain.kernels.costs import Cost

PassName = Literal["fwd", "bwd", "fwd_bwd", "decode"]
TRAINING: tuple[PassName, ...] = ("fwd", "bwd", "fwd_bwd")
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
"""What is timed on a kind of device, unless a case says otherwise."""


@dataclass(frozen=True, slots=True)
class Case:
    """An operation and its sizes, named as the columns of `cegain.tables.kernel_times`; 0 where it has no such size.

    `dtype` is a name such as float16; empty for the device's own (`DTYPES`).
    """

    op: str
    pattern: str = ""
    batch: int = 0
    heads_q: int = 0
    heads_kv: int = 0
    seq_q: int = 0
    seq_kv: int = 0
    head_dim: int = 0
    d_model: int = 0
    d_ff: int = 0
    experts: int = 0
    top_k: int = 0
    dtype: str = ""

    def __str__(self) -> str:
        letters = {"batch": "B", "heads_q": "H", "heads_kv": "KV", "seq_q": "T", "seq_kv": "S", "head_dim": "D",
                   "d_model": "M", "d_ff": "F", "experts": "E", "top_k": "K"}  # fmt: skip
        sizes = [f"{letter}{getattr(self, name)}" for name, letter in letters.items() if getattr(self, name)]
        return "-".join([self.op, *filter(None, [self.pattern, self.dtype]), *sizes])


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an operation: from its leaves to its output.

    `cost` gives what a pass costs this way; `skips` says of passes why they cannot run here. Where one of somebody
    else's raises an error, it is skipped; an error of ours is one. `only_full` says why it is left to `--full` runs.
    """

    name: str
    run: Callable[..., Tensor]
    cost: Callable[[PassName], Cost]
    ours: bool = False
    only_full: str = ""
    skips: Mapping[PassName, str] = field(default_factory=dict)


class Operation(Protocol):
    """A case on a device. Nothing is allocated before `leaves` is called."""

    case: Case
    passes: tuple[PassName, ...]
    dtype: torch.dtype
    """Of inputs and weights."""
    density: float
    """Share of query-key pairs that are not masked; NaN unless attention."""

    def leaves(self, seed: int) -> list[Tensor]:
        """Inputs and weights; those to be differentiated say so."""

    def implementations(self) -> list[Implementation]:
        """All that there are, those that cannot run here too."""

    def selected(self, output: Tensor) -> Tensor:
        """The part of an output that `plain` computes."""

    def plain(self, leaves: list[Tensor]) -> Tensor:
        """That part by the definition in `cegain.kernels.reference`, in the leaves' dtype; float64 is the truth."""


class OnDevice:
    """What all operations begin with: a case, where it runs, and the dtype that is timed there."""

    density = math.nan

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.dtype: torch.dtype = getattr(torch, case.dtype) if case.dtype else DTYPES[device.type]


def first_line(error: BaseException) -> str:
    """An error in a line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:160] if said else 'no message'}"
