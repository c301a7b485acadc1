import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cegain import algorithms
from cegain.explorer import steps
from cegain.shapes import architecture
from cegain.speed import hardware, measured_device, step_time, step_work
from tests.estimator.explorer.settings import CURRENCIES, settings, timed

DOCUMENT = steps.document()
PAGE = Path(steps.__file__).with_name("scripts")
MODULES = ("architecture", "costs", "step_time", "step_work", "two_models")


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _leaves(entry)
    else:
        yield value


def test_the_document_is_json_and_comes_back_as_it_was() -> None:
    assert json.loads(json.dumps(DOCUMENT, allow_nan=False)) == DOCUMENT
    assert steps.document() == DOCUMENT
    assert all(leaf is None or isinstance(leaf, str | bool | int | float) for leaf in _leaves(DOCUMENT))


def test_every_algorithm_travels_with_its_arms() -> None:
    found = DOCUMENT["algorithms"]
    assert isinstance(found, dict)
    assert tuple(found) == algorithms.names()
    for name, entry in found.items():
        registered = algorithms.get(name)
        assert entry["arm"] == dict(registered.arm)
        assert entry["baseline_arm"] == dict(registered.baseline_arm)
        assert entry["replaces"] == list(registered.replaces)


@pytest.mark.parametrize("name", hardware.DEVICES)
def test_every_device_travels_as_an_answer_uses_it(name: str) -> None:
    found = DOCUMENT["devices"]
    assert isinstance(found, dict)
    device, entry = measured_device.find(name), found[name]
    for field in dataclasses.fields(device):
        value = getattr(device, field.name)
        if field.name == "price":
            assert entry["price"]["usd_per_hour"] == value.usd_per_hour
        elif field.name == "sources":
            assert tuple(entry["sources"]) == value
        else:
            assert entry[field.name] == value
    assert entry["copy_rate"] == device.copy_rate
    assert entry["precision"] == device.precision
    assert entry["value_bytes"] == step_work.Plan(device).value_bytes


def test_a_shape_of_the_page_starts_from_the_defaults_of_the_model() -> None:
    shape, stacks = DOCUMENT["shape"], DOCUMENT["architecture"]
    assert isinstance(shape, dict)
    assert isinstance(stacks, dict)
    for stack, fields in stacks["STACKS"].items():
        assert architecture.ModelShape(**{**shape, **fields}) == architecture.stack(stack)


def test_the_calibration_travels_in_the_order_of_its_covariance() -> None:
    found, shipped = DOCUMENT["calibration"], step_time.shipped()
    assert isinstance(found, dict)
    assert list(found["constants"].items()) == list(shipped.constants._asdict().items())
    assert [tuple(row) for row in found["covariance"]] == list(shipped.covariance)
    assert found["residual_sd"] == shipped.residual_sd


def test_the_slowest_of_any_number_of_devices_is_there() -> None:
    found = DOCUMENT["largest_normal"]
    assert isinstance(found, dict)
    for device in map(measured_device.find, hardware.DEVICES):
        for flops in (1e20, 1e23, 1e26, 1e28):
            plan = step_work.default_plan(architecture.compute_optimal_shape(flops, "modern"), device)
            assert found[str(plan.devices)] == step_time.largest_normal(plan.devices)
    assert found["1"] == 0.0


def test_scripts_use_each_constant_that_travels_and_no_other() -> None:
    scripts = "".join((PAGE / name).read_text(encoding="utf-8") for name in ("architecture.js", "step_time.js"))
    code = re.sub(r"/\*.*?\*/|//[^\n]*|`(?:[^`$]|\$\{[^}]*\})*`", "", scripts, flags=re.DOTALL)
    named = set(re.findall(r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)*\b", code))
    sent = {name for module in MODULES for name in DOCUMENT[module]}  # type: ignore[attr-defined]
    assert named == sent


def test_settings_cover_every_algorithm_and_stay_in_range() -> None:
    drawn = list(settings(400, 3, any_baseline=True))
    assert drawn == list(settings(400, 3, any_baseline=True))
    assert drawn != list(settings(400, 4, any_baseline=True))
    for currency in CURRENCIES:
        alone = {s.algorithms[0] for s in drawn if len(s.algorithms) == 1 and s.currency == currency}
        assert alone == set(algorithms.names())
    assert {len(s.algorithms) for s in drawn} == {1, 2, 3, 4}
    assert {s.seq_len for s in drawn} == set(steps.SEQ_LENS)
    assert {s.device for s in drawn} == set(hardware.DEVICES)
    assert all(1e15 <= s.flops <= 1e28 and s.in_flop * (1 + 1e-9) >= 0.05 and s.in_flop < 1001 for s in drawn)
    assert all(math.isfinite(s.in_flop) for s in drawn)
    assert {name for s in settings(200, 3, names=timed()) for name in s.algorithms} == set(timed())
