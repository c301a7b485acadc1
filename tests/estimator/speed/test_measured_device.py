"""What is read off kernel times: the speeds that made them, of the latest session, for that device only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest

from cegain.shapes.sizes import shape_of
from cegain.speed import hardware, measured_device, step_time, step_work
from cegain.speed.measured_device import measured
from cegain.tables import kernel_times
from cegain.tables.kernel_times import KernelTime

GEMM, COPY = 90e9, 20e9
CPU = hardware.find("cpu")


def row(
    op: str, implementation: str, seconds: float, flops: float = 0.0, moved: float = 1.0, **fields: Any
) -> KernelTime:
    empty = dict.fromkeys(kernel_times.ALL_SIZES, 0)
    values: dict[str, Any] = dict(
        empty, device="AMD EPYC, 2 threads", op=op, implementation=implementation, pass_="fwd_bwd", pattern="",
        dtype="float32", density=math.nan, n_repeats=5, median_s=seconds, p20_s=seconds, p80_s=seconds, p90_s=seconds,
        flops=int(flops), executed_flops=int(flops), bytes=int(moved), peak_bytes=math.nan, torch="2.13.0", triton="",
        driver="", commit="a" * 40, date="2026-11-22T10:00:00+00:00",
    )  # fmt: skip
    return KernelTime(**{**values, **fields})


def ceilings(gemm: float = GEMM, copy: float = COPY, **fields: Any) -> list[KernelTime]:
    size = 1024
    return [
        row(
            "gemm", "torch", 2 * size**3 / gemm, 2 * size**3, pass_="fwd", seq_q=size, d_model=size, d_ff=size, **fields
        ),
        row("gemm", "torch", 2 * 64**3 / (gemm / 9), 2 * 64**3, pass_="fwd", seq_q=64, d_model=64, d_ff=64, **fields),
        row("copy", "torch", 1e9 / copy, 0, 1e9, pass_="fwd", **fields),
    ]


def attention(implementation: str, seconds: float, tokens: int, **fields: Any) -> KernelTime:
    sizes = {"batch": 1, "heads_q": 4, "heads_kv": 4, "seq_q": tokens, "seq_kv": tokens, "head_dim": 64, "density": 0.5}
    return row("attention", implementation, seconds, 1, pattern="causal", **{**sizes, **fields})


def test_a_device_without_rows_stays_as_it_is() -> None:
    assert measured(CPU, []) == CPU
    assert measured(hardware.find("h100"), ceilings()) == hardware.find("h100")
    assert measured(CPU, ceilings()[:2]) == CPU  # no copy: half a roofline
    assert measured(CPU, ceilings(device="Another CPU, 2 threads")) == CPU


def test_ceilings_are_the_best_of_the_latest_session() -> None:
    later = ceilings(gemm=80e9, copy=15e9, date="2026-11-23T10:00:00+00:00", commit="b" * 40)
    found = measured(CPU, [*later, *ceilings()])
    assert found.matmul["fp32"] == pytest.approx(80e9, rel=1e-6)
    assert found.copy_rate == pytest.approx(15e9)
    assert found.kernel_times == "AMD EPYC, 2 threads: torch 2.13.0, commit bbbbbbbbb, 2026-11-23"


def test_repeats_that_scatter_widen_the_ceilings() -> None:
    scattered = [r._replace(p20_s=r.median_s * 0.8, p80_s=r.median_s * 1.25) for r in ceilings()]
    assert measured(CPU, ceilings()).ceiling_sd == pytest.approx(0.05)
    assert measured(CPU, scattered).ceiling_sd == pytest.approx(math.log(1.25 / 0.8) / 1.6832, rel=1e-3)


@pytest.mark.parametrize("kernel", ["flash-triton", "materialised"])
def test_the_model_gives_back_the_attention_that_was_measured(kernel: Any) -> None:
    """A step of one layer spends in attention what the kernel took."""
    seconds = 0.25
    name = {"flash-triton": "flash", "materialised": "materialised"}[kernel]
    device = measured(CPU, [*ceilings(), attention(name, 9.0, 256), attention(name, seconds, 2048)])
    shape = shape_of(1, 256, 4, 512, 2048)
    plan = step_work.Plan(device=device, devices=1, kernel=kernel, recompute=False)
    perfect = step_time.shipped().constants._replace(matmul=1.0)
    assert step_time.step_parts(shape, plan, perfect)["attention"] == pytest.approx(seconds, rel=1e-6)


def test_what_a_later_session_lacks_is_that_of_an_earlier_one() -> None:
    full = [*ceilings(), attention("flash", 0.25, 2048)]
    later = ceilings(gemm=GEMM / 2, date="2026-11-23T10:00:00+00:00", commit="b" * 40)
    assert measured(CPU, [*later, *full]).fused_attention == measured(CPU, full).fused_attention != CPU.fused_attention
    assert measured(CPU, [*later, *full]).matmul["fp32"] == pytest.approx(GEMM / 2, rel=1e-6)


def test_the_widest_heads_of_the_longest_sequence_count_in_any_order() -> None:
    rows = [attention("flash", 0.25, 2048), attention("flash", 0.1, 2048, head_dim=128), attention("flash", 9, 256)]
    first, second = (measured(CPU, [*ceilings(), *order]).fused_attention for order in (rows, rows[::-1]))
    assert first == second == measured(CPU, [*ceilings(), rows[1]]).fused_attention


def test_a_precision_that_the_device_does_not_have_says_nothing() -> None:
    volta = hardware.find("v100")
    assert measured(volta, ceilings(dtype="bfloat16", device="Tesla V100-SXM2-32GB")) == volta


def test_16_bit_scores_that_move_at_the_copy_rate_are_read_so() -> None:
    gpu = {"dtype": "bfloat16", "device": "NVIDIA H200"}
    tokens, heads, width = 4096, 16, 128
    scores = heads * tokens**2
    seconds = scores * 2 * width * 6 / 700e12 + 26 * scores / 4e12
    row_ = attention("materialised", seconds, tokens, heads_q=heads, heads_kv=heads, head_dim=width, **gpu)
    found = measured(hardware.find("h200"), [*ceilings(gemm=700e12, copy=4e12, **gpu), row_])
    assert found.score_rate == pytest.approx(4e12, rel=0.01)


def test_a_gpus_other_kernels_are_not_those_that_were_measured() -> None:
    rows = [*ceilings(700e12, 4e12, dtype="bfloat16", device="NVIDIA H200")]
    rows.append(attention("flash", 0.001, 4096, dtype="bfloat16", device="NVIDIA H200"))
    found = measured(hardware.find("h200"), rows)
    shape = shape_of(24, 2048, 16, 50304, 4096)
    kernels: list[Any] = ["flash-triton", "flash2", "flash3"]
    seconds = [
        step_time.training_step(shape, step_work.Plan(device=found, kernel=kernel, recompute=False)).seconds
        for kernel in kernels
    ]
    plain = [
        step_time.training_step(
            shape,
            step_work.Plan(device=dataclasses.replace(found, fused_attention=None), kernel=kernel, recompute=False),
        ).seconds
        for kernel in kernels
    ]
    assert seconds[1:] == plain[1:]
    assert seconds[0] != plain[0]
    (problem,) = step_work.problems(shape, step_work.Plan(device=CPU, devices=1, kernel="flash2"), fits=False)
    assert "kernel flash2 needs a GPU, got cpu" in problem


def test_experts_are_compared_with_the_dense_layer_of_their_width() -> None:
    sizes = {"seq_q": 1024, "d_model": 256}
    rows = [
        *ceilings(),
        row("moe", "moe_dispatch", 0.2, 1e9, **sizes, d_ff=512, experts=8, top_k=2),
        row("moe", "every_expert", 0.9, 1e9, **sizes, d_ff=512, experts=8, top_k=2),
        row("feed_forward", "dense_ffn", 0.1, 1e9, **sizes, d_ff=512),
    ]
    assert measured(CPU, rows).expert_speed is None
    rows.append(row("feed_forward", "dense_ffn", 0.1, 1e9, **sizes, d_ff=1024))
    found = measured(CPU, rows)
    assert found.expert_speed == pytest.approx(0.5)
    mixture = mixture_shape()
    plan = step_work.Plan(device=found, devices=1)
    slow, assumed = (
        step_time.step_parts(mixture, p, step_time.shipped().constants)
        for p in (plan, dataclasses.replace(plan, device=dataclasses.replace(found, expert_speed=None)))
    )
    assert slow["experts"] / assumed["experts"] == pytest.approx(step_time.EXPERT_SPEED[0] / 0.5)


def mixture_shape() -> Any:
    return shape_of(2, 256, 4, 512, 256, "llama", feed_forward="moe", n_experts=8, top_k=2, expert_activation="swiglu")


def test_what_the_shipped_table_calls_its_devices_is_known() -> None:
    shipped: Sequence[KernelTime] = measured_device._shipped()
    assert {row.device for row in shipped} <= set(measured_device.REPORTED)
    assert set(measured_device.REPORTED.values()) == set(hardware.DEVICES)
