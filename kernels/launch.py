"""What launches of Triton kernels share: meta-parameters as data, the choice among them, and names of what both need.

A kernel's file says what may be tuned in a frozen dataclass of its own, lists candidates by device and width, and
launches through `launch`, which times the candidates at a first call and keeps the fastest:

    @dataclass(frozen=True)
    class Meta(MetaParameters):
        block_m: int  # the kernel's BLOCK_M
        num_warps: int
        num_stages: int

    TUNING = Tuning(
        half={80: {64: (Meta(64, 4, 2),), 256: (Meta(32, 4, 2),)}, 90: {256: (Meta(128, 8, 3), Meta(64, 4, 3))}},
        single={256: (Meta(32, 4, 1),)},
        interpreted=Meta(16, 4, 1),
    )
    launch(kernel, grid, TUNING.on(x, width), (x, x.stride(), rows), {"D": width, "BLOCK_D": padded(width)})

A launch that the table of `tuned` knows takes what was found to be fastest for it, and is not tuned again.
Nothing is tuned in Triton's interpreter, or where the environment has CEG_AUTOTUNE=0: the table's configuration runs
there, or else the first candidate, so that every process takes the same one and gives the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from cegain.kernels import tuned
from cegain.kernels.backend import interpreting

LOWEST = tl.constexpr(-3.0e38)
"""A running maximum before any score: finite, so that rows which see no key need no guard against -inf - -inf."""
LN_2 = tl.constexpr(math.log(2))

Grid = tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]]
"""Programs along each axis, or what gives them from a configuration's constants (`BLOCK_M` and the like)."""


Search = Callable[[Any, Grid, tuple[Any, ...], tuple[Any, ...], dict[str, Any], tuple[Any, ...]], None]
"""Of the same arguments as `launch`."""


class MetaParameters:
    """What can be tuned of a kernel without changing its result, but for rounding: base of its frozen dataclass.

    Fields other than these two are sizes of blocks, named like the kernel's constants in small letters.
    """

    num_warps: int
    num_stages: int

    def blocks(self) -> dict[str, int]:
        """The kernel's constants: BLOCK_M for `block_m`."""
        return {name.upper(): size for name, size in vars(self).items() if name not in MetaParameters.__annotations__}


M = TypeVar("M", bound=MetaParameters)


@dataclass(frozen=True)
class Tuning(Generic[M]):
    """Candidates of one kernel, the one that runs where nothing is tuned first."""

    half: Mapping[int, Mapping[int, tuple[M, ...]]]
    """float16 and bfloat16: by compute capability of the oldest device that they are for, then by the largest padded
    width that they are for."""
    single: Mapping[int, tuple[M, ...]]
    """float32, which has no matrix instruction as exact as itself, by width; for every device."""
    interpreted: M
    """Small blocks, so that short sequences have several."""
    unaligned: Mapping[int, tuple[M, ...]] = field(default_factory=dict)
    """Instead of `half` at widths that are no multiple of 16, by width; for every device. Rows start anywhere then and
    are loaded an element at a time, which takes registers that a large tile does not leave."""

    def candidates(self, dtype: torch.dtype, width: int, capability: int) -> tuple[M, ...]:
        """What may be tried for a dtype and a width on a device, 90 for sm_90.

        Devices from 110 on take what is for the oldest: those of 120 have neither wgmma nor more shared memory for a
        block than 86 and 89, 99 KB.

        Raises:
            ValueError: no candidates are listed for a width as large.
        """
        oldest = max(c for c in self.half if c <= capability < 110 or c == min(self.half))
        by_width = self.single if dtype == torch.float32 else self.half[oldest]
        if dtype != torch.float32 and width % 16 and self.unaligned:
            by_width = self.unaligned
        fitting = [listed for listed in by_width if listed >= padded(width)]
        if not fitting:
            raise ValueError(f"width must be at most {max(by_width)}, got {width}; use backend torch")
        return by_width[min(fitting)]

    def on(self, x: Tensor, width: int) -> tuple[M, ...]:
        """The same for a tensor's dtype and device; one in the interpreter."""
        if interpreting():
            return (self.interpreted,)
        major, minor = torch.cuda.get_device_capability(x.device)
        return self.candidates(x.dtype, width, 10 * major + minor)


def padded(width: int) -> int:
    """The power of two that holds a width: at least 16, the smallest side of a matrix instruction."""
    return max(16, 1 << (width - 1).bit_length())


def launch(
    kernel: Any, grid: Grid, metas: tuple[M, ...], arguments: tuple[Any, ...], constants: dict[str, Any],
    key: tuple[Any, ...] = (),
) -> None:  # fmt: skip
    """Run a kernel on the device of the first tensor among its arguments, tuned if that is wanted.

    Args:
        kernel: what `triton.jit` made.
        grid: of programs.
        metas: candidates, as from `Tuning.on`; their blocks are constants of the kernel.
        arguments: in order, all that are not constants.
        constants: the rest, by name, without the candidates' blocks.
        key: calls that share it, a device, the first tensor's dtype and all constants also share what was found to be
            fastest. Rough numbers, such as a length's number of bits: each new key is tuned again.
    """
    x = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if _searches:
            _searches[-1](kernel, grid, metas, arguments, constants, key)
        alike = (str(x.device), x.dtype, key, *constants.items())
        chosen = _from_table(kernel, metas, alike) if len(metas) > 1 else metas[0]
        if chosen is None and os.environ.get("CEG_AUTOTUNE", "1") != "0":
            _tuned(kernel, metas, alike)[grid](*arguments, **constants)
        else:
            launch_with(chosen or metas[0], kernel, grid, arguments, constants)


def launch_with(
    meta: MetaParameters, kernel: Any, grid: Grid, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Run a kernel in one configuration; arguments as of `launch`."""
    options = {"num_warps": meta.num_warps, "num_stages": meta.num_stages}
    kernel[grid](*arguments, **constants, **meta.blocks(), **options)


_searches: list[Search] = []


@contextlib.contextmanager
def searching(search: Search) -> Iterator[None]:
    """Inside, `search` is called before every launch, which may run the kernel with whatever it wants to time.

    A launch with a single candidate must not be run twice: its kernel may work in place.
    """
    _searches.append(search)
    try:
        yield
    finally:
        _searches.remove(search)


@functools.cache
def _from_table(kernel: Any, metas: tuple[M, ...], alike: tuple[Any, ...]) -> M | None:
    """What the table has for launches that are `alike`; None where it has nothing."""
    device, dtype, key, *constants = alike
    if not device.startswith("cuda"):
        return None
    found = tuned.find(torch.cuda.get_device_name(device), tuned.Launch.of(kernel, dtype, key, constants, metas[0]))
    return None if found is None else type(metas[0])(**found)


@functools.cache
def _tuned(kernel: Any, metas: tuple[MetaParameters, ...], alike: tuple[Any, ...]) -> Any:
    """The kernel, which at its first launch times all candidates; one for each `alike`."""
    configs = [triton.Config(m.blocks(), num_warps=m.num_warps, num_stages=m.num_stages) for m in metas]
    return triton.autotune(configs=configs, key=[])(kernel)
