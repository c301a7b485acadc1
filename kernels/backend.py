"""Which implementation of an operation runs, and why; and checks of arguments before any work.

triton: our GPU kernels. torch: the CPU production path, built from torch's own fast operations. reference: the plain
definition in `reference`. auto: Triton on a CUDA device of compute capability 8.0 or above where the kernel
exists, else torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "torch", "reference"]
BACKENDS: tuple[str, ...] = ("auto", "triton", "torch", "reference")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

OPS: dict[str, bool] = {
    "flash_attention": True,
    "sparse_attention": True,
    "mqa_attention": True,
    "mqa_decode": True,
    "moe_feed_forward": True,
}
"""Every operation, and whether its Triton kernel exists."""


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on the CPU: slowly, and for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _too_old(device: torch.device) -> str | None:
    """What a CUDA device lacks of what our kernels need, in words; None where nothing, or no device is there to ask.

    Before 8.0 (A100) multiprocessors copy nothing asynchronously, have at most 64 KB of shared memory for a block and
    do not multiply bfloat16 matrices: no configuration here is for them.
    """
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"compute capability {major}.{minor}, below 8.0" if major < 8 else None


def choose(op: str, backend: str, device: torch.device, unfit: str | None = None) -> tuple[str, str]:
    """(the backend that runs, why) for one of `OPS` on a device.

    Args:
        op: a key of `OPS`.
        backend: one of `BACKENDS`.
        device: where the tensors are.
        unfit: what the Triton kernel cannot take of a call's arguments, in words; None where it can take them.

    Raises:
        ValueError: unknown backend, or one that cannot run there.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}; use auto if in doubt")
    if backend == "triton":
        if not OPS[op]:
            raise ValueError(f"backend 'triton' must have a kernel for {op}, there is none; use auto or torch")
        if device.type != "cuda" and not interpreting():
            raise ValueError(
                f"backend 'triton' must get CUDA tensors, got {device.type}; use auto or torch, or set "
                "TRITON_INTERPRET=1 before triton is imported to test a kernel on the CPU"
            )
        old = _too_old(device) if device.type == "cuda" else None
        if old:
            raise ValueError(
                f"backend 'triton' must get a device that its kernels are for, got {old}; use auto or torch"
            )
        if unfit:
            raise ValueError(
                f"backend 'triton' must get what its kernel for {op} takes, got {unfit}; use auto or torch"
            )
    if backend != "auto":
        return backend, "asked for"
    if device.type != "cuda":
        return "torch", f"tensors are on {device.type}, and Triton kernels run on CUDA devices"
    if not OPS[op]:
        return "torch", f"there is no Triton kernel for {op}"
    if unfit:
        return "torch", f"the Triton kernel for {op} does not take {unfit}"
    if find_spec("triton") is None:
        return "torch", "triton is not installed"
    old = _too_old(device)
    if old:
        return "torch", f"Triton kernels are not for a device of {old}"
    return "triton", "tensors are on a CUDA device and the kernel exists"


def explain(device: str | torch.device = "cpu", backend: Backend = "auto") -> str:
    """One line per operation: the backend that would run on a device, and why."""
    lines = []
    for op in OPS:
        try:
            chosen, why = choose(op, backend, torch.device(device))
            lines.append(f"{op}: {chosen} ({why})")
        except ValueError as error:
            lines.append(f"{op}: refused ({error})")
    return "\n".join(lines)


class Checks:
    """Collects what is wrong with a call's arguments, to be said all at once: argument, rule, value, remedy."""

    def __init__(self, op: str) -> None:
        self.op = op
        self.problems: list[str] = []

    def that(self, holds: bool, argument: str, rule: str, value: object, remedy: str) -> None:
        """Note a broken rule."""
        if not holds:
            self.problems.append(f"{argument} must {rule}, got {value}; {remedy}")

    def tensors(self, **tensors: Tensor) -> None:
        """One float dtype and one device for all."""
        (first, anchor), *others = tensors.items()
        self.that(
            anchor.dtype in DTYPES,
            first,
            "be float16, bfloat16, float32 or float64",
            anchor.dtype,
            "convert it with .to(...)",
        )
        for name, tensor in others:
            self.that(
                tensor.dtype == anchor.dtype, name, f"have {first}'s dtype {anchor.dtype}", tensor.dtype, "convert it"
            )
            self.that(
                tensor.device == anchor.device,
                name,
                f"be on {first}'s device {anchor.device}",
                tensor.device,
                "move it",
            )

    def shape(self, name: str, tensor: Tensor, letters: str, expected: Sequence[int | None]) -> bool:
        """Shape as stated, None for any size; `letters` names the dimensions in the message. Says whether it holds."""
        holds = tensor.dim() == len(expected) and all(
            want is None or have == want for have, want in zip(tensor.shape, expected, strict=True)
        )
        if not holds:  # the words only then: full-graph compilation cannot trace `str` of a dynamic size
            sizes = ", ".join("any" if want is None else str(want) for want in expected)
            self.that(False, name, f"be {letters} = [{sizes}]", list(tensor.shape), "reshape it")
        return holds

    def done(self) -> None:
        """Raise what was noted.

        Raises:
            ValueError: one line per problem.
        """
        if self.problems:
            raise ValueError(f"{self.op}: " + "\n".join(self.problems))


def too_far_apart(x: Tensor) -> bool:
    """Whether a tile of up to 256 rows and columns of x [B, H, T, D] spans more than 32 bits can count."""
    return 256 * (x.stride(2) + x.stride(3)) >= 2**31
