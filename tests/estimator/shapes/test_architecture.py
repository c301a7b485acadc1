"""Formulas of estimator/shapes/architecture.py against real torch modules, brute-force masks and published sizes."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cegain.kernels import patterns
from cegain.shapes import architecture
from cegain.shapes.architecture import (
    ModelShape,
    compute_optimal,
    compute_optimal_shape,
    flop_parts,
    flops_per_token,
    kv_cache_bytes,
    optimizer_flops,
    parameters,
    stack,
)

SMALL: dict[str, Any] = {"n_layers": 2, "d_model": 48, "n_heads": 8, "vocab_size": 97, "seq_len": 40}

# fields that a test case changes, and derived widths where they differ from DERIVED
SWITCHES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "bare": ({}, {}),
    "gqa": ({"heads": "gqa"}, {"n_kv_heads": 2}),
    "gqa_group_2": ({"heads": "gqa", "gqa_group": 2}, {"n_kv_heads": 4}),
    "mqa": ({"heads": "mqa"}, {"n_kv_heads": 1}),
    "head_dim": ({"head_dim": 10}, {"head_dim": 10}),
    "relu2": ({"feed_forward": "relu2"}, {}),
    "swiglu": ({"feed_forward": "swiglu"}, {"d_ff": 128}),
    "d_ff": ({"d_ff": 100}, {"d_ff": 100}),
    "moe": ({"feed_forward": "moe"}, {"d_expert": 96}),
    "moe_swiglu": ({"feed_forward": "moe", "expert_activation": "swiglu", "n_shared_experts": 1}, {"d_expert": 48}),
    "moe_top_1": ({"feed_forward": "moe", "top_k": 1, "n_experts": 5}, {"d_expert": 192}),
    "moe_d_expert": ({"feed_forward": "moe", "d_expert": 24, "n_shared_experts": 2, "biases": True}, {"d_expert": 24}),
    "layer_norm": ({"norm": "layer"}, {}),
    "rms_norm": ({"norm": "rms"}, {}),
    "sinusoidal": ({"positions": "sinusoidal"}, {}),
    "rope": ({"positions": "rope"}, {}),
    "flash": ({"attention": "flash"}, {}),
    "window": ({"pattern": "window", "window": 7}, {}),
    "strided": ({"pattern": "strided", "stride": 5}, {}),
    "fixed": ({"pattern": "fixed", "stride": 8, "summary": 3}, {}),
    "qk_norm": ({"qk_norm": True}, {}),
    "untied": ({"tied_head": False}, {}),
    "biases": ({"biases": True, "norm": "layer"}, {}),
    "muon": ({"optimizer": "muon"}, {}),
    "modern": ({"norm": "rms", "positions": "rope", "feed_forward": "swiglu", "attention": "flash"}, {"d_ff": 128}),
    "lstm": ({"kind": "lstm", "seq_len": 64}, {}),
    "lstm_biases": ({"kind": "lstm", "seq_len": 64, "biases": True, "norm": "layer"}, {}),
}
DERIVED = {"head_dim": 6, "n_kv_heads": 8, "d_ff": 192, "d_expert": 96}


def small(name: str) -> tuple[ModelShape, dict[str, int]]:
    fields, widths = SWITCHES[name]
    return ModelShape(**{**SMALL, **fields}), {**DERIVED, **widths}


def test_every_switch_has_a_case() -> None:
    tested = {(field, value) for fields, _ in SWITCHES.values() for field, value in fields.items()}
    default = ModelShape()
    for field in dataclasses.fields(ModelShape):
        for choice in getattr(architecture._FIELD_TYPES[field.name], "__args__", ()):
            if isinstance(choice, str) and choice != getattr(default, field.name):
                assert (field.name, choice) in tested
        if field.type == "bool":
            assert (field.name, not getattr(default, field.name)) in tested


@pytest.mark.parametrize("name", SWITCHES)
def test_counts_match_a_real_module(name: str) -> None:
    pytest.importorskip("torch")
    from tests.reference_modules import ReferenceModel, counted_flops

    shape, widths = small(name)
    model = ReferenceModel(shape, widths)
    assert parameters(shape).total == sum(p.numel() for p in model.parameters())

    batch = 2
    tokens = batch * shape.seq_len
    forward, backward = counted_flops(model, batch)
    ours_forward = flops_per_token(shape, "full", passes="forward") * tokens
    ours = flops_per_token(shape, "full") * tokens - optimizer_flops(shape) * tokens / 2**19
    # an LSTM's first state is a constant, so torch skips one gradient product in seq_len
    tolerance = 0.005 if shape.kind == "lstm" else 1e-12
    assert ours_forward == pytest.approx(forward, rel=1e-12)
    assert ours - ours_forward == pytest.approx(backward, rel=tolerance)


@pytest.mark.parametrize("name", ["muon", "moe_swiglu", "gqa", "modern", "lstm"])
def test_muon_matches_an_optimizer_step(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from tests.reference_modules import ReferenceModel, ReferenceMuon

    shape, widths = small(name)
    shape = dataclasses.replace(shape, optimizer="muon")
    matrices = [p for p in ReferenceModel(shape, widths).blocks.parameters() if p.ndim == 2]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    optimizer = ReferenceMuon(matrices)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert optimizer_flops(shape) == counter.get_total_flops()
    batch_tokens = 1000
    adamw = dataclasses.replace(shape, optimizer="adamw")
    assert optimizer_flops(adamw) == 0
    extra = flops_per_token(shape, batch_tokens=batch_tokens) - flops_per_token(adamw)
    assert extra == pytest.approx(counter.get_total_flops() / batch_tokens)
    assert flops_per_token(shape, passes="forward") == flops_per_token(adamw, passes="forward")


@pytest.mark.parametrize("pattern", ["causal", "window", "strided", "fixed"])
@pytest.mark.parametrize("seq_len", [1, 2, 63, 64, 257])
def test_useful_is_full_minus_masked_scores(pattern: Any, seq_len: int) -> None:
    shape = ModelShape(**{**SMALL, "seq_len": seq_len, "pattern": pattern})
    heads = patterns.head_patterns(pattern, shape.n_heads, seq_len)
    masked = sum(int((~patterns.mask(head, seq_len, seq_len)).sum()) for head in heads)
    difference = flops_per_token(shape, "full") - flops_per_token(shape)
    # two products forward and four backward, 2 FLOP per multiply-add, over the head's width
    assert round(difference * seq_len) == shape.n_layers * masked * shape.width_per_head * 12


def test_executed_counts_visited_blocks_and_recomputation() -> None:
    materialised = stack("bare", **SMALL)
    assert flops_per_token(materialised, "executed") == flops_per_token(materialised, "full")
    flash = dataclasses.replace(materialised, attention="flash", seq_len=100)
    visited = 8 * 32 * 32 * (1 + 2 + 3 + 4)
    scores = flop_parts(flash, "executed", block=32)["scores"]
    assert scores * 100 == pytest.approx(2 * visited * 6 * 2 * (2 + 5))
    two_pass = flop_parts(flash, "executed", block=32, backward_matmuls=7)["scores"]
    assert two_pass * 100 == pytest.approx(2 * visited * 6 * 2 * (2 + 7))
    forward = flop_parts(flash, "executed", block=32, passes="forward")["scores"]
    assert forward * 100 == pytest.approx(2 * visited * 6 * 2 * 2)
    # same function, same useful work
    assert flops_per_token(flash) == flops_per_token(dataclasses.replace(flash, attention="materialised"))


def test_gpt2_small_has_its_published_size() -> None:
    gpt2 = ModelShape(norm="layer", biases=True, vocab_size=50257)
    count = parameters(gpt2)
    assert count.total == count.active == 124_439_808  # openai/gpt-2, "124M"
    assert count.embedding == (50257 + 1024) * 768
    assert flops_per_token(gpt2, "6nd_total") == 6 * 124_439_808
    assert flops_per_token(gpt2, "6nd_non_embedding", passes="forward") == 2 * count.non_embedding


def test_llama_7b_has_its_published_size() -> None:
    llama = stack("modern", n_layers=32, d_model=4096, n_heads=32, d_ff=11008, vocab_size=32000, tied_head=False)
    assert parameters(llama).total == 6_738_415_616  # Touvron et al. 2023, "6.7B"


def test_mixtral_has_its_published_size() -> None:
    mixtral = stack(
        "modern",
        n_layers=32,
        d_model=4096,
        n_heads=32,
        heads="gqa",
        feed_forward="moe",
        d_expert=14336,
        expert_activation="swiglu",
        vocab_size=32000,
        tied_head=False,
    )
    count = parameters(mixtral)
    assert count.total == 46_702_792_704  # Jiang et al. 2024, arXiv 2401.04088, "47B" and "13B active"
    assert count.active == pytest.approx(12.9e9, rel=0.005)
    assert count.active_non_embedding == count.active - count.embedding


@pytest.mark.parametrize("expert_activation", ["gelu", "swiglu"])
def test_derived_widths_hold_parameters_equal(expert_activation: Any) -> None:
    gelu = ModelShape(d_model=1536, n_heads=12, n_layers=1)
    dense = parameters(gelu).non_embedding
    swiglu = dataclasses.replace(gelu, feed_forward="swiglu")
    assert swiglu.feed_forward_width == 4096
    assert parameters(swiglu).non_embedding == dense
    moe = dataclasses.replace(
        gelu, feed_forward="moe", expert_activation=expert_activation, top_k=3, n_shared_experts=1
    )
    router = moe.n_experts * moe.d_model
    assert parameters(moe).active_non_embedding == dense + router
    assert flops_per_token(moe) == flops_per_token(gelu) + 6 * router


@settings(max_examples=50, deadline=None)
@given(
    n_layers=st.integers(1, 40),
    heads=st.sampled_from(["mha", "gqa", "mqa"]),
    groups=st.integers(1, 4),
    feed_forward=st.sampled_from(["gelu", "relu2", "swiglu", "moe"]),
    pattern=st.sampled_from(["causal", "window", "strided", "fixed"]),
    seq_len=st.integers(1, 5000),
)
def test_flops_are_six_per_active_weight_plus_scores(
    n_layers: int, heads: Any, groups: int, feed_forward: Any, pattern: Any, seq_len: int
) -> None:
    shape = ModelShape(
        n_layers=n_layers,
        heads=heads,
        n_heads=4 * groups,
        d_model=64 * groups,
        feed_forward=feed_forward,
        pattern=pattern,
        seq_len=seq_len,
    )
    parts = flop_parts(shape)
    weights = parameters(shape).active_non_embedding + shape.vocab_size * shape.d_model
    assert sum(parts.values()) - parts["scores"] == pytest.approx(6 * weights)
    by_convention = [flops_per_token(shape, convention) for convention in ("useful", "full")]
    flash = dataclasses.replace(shape, attention="flash")
    assert by_convention[0] <= by_convention[1]
    assert by_convention[0] <= flops_per_token(flash, "executed")
    assert flops_per_token(shape) == pytest.approx(3 * flops_per_token(shape, passes="forward"))


def test_fewer_key_heads_save_their_projections_and_a_fused_kernel_nothing() -> None:
    mha = stack("bare", **SMALL)
    mqa = dataclasses.replace(mha, heads="mqa")
    # 7 of 8 heads lose a key and a value projection
    lost = 6 * 2 * shape_projection(mha) * 7 // 8
    assert flops_per_token(mha) - flops_per_token(mqa) == pytest.approx(2 * lost)
    assert flops_per_token(mha) == flops_per_token(dataclasses.replace(mha, attention="flash", norm="rms"))


def shape_projection(shape: ModelShape) -> int:
    return shape.d_model * shape.n_heads * shape.width_per_head


def test_kv_cache() -> None:
    shape = stack("modern", n_layers=3, d_model=256, n_heads=8, seq_len=512)
    assert kv_cache_bytes(shape, 1000) == 2 * 3 * 256 * 1000 * 2
    assert kv_cache_bytes(dataclasses.replace(shape, heads="gqa"), 1000) == 2 * 3 * 64 * 1000 * 2
    assert kv_cache_bytes(dataclasses.replace(shape, heads="mqa"), 1000, 1) == 2 * 3 * 32 * 1000
    window = dataclasses.replace(shape, pattern="window", window=100)
    assert kv_cache_bytes(window, 1000) == kv_cache_bytes(shape, 100)
    assert kv_cache_bytes(window, 60) == kv_cache_bytes(shape, 60)
    lstm = dataclasses.replace(shape, kind="lstm")
    assert kv_cache_bytes(lstm, 10) == kv_cache_bytes(lstm, 1000) == 2 * 3 * 256 * 2


@pytest.mark.parametrize("flops", [1e18, 1e21, 1e24])
def test_compute_optimal_minimises_the_law(flops: float) -> None:
    def loss(n: float) -> float:
        return 482.01 / n**0.3478 + 2085.43 / (flops / (6 * n)) ** 0.3658

    n, tokens = compute_optimal(flops)
    assert 6 * n * tokens == pytest.approx(flops)
    assert loss(n) < min(loss(n * 1.02), loss(n / 1.02))
    assert 15 < tokens / n < 30


@pytest.mark.parametrize("stack_name", ["bare", "modern"])
@pytest.mark.parametrize("flops", [1e17, 2e18, 1e21, 1e24, 1e26])
def test_compute_optimal_shape_has_that_size(flops: float, stack_name: Any) -> None:
    n, _ = compute_optimal(flops)
    shape = compute_optimal_shape(flops, stack_name)
    assert parameters(shape).total == pytest.approx(n, rel=0.08)
    assert shape.width_per_head == (128 if shape.d_model >= 2048 else 64)
    if flops >= 2e18:
        assert 60 < shape.d_model / shape.n_layers < 130
    arm = compute_optimal_shape(flops, stack_name, heads="gqa", feed_forward="moe", seq_len=1024)
    assert arm == dataclasses.replace(shape, heads="gqa", feed_forward="moe")
    assert compute_optimal_shape(flops, vocab_size=1000).vocab_size == 1000


def test_bad_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="flops must be positive and finite, got -1"):
        compute_optimal(-1)
    with pytest.raises(ValueError, match="room for its vocabulary"):
        compute_optimal_shape(1e14)
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        flops_per_token(ModelShape(), batch_tokens=0)


def test_all_problems_of_a_shape_come_at_once() -> None:
    with pytest.raises(ValueError, match="has 6 problem") as caught:
        ModelShape(
            n_heads=5,
            heads="gqa",
            feed_forward="moe",
            top_k=9,
            n_layers=-1,
            norm="batch",  # type: ignore[arg-type]
            pattern="fixed",
            stride=4,
            summary=8,
        )
    message = str(caught.value)
    for part in (
        "n_layers must be an integer of at least 1, got -1; use 1 or more",
        "norm must be one of none, layer, rms, got 'batch'",
        "n_heads must divide d_model if head_dim is None, got n_heads=5, d_model=768; give head_dim, or use",
        "gqa_group must divide n_heads, got gqa_group=4, n_heads=5; use 5",
        "top_k must be at most n_experts, got top_k=9, n_experts=8",
        "summary columns must lie inside a block of 4, got 8",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 768.0}, "d_model must be an integer"),
        ({"biases": 1}, "biases must be True or False"),
        ({"n_shared_experts": -1}, "n_shared_experts must be an integer of at least 0"),
        ({"d_ff": 0}, "or None to derive it"),
        ({"positions": "rope", "head_dim": 63}, "head_dim must be even for rope"),
        ({"pattern": "window", "window": -5}, "window must be an integer of at least 1, got -5"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelShape(**fields)


def test_stack_names_the_nearest_field() -> None:
    with pytest.raises(ValueError, match=r"'n_layer' \(did you mean 'n_layers'\?\)"):
        stack("bare", n_layer=3)
    with pytest.raises(ValueError, match="stack must be one of bare, modern, got 'new'"):
        stack("new")  # type: ignore[arg-type]
    assert ModelShape() == stack("bare")


def test_the_import_is_light() -> None:
    heavy = ("torch", "scipy", "pandas", "matplotlib")
    code = f"import sys, cegain.shapes.architecture; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
