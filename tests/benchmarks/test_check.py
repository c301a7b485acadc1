"""What is wrong is found, at the shape that is timed; rows hold what `cegain.kernels.costs` counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cegain.benchmarks import suite
from cegain.benchmarks.attention import Attention, Decode
from cegain.benchmarks.cases import Case, Implementation, Operation
from cegain.benchmarks.check import Truth, WrongResultError
from cegain.benchmarks.clock import Rounds
from cegain.benchmarks.lab import Lab
from cegain.kernels import costs, patterns
from cegain.kernels.flash import flash_attention
from cegain.tables import kernel_times

CPU = torch.device("cpu")
CAUSAL = Case("attention", "causal", batch=1, heads_q=2, heads_kv=2, seq_q=100, seq_kv=100, head_dim=16)
SMALL = {
    "flash": CAUSAL,
    "strided": Case("attention", "strided", batch=1, heads_q=2, heads_kv=2, seq_q=100, seq_kv=100, head_dim=16),
    "blocks": Case("attention", "blocks", batch=1, heads_q=2, heads_kv=2, seq_q=100, seq_kv=100, head_dim=16),
    "mqa": Case("attention", "causal", batch=1, heads_q=4, heads_kv=1, seq_q=70, seq_kv=70, head_dim=16),
    "decode": Case("decode", "full", batch=2, heads_q=4, heads_kv=1, seq_q=1, seq_kv=90, head_dim=16),
    "moe": Case("moe", seq_q=90, d_model=32, d_ff=48, experts=5, top_k=2),
}


def made(case: Case) -> Operation:
    return suite.OPERATIONS[case.op](case, CPU)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setitem(suite.CEILINGS, "cpu", ((32,), (1024,)))
    ticks = iter(range(1, 10_000))

    def watch(run: Callable[[], object]) -> float:
        run()
        return 1e-3 * next(ticks)

    return Lab(CPU, Rounds(0.0, 3, 3), full=False, watch=watch)


@pytest.mark.parametrize("name", SMALL)
def test_every_implementation_agrees_with_the_definition(name: str) -> None:
    operation = made(SMALL[name])
    truth = Truth(operation, operation.leaves(0))
    checked = [one for one in operation.implementations() if not one.only_full and len(one.skips) < 3]
    assert any(one.ours for one in checked)
    assert len(checked) >= 3
    for implementation in checked:
        truth.check(implementation)


def _scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flash_attention(q, k, v, scale=1.001 / 4)


def _wrong_gradient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flash_attention(q, k.detach() + 0.999 * (k - k.detach()), v)


def _one_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = flash_attention(q, k, v)
    return torch.cat([out[:, :, :-1], 1.01 * out[:, :, -1:]], dim=2)


def _not_finite(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flash_attention(q, k, v) / torch.zeros(())


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (_scaled, r"output: error \S+, allowed \S+ \(largest entry"),
        (_wrong_gradient, r"gradient 2: error \S+, allowed"),
        (_one_row, r"output: error \S+, allowed"),
        (_not_finite, "not finite"),
        (lambda q, k, v: flash_attention(q, k, v)[..., :8], r"shape \[1, 2, \d+, 8\], expected"),
    ],
)
def test_a_wrong_implementation_is_red(run: Callable[..., Tensor], said: str) -> None:
    operation = Attention(CAUSAL, CPU)
    wrong = Implementation("wrong", run, operation.implementations()[0].cost, ours=True)
    with pytest.raises(WrongResultError, match=rf"wrong, attention-causal-.*{said}"):
        Truth(operation, operation.leaves(0)).check(wrong)


def test_what_is_wrong_or_cannot_run_is_not_timed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = Attention(CAUSAL, CPU)
    right = operation.implementations()[0]
    calls: list[str] = []

    def fails(*leaves: Tensor) -> Tensor:
        calls.append("called")
        raise RuntimeError("No available kernel.\nmore")

    def slow(*leaves: Tensor) -> Tensor:
        raise AssertionError("left to --full")

    made_up = [
        right,
        Implementation("wrong", _scaled, right.cost, ours=True),
        Implementation("broken", fails, right.cost, ours=True),
        Implementation("rival", fails, right.cost),
        Implementation("slow", slow, right.cost, only_full="it takes long"),
        Implementation("absent", slow, right.cost, skips={"fwd": "there is none"}),
    ]
    monkeypatch.setattr(operation, "implementations", lambda: made_up)
    lab.measure(operation, [(one.name, "fwd") for one in made_up])
    found = {name: outcome for (name, _), outcome in lab.found[CAUSAL].items()}
    assert found["materialised"].seconds
    assert [name for name, outcome in found.items() if outcome.seconds] == ["materialised"]
    assert "error" in found["wrong"].wrong
    assert found["broken"].wrong == found["rival"].skipped == "RuntimeError: No available kernel."
    assert found["slow"].skipped == "it takes long; --full measures it"
    assert found["absent"].skipped == "there is none"
    assert len(calls) == 2


@pytest.mark.parametrize("name", SMALL)
def test_rows_are_complete_and_hold_the_costs(name: str, lab: Lab) -> None:
    operation = made(SMALL[name])
    (ours,) = (one for one in operation.implementations() if one.ours)
    pass_ = operation.passes[-1]
    lab.measure(operation, [(ours.name, pass_)])
    row = lab.row(operation, ours.name, pass_)
    cells = {c: "" if row.get(c) is None else str(row.get(c)) for c in kernel_times.COLUMNS}
    cells["commit"] = cells["commit"] or "none"
    parsed, problems = kernel_times.parse("row", cells)
    assert problems == []
    assert parsed.n_repeats == 3
    cost = ours.cost(pass_)
    assert (parsed.flops, parsed.executed_flops, parsed.bytes) == (cost.flops, cost.executed_flops, cost.bytes)
    assert row["tflops_per_s"] == pytest.approx(cost.flops / row["median_s"] / 1e12)
    least = max(cost.flops / lab.ceilings.flops_per_s, cost.bytes / lab.ceilings.bytes_per_s)
    assert row["roofline_fraction"] == pytest.approx(least / row["median_s"])


def test_costs_are_those_of_kernels_costs() -> None:
    by_name = {one.name: one.cost("fwd_bwd") for one in Attention(CAUSAL, CPU).implementations()}
    seen = patterns.useful_scores(patterns.head_patterns("causal", 2, 100), 100, 100)
    sizes = {"batch": 1, "heads_q": 2, "heads_kv": 2, "seq_q": 100, "seq_kv": 100, "head_dim": 16}
    plain = costs.attention(
        **sizes, useful_scores=seen, materialised=True, pass_="fwd_bwd", bytes_per_element=4
    )  # fmt: skip
    fused = costs.attention(**sizes, useful_scores=seen, pass_="fwd_bwd", bytes_per_element=4)
    assert by_name["materialised"] == plain
    assert by_name["flash"] == by_name["sdpa_flash"] == fused
    assert plain.flops == fused.flops == 4 * 16 * seen * 3
    moe = {one.name: one.cost("fwd") for one in made(SMALL["moe"]).implementations()}
    routed = costs.moe_feed_forward(90, 32, 48, "swiglu", n_experts=5, top_k=2, bytes_per_element=4)
    assert moe["moe_dispatch"] == moe["expert_loop"] == routed
    assert moe["every_expert"].flops == routed.flops
    assert moe["every_expert"].executed_flops == 2 * 90 * 32 * 5 + 5 * 3 * 2 * 90 * 32 * 48
    shared = {one.name: one.cost("decode") for one in Decode(SMALL["decode"], CPU).implementations()}
    assert shared["mqa"] == costs.decode_attention(
        batch=2, heads_q=4, heads_kv=1, kv_tokens=90, head_dim=16, bytes_per_element=4
    )
    assert shared["sdpa_flash"].bytes > 3 * shared["mqa"].bytes


def test_the_suite_times_what_the_registry_says() -> None:
    from cegain import algorithms

    found = set()
    for family in ("flash", "sparse", "mqa", "decode", "moe"):
        found |= {e.implementation for e in suite.entries(suite.cases(family, "cpu", (64,), full=True), CPU)}
    for name in algorithms.names():
        algorithm = algorithms.get(name)
        assert set(algorithm.kernels) <= found, name
        for rival in algorithm.kernel_baselines:
            assert any(one == rival or one.startswith(f"{rival}_") for one in found), (name, rival)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("family", ["ceilings", "flash", "sparse", "mqa", "decode", "moe"])
def test_cases_are_distinct_and_have_the_sizes_of_their_operation(family: str, kind: str) -> None:
    few, all_ = (suite.cases(family, kind, (), full) for full in (False, True))
    assert len(set(all_)) == len(all_)
    assert set(few) <= set(all_)
    for case in all_:
        assert all(getattr(case, size) > 0 for size in kernel_times.SIZES[case.op])
