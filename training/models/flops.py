"""FLOP of an arm as torch and fvcore count them, beside ours.

Models are counted on the `reference` backend, which has none of our registered operations, on torch's meta device,
which has shapes and no values: a model for 1e24 FLOP is counted without holding it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from cegain.shapes.architecture import ModelShape, flop_parts
from cegain.training.models.model import LanguageModel
from cegain.training.models.optim import optimizers

LSTM_TOKENS = 64
"""Tokens over which one layer of an LSTM is counted. Layers are alike and so are tokens, but for the first, whose state
is zero: torch leaves out a product there, 1 in 6 x 64."""
TOLERANCE = 0.01
"""Largest relative difference between two counts that agree."""


class Term(NamedTuple):
    """FLOP per token of one part of the model in training, and of its forward pass alone."""

    useful: float
    full: float
    """Scores in full, hidden ones included: what counters see of materialised attention."""
    torch: float
    """torch.utils.flop_counter.FlopCounterMode over forward pass, loss, backward pass and optimizer step."""
    forward_full: float
    forward_torch: float
    forward_fvcore: float
    """2 x fvcore's multiply-adds; the optimizer has no forward pass."""

    def agrees(self) -> bool:
        """Whether all counters meet ours, within TOLERANCE."""
        pairs = [(self.torch, self.full), (self.forward_torch, self.forward_full)]
        pairs.append((self.forward_fvcore, self.forward_full))
        return all(abs(counted - ours) <= TOLERANCE * ours for counted, ours in pairs)


def count(shape: ModelShape, batch_tokens: int) -> dict[str, Term]:
    """Every part of `flop_parts` and their sum, `total`, as all three count them.

    Args:
        shape: the model, of any size.
        batch_tokens: tokens per optimizer step, over which Muon's work is spread.
    """
    useful = flop_parts(shape, batch_tokens=batch_tokens)
    full = flop_parts(shape, "full", batch_tokens=batch_tokens)
    forward = flop_parts(shape, "full", passes="forward")
    seen = torch_flops(shape)
    fvcore = fvcore_flops(shape)
    step = torch_optimizer_flops(shape) / batch_tokens
    terms = {}
    for name in useful:
        if name == "optimizer":
            terms[name] = Term(useful[name], full[name], step, 0.0, 0.0, 0.0)
        else:
            both = sum(seen[name])
            terms[name] = Term(useful[name], full[name], both, forward[name], seen[name][0], fvcore[name])
    terms["total"] = Term(*map(sum, zip(*terms.values(), strict=True)))
    return terms


def torch_flops(shape: ModelShape) -> dict[str, tuple[float, float]]:
    """(forward, backward) FLOP per token by part, of the model and its loss, as FlopCounterMode sees them."""
    model, tokens = _countable(shape)
    counter = FlopCounterMode(display=False)
    with counter:
        loss = functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        forward = _seen(shape, counter)
        loss.backward()  # type: ignore[no-untyped-call]
    both = _seen(shape, counter)
    return {name: (forward[name], both[name] - forward[name]) for name in both}


def torch_optimizer_flops(shape: ModelShape) -> int:
    """FLOP of one optimizer step, as FlopCounterMode sees them."""
    if shape.optimizer == "adamw":  # element-wise, and fused steps know no meta device
        return 0
    model = _model(shape)
    muon, _ = optimizers(model, shape.optimizer, lr=0.0, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    return int(counter.get_total_flops())


def fvcore_flops(shape: ModelShape) -> dict[str, float]:
    """FLOP of the forward pass per token by part: twice the multiply-adds that fvcore counts in matrix products."""
    # slow to import, and for this comparison only
    from fvcore.nn import FlopCountAnalysis  # type: ignore[import-untyped]

    model, tokens = _countable(shape)
    analysis = FlopCountAnalysis(model, tokens).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::layer_norm", lambda *_: 0)  # element-wise work, which no other count has
    totals = {name: 2 * float(value) for name, value in analysis.by_module().items()}
    return _by_part(shape, totals, sum(value for name, value in totals.items() if name.endswith(".attention.scores")))


def _countable(shape: ModelShape) -> tuple[LanguageModel, torch.Tensor]:
    """A model without values, and tokens [1, T]; of an LSTM one layer and LSTM_TOKENS."""
    if shape.kind == "lstm":
        shape = dataclasses.replace(shape, n_layers=1, seq_len=LSTM_TOKENS)
    return _model(shape), torch.zeros(1, shape.seq_len, dtype=torch.int64, device="meta")


def _model(shape: ModelShape) -> LanguageModel:
    """Without values."""
    with torch.device("meta"):
        return LanguageModel(shape, backend="reference")


def _seen(shape: ModelShape, counter: FlopCounterMode) -> dict[str, float]:
    """FLOP per token by part so far.

    Scores are the batched products of attention: in the backward pass the counter leaves a module before the
    gradients of the weights that came before it, so that it books some of them under `Scores`.
    """
    root = f"{LanguageModel.__name__}."
    counts = counter.get_flop_counts()
    totals = {name.removeprefix(root): float(sum(ops.values())) for name, ops in counts.items() if name != "Global"}
    scores = sum(ops.get(torch.ops.aten.bmm, 0) for name, ops in counts.items() if name.endswith(".attention"))
    return _by_part(shape, {**totals, "": counter.get_total_flops()}, scores)


def _by_part(shape: ModelShape, totals: Mapping[str, float], scores: float) -> dict[str, float]:
    """FLOP per token of each part of `flop_parts`, from those of modules and of scores over one sequence.

    `totals` is by the module's name, modules inside it included; "" is the model.
    """

    def within(last: str) -> float:
        return sum(value for name, value in totals.items() if name.split(".")[2:] == [last])

    if shape.kind == "lstm":
        recurrent = within("lstm") / LSTM_TOKENS
        return {"recurrent": shape.n_layers * recurrent, "unembedding": totals[""] / LSTM_TOKENS - recurrent}
    projections = within("attention") - scores
    parts = {"projections": projections, "scores": scores, "feed_forward": within("feed_forward")}
    parts["unembedding"] = totals[""] - sum(parts.values())
    return {name: value / shape.seq_len for name, value in parts.items()}
