"""Devices: known, sourced, consistent, replaceable by measurement."""

from __future__ import annotations

import re

import pytest

from cegain.speed import hardware
from cegain.speed.hardware import DEVICES


@pytest.mark.parametrize("device", DEVICES.values(), ids=str)
def test_a_device_never_beats_its_data_sheet(device: hardware.Device) -> None:
    assert device.matmul.keys() == device.peak.keys()
    assert all(0.5 * device.peak[p] < rate <= device.peak[p] for p, rate in device.matmul.items())
    assert 0.5 * device.bandwidth < device.copy_rate <= device.bandwidth
    assert device.precision in hardware.VALUE_BYTES


@pytest.mark.parametrize("device", DEVICES.values(), ids=str)
def test_a_price_has_a_date_and_every_device_its_sources(device: hardware.Device) -> None:
    assert re.fullmatch(r"20\d\d-\d\d", device.price.date)
    assert device.price.usd_per_hour > 0
    assert device.price.source
    for word in ("matmul", "data sheet"):
        assert any(word in source for source in device.sources)


def test_all_devices_that_a_user_may_ask_for_are_there() -> None:
    assert {"v100", "a100-40", "a100-80", "h100", "h800", "h200", "b200", "cpu"} == set(DEVICES)
    assert hardware.find(" H100_80GB ") is DEVICES["h100"]
    assert hardware.find("a100").memory > 80e9


def test_an_unknown_device_gets_the_list_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"v100, a100-40, a100-80, h100, .*got 'h101'; did you mean 'h10"):
        hardware.find("h101")
    with pytest.raises(ValueError, match="use one of these"):
        hardware.find("abacus")


def test_measured_ceilings_replace_assumed_ones() -> None:
    cpu = hardware.find("cpu").with_ceilings({"fp32": 100e9}, 20e9, "kernel times of a test")
    assert (cpu.matmul["fp32"], cpu.copy_rate) == (100e9, 20e9)
    assert cpu.ceiling_sd < DEVICES["cpu"].ceiling_sd
    assert cpu.kernel_times == "kernel times of a test"
    with pytest.raises(ValueError, match=r"fp32 must be above 0, got -1\ncopy must be above 0, got 0"):
        cpu.with_ceilings({"fp32": -1}, 0, "")
