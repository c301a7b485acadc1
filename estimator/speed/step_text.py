"""Step times as text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from cegain.shapes import architecture
from cegain.speed.hardware import Device
from cegain.speed.step_time import StepTime, TokenTime

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def seconds(value: float) -> str:
    """Three digits, in the unit that fits."""
    size, unit = next(((s, u) for s, u in _UNITS if value >= s), _UNITS[-1])
    return f"{value / size:.3g} {unit}"


def document(step: StepTime) -> dict[str, Any]:
    """A training step as JSON: seconds, bytes, FLOP/s."""
    plan = step.plan
    low, high = step.interval
    throughput, price = step.tokens_per_second_per_device, plan.device.price
    return {
        "kind": "training_step", "device": plan.device.name, "gpus": plan.devices, "shape": _shape(step.shape),
        "micro_batch": plan.micro_batch, "accumulate": plan.accumulate, "sharding": plan.sharding,
        "recompute": plan.recompute, "precision": plan.used_precision, "attention": _kernel(step),
        "gradient_bytes": plan.gradient_bytes,
        "seconds_per_step": step.seconds,
        "seconds_per_step_interval": {"probability": 0.9, "low": low, "high": high},
        "log_variance": step.log_variance,
        "tokens_per_step": step.tokens,
        "tokens_per_second": throughput * plan.devices,
        "tokens_per_second_per_gpu": throughput,
        "achieved_flops_per_second_per_gpu": step.achieved_flops,
        "full_attention_flops_per_second_per_gpu": step.full_achieved_flops,
        "mfu": step.achieved_flops / step.peak,
        "mfu_full_attention": step.full_achieved_flops / step.peak,
        "seconds_by_part": dict(step.parts),
        "binds": step.binds,
        "memory_bytes": dataclasses.asdict(step.memory) | {"total": step.memory.total, "device": plan.device.memory},
        "usd_per_million_tokens": _usd(price.usd_per_hour, throughput),
        "price": dataclasses.asdict(price),
        "device_sources": list(plan.device.sources),
        "kernel_times": plan.device.kernel_times or None,
    }  # fmt: skip


def plain(step: StepTime) -> str:
    """A training step for a terminal."""
    plan, shape = step.plan, step.shape
    low, high = step.interval
    price = plan.device.price
    lines = [
        f"{_model(step)} on {plan.devices} x {plan.device.title}",
        f"  sequences of {shape.seq_len}, micro-batch {plan.micro_batch} x {plan.accumulate}, sharding {plan.sharding}",
        f"  {'' if plan.recompute else 'no '}recomputation, {plan.used_precision}, attention {_kernel(step)}",
        "",
        f"  step        {seconds(step.seconds)}   90% {seconds(low)} to {seconds(high)}, {step.tokens:,} tokens",
        f"  throughput  {step.tokens_per_second_per_device:,.0f} tokens/s per device",
        f"  achieved    {step.achieved_flops / 1e12:.3g} TFLOP/s per device, {step.achieved_flops / step.peak:.1%} of "
        f"{step.peak / 1e12:.3g} (masked scores counted too: {step.full_achieved_flops / 1e12:.3g}, "
        f"{step.full_achieved_flops / step.peak:.1%})",
        f"  memory      {step.memory.total / 1e9:.3g} of {plan.device.memory / 1e9:.3g} GB at least",
        f"  cost        ${_usd(price.usd_per_hour, step.tokens_per_second_per_device):.3g} per million tokens "
        f"at ${price.usd_per_hour:.2f} an hour ({price.date})",
        f"  binds       {step.binds}",
        "",
    ]
    for name, part in sorted(step.parts.items(), key=lambda item: -item[1]):
        if part > 0.0005 * step.seconds:
            lines.append(f"  {name.replace('_', ' '):15}{seconds(part):>10}{part / step.seconds:>7.1%}")
    return "\n".join([*lines, "", f"  {_measured(plan.device)}"])


def token_document(token: TokenTime) -> dict[str, Any]:
    """A decoding step as JSON."""
    price = token.device.price
    return {
        "kind": "decoded_token", "device": token.device.name, "gpus": token.devices, "shape": _shape(token.shape),
        "batch": token.batch, "context": token.context,
        "seconds_per_step": token.seconds,
        "gpu_seconds_per_token": token.seconds_per_token,
        "tokens_per_second_per_gpu": 1 / token.seconds_per_token,
        "log_variance": token.log_variance,
        "seconds_by_part": dict(token.parts),
        "binds": token.binds,
        "usd_per_million_tokens": _usd(price.usd_per_hour, 1 / token.seconds_per_token),
        "price": dataclasses.asdict(price),
    }  # fmt: skip


def token_plain(token: TokenTime) -> str:
    """A decoding step for a terminal."""
    lines = [
        f"{_model(token)} decoding on {token.devices} x {token.device.title}",
        f"  batch {token.batch}, {token.context} tokens of context each",
        "",
        f"  step        {seconds(token.seconds)}",
        f"  throughput  {1 / token.seconds_per_token:,.0f} tokens/s per device",
        f"  binds       {token.binds}",
        "",
    ]
    for name, part in sorted(token.parts.items(), key=lambda item: -item[1]):
        if part > 0:
            lines.append(f"  {name:15}{seconds(part):>10}{part / token.seconds:>7.1%}")
    return "\n".join(lines)


def _kernel(step: StepTime) -> str:
    kernel = step.plan.kernel_for(step.shape)
    return "fused" if kernel == "flash-triton" and step.plan.device.fused_attention is not None else kernel


def _usd(hourly: float, tokens_per_second: float) -> float:
    return hourly / 3600 / tokens_per_second * 1e6


def _model(time: StepTime | TokenTime) -> str:
    shape, count = time.shape, architecture.parameters(time.shape)
    active = f", {count.active / 1e9:.3g}B active" if count.active < count.total else ""
    return f"{count.total / 1e9:.3g}B parameters{active} ({shape.n_layers} layers of {shape.d_model})"


def _measured(device: Device) -> str:
    if device.kernel_times:
        return f"as measured ({device.kernel_times}): {measured(device)}; the rest calibrated on A100 and H100"
    known = {
        "ampere": "constants calibrated on end-to-end rows of this generation (Triton flash kernel)",
        "hopper": "constants calibrated on end-to-end rows of this generation, 8 GPUs",
    }
    return known.get(device.generation, "constants calibrated on A100 and H100; carried over to this device's ceilings")


def measured(device: Device) -> str:
    """What is known of a device from kernel times, in words."""
    kernels = {
        "fused attention": device.fused_attention,
        "materialised attention": device.score_rate,
        "experts": device.expert_speed,
    }
    return ", ".join(["matrix products", "copies", *(name for name, speed in kernels.items() if speed is not None)])


def _shape(shape: Any) -> dict[str, Any]:
    count = architecture.parameters(shape)
    return {
        "layers": shape.n_layers, "width": shape.d_model, "heads": shape.n_heads, "kv_heads": shape.n_kv_heads,
        "head_dim": shape.width_per_head, "feed_forward": shape.feed_forward, "vocab": shape.vocab_size,
        "seq_len": shape.seq_len, "pattern": shape.pattern, "params_total": count.total, "params_active": count.active,
    }  # fmt: skip
