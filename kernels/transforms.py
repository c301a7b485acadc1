"""Registered operations in forward mode and under `torch.func`: right, or refused by name.

What torch makes of an operation's `register_autograd` knows the plain backward pass only: tangents of forward mode are
dropped without a word, as if the derivative were 0, and transforms are refused. `call` runs an operation as it is where
nothing of that kind is going on, and else as a function that has all the rules: gradients and batches are right,
forward mode is refused, and so is what the operation's own rule refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad


class _Rules(NamedTuple):
    op: CustomOpDef
    name: str
    save: Callable[..., None] | None
    differentiate: Callable[..., Any]


_RULES: dict[CustomOpDef, _Rules] = {}


def register(
    op: CustomOpDef, name: str, differentiate: Callable[..., Any], save: Callable[..., None] | None = None
) -> None:
    """Give an operation its backward pass, for torch's own use and for `call`, and a rule for batches.

    Args:
        op: what `torch.library.custom_op` made.
        name: of the public function, for messages.
        differentiate: gradients of all arguments from those of the results; see torch's `register_autograd`.
        save: what it saves; the same.
    """
    op.register_autograd(differentiate, setup_context=save)
    op.register_vmap(_one_after_another(op))
    _RULES[op] = _Rules(op, name, save, differentiate)


def transformed() -> bool:
    """Whether forward mode or a transform of `torch.func` is active, of which tensors need not know anything."""
    if forward_ad._current_level >= 0:
        return True
    # The compiler cannot trace the question, and captures transforms itself.
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def call(op: CustomOpDef, *arguments: Any) -> Any:
    """`op(*arguments)` of a registered operation, under any transform; a tuple where the operation returns several.

    Raises:
        NotImplementedError: an argument has a tangent of forward mode.
    """
    if transformed():
        return _Transformed.apply(_RULES[op], *arguments)  # type: ignore[no-untyped-call]
    return op(*arguments)


def no_forward_mode(name: str) -> NotImplementedError:
    """The refusal of a forward-mode derivative of a public function."""
    return NotImplementedError(f"{name} has no forward-mode derivative; use backend='reference' for one")


class _Transformed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rules: _Rules, *arguments: Any) -> Any:
        returned = rules.op(*arguments)
        return returned if isinstance(returned, Tensor) else tuple(returned)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.rules, *arguments = inputs
        if ctx.rules.save:
            ctx.rules.save(ctx, tuple(arguments), output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, *ctx.rules.differentiate(ctx, *gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise no_forward_mode(ctx.rules.name)


def _one_after_another(op: CustomOpDef) -> Callable[..., Any]:
    """A rule for batches: no kernel has one more dimension, and elements share no work."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        def element(i: int) -> Any:  # what is no tensor, lists of numbers included, is the same for all
            pairs = zip(arguments, in_dims, strict=True)
            return op(*(x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x for x, dim in pairs))

        found = [element(i) for i in range(info.batch_size)]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        stacked = type(found[0])(torch.stack(parts) for parts in zip(*found, strict=True))
        return stacked, type(stacked)(0 for _ in stacked)

    return rule
