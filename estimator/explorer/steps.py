"""What the explorer's step-time model needs as data: devices, arms, calibration, and every constant by its name.

`scripts/step_time.js`, on `architecture.js`, computes in the browser what `two_models.speeds` computes here, from
this document and from nothing else. A constant travels under the name of its module and its own, so that the two can be
read side by side and no number is typed twice.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from cegain import algorithms
from cegain.kernels import costs
from cegain.shapes import architecture
from cegain.shapes.architecture import ModelShape
from cegain.speed import hardware, measured_device, step_time, step_work, two_models
from cegain.speed.hardware import Device

SEQ_LENS = tuple(2**i for i in range(9, 18))
"""Sequence lengths that the explorer offers; its model takes any other as well."""

_CONSTANTS: Mapping[ModuleType, tuple[str, ...]] = {
    two_models: ("DECODE_BATCH", "MOST_FLOPS", "STACK"),
    architecture: ("ASPECT_RATIO", "CHINCHILLA_A", "CHINCHILLA_ALPHA", "CHINCHILLA_B", "CHINCHILLA_BETA", "STACKS"),
    costs: ("ATTENTION_BACKWARD_MATMULS", "FLASH_BACKWARD_MATMULS"),
    step_work: (
        "FIRST_DEVICES", "LAUNCHES", "MEMORY_SLACK", "MOST_DEVICES", "OPTIMIZER_TRAFFIC", "PARAMETER_BYTES",
        "SCORE_BYTES", "TILE", "TOKENS_PER_DEVICE",
    ),
    step_time: (
        "DECODE_KERNELS", "DECODE_LAUNCH", "DECODE_SHARE", "EXPERT_SPEED", "KERNEL_SPEED", "LAUNCH", "MATERIALISED_SD",
        "OTHER_SHAPE_SD", "RECURRENT_SD", "SPARSE_SPEED",
    ),
}  # fmt: skip
"""Which constants of which module the browser's model uses."""


def document() -> dict[str, object]:
    """Everything that `ceg.stepTime.make` takes: plain JSON values, the same at every call.

    Keys: `seq_lens`; for every module in the browser's model, its constants under the module's name; `shape`, the
    defaults of `ModelShape`; `calibration`; `algorithms`, their arms and what they replace; `devices` by name, as
    `measured_device.find` gives them; `largest_normal` by number of devices.
    """
    constants = {
        module.__name__.rpartition(".")[2]: {name: _plain(getattr(module, name)) for name in names}
        for module, names in _CONSTANTS.items()
    }
    constants["costs"]["NEWTON_SCHULZ_STEPS"] = _default(costs.muon_step, "newton_schulz_steps")
    constants["step_work"]["GRADIENT_BYTES"] = _default(step_work.Plan, "gradient_bytes")
    calibration = step_time.shipped()
    devices = [measured_device.find(name) for name in hardware.DEVICES]
    return {
        "seq_lens": list(SEQ_LENS),
        **constants,
        "shape": {field.name: field.default for field in dataclasses.fields(ModelShape)},
        "calibration": {
            "constants": calibration.constants._asdict(),
            "covariance": _plain(calibration.covariance),
            "residual_sd": calibration.residual_sd,
        },
        "algorithms": {name: _arms(name) for name in algorithms.names()},
        "devices": {device.name: _device(device) for device in devices},
        "largest_normal": {str(n): step_time.largest_normal(n) for n in _numbers_of_devices(devices)},
    }


def _arms(name: str) -> dict[str, object]:
    """What an algorithm changes in a model's shape, and what it replaces."""
    entry = algorithms.get(name)
    return {"replaces": list(entry.replaces), "arm": _plain(entry.arm), "baseline_arm": _plain(entry.baseline_arm)}


def _device(device: Device) -> dict[str, object]:
    """The device's fields, and what its properties derive from them."""
    fields: dict[str, object] = {field.name: getattr(device, field.name) for field in dataclasses.fields(device)}
    return {name: _plain(value) for name, value in fields.items()} | {
        "price": dataclasses.asdict(device.price),
        "precision": device.precision,
        "copy_rate": device.copy_rate,
        "value_bytes": hardware.VALUE_BYTES[device.precision],
    }


def _numbers_of_devices(devices: Iterable[Device]) -> list[int]:
    """Every number of devices that `step_work.default_plan` can come to: a first one, doubled while it is too few."""
    numbers = set()
    for device in devices:
        number = min(step_work.FIRST_DEVICES, device.node_devices)
        numbers.add(number)
        while number < step_work.MOST_DEVICES:
            number *= 2
            numbers.add(number)
    return sorted(numbers)


def _default(of: Callable[..., object], name: str) -> Any:
    """The default of a parameter."""
    return inspect.signature(of).parameters[name].default


def _plain(value: object) -> Any:
    """The same in the types that JSON has; keys become strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value
