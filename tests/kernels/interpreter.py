"""Triton's interpreter, mended for tests: bfloat16 products, and half the time.

The interpreter (triton 3.6 to 3.9) keeps bfloat16 as the integers of its bits. Loads, stores and casts know that, and
`tl.dot` does not: it multiplies the integers. Casts to bfloat16 cut bits off, where a GPU rounds to the nearest even.
Other arithmetic in bfloat16 stays wrong; our kernels do none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from cegain.kernels.backend import interpreting

DEVICE = "cpu" if interpreting() else "cuda"
"""Where Triton kernels run."""


def mend() -> None:
    """Replace what is wrong or slow; once for a process, and only where kernels are interpreted."""
    if not interpreting() or getattr(interpreter.InterpretedFunction.__call__, "mended", False):
        return
    builder, function = interpreter.InterpreterBuilder, interpreter.InterpretedFunction
    plain_dot, plain_cast, plain_patch = builder.create_dot, builder.cast_impl, interpreter._patch_lang
    patched: set[str] = set()

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain_dot(self, widened(a), widened(b), *rest)

    def cast(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return plain_cast(self, source, to)
        bits = np.ascontiguousarray(source.data).view(np.uint32).astype(np.uint64)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return interpreter.TensorHandle(np.where(np.isnan(source.data), 0x7FC0, nearest).astype(np.uint16), tl.bfloat16)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The launch has already patched `tl` for our functions. Those of the language itself use `tl.core`, which
        # stays patched from the first time on.
        module = self.fn.__module__
        if module.startswith("triton.") and module not in patched:
            plain_patch(self.fn)
            patched.add(module)
        return self.rewrite()(*args, **kwargs)

    call.mended = True  # type: ignore[attr-defined]
    # Half the time goes into looking for overflow in every sum of integers.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    builder.create_dot, builder.cast_impl = create_dot, cast
    function.__call__ = call
