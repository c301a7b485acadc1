"""Device-hours of four published training runs, predicted as ranges from one set of assumptions.

The step-time model gives the speed of a device that computes alone. A run at this scale loses more: tensor, pipeline
and expert parallelism expose communication and bubbles, blocks are computed again, and machines fail. Those three are
assumed, once for all runs, and no run has a factor of its own.

    hours = tokens x seconds of compute per token and device x (1 + recompute / 3) / (goodput x (1 - exposed))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cegain.shapes import architecture
from cegain.shapes.architecture import ModelShape
from cegain.speed import hardware
from cegain.speed.step_time import NORMAL_90, Calibration, log_variance, shipped, step_parts
from cegain.speed.step_work import Kernel, Plan


class Assumption(NamedTuple):
    """A range that is meant to hold 90%, and why."""

    low: float
    high: float
    reason: str

    @property
    def middle(self) -> float:
        """Centre of the range."""
        return (self.low + self.high) / 2


ASSUMPTIONS: Mapping[str, Assumption] = {
    "goodput": Assumption(
        0.85, 0.97, "time that moves the run on; Llama 3 had more than 90% (Grattafiori et al. 2024, arXiv 2407.21783)"
    ),
    "exposed": Assumption(
        0.10, 0.30, "step time lost to parallelism: bubbles, collectives and exchanges that nothing hides; assumed"
    ),
    "recompute": Assumption(0.0, 1.0, "share of the forward pass that runs again; few reports say; assumed"),
}
"""The same for every run."""
_MANY = 2**20  # micro-batches per step: the optimizer, which these runs spread over all devices, then takes no time


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """What is known of a run, and the hours it took."""

    name: str
    shape: ModelShape
    plan: Plan
    tokens: float
    actual_hours: float
    reported_flops: float
    """As its source counts."""
    source: str
    note: str
    alone_then: float | None = None
    """FLOP/s of one device by itself that was reported for the software of the run's time, where that differs much."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A run's device-hours: middle, range, what moves it, and the actual figure."""

    run: PublishedRun
    hours: float
    low: float
    high: float
    sensitivity: Mapping[str, tuple[float, float]]
    """Hours with one assumption at its low and its high end, the others in the middle."""
    alone: float
    """Useful FLOP/s of a device that computes alone."""
    hours_then: float | None
    """Hours at the reported speed of the time, with the same assumptions."""

    @property
    def width(self) -> float:
        """High over low."""
        return self.high / self.low

    @property
    def inside(self) -> bool:
        """Whether the actual hours lie in the range."""
        return self.low <= self.run.actual_hours <= self.high


def _run(
    name: str, device: str, tokens: float, hours: float, flops: float, source: str, note: str, kernel: Kernel,
    precision: hardware.Precision | None = None, alone_then: float | None = None, **shape: object,
) -> PublishedRun:  # fmt: skip
    plan = Plan(hardware.find(device), kernel=kernel, precision=precision)
    fields = architecture.stack("modern", tied_head=False, **shape)
    return PublishedRun(name, fields, plan, tokens, hours, flops, source, note, alone_then)


RUNS: tuple[PublishedRun, ...] = (
    _run(
        "Llama 3.1 405B", "h100", 15.6e12, 30.84e6, 3.8e25,
        "Llama 3.1 model card; Grattafiori et al. 2024 (arXiv 2407.21783): 16k GPUs",
        "", "flash2",
        n_layers=126, d_model=16384, n_heads=128, heads="gqa", gqa_group=16, d_ff=53248, vocab_size=128256,
        seq_len=8192,
    ),
    _run(
        "DeepSeek-V3", "h800", 14.8e12, 2.664e6, 6 * 37e9 * 14.8e12,
        "DeepSeek-V3 (arXiv 2412.19437), table 1: 2.664M of its 2.788M hours are pre-training",
        "fp8; latent attention as grouped heads with as many parameters, which counts its scores 6% of all FLOP short; "
        "its three dense layers as mixtures of equal active size",
        "flash2", "fp8",
        n_layers=61, d_model=7168, n_heads=128, head_dim=96, heads="gqa", gqa_group=16, feed_forward="moe",
        n_experts=256, top_k=8, n_shared_experts=1, d_expert=2048, expert_activation="swiglu", vocab_size=129280,
        seq_len=4096,
    ),
    _run(
        "GPT-3 175B", "v100", 300e9, 10_000 * 14.8 * 24, 3.14e23,
        "Patterson et al. 2021 (arXiv 2104.10350), table 4: 10,000 GPUs for 14.8 days",
        "the constants are those of software of 2023. In 2019 one V100 trained at 39 TFLOP/s by itself, 30% of "
        "its peak (Shoeybi et al. 2019, arXiv 1909.08053, section 1); the same assumptions give, from that speed,",
        "materialised", None, 39e12,
        n_layers=96, d_model=12288, n_heads=96, vocab_size=50257, seq_len=2048, norm="layer", positions="learned",
        feed_forward="gelu",
    ),
    _run(
        "Llama 2 70B", "a100-80", 2e12, 1_720_320, 6 * 70e9 * 2e12,
        "Touvron et al. 2023 (arXiv 2307.09288), table 2",
        "", "flash1",
        n_layers=80, d_model=8192, n_heads=64, heads="gqa", gqa_group=8, d_ff=28672, vocab_size=32000, seq_len=4096,
    ),
)  # fmt: skip
"""Attention kernels are those of each run's time; models before fused attention held all scores."""


def predict(run: PublishedRun, calibration: Calibration | None = None) -> Prediction:
    """Device-hours of one run: every assumption at its middle, and the root sum of squares of what moves it."""
    alone, log_variance = _compute(run, shipped() if calibration is None else calibration)
    middle = {name: assumption.middle for name, assumption in ASSUMPTIONS.items()}
    hours = _hours(run, alone, middle)
    ends = {
        name: (_hours(run, alone, middle | {name: a.low}), _hours(run, alone, middle | {name: a.high}))
        for name, a in ASSUMPTIONS.items()
    }
    model = NORMAL_90 * math.sqrt(log_variance)
    ends["step-time model"] = (hours * math.exp(-model), hours * math.exp(model))
    moves = [sorted(math.log(end / hours) for end in pair) for pair in ends.values()]
    low, high = (math.sqrt(sum(move[i] ** 2 for move in moves)) for i in (0, 1))
    then = None if run.alone_then is None else _hours(run, run.alone_then, middle)
    return Prediction(run, hours, hours * math.exp(-low), hours * math.exp(high), ends, alone, then)


def _compute(run: PublishedRun, calibration: Calibration) -> tuple[float, float]:
    """Useful FLOP/s of one device that only computes, one sequence at a time, and the variance of its logarithm.

    Memory is not checked, since these runs split the model; collectives and the optimizer belong to `exposed`.
    """
    plan = dataclasses.replace(run.plan, devices=1, accumulate=_MANY)
    seconds = sum(step_parts(run.shape, plan, calibration.constants).values())
    tokens = _MANY * run.shape.seq_len
    return architecture.flops_per_token(run.shape) * tokens / seconds, log_variance(run.shape, plan, calibration)


def _hours(run: PublishedRun, alone: float, values: Mapping[str, float]) -> float:
    flops = run.tokens * architecture.flops_per_token(run.shape)
    again = 1 + values["recompute"] / 3
    return flops * again / (alone * values["goodput"] * (1 - values["exposed"])) / 3600


def document(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The runs, the assumptions and what each moves."""
    return {
        "assumptions": {name: {"low": a.low, "high": a.high, "reason": a.reason} for name, a in ASSUMPTIONS.items()},
        "inside": sum(p.inside for p in predictions),
        "runs": [
            {
                "name": p.run.name, "device": p.run.plan.device.name, "tokens": p.run.tokens,
                "reported_flops": p.run.reported_flops,
                "useful_flops": p.run.tokens * architecture.flops_per_token(p.run.shape),
                "alone_flops_per_second": p.alone,
                "device_hours": {"median": p.hours, "low": p.low, "high": p.high, "interval": 0.9},
                "actual_device_hours": p.run.actual_hours, "inside": p.inside, "width": p.width,
                "sensitivity": {name: list(pair) for name, pair in p.sensitivity.items()},
                "device_hours_at_reported_speed": p.hours_then, "source": p.run.source, "note": p.run.note,
            }
            for p in predictions
        ],
    }  # fmt: skip


def render(console: Any, predictions: Sequence[Prediction]) -> None:
    """Tables for a terminal."""
    from rich.table import Table

    table = Table(title="Device-hours of published runs, millions: middle and 90% range of one set of assumptions")
    for column in ("run", "device", "alone, TFLOP/s", "predicted", "range", "high/low", "actual", "actual/middle", ""):
        table.add_column(column, justify="left" if column in ("run", "device", "") else "right")
    for p in predictions:
        table.add_row(
            p.run.name, p.run.plan.device.name, f"{p.alone / 1e12:.0f}", f"{p.hours / 1e6:.3g}",
            f"{p.low / 1e6:.3g} to {p.high / 1e6:.3g}", f"{p.width:.2f}", f"{p.run.actual_hours / 1e6:.4g}",
            f"{p.run.actual_hours / p.hours:.2f}", "inside" if p.inside else "OUTSIDE",
        )  # fmt: skip
    console.print(table)
    moves = Table(title="Sensitivity: predicted hours over the middle with one assumption at its low and high end")
    moves.add_column("run")
    for name in predictions[0].sensitivity:
        a = ASSUMPTIONS.get(name)
        moves.add_column(f"{name} {a.low:g} to {a.high:g}" if a else f"{name}, 90%", justify="right")
    for p in predictions:
        ends = (f"{low / p.hours:.2f}, {high / p.hours:.2f}" for low, high in p.sensitivity.values())
        moves.add_row(p.run.name, *ends)
    console.print(moves)
    for name, a in ASSUMPTIONS.items():
        console.print(f"{name}: {a.reason}")
    for p in predictions:
        if p.run.note:
            console.print(f"{p.run.name}: {p.run.note}" + (f" {p.hours_then / 1e6:.3g}M hours" if p.hours_then else ""))
