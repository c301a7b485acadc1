"""Counts of a training step: FLOP against the architecture's, bytes against hand counts, memory, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cegain.shapes import architecture
from cegain.shapes.architecture import ModelShape
from cegain.shapes.sizes import shape_of, shape_with
from cegain.speed import step_work
from cegain.speed.hardware import find
from cegain.speed.step_work import Plan, default_plan, memory, problems, work

GPT = shape_of(4, 512, 8, 1000, 256)


def plan(**fields: Any) -> Plan:
    return Plan(**({"device": find("a100-80"), "devices": 8, "micro_batch": 2} | fields))


SHAPES = {
    "gpt": GPT,
    "llama with grouped heads": shape_of(3, 256, 8, 777, 384, "llama", heads="gqa", gqa_group=4),
    "materialised": dataclasses.replace(GPT, attention="materialised"),
    "strided": dataclasses.replace(GPT, pattern="strided", stride=16),
    "mixture": shape_of(2, 256, 4, 500, 128, feed_forward="moe", n_experts=8, top_k=2, n_shared_experts=1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_flop_are_those_of_the_architecture(shape: ModelShape) -> None:
    count = work(shape, plan())
    parts = architecture.flop_parts(shape, "executed", block=step_work.TILE)
    assert count.tokens == 2 * shape.seq_len
    assert count.layers + count.experts == pytest.approx(count.tokens * (parts["projections"] + parts["feed_forward"]))
    assert count.vocabulary == pytest.approx(count.tokens * parts["unembedding"])
    assert count.scores == pytest.approx(count.tokens * parts["scores"])


def test_recomputation_runs_blocks_a_fourth_time() -> None:
    once, again = work(GPT, plan()), work(GPT, plan(recompute=True))
    assert again.layers == pytest.approx(4 / 3 * once.layers)
    assert again.scores == pytest.approx(9 / 7 * once.scores)  # two products beside two and five
    assert again.elements == pytest.approx(4 / 3 * once.elements)
    assert again.vocabulary == once.vocabulary


def test_elements_of_a_block_by_hand() -> None:
    assert step_work.block_elements(GPT) == 38 * 512
    # norms 4, sums 6, q k v and output as they are, gate and up 1 + 2w, activation 3w, down w + 1, rotation 4
    llama = shape_of(1, 96, 4, 10, 8, "llama", d_ff=960)
    assert step_work.block_elements(llama) == (4 + 6 + 4 + 4 + 4 + 2) * 96 + (96 + 2 * 960) + 3 * 960 + (960 + 96)
    bare = dataclasses.replace(GPT, norm="none")
    assert step_work.block_elements(GPT) - step_work.block_elements(bare) == 4 * 512


@pytest.mark.parametrize(
    ("sharding", "bytes_per_parameter"), [("none", 4), ("optimizer", 4), ("gradients", 4), ("full", 6)]
)
def test_collectives_move_weights_and_gradients(sharding: step_work.Sharding, bytes_per_parameter: int) -> None:
    n = architecture.parameters(GPT).total
    eight, sixteen = (work(GPT, plan(sharding=sharding, devices=d)) for d in (8, 16))
    assert (eight.inside, eight.across) == pytest.approx((7 / 8 * n * bytes_per_parameter, 0))
    assert sixteen.across == pytest.approx(n * bytes_per_parameter / 2)
    often = work(GPT, plan(sharding=sharding, accumulate=4))
    # what is shared out for good is gathered for every micro-batch
    assert often.inside == pytest.approx(eight.inside * (1 if sharding in ("full", "gradients") else 0.25))
    assert work(GPT, plan(sharding=sharding, devices=1)).inside == 0


def test_hybrid_sharding_keeps_weights_inside_a_server() -> None:
    n = architecture.parameters(GPT).total
    count = work(GPT, plan(sharding="hybrid", devices=32))
    assert count.inside == pytest.approx(7 / 8 * 6 * n)
    assert count.across == pytest.approx(3 / 4 * 4 * n)
    assert count.hops < work(GPT, plan(devices=32)).hops
    # states live on one server only
    assert memory(GPT, plan(sharding="hybrid", devices=32)).states == memory(GPT, plan(devices=8)).states


def test_experts_on_other_devices_get_tokens_and_no_gathers() -> None:
    shape = SHAPES["mixture"]
    alone, spread = (work(shape, plan(devices=16, expert_parallel=e)) for e in (1, 16))
    assert alone.exchanged_inside == alone.exchanged_across == 0
    assert spread.inside < alone.inside
    values = 2 * shape.seq_len * shape.n_layers * shape.d_model
    # out and back, both passes, 2 bytes; two servers meet 2 (1 - 1/4) = 1.5 of a token's, half of which is elsewhere
    assert spread.exchanged_across == pytest.approx(8 * values * 1.5 / 2)
    assert spread.exchanged_inside == pytest.approx(8 * values * 2 * 7 / 8)


def test_memory_by_hand() -> None:
    n, tokens = architecture.parameters(GPT).total, 2 * 256
    held = memory(GPT, plan(sharding="none"))
    assert held.states == 16 * n
    assert held.activations == 4 * tokens * 16 * 512 * 2
    assert held.logits == tokens * 1000 * 6
    assert memory(GPT, plan(recompute=True)).activations == (4 + 16) * tokens * 512 * 2
    assert memory(GPT, plan()).states == 2 * n
    states = [memory(GPT, plan(sharding=s)).states for s in ("none", "optimizer", "gradients", "full")]  # type: ignore[arg-type]
    assert states == sorted(states, reverse=True)
    scores = memory(SHAPES["materialised"], plan()).activations - memory(GPT, plan()).activations
    assert scores == 4 * tokens * 8 * 256 * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"devices": 0}, "devices must be at least 1, got 0"),
        ({"devices": 12}, "devices must fill servers of 8 a100-80, got 12; use 8"),
        ({"precision": "fp8"}, "precision must be one that a100-80 has, got 'fp8'; use bf16"),
        ({"kernel": "flash3"}, "flash3 needs a Hopper GPU, got a100-80"),
        ({"kernel": "fast"}, "kernel must be one of materialised, .*got 'fast'"),
        ({"sharding": "half"}, "sharding must be one of none, .*got 'half'"),
        ({"expert_parallel": 3}, "expert_parallel must divide devices, got 3 of 8"),
        ({"network": -1.0}, "network must be above 0"),
    ],
)
def test_bad_plans_are_refused_with_a_remedy(fields: dict[str, Any], words: str) -> None:
    found = list(problems(GPT, plan(**fields)))
    assert len(found) == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found[0])


def test_all_problems_at_once() -> None:
    assert len(list(problems(GPT, plan(devices=12, precision="fp8", kernel="flash3")))) == 3


def test_what_does_not_fit_says_what_would() -> None:
    big = shape_of(80, 8192, 64, 50368, 2048)
    (line,) = problems(big, plan(micro_batch=32))
    assert line.startswith("the model must fit into 85 GB")
    assert "micro_batch" not in line.split("what would")[1].split(",")[0]
    remedies = line.split("what would: ")[1]
    (devices,) = [int(part.split()[0]) for part in remedies.split(", or ") if "devices" in part]
    assert not list(problems(big, plan(devices=devices, recompute=True, micro_batch=1)))
    (line,) = problems(shape_of(24, 2048, 16, 50368, 2048), plan(micro_batch=256))
    batch = int(line.split("what would: micro_batch ")[1].split(",")[0])
    assert not list(problems(shape_of(24, 2048, 16, 50368, 2048), plan(micro_batch=batch)))


def test_a_default_plan_fits_and_keeps_what_is_given() -> None:
    small = default_plan(GPT, find("h100"))
    assert (small.devices, small.micro_batch, small.recompute) == (8, 64, False)
    large = default_plan(shape_of(80, 8192, 64, 50368, 2048), find("h100"))
    assert large.devices > 8
    assert not list(problems(shape_of(80, 8192, 64, 50368, 2048), large))
    assert default_plan(GPT, find("h100"), micro_batch=3, recompute=True).micro_batch == 3
    assert default_plan(GPT, find("cpu")).devices == 1


def test_a_size_becomes_a_shape() -> None:
    for parameters in (3e7, 1.3e8, 7e9, 4e11):
        shape = shape_with(parameters, 50368, 2048)
        assert architecture.parameters(shape).total == pytest.approx(parameters, rel=0.15)
        assert 30 < shape.d_model / shape.n_layers < 300
    assert shape_with(7e9, 50368, 2048, "llama").feed_forward == "swiglu"
    with pytest.raises(ValueError, match="params must leave room for 50368 vocabulary entries"):
        shape_with(1e6, 50368, 2048)
