"""One compilation of a Triton kernel ahead of time: what each `*_triton.py` lists in `aot_cases()`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from cegain.kernels.launch import MetaParameters

Expected = Literal["wgmma", "mma", ""]
Type = str | tuple[str, ...]
"""As Triton spells it: "i32", "*fp16" for a pointer; of a tuple, those of its members."""

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
STRIDES: Type = ("i32", "i32", "i32", "constexpr")
"""Of a tensor with four dimensions whose last stride is 1, which a launch makes a constant."""
SHIPPED = {80: (80,), 90: (90, 100)}
"""Which devices take the candidates of a capability in `Tuning.half`: those that they are compiled for."""


class AotCase(NamedTuple):
    """A kernel at a production configuration.

    `signature`, `constexprs` and `attrs` are what `triton.compiler.ASTSource` takes: an argument that is a tuple has a
    tuple of types, and its constant members are named by path, such as (1, 3) for the last of the second argument.
    """

    name: str
    kernel: Any
    signature: dict[str, Any]
    constexprs: dict[Any, Any]
    attrs: dict[tuple[int, ...], list[list[Any]]]
    num_warps: int
    num_stages: int
    expects: Expected
    """The matrix instruction that must be there on sm_90; empty for a kernel without a matrix product, or in fp32."""
    capabilities: tuple[int, ...] = (80, 90, 100)
    """Where this configuration is shipped: 80 for sm_80."""


def aot_case(
    name: str, kernel: Any, types: Mapping[str, Type], constants: Mapping[str, Any], meta: MetaParameters,
    expects: Expected, capabilities: tuple[int, ...] = (80, 90, 100), multiples: Collection[str] = (),
    aligned: bool = True,
) -> AotCase:  # fmt: skip
    """A case as at a launch where pointers are multiples of 16, and last strides are 1.

    Args:
        name: of the case.
        kernel: what `triton.jit` made.
        types: of the kernel's arguments, and perhaps of others; a tuple that ends in "constexpr" is one of strides.
        constants: of the kernel, and perhaps others; None for an argument that is not given.
        meta: its blocks are constants too, where the kernel has them.
        expects: the matrix instruction that must be there on sm_90.
        capabilities: where it is shipped.
        multiples: integers that are multiples of 16.
        aligned: whether other strides are multiples of 16 too; those of contiguous heads with a width of 100 are not.

    Raises:
        ValueError: arguments of the kernel that have neither a type nor a value.
    """
    given = {**constants, **meta.blocks()}
    unknown = [argument for argument in kernel.arg_names if argument not in given and argument not in types]
    if unknown:
        raise ValueError(f"{name}: every argument must have a type or a value, {', '.join(unknown)} have none; add one")
    signature: dict[str, Any] = {}
    constexprs: dict[Any, Any] = {}
    attrs: dict[tuple[int, ...], list[list[Any]]] = {}
    divisible = [["tt.divisibility", 16]]
    for i, argument in enumerate(kernel.arg_names):
        if argument in given:
            signature[argument], constexprs[argument] = "constexpr", given[argument]
            continue
        kind = signature[argument] = types[argument]
        if kind[-1] == "constexpr":
            last = len(kind) - 1
            constexprs[i, last] = 1
            if aligned:
                attrs.update({(i, j): divisible for j in range(last)})
        elif kind[0] == "*" or argument in multiples:
            attrs[i,] = divisible
    return AotCase(name, kernel, signature, constexprs, attrs, meta.num_warps, meta.num_stages, expects, capabilities)


def aot_cases_of(
    name: str, kernel: Any, types: Mapping[str, Type], constants: Mapping[str, Any], metas: Sequence[MetaParameters],
    expects: Expected, capabilities: tuple[int, ...] = (80, 90, 100), aligned: bool = True,
) -> list[AotCase]:  # fmt: skip
    """`aot_case` for each of a kernel's candidates: the default one has the name itself, the second ends in ".2".

    Others than the default are compiled for the first of the capabilities alone.
    """
    cases = []
    for i, meta in enumerate(metas, 1):
        suffix, shipped_on = (f".{i}", capabilities[:1]) if i > 1 else ("", capabilities)
        cases.append(aot_case(name + suffix, kernel, types, constants, meta, expects, shipped_on, aligned=aligned))
    return cases
