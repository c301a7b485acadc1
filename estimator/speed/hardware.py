"""Devices: what their data sheets promise, what they were measured to give, and what an hour of one costs.

Rates are FLOP/s (2 per multiply-add, no sparsity) and bytes/s, sizes are bytes, all per device; links count one
direction. A figure without a source in a device's `sources` is assumed, and its note says so.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp8", "bf16", "fp16", "fp32"]
Generation = Literal["volta", "ampere", "hopper", "blackwell", "cpu"]

VALUE_BYTES: Mapping[Precision, int] = {"fp8": 2, "bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a stored activation. Training in fp8 keeps 16-bit activations between its matrix products (DeepSeek-V3,
arXiv 2412.19437, section 3.3)."""

COPY_SHARE = 0.9
"""Measured copy rate over the data sheet's bandwidth: an H200 copies at 4.3 of 4.8 TB/s. Assumed for the others."""
_MEASURED_SD, _ASSUMED_SD = 0.05, 0.15
_HOPPER_SHEET = "NVIDIA H100 data sheet: 989 TFLOP/s bf16 and 1979 fp8 without sparsity, 3.35 TB/s, NVLink 900 GB/s"
_MATMUL_FINDER = "Bekman, ml-engineering, maximum achievable matmul FLOPS (2026)"


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

        Args:
            matmul: FLOP/s by precision; precisions that are not named keep what they had.
            copy: bytes/s read and written.
            source: what was measured, when, with which versions; becomes `kernel_times`.
            spread: sd of ln(time) between repeats, where it is more than measurements are taken to be wrong by.

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


_RENTED_2026 = "Mercatus, cloud GPU pricing, specialised clouds on demand, middle of the range"

DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device(
            "v100",
            "V100 SXM2 32 GB",
            "volta",
            peak={"fp16": 125e12},
            matmul={"fp16": 100e12},
            memory=32e9,
            bandwidth=900e9,
            link=150e9,
            node_devices=8,
            network=50e9,
            price=Price(0.97, "2026-05", "AIMultiple GPU rental index, median of the V100's class, 20 May 2026"),
            sources=(
                "NVIDIA V100 data sheet: 125 TFLOP/s, 900 GB/s, NVLink 300 GB/s both ways",
                "matmul: assumed 0.8 of the peak, as its successors reach",
                "network: 4 x 100 Gbit/s of a DGX-1",
            ),
            ceiling_sd=_ASSUMED_SD,
        ),
        Device(
            "a100-40",
            "A100 SXM4 40 GB",
            "ampere",
            peak={"bf16": 312e12},
            matmul={"bf16": 271.2e12},
            memory=42.4e9,
            bandwidth=1.555e12,
            link=300e9,
            node_devices=8,
            network=200e9,
            price=Price(1.10, "2026-05", "assumed: the lower end of the 80 GB model's range"),
            sources=(
                "NVIDIA A100 data sheet: 312 TFLOP/s, 1.555 TB/s, NVLink 600 GB/s both ways; 40 GiB",
                f"matmul: {_MATMUL_FINDER}: 271.2 TFLOP/s",
                "network: 1600 Gbit/s of a DGX A100",
            ),
        ),
        Device(
            "a100-80",
            "A100 SXM4 80 GB",
            "ampere",
            peak={"bf16": 312e12},
            matmul={"bf16": 271.2e12},
            memory=85e9,
            bandwidth=2.039e12,
            link=300e9,
            node_devices=8,
            network=200e9,
            price=Price(1.30, "2026-05", _RENTED_2026),
            sources=(
                "NVIDIA A100 data sheet: 312 TFLOP/s, 2.039 TB/s, NVLink 600 GB/s both ways; 80 GiB",
                f"matmul: {_MATMUL_FINDER}: 271.2 TFLOP/s",
                "network: 1600 Gbit/s of a DGX A100",
            ),
        ),
        Device(
            "h100",
            "H100 SXM5 80 GB",
            "hopper",
            peak={"bf16": 989.4e12, "fp8": 1978.9e12},
            matmul={"bf16": 794.5e12, "fp8": 1402.6e12},
            memory=85e9,
            bandwidth=3.35e12,
            link=450e9,
            node_devices=8,
            network=400e9,
            price=Price(3.00, "2026-05", _RENTED_2026),
            sources=(
                _HOPPER_SHEET,
                f"matmul: {_MATMUL_FINDER}: 794.5 TFLOP/s bf16, 1402.6 fp8",
                "network: 3200 Gbit/s of a DGX H100",
            ),
        ),
        Device(
            "h800",
            "H800 SXM5 80 GB",
            "hopper",
            peak={"bf16": 989.4e12, "fp8": 1978.9e12},
            matmul={"bf16": 794.5e12, "fp8": 1402.6e12},
            memory=85e9,
            bandwidth=3.35e12,
            link=200e9,
            node_devices=8,
            network=400e9,
            price=Price(2.00, "2024-12", "DeepSeek-V3 (arXiv 2412.19437), table 1: its authors' rental price"),
            sources=(
                f"{_HOPPER_SHEET}; NVLink cut to 400 GB/s both ways",
                "matmul: assumed to be the H100's",
                "network: 8 x 400 Gbit/s (arXiv 2412.19437, section 3.1)",
            ),
        ),
        Device(
            "h200",
            "H200 SXM5 141 GB",
            "hopper",
            peak={"bf16": 989.4e12, "fp8": 1978.9e12},
            matmul={"bf16": 794.5e12, "fp8": 1453.4e12},
            memory=150e9,
            bandwidth=4.8e12,
            link=450e9,
            node_devices=8,
            network=400e9,
            price=Price(4.00, "2026-05", _RENTED_2026),
            sources=(
                "NVIDIA H200 data sheet: the H100's rates, 4.8 TB/s, 141 GB",
                f"matmul: {_MATMUL_FINDER}: bf16 as the H100, 1453.4 TFLOP/s fp8; 770-800 bf16 seen by us at 8192^3",
                "copy: 4.3 TB/s measured",
            ),
            copy=4.3e12,
        ),
        Device(
            "b200",
            "B200 SXM 180 GB",
            "blackwell",
            peak={"bf16": 2250e12, "fp8": 4500e12},
            matmul={"bf16": 1745e12, "fp8": 3432.5e12},
            memory=192e9,
            bandwidth=8e12,
            link=900e9,
            node_devices=8,
            network=400e9,
            price=Price(
                5.25, "2026-03", "Lyceum, B200 cloud pricing, specialised clouds on demand, middle of the range"
            ),
            sources=(
                "NVIDIA DGX B200 data sheet: 2.25 PFLOP/s bf16, 4.5 fp8 (dense), 8 TB/s, 180 GB, NVLink 1.8 TB/s",
                f"matmul: {_MATMUL_FINDER}: 1745 TFLOP/s bf16, 3432.5 fp8",
            ),
        ),
        Device(
            "cpu",
            "2 cores of an AMD EPYC (AVX2)",
            "cpu",
            peak={"fp32": 154e9},
            matmul={"fp32": 130e9},
            memory=24e9,
            bandwidth=25e9,
            link=25e9,
            node_devices=1,
            network=1.25e9,
            price=Price(0.10, "2026-11", "assumed: two virtual cores on demand"),
            sources=(
                "peak and matmul: fp32 products of 110-154 GFLOP/s measured on two threads; it has no data sheet",
                "copy: 23 GB/s measured; bandwidth, link and network: assumed",
                "attention, 4 causal heads of 64, forward and backward, fp32: 358 ms fused at 4096 tokens, about 310 "
                "materialised at 2048",
            ),
            copy=23e9,
            fused_attention=0.65,
            score_rate=4e9,
            ceiling_sd=_ASSUMED_SD,
        ),
    )
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
