"""Two models of a question, with the algorithms and without them, each timed at its own size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cegain import algorithms
from cegain.shapes import architecture, arms
from cegain.shapes.architecture import ModelShape
from cegain.speed import step_time, step_work
from cegain.speed.hardware import Device
from cegain.speed.step_time import StepTime, TokenTime
from cegain.speed.step_work import MOST_DEVICES

LEAST_FLOPS, MOST_FLOPS = 1e18, 1e30
"""Budgets outside are not timed: below, a compute-optimal model has hardly room for its vocabulary; above, it is far
past any model that devices of today could train."""
STACK: architecture.Stack = "modern"
SEQ_LEN = 2048
SPACING = 0.5
"""Decades of compute between the budgets whose models are timed for an answer (`averaged`)."""
DECODE_BATCH = 16
"""Sequences that are decoded at once. Assumed: more of them weigh caches more against weights."""


class Setting(NamedTuple):
    """Where both models run, and on sequences of how many tokens (with decode: tokens in each cache)."""

    device: Device
    baseline_device: Device
    seq_len: int = SEQ_LEN


class Side(NamedTuple):
    """One of the two models: its budget (FLOP), what it is, and its modelled step or token."""

    flops: float
    shape: ModelShape
    time: StepTime | TokenTime
    fits: bool


class Speeds(NamedTuple):
    """By what a gain in FLOP is multiplied (for decode: the gain itself), its ln and the variance of that.

    `treatment` and `baseline` are the two models; `price` is the part of `ln_factor` that is due to prices.
    """

    ln_factor: float
    variance: float
    treatment: Side
    baseline: Side
    price: float = 0.0


class NoShapeError(ValueError):
    """A contrast without two models to compare: one sentence with rule, value and remedy."""


def speeds(
    names: Sequence[str], baselines: Sequence[str], currency: str, flops: float, in_flop: float, setting: Setting
) -> Speeds:
    """The two models of a question in "time", "usd" or "decode", timed.

    The model with the algorithms has a budget of `flops` (FLOP), the one with their `baselines` a budget that is larger
    by the CEG `in_flop` (1 for decode, which compares equal shapes).

    Raises:
        NoShapeError: an algorithm or baseline that is no change of a model's shape, or a budget below any model.
    """
    with_it, without_it = _fields(names, baselines)
    if currency == "decode":
        return _decode(with_it, without_it, flops, setting)
    shapes = [_shape(c, fields, setting.seq_len) for c, fields in ((flops, with_it), (flops * in_flop, without_it))]
    devices = [setting.device, setting.baseline_device]
    plans = [step_work.default_plan(shape, device) for shape, device in zip(shapes, devices, strict=True)]
    fit = [not list(step_work.problems(shape, plan)) for shape, plan in zip(shapes, plans, strict=True)]
    # As many devices for both, and both run blocks again where one of them must: an algorithm's gain is not that it
    # fits by a hair. A model that fits nowhere is timed as if it did on the devices of the other.
    ready = [plan for plan, fits in zip(plans, fit, strict=True) if fits] or plans
    shared = {"devices": max(plan.devices for plan in ready), "recompute": any(plan.recompute for plan in ready)}
    plans = [
        plan
        if plan.devices == shared["devices"] and plan.recompute == shared["recompute"]
        else step_work.default_plan(shape, device, **shared)
        for plan, shape, device in zip(plans, shapes, devices, strict=True)
    ]
    sides = [
        Side(budget, shape, step_time.training_step(shape, plan, fits=False), fits)
        for budget, shape, plan, fits in zip((flops, flops * in_flop), shapes, plans, fit, strict=True)
    ]
    steps = [side.time for side in sides]
    assert isinstance(steps[0], StepTime)
    assert isinstance(steps[1], StepTime)
    ln_factor = math.log(steps[0].achieved_flops / steps[1].achieved_flops)
    price = math.log(devices[1].price.usd_per_hour / devices[0].price.usd_per_hour) if currency == "usd" else 0.0
    variance = step_time.log_variance_of_ratio(steps[0], steps[1])
    return Speeds(ln_factor + price, variance, sides[0], sides[1], price)


def averaged(timed: Callable[[float], Speeds], flops: float) -> tuple[float, float]:
    """ln of the factor at a budget (FLOP) and its variance, averaged over models of neighbouring sizes.

    Layers, heads and devices are whole numbers, so the speed of the very model of a budget jumps between budgets that
    hardly differ. What is averaged are the models of four budgets, SPACING decades apart, whose places do not depend on
    `flops`; the weights are a cubic B-spline's, which keeps a line in log compute as it is and has no jumps. How far
    the four lie from a line is added to the variance.

    Args:
        timed: both models of a budget (FLOP); raises NoShapeError where there are none.
        flops: budget.

    Raises:
        NoShapeError: a budget below LEAST_FLOPS, or one without models near it.
    """
    if flops < LEAST_FLOPS:
        timed(LEAST_FLOPS)  # where no budget has models, that is the reason
        raise NoShapeError(f"no model of less than {LEAST_FLOPS:g} FLOP is timed")
    at = math.log10(flops) / SPACING
    first = math.floor(at)
    t = at - first
    weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    steps = range(-1, 3)
    found: dict[int, Speeds] = {}
    for step in steps:
        try:
            found[step] = timed(10.0 ** (SPACING * (first + step)))
        except NoShapeError as error:
            why = error
    if not found:
        raise why
    # Past the smallest or largest model there is, the last one stands for its neighbours.
    at_steps = [found[min(max(step, min(found)), max(found))] for step in steps]
    mean = math.fsum(w * speeds.ln_factor for w, speeds in zip(weights, at_steps, strict=True))
    about = [(w, x - t, speeds.ln_factor - mean) for w, x, speeds in zip(weights, steps, at_steps, strict=True)]
    slope = math.fsum(w * x * y for w, x, y in about) / math.fsum(w * x * x for w, x, _ in about)
    scatter = math.fsum(w * (y - slope * x) ** 2 for w, x, y in about)
    return mean, scatter + math.fsum(w * speeds.variance for w, speeds in zip(weights, at_steps, strict=True))


def neighbour(flops: float) -> float:
    """The nearest of the budgets whose models are timed for `averaged`."""
    return float(10.0 ** (SPACING * round(math.log10(flops) / SPACING)))


def _decode(with_it: dict[str, Any], without_it: dict[str, Any], flops: float, setting: Setting) -> Speeds:
    shapes = [_shape(flops, fields, setting.seq_len) for fields in (with_it, without_it)]
    devices = [setting.device, setting.baseline_device]
    tokens = [_token(shape, device, setting.seq_len) for shape, device in zip(shapes, devices, strict=True)]
    variances = [token.log_variance for token in tokens]
    if devices[0] == devices[1]:
        # The same machine: what remains is how differently it reads caches and weights.
        shares = [token.parts["cache"] / token.seconds for token in tokens]
        residual = step_time.shipped().residual_sd
        variances = [
            2 * residual**2 * (tokens[0].parts != tokens[1].parts),
            (step_time.DECODE_SHARE[1] * (shares[0] - shares[1])) ** 2,
        ]
    sides = [Side(flops, shape, token, True) for shape, token in zip(shapes, tokens, strict=True)]
    ln_factor = math.log(tokens[1].seconds_per_token / tokens[0].seconds_per_token)
    return Speeds(ln_factor, sum(variances), sides[0], sides[1])


def _token(shape: ModelShape, device: Device, context: int) -> TokenTime:
    """One decoding step, on as few devices (a power of two) as hold weights and caches."""
    devices = 1
    while True:
        try:
            return step_time.decoded_token(shape, device, context=context, batch=DECODE_BATCH, devices=devices)
        except ValueError as error:
            if devices > MOST_DEVICES:
                raise NoShapeError(f"no token can be timed there: {error}") from None
        devices *= 2


def _fields(names: Sequence[str], baselines: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a stack changes with all algorithms, and with none of them."""
    with_it: dict[str, Any] = {}
    without_it: dict[str, Any] = {}
    for name, baseline in zip(names, baselines, strict=True):
        entry = algorithms.get(name)
        if not entry.arm and not entry.baseline_arm:
            raise NoShapeError(f"{name} cannot be timed: it is no change of a model's shape")
        if baseline == name:
            continue
        if baseline == entry.replaces[0]:
            # a mixture replaces a dense layer of the stack's own activation
            bare = {} if entry.arm.get("feed_forward") == "moe" else {f: arms.of_stack("bare", f) for f in entry.arm}
            other = dict(entry.baseline_arm) or bare
        elif baseline in algorithms.names() and algorithms.get(baseline).arm:
            other = dict(algorithms.get(baseline).arm)
        else:
            raise NoShapeError(f"{name} against {baseline} cannot be timed: no model's shape is known for {baseline}")
        for fields, more in ((with_it, entry.arm), (without_it, other)):
            for field, value in more.items():
                if fields.setdefault(field, value) != value:
                    raise NoShapeError(f"{' and '.join(names)} cannot be timed together: they set {field} differently")
    return with_it, without_it


def _shape(flops: float, fields: dict[str, Any], seq_len: int) -> ModelShape:
    if flops > MOST_FLOPS:
        raise NoShapeError(f"no model of more than {MOST_FLOPS:g} FLOP is timed, got {flops:g}")
    try:
        return architecture.compute_optimal_shape(flops, STACK, seq_len=seq_len, **fields)
    except ValueError as error:
        raise NoShapeError(f"no model can be timed there: {error}") from None


def described(side: Side) -> str:
    """One side in a line: shape, device, speed, and where the time goes."""
    shape, time = side.shape, side.time
    parts = sorted(time.parts.items(), key=lambda part: -part[1])[:3]
    where = ", ".join(f"{name.replace('_', ' ')} {seconds / time.seconds:.0%}" for name, seconds in parts)
    size = f"{shape.n_layers} layers, {shape.d_model} wide"
    if isinstance(time, TokenTime):
        speed = f"{1e3 * time.seconds_per_token:.3g} device-ms per token"
        caches = f"{time.batch} x {time.context} tokens in caches"
        return f"{size}, {time.devices} {time.device.title}: {speed}, {caches}; {where}"
    length = f"sequences of {shape.seq_len}"
    speed = f"{time.achieved_flops / 1e12:.0f} TFLOP/s each"
    return f"{size}, {length}, {time.plan.devices} {time.plan.device.title}: {speed}; {where}"


def side_document(side: Side) -> dict[str, object]:
    """The same for JSON; seconds of one step by part."""
    shape, time = side.shape, side.time
    count = architecture.parameters(shape)
    document: dict[str, object] = {
        "flops": side.flops, "layers": shape.n_layers, "width": shape.d_model, "heads": shape.n_heads,
        "params_active": count.active, "params_total": count.total, "seq_len": shape.seq_len, "fits": side.fits,
        "seconds": time.seconds, "parts_seconds": dict(time.parts),
    }  # fmt: skip
    if isinstance(time, TokenTime):
        return document | {
            "device": time.device.name, "devices": time.devices, "batch": time.batch,
            "device_seconds_per_token": time.seconds_per_token,
        }  # fmt: skip
    return document | {
        "device": time.plan.device.name, "devices": time.plan.devices, "micro_batch": time.plan.micro_batch,
        "recompute": time.plan.recompute, "achieved_flops_per_s": time.achieved_flops,
    }  # fmt: skip
