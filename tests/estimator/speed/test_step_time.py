"""The step-time model: sums, limits, orders that physics asks for, published speeds it has not seen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from cegain.shapes import architecture
from cegain.shapes.architecture import ModelShape
from cegain.shapes.sizes import shape_of
from cegain.speed import step_time
from cegain.speed.hardware import DEVICES, find
from cegain.speed.step_time import decoded_token, log_variance_of_ratio, step_parts, training_step
from cegain.speed.step_work import Kernel, Plan, default_plan

GPT = shape_of(24, 2048, 16, 50368, 2048)


def plan(**fields: Any) -> Plan:
    return Plan(**({"device": find("a100-80"), "devices": 8, "micro_batch": 4} | fields))


def test_a_step_is_the_sum_of_its_parts_and_throughput_follows() -> None:
    step = training_step(GPT, plan(accumulate=3))
    assert step.seconds == pytest.approx(sum(step.parts.values()))
    assert min(step.parts.values()) >= 0
    assert step.tokens == 4 * 3 * 8 * 2048
    assert step.tokens_per_second_per_device * 8 * step.seconds == pytest.approx(step.tokens)
    assert step.achieved_flops == pytest.approx(
        architecture.flops_per_token(GPT) * step.tokens_per_second_per_device, rel=1e-9
    )
    assert step.achieved_flops < step.full_achieved_flops < 312e12
    assert step.binds == "matrix products"
    low, high = step.interval
    assert low < step.seconds < high


def test_one_device_waits_for_nobody() -> None:
    parts = training_step(shape_of(4, 512, 8, 1000, 256), plan(devices=1)).parts
    assert parts["collectives"] == parts["stragglers"] == 0


def test_the_largest_of_normals() -> None:
    draws = np.random.default_rng(0).standard_normal((20_000, 64)).max(axis=1).mean()
    assert step_time.largest_normal(64) == pytest.approx(draws, rel=0.01)
    assert step_time.largest_normal(1) == 0.0


def test_the_gradient_is_that_of_the_seconds() -> None:
    chosen = plan(devices=64)
    step, calibration = training_step(GPT, chosen), step_time.shipped()
    for i, (name, value) in enumerate(calibration.constants._asdict().items()):
        moved = calibration.constants._replace(**{name: value * 1.02})
        change = math.log(sum(step_parts(GPT, chosen, moved).values()) / step.seconds)
        assert change == pytest.approx(step.gradient[i] * math.log(1.02), abs=3e-4)
    # only on Hopper
    assert step.gradient[step_time.Constants._fields.index("hopper_attention")] == 0


def test_the_variance_has_the_constants_and_what_they_do_not_explain() -> None:
    step, calibration = training_step(GPT, plan()), step_time.shipped()
    covariance = np.array(calibration.covariance)
    of_constants = np.array(step.gradient) @ covariance @ np.array(step.gradient)
    assert step.log_variance == pytest.approx(of_constants + step.own_variance)
    assert step.own_variance == pytest.approx(calibration.residual_sd**2 + find("a100-80").ceiling_sd ** 2)
    for less_known in ({"kernel": "flash2"}, {"kernel": "materialised"}):
        assert training_step(GPT, plan(**less_known, micro_batch=1)).own_variance > step.own_variance
    v100 = training_step(GPT, Plan(device=find("v100"), micro_batch=1))
    assert v100.log_variance > step.log_variance


def test_a_ratio_is_surer_than_its_two_times() -> None:
    first, second = (training_step(GPT, plan(micro_batch=b)) for b in (4, 2))
    assert 0 < log_variance_of_ratio(first, second) < first.log_variance + second.log_variance
    assert log_variance_of_ratio(first, first) == 0.0
    other = training_step(GPT, Plan(device=find("h100"), micro_batch=4))
    assert log_variance_of_ratio(first, other) > log_variance_of_ratio(first, second)


# Dao 2023 (arXiv 2307.08691), table 1: TFLOP/s per A100 80 GB, 8 GPUs, masked scores counted too
TABLE_1 = [
    ((24, 2048, 16), 2048, "flash1", 189, 0.12),
    ((24, 2048, 16), 2048, "flash2", 196, 0.12),
    ((24, 2048, 16), 8192, "flash2", 220, 0.12),
    ((32, 2560, 20), 2048, "flash1", 189, 0.12),
    ((32, 2560, 20), 2048, "flash2", 205, 0.12),
    # Megatron-LM fuses mask and softmax in 16 bits; ours does not
    ((24, 2048, 16), 2048, "materialised", 142, 0.25),
    ((24, 2048, 16), 8192, "materialised", 72, 0.25),
    ((32, 2560, 20), 2048, "materialised", 149, 0.25),
]


@pytest.mark.parametrize(("size", "seq_len", "kernel", "measured", "within"), TABLE_1)
def test_flash_attention_2_end_to_end(
    size: tuple[int, int, int], seq_len: int, kernel: Kernel, measured: float, within: float
) -> None:
    shape = shape_of(*size, 50264, seq_len)
    sharding = "full" if kernel == "materialised" and seq_len == 8192 else "none"
    chosen = default_plan(shape, find("a100-80"), devices=8, sharding=sharding, kernel=kernel, recompute=False)
    predicted = training_step(shape, chosen).full_achieved_flops / 1e12
    assert predicted == pytest.approx(measured, rel=within)


def _speedup(seq_len: int, device: str = "a100-80") -> float:
    flash = shape_of(12, 768, 6, 50368, seq_len)
    chosen = {"device": find(device), "micro_batch": max(1, 8192 // seq_len), "recompute": True}
    seconds = [
        training_step(shape, Plan(**chosen)).seconds  # type: ignore[arg-type]
        for shape in (dataclasses.replace(flash, attention="materialised"), flash)
    ]
    return seconds[0] / seconds[1]


@pytest.mark.parametrize("device", ["a100-80", "h100", "cpu"])
def test_exact_attention_saves_time_that_grows_with_length(device: str) -> None:
    gains = [_speedup(seq_len, device) for seq_len in (512, 2048, 8192)]
    assert gains == sorted(gains)
    assert gains[0] > 1
    assert gains[-1] > 1.5


def test_a_small_model_on_a_cpu_that_no_constant_has_seen() -> None:
    # measured on the two cores that the device describes, compiled and with a fused optimizer: 9200-9800 tokens/s
    shape = shape_of(4, 128, 4, 4096, 256, norm="rms", positions="rope")
    step = training_step(shape, Plan(device=find("cpu"), devices=1, micro_batch=16))
    assert step.tokens_per_second_per_device == pytest.approx(9500, rel=0.2)


def test_sparse_attention_pays_at_length_only() -> None:
    def ratio(seq_len: int) -> float:
        dense = shape_of(12, 2048, 16, 50368, seq_len)
        sparse = dataclasses.replace(dense, pattern="strided")
        chosen = Plan(device=find("h100"), micro_batch=1, recompute=True)
        return training_step(dense, chosen).parts["attention"] / training_step(sparse, chosen).parts["attention"]

    assert ratio(32768) > ratio(8192) > ratio(1024)
    assert ratio(1024) < 1.5 < 3 < ratio(32768)


def test_a_mixture_runs_at_lower_speed_than_its_dense_layer() -> None:
    dense = shape_of(24, 2048, 16, 50368, 2048)
    mixture = shape_of(24, 2048, 16, 50368, 2048, feed_forward="moe", n_experts=8, top_k=2)
    chosen = Plan(device=find("h100"), devices=64, micro_batch=4)
    first, second = training_step(dense, chosen), training_step(mixture, chosen)
    assert second.achieved_flops < 0.8 * first.achieved_flops
    assert second.parts["experts"] + second.parts["collectives"] > first.parts["layers"] / 2
    assert second.own_variance > first.own_variance


def test_a_recurrence_and_a_tiny_model_are_bound_by_order_and_by_launches() -> None:
    lstm = ModelShape(kind="lstm", n_layers=4, d_model=512, seq_len=512, vocab_size=4096)
    step = training_step(lstm, Plan(device=find("h100"), micro_batch=8))
    assert step.binds == "one time step after another"
    tiny = training_step(shape_of(8, 64, 1, 256, 64), Plan(device=find("h100"), devices=1))
    assert tiny.binds == "kernel launches"


def test_muon_costs_products_that_adamw_does_not() -> None:
    adamw, muon = (dataclasses.replace(GPT, optimizer=name) for name in ("adamw", "muon"))  # type: ignore[arg-type]
    one, other = (training_step(shape, plan()).parts["optimizer"] for shape in (adamw, muon))
    assert other - one == pytest.approx(
        architecture.optimizer_flops(muon) / 8 / (271.2e12 * step_time.shipped().constants.matmul)
    )


def test_devices_keep_their_order() -> None:
    names = ("v100", "a100-40", "a100-80", "h100", "h200", "b200")
    speeds = [training_step(GPT, Plan(device=DEVICES[n])).tokens_per_second_per_device for n in names]
    assert speeds == sorted(speeds)
    assert (
        training_step(GPT, Plan(device=DEVICES["h800"])).seconds
        > training_step(GPT, Plan(device=DEVICES["h100"])).seconds
    )


def test_fp8_and_a_slower_network() -> None:
    h100 = {"device": find("h100"), "micro_batch": 4}
    bf16, fp8 = (training_step(GPT, Plan(**h100, precision=p)) for p in ("bf16", "fp8"))  # type: ignore[arg-type]
    assert 1.4 < bf16.parts["layers"] / fp8.parts["layers"] < 2
    assert fp8.parts["attention"] == bf16.parts["attention"]
    fast, slow = (training_step(GPT, plan(devices=64, network=n)) for n in (None, 12.5e9))
    assert slow.parts["collectives"] > 3 * fast.parts["collectives"]
    assert slow.binds == "collectives"


def test_a_plan_that_cannot_run_is_refused_with_all_problems() -> None:
    with pytest.raises(ValueError, match=r"(?s)devices must fill servers.*the model must fit"):
        training_step(GPT, plan(devices=12, micro_batch=500))


def test_decoding_reads_weights_and_caches() -> None:
    h100, n = find("h100"), architecture.parameters(GPT).total
    token = decoded_token(GPT, h100, context=1024)
    assert token.parts["weights"] == pytest.approx(2 * n / (0.72 * 3.35e12))
    assert token.parts["cache"] == pytest.approx(4 * 24 * 2048 * 1024 / (0.72 * 3.35e12))
    assert token.seconds == pytest.approx(sum(token.parts.values()))
    batch = decoded_token(GPT, h100, context=1024, batch=32)
    assert batch.seconds_per_token < token.seconds_per_token / 5
    with pytest.raises(ValueError, match=r"(?s)context must be at least 1, got 0.*batch must be at least 1"):
        decoded_token(GPT, h100, context=0, batch=0)
    with pytest.raises(ValueError, match=r"weights and caches must fit into 1 x 85 GB .*use 5 devices"):
        decoded_token(GPT, h100, context=2**20, batch=2)


def test_shared_keys_pay_at_decode_and_more_with_context() -> None:
    one = dataclasses.replace(GPT, heads="mqa")
    gains = [
        decoded_token(GPT, find("h100"), context=c, batch=8).seconds
        / decoded_token(one, find("h100"), context=c, batch=8).seconds
        for c in (256, 2048, 16384)
    ]
    assert gains == sorted(gains)
    assert gains[0] < 1.3 < 3 < gains[-1]


def test_a_batch_meets_more_experts() -> None:
    mixture = shape_of(24, 2048, 16, 50368, 2048, feed_forward="moe", n_experts=8, top_k=2)
    count = architecture.parameters(mixture)
    read = [decoded_token(mixture, find("h100"), context=16, batch=b).parts["weights"] for b in (1, 4, 64)]
    assert read == sorted(read)
    assert read[0] == pytest.approx(2 * count.active / (0.72 * 3.35e12))
    assert read[-1] == pytest.approx(2 * count.total / (0.72 * 3.35e12), rel=1e-4)


def test_a_split_model_decodes_faster_and_costs_more_per_token() -> None:
    one, four = (decoded_token(GPT, find("h100"), context=1024, devices=d) for d in (1, 4))
    assert four.seconds < one.seconds
    assert four.seconds_per_token > one.seconds_per_token
