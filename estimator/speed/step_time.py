"""Seconds of one training step, and of one decoded token, from model shape, plan and device.

    compute = matrix products + attention + element-wise traffic + cross-entropy (+ recurrence)
    micro   = max(compute, collectives) + exposed x min(compute, collectives)
    step    = accumulate x micro x (1 + jitter x E[largest of `devices` standard normals]) + optimizer

with each part a count of `step_work` over a ceiling of `hardware`, times one of ten constants with
a physical meaning. None belongs to a model size or a sequence length. The constants and their covariance are in
`data/step_time.json`; `calibration` made them from end-to-end measurements.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

from cegain.shapes import architecture
from cegain.shapes.architecture import ModelShape
from cegain.speed.hardware import Device
from cegain.speed.step_work import Kernel, Memory, Plan, Work, memory, problems, work
from cegain.tables.files import DATA

CONSTANTS_FILE = DATA / "step_time.json"
NORMAL_90 = 1.6449
"""Half width of a standard normal's central 90%, rounded: all digits would move intervals that stand in documents."""


class Constants(NamedTuple):
    """What calibration fits. Efficiencies are shares of a measured ceiling; every one is above 0."""

    matmul: float
    """Speed of a training step's matrix products over the device's best matrix product."""
    attention: float
    """Speed of the Triton flash kernel, for endless head width, over that of the matrix products, up to Ampere."""
    hopper_attention: float
    """The same ratio on Hopper and later, over that on Ampere: kernels written for Ampere's instructions."""
    softmax: float
    """Head width at which exponentials and sums of a flash kernel take as long as its matrix products."""
    elementwise: float
    """Bytes moved around matrix products over those of `step_work.block_elements`, at the copy rate."""
    cross_entropy: float
    """Bytes per logit, forward and backward."""
    link: float
    """Bandwidth that collectives get over the data sheet's, within and between servers."""
    exposed: float
    """Share of the shorter of compute and collectives that is not hidden behind the longer."""
    hop: float
    """Seconds of one step of a ring."""
    jitter: float
    """sd of one device's step over its mean: all wait for the slowest."""


class Calibration(NamedTuple):
    """Constants, the covariance of their logarithms, and sd of ln(time) that they do not explain."""

    constants: Constants
    covariance: tuple[tuple[float, ...], ...]
    residual_sd: float


KERNEL_SPEED: Mapping[Kernel, tuple[float, float]] = {
    "flash-triton": (1.0, 0.0),
    "flash1": (0.9, 0.15),
    "flash2": (1.8, 0.10),
    "flash3": (3.2, 0.15),
}
"""Speed over the Triton kernel's, forward and backward together, and sd of its logarithm (assumed). FlashAttention-2 is
1.3-1.5 times as fast forward and about twice backward, and about twice as fast as FlashAttention (Dao 2023, arXiv
2307.08691, section 4.1); FlashAttention-3 reaches 616 and 561 TFLOP/s where that reaches 335 and 322 (Shah et al. 2024,
arXiv 2407.08608, figures 5 and 6; head width 128, causal)."""
SPARSE_SPEED, EXPERT_SPEED = (0.6, 0.2), (0.6, 0.2)
"""Speed over the dense kind, and sd of its logarithm; assumed. Attention in blocks with 10% kept takes 0.14-0.21 of
dense FlashAttention-2's time on an A100 instead of 0.1; products grouped by expert reach 240-410 of 590-690 TFLOP/s on
an H100."""
OTHER_SHAPE_SD = 0.1
"""sd of the logarithm of a kernel's speed on a device where another shape of it was measured; assumed."""
MATERIALISED_SD, RECURRENT_SD, FP8_SD = 0.15, 0.3, 0.10
"""sd of the logarithm of a part of the step, assumed. fp8: measured products reach 71-78% of the peak on Hopper and
Blackwell, bf16 78-84%; how much scaling and casting add is not known."""
LAUNCH = 4.5e-6
"""Seconds between launches of an eager program: assumed. The step is never shorter than its launches."""
DECODE_SHARE = (0.72, 0.12)
"""Share of the data sheet's bandwidth that decoding gets, and sd of its logarithm: 60-85% is usual."""
DECODE_LAUNCH, DECODE_KERNELS = 1.5e-6, 10
"""Seconds per kernel inside a captured graph, and kernels per layer: assumed."""
_CONVENTIONS: tuple[architecture.Convention, ...] = ("useful", "full")


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a training step, where they go, and how sure that is."""

    shape: ModelShape
    plan: Plan
    seconds: float
    parts: Mapping[str, float]
    """Seconds by part; they add up to `seconds`. `collectives` is what compute does not hide."""
    flops_per_token: float
    """Useful, as `architecture.flops_per_token`."""
    full_flops_per_token: float
    """With all scores of a sequence counted, masked ones too: the convention of most published utilisations."""
    memory: Memory
    log_variance: float
    """Of ln(seconds)."""
    gradient: tuple[float, ...]
    """d ln(seconds) / d ln(constant)."""
    own_variance: float
    """What `log_variance` has besides the constants."""

    @property
    def device(self) -> Device:
        """What it runs on."""
        return self.plan.device

    @property
    def tokens(self) -> int:
        """Tokens of one step over all devices."""
        plan = self.plan
        return plan.micro_batch * plan.accumulate * plan.devices * self.shape.seq_len

    @property
    def tokens_per_second_per_device(self) -> float:
        """Throughput."""
        return self.tokens / self.seconds / self.plan.devices

    @property
    def achieved_flops(self) -> float:
        """Useful FLOP/s per device: the ratio of two is what turns a gain in FLOP into a gain in time."""
        return self.flops_per_token * self.tokens_per_second_per_device

    @property
    def full_achieved_flops(self) -> float:
        """FLOP/s per device in the full-attention convention."""
        return self.full_flops_per_token * self.tokens_per_second_per_device

    @property
    def peak(self) -> float:
        """Data-sheet FLOP/s that utilisations are shares of."""
        return self.plan.device.peak[self.plan.used_precision]

    @property
    def binds(self) -> str:
        """What takes most of the step."""
        groups = {
            "matrix products": ("layers", "experts", "vocabulary"),
            "attention": ("attention",),
            "memory traffic": ("elementwise", "cross_entropy", "optimizer"),
            "collectives": ("collectives",),
            "one time step after another": ("recurrence",),
            "kernel launches": ("launches",),
        }
        return max(groups, key=lambda group: sum(self.parts[part] for part in groups[group]))

    @property
    def interval(self) -> tuple[float, float]:
        """90% interval of `seconds`."""
        width = NORMAL_90 * math.sqrt(self.log_variance)
        return self.seconds * math.exp(-width), self.seconds * math.exp(width)


def training_step(
    shape: ModelShape, plan: Plan, calibration: Calibration | None = None, *, fits: bool = True
) -> StepTime:
    """Time of one optimizer step on full sequences, by the shipped calibration or another.

    With `fits` False the plan need not fit into memory: the time is that of a device with room for it.

    Raises:
        ValueError: a plan that breaks rules or does not fit into memory, with all problems and what would do.
    """
    broken = list(problems(shape, plan, fits))
    if broken:
        raise ValueError("\n".join(broken))
    fitted = shipped() if calibration is None else calibration
    count = work(shape, plan)
    parts = parts_of(count, shape, plan, fitted.constants)
    seconds = sum(parts.values())
    gradient, own = _sensitivity(count, shape, plan, fitted)
    tokens = plan.micro_batch * plan.accumulate * plan.devices * shape.seq_len
    useful, full = (architecture.flops_per_token(shape, c, batch_tokens=tokens) for c in _CONVENTIONS)
    variance = _quadratic(gradient, fitted.covariance) + own
    return StepTime(shape, plan, seconds, parts, useful, full, memory(shape, plan), variance, gradient, own)


def log_variance(shape: ModelShape, plan: Plan, calibration: Calibration) -> float:
    """Variance of ln(seconds) of a step, of plans that do not fit too."""
    gradient, own = _sensitivity(work(shape, plan), shape, plan, calibration)
    return _quadratic(gradient, calibration.covariance) + own


def log_variance_of_ratio(first: StepTime, second: StepTime, calibration: Calibration | None = None) -> float:
    """Variance of ln(first.seconds / second.seconds): constants that both share cancel as far as they do.

    What the constants do not explain is taken as independent, unless both are the same.
    """
    fitted = shipped() if calibration is None else calibration
    if (first.shape, first.plan) == (second.shape, second.plan):
        return 0.0
    difference = [a - b for a, b in zip(first.gradient, second.gradient, strict=True)]
    own = first.own_variance + second.own_variance
    if first.plan.device == second.plan.device:
        own -= 2 * first.plan.device.ceiling_sd**2  # the same machine's ceilings are wrong together
    return _quadratic(difference, fitted.covariance) + own


def step_parts(shape: ModelShape, plan: Plan, constants: Constants) -> dict[str, float]:
    """Seconds by part of one optimizer step on a sound plan."""
    return parts_of(work(shape, plan), shape, plan, constants)


def parts_of(count: Work, shape: ModelShape, plan: Plan, constants: Constants) -> dict[str, float]:
    """As `step_parts`, of work that is counted already."""
    c, device = constants, plan.device
    rate = c.matmul * device.matmul[plan.used_precision]
    wide = rate if plan.used_precision != "fp8" else c.matmul * device.matmul["bf16"]
    kernel = plan.kernel_for(shape)
    parts = {
        "layers": count.layers / rate,
        "experts": count.experts / (rate * (device.expert_speed or EXPERT_SPEED[0])),
        "vocabulary": count.vocabulary / wide,
        "elementwise": c.elementwise * plan.value_bytes * count.elements / device.copy_rate,
        "cross_entropy": c.cross_entropy * plan.value_bytes / 2 * count.logits / device.copy_rate,
        "recurrence": max(count.recurrent / rate, count.recurrent_moved / device.copy_rate)
        + (2 * LAUNCH * count.time_steps if device.generation != "cpu" else 0.0),
    }
    if kernel == "materialised":
        parts["attention"] = count.scores / wide + count.scores_moved / (device.score_rate or device.copy_rate)
    elif device.fused_attention is not None and kernel == "flash-triton":
        sparse = SPARSE_SPEED[0] if _sparse(shape) else 1.0
        parts["attention"] = count.scores / (device.matmul[plan.used_precision] * device.fused_attention * sparse)
    else:
        speed = wide * c.attention * KERNEL_SPEED[kernel][0] / (1 + c.softmax / count.score_width)
        if device.generation in ("hopper", "blackwell"):
            speed *= c.hopper_attention
        if _sparse(shape):
            speed *= SPARSE_SPEED[0]
        parts["attention"] = count.scores / speed
    compute = sum(parts.values())
    launches = 0.0 if device.generation == "cpu" else LAUNCH * count.launches
    parts["launches"] = max(0.0, launches - compute)
    compute += parts["launches"]
    inside = count.inside + count.exchanged_inside
    across = count.across + count.exchanged_across * plan.on_node
    collectives = max(inside / device.link, across / plan.network_rate) / c.link + c.hop * count.hops
    micro = max(compute, collectives) + c.exposed * min(compute, collectives)
    parts["collectives"] = micro - compute
    parts = {name: plan.accumulate * seconds for name, seconds in parts.items()}
    parts["stragglers"] = sum(parts.values()) * c.jitter * largest_normal(plan.devices)
    parts["optimizer"] = count.optimizer_bytes / device.copy_rate + count.optimizer_flops / wide
    return parts


def largest_normal(n: int) -> float:
    """Expected largest of n standard normals (Blom 1958: the quantile at (n - 3/8) / (n + 1/4)); 0 for one."""
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) if n > 1 else 0.0


@dataclass(frozen=True, slots=True)
class TokenTime:
    """Seconds of one decoding step, in which each sequence gets a token."""

    shape: ModelShape
    device: Device
    devices: int
    batch: int
    context: int
    seconds: float
    parts: Mapping[str, float]
    log_variance: float

    @property
    def seconds_per_token(self) -> float:
        """Device time of one token: seconds x devices / batch."""
        return self.seconds * self.devices / self.batch

    @property
    def binds(self) -> str:
        """What takes most of the step."""
        return max(self.parts, key=lambda part: self.parts[part])


def decoded_token(
    shape: ModelShape,
    device: Device,
    *,
    context: int,
    batch: int = 1,
    devices: int = 1,
    calibration: Calibration | None = None,
) -> TokenTime:
    """Time of one decoding step with a cache of `context` tokens per sequence, weights split over `devices`.

    Weights and caches are read once, at DECODE_SHARE of the bandwidth; matrix products take the longer of that and
    their FLOP. A mixture's step reads the experts that `batch` tokens meet.

    Raises:
        ValueError: counts below 1, or weights and caches that do not fit.
    """
    counts = {"context": context, "batch": batch, "devices": devices}
    broken = [f"{name} must be at least 1, got {value}; give 1 or more" for name, value in counts.items() if value < 1]
    precision = "bf16" if device.precision != "fp32" and "bf16" in device.matmul else device.precision
    size = 4 if precision == "fp32" else 2
    parameters = architecture.parameters(shape)
    cache = float(batch * architecture.kv_cache_bytes(shape, max(1, context), size))
    held = size * parameters.total + cache
    if not broken and held > devices * device.memory:
        broken.append(
            f"weights and caches must fit into {devices} x {device.memory / 1e9:.0f} GB of {device.title}, got "
            f"{held / 1e9:.0f} GB; use {math.ceil(held / device.memory)} devices, a smaller batch or a shorter context"
        )
    if broken:
        raise ValueError("\n".join(broken))
    fitted = shipped() if calibration is None else calibration
    bandwidth = DECODE_SHARE[0] * device.bandwidth * devices
    read = parameters.active + (parameters.total - parameters.active) * _experts_read_share(shape, batch)
    flops = batch * architecture.flops_per_token(shape, "6nd_total", passes="forward")
    matmul = fitted.constants.matmul * device.matmul[precision] * devices
    parts = {
        "weights": max(size * read / bandwidth, flops / matmul),
        "cache": _cache_read(shape, context, batch, size) / bandwidth,
        "launches": 0.0 if device.generation == "cpu" else DECODE_LAUNCH * DECODE_KERNELS * shape.n_layers,
        "collectives": 2.0 * shape.n_layers * fitted.constants.hop * (devices - 1),
    }
    variance = DECODE_SHARE[1] ** 2 + fitted.residual_sd**2 + device.ceiling_sd**2
    return TokenTime(shape, device, devices, batch, context, sum(parts.values()), parts, variance)


def _cache_read(shape: ModelShape, context: int, batch: int, size: int) -> float:
    """Bytes of keys and values that one step reads: what is kept, less what a sparse pattern does not look at."""
    kept = float(batch * architecture.kv_cache_bytes(shape, context, size))
    if shape.kind == "lstm" or shape.pattern in ("causal", "window"):
        return kept
    at = dataclasses.replace(shape, seq_len=context)
    dense = dataclasses.replace(at, pattern="causal")
    scores, all_scores = (architecture.flop_parts(s, passes="forward")["scores"] for s in (at, dense))
    return kept * scores / all_scores


def _experts_read_share(shape: ModelShape, batch: int) -> float:
    """Share of the experts beyond one token's own that a batch of tokens reads, routed evenly."""
    if shape.kind == "lstm" or shape.feed_forward != "moe" or shape.n_experts == shape.top_k:
        return 0.0
    read = shape.n_experts * (1 - (1 - shape.top_k / shape.n_experts) ** batch)
    return (read - shape.top_k) / (shape.n_experts - shape.top_k)


@functools.cache
def shipped() -> Calibration:
    """The calibration in `data/step_time.json`."""
    return calibration_of(json.loads(CONSTANTS_FILE.read_text(encoding="utf-8")))


def calibration_of(document: Mapping[str, Any]) -> Calibration:
    """The calibration that a document of `calibration.document` holds."""
    values = Constants(**{name: float(entry["value"]) for name, entry in document["constants"].items()})
    covariance = tuple(tuple(map(float, row)) for row in document["log_covariance"])
    return Calibration(values, covariance, float(document["residual_sd"]))


def _sensitivity(
    count: Work, shape: ModelShape, plan: Plan, calibration: Calibration
) -> tuple[tuple[float, ...], float]:
    """d ln(seconds) / d ln(constant), by differences, and the variance that is not the constants'."""
    step, constants = 1e-5, calibration.constants
    parts = parts_of(count, shape, plan, constants)
    here, slopes = sum(parts.values()), []
    for name, value in constants._asdict().items():
        moved = constants._replace(**{name: value * math.exp(step)})
        slopes.append(math.log(sum(parts_of(count, shape, plan, moved).values()) / here) / step)
    own = _own_variance(shape, plan, parts)
    return tuple(slopes), calibration.residual_sd**2 + own


def _own_variance(shape: ModelShape, plan: Plan, parts: Mapping[str, float]) -> float:
    """Variance of ln(seconds) from assumed speeds and from the device's ceilings."""
    seconds, kernel = sum(parts.values()), plan.kernel_for(shape)
    attention = MATERIALISED_SD if kernel == "materialised" else KERNEL_SPEED[kernel][1]
    if kernel == "flash-triton" and plan.device.fused_attention is not None:
        attention = OTHER_SHAPE_SD
    if _sparse(shape) and kernel != "materialised":
        attention = math.hypot(attention, SPARSE_SPEED[1])
    experts = EXPERT_SPEED[1] if plan.device.expert_speed is None else OTHER_SHAPE_SD
    shares = {"attention": attention, "experts": experts, "recurrence": RECURRENT_SD}
    if plan.used_precision == "fp8":
        shares |= {"layers": FP8_SD, "experts": math.hypot(experts, FP8_SD)}
    own = sum((sd * parts[part] / seconds) ** 2 for part, sd in shares.items())
    return own + plan.device.ceiling_sd**2


def _sparse(shape: ModelShape) -> bool:
    return shape.kind == "transformer" and shape.pattern in ("strided", "fixed")


def _quadratic(vector: Sequence[float], matrix: Sequence[Sequence[float]]) -> float:
    return sum(
        a * b * entry for a, row in zip(vector, matrix, strict=True) for b, entry in zip(vector, row, strict=True)
    )
