"""Devices: what their data sheets promise, what they were measured to give, and what an hour of one costs.

They are the entries of `data/devices.json`. Rates are FLOP/s (2 per multiply-add, no sparsity) and bytes/s, sizes are
bytes, all per device; links count one direction. A figure without a source in `sources` is assumed, and a note there
says so.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cegain.tables.files import DATA

Precision = Literal["fp8", "bf16", "fp16", "fp32"]
Generation = Literal["volta", "ampere", "hopper", "blackwell", "cpu"]

VALUE_BYTES: Mapping[Precision, int] = {"fp8": 2, "bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a stored activation. Training in fp8 keeps 16-bit activations between its matrix products (DeepSeek-V3,
arXiv 2412.19437, section 3.3)."""

COPY_SHARE = 0.9
"""Measured copy rate over the data sheet's bandwidth: an H200 copies at 4.3 of 4.8 TB/s. Assumed for the others."""
_MEASURED_SD = 0.05


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for an hour of one device, when, and who says so."""

    usd_per_hour: float
    date: str
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator inside its usual server."""

    name: str
    title: str
    generation: Generation
    peak: Mapping[Precision, float]
    """Data sheet, dense matrix products; the first precision is the one that training uses by default."""
    matmul: Mapping[Precision, float]
    """Measured: the best large matrix product that was found."""
    memory: float
    bandwidth: float
    """Data sheet."""
    link: float
    """To a device of the same server, one direction."""
    node_devices: int
    network: float
    """Of the whole server, one direction."""
    price: Price
    sources: tuple[str, ...]
    copy: float | None = None
    """Measured copy rate, bytes read and written; None: COPY_SHARE of `bandwidth`."""
    fused_attention: float | None = None
    """Measured speed of fused attention, forward and backward, over `matmul`; None: by the calibrated constants."""
    score_rate: float | None = None
    """Measured bytes/s at which materialised scores pass through softmax and back; None: the copy rate."""
    expert_speed: float | None = None
    """Measured FLOP/s of a mixture of experts over those of the dense layer of its active width; None: assumed."""
    kernel_times: str = ""
    """Which kernel times the measured figures are of; empty: those of `sources`."""
    ceiling_sd: float = _MEASURED_SD
    """sd of ln(measured rates): assumed 5% where they were measured, 15% where they were not."""

    @property
    def precision(self) -> Precision:
        """The precision that training uses unless it is told otherwise."""
        return next(iter(self.peak))

    @property
    def copy_rate(self) -> float:
        """Bytes/s that a large copy reaches."""
        return COPY_SHARE * self.bandwidth if self.copy is None else self.copy

    def with_ceilings(
        self, matmul: Mapping[Precision, float], copy: float, source: str, *, spread: float = 0.0
    ) -> Device:
        """This device with ceilings measured on it, as `cegain.speed.measured_device` reads them from kernel times.

        `matmul` is FLOP/s by precision (those not named keep what they had), `copy` bytes/s read and written, `source`
        what was measured, when, with which versions, and `spread` the sd of ln(time) between repeats.

        Raises:
            ValueError: a rate that is not positive.
        """
        bad = [
            f"{name} must be above 0, got {rate}" for name, rate in [*matmul.items(), ("copy", copy)] if not rate > 0
        ]
        if bad:
            raise ValueError("\n".join([*bad, "give FLOP/s and bytes/s"]))
        return dataclasses.replace(
            self, matmul={**self.matmul, **matmul}, copy=copy, ceiling_sd=max(_MEASURED_SD, spread), kernel_times=source
        )


def _device(entry: dict[str, Any]) -> Device:
    return Device(**entry | {"price": Price(**entry["price"]), "sources": tuple(entry["sources"])})


DEVICES: Mapping[str, Device] = {
    entry["name"]: _device(entry) for entry in json.loads((DATA / "devices.json").read_text(encoding="utf-8"))
}
"""Every known device by name."""

_ALIASES = {
    "a100": "a100-80", "a100_40gb": "a100-40", "a100-40gb": "a100-40", "a100_80gb": "a100-80", "a100-80gb": "a100-80",
    "h100_80gb": "h100", "h100-80gb": "h100", "h100-sxm": "h100",
}  # fmt: skip


def find(name: str) -> Device:
    """The device of this name, in any case; `a100` is the 80 GB model.

    Raises:
        ValueError: unknown name; the message lists the devices.
    """
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    if key not in DEVICES:
        near = difflib.get_close_matches(key, [*DEVICES, *_ALIASES], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "use one of these"
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}; {hint}")
    return DEVICES[key]
