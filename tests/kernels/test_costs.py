"""Costs of single operations."""

import subprocess
import sys
from typing import Any

import pytest

from cegain.kernels import costs
from cegain.kernels.costs import Cost

QKV: dict[str, int] = {"batch": 3, "heads_q": 8, "heads_kv": 2, "seq_q": 10, "seq_kv": 20, "head_dim": 16}


class TestCosts:
    def test_linear(self) -> None:
        forward = costs.linear(5, 7, 11)
        assert forward == Cost(2 * 5 * 7 * 11, 2 * 5 * 7 * 11, 2 * (5 * 7 + 7 * 11 + 5 * 11))
        backward = costs.linear(5, 7, 11, pass_="bwd")
        assert backward.flops == 2 * forward.flops
        assert costs.linear(5, 7, 11, pass_="fwd_bwd") == forward + backward
        assert 3 * forward == forward + forward + forward

    def test_grouped_linear_moves_every_weight_and_executes_padding(self) -> None:
        cost = costs.grouped_linear(10, 4, 3, 5, executed_rows=16, bytes_per_element=1)
        assert cost == Cost(10 * 30, 16 * 30, 10 * 3 + 4 * 15 + 10 * 5)

    @pytest.mark.parametrize("heads_kv", [8, 2, 1])
    def test_attention_sharing_keys_changes_bytes_only(self, heads_kv: int) -> None:
        cost = costs.attention(**{**QKV, "heads_kv": heads_kv}, useful_scores=1000)
        assert cost.flops == cost.executed_flops == 4 * 3 * 16 * 1000
        q, kv = 3 * 8 * 10 * 16, 3 * heads_kv * 20 * 16
        assert cost.bytes == 2 * (2 * q + 2 * kv) + 4 * 3 * 8 * 10

    def test_attention_backward(self) -> None:
        flash = costs.attention(**QKV, useful_scores=1000, visited_scores=1200, pass_="bwd")
        assert flash.flops == 8 * 3 * 16 * 1000
        assert flash.executed_flops == 10 * 3 * 16 * 1200
        two_pass = costs.attention(
            **QKV,
            useful_scores=1000,
            visited_scores=1200,
            backward_matmuls=costs.TWO_PASS_BACKWARD_MATMULS,
            pass_="bwd",
        )
        assert two_pass.executed_flops == 14 * 3 * 16 * 1200
        materialised = costs.attention(**QKV, useful_scores=1000, materialised=True, pass_="bwd")
        assert materialised.flops == flash.flops
        assert materialised.executed_flops == 8 * 3 * 16 * (8 * 10 * 20)
        assert materialised.bytes - flash.bytes == 7 * 2 * 3 * 8 * 10 * 20 - 4 * 3 * 8 * 10

    @pytest.mark.parametrize(("batch", "kv_tokens"), [(1, 1), (4, 100)])
    def test_decode_reads_the_cache_once(self, batch: int, kv_tokens: int) -> None:
        cost = costs.decode_attention(batch=batch, heads_q=8, heads_kv=2, kv_tokens=kv_tokens, head_dim=16)
        cache = costs.kv_cache_bytes(n_layers=1, heads_kv=2, head_dim=16, tokens=kv_tokens, batch=batch)
        assert cost.bytes == cache + 2 * (2 * batch * 8 * 16)
        assert cost.flops == 4 * batch * 8 * kv_tokens * 16

    @pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd_bwd"])
    @pytest.mark.parametrize("activation", ["gelu", "relu2", "swiglu"])
    def test_operations_match_torch(self, activation: Any, pass_: Any) -> None:
        torch = pytest.importorskip("torch")
        from torch.utils.flop_counter import FlopCounterMode

        from tests.reference_modules import FeedForward

        x = torch.randn(9, 16, requires_grad=True)
        with FlopCounterMode(display=False) as forward:
            y = FeedForward(16, 24, activation, bias=False)(x)
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        counted = {"fwd": forward.get_total_flops(), "bwd": backward.get_total_flops()}
        counted["fwd_bwd"] = counted["fwd"] + counted["bwd"]
        assert costs.feed_forward(9, 16, 24, activation, pass_=pass_).flops == counted[pass_]

    @pytest.mark.parametrize("pass_", ["fwd", "bwd"])
    def test_mixture_is_router_and_active_experts(self, pass_: Any) -> None:
        moe = costs.moe_feed_forward(
            100, 16, 8, "swiglu", n_experts=6, top_k=2, n_shared_experts=1, executed_rows=256, pass_=pass_
        )
        per_row = 3 * 2 * 16 * 8 * (1 if pass_ == "fwd" else 2)
        router = costs.linear(100, 16, 6, pass_=pass_)
        assert moe.flops == router.flops + 300 * per_row
        assert moe.executed_flops == router.flops + (256 + 100) * per_row

    def test_a_mixture_moves_only_the_experts_it_visits(self) -> None:
        few = costs.moe_feed_forward(1, 64, 64, "gelu", n_experts=100, top_k=2)
        many = costs.moe_feed_forward(1, 64, 64, "gelu", n_experts=100, top_k=4)
        assert many.bytes - few.bytes == 2 * 2 * (2 * 64 * 64 + 2 * (64 + 64))

    def test_lstm_rereads_its_weights_each_step(self) -> None:
        cost = costs.lstm_layer(4, 10, 16, 32)
        assert cost.flops == 10 * 4 * 8 * 32 * (16 + 32)
        assert cost.bytes == 10 * 2 * (4 * (16 + 32) + 128 * (16 + 32) + 2 * 4 * 128)

    @pytest.mark.parametrize("matrices", [[(8, 8)], [(8, 20), (20, 8)], []])
    def test_muon_step(self, matrices: list[tuple[int, int]]) -> None:
        cost = costs.muon_step(matrices)
        assert cost.flops == 5 * sum(4 * min(m) ** 2 * max(m) + 2 * min(m) ** 3 for m in matrices)
        assert costs.muon_step(matrices, newton_schulz_steps=0) == Cost()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"heads_kv": 3}, "heads_kv must divide heads_q, got heads_q=8, heads_kv=3"),
            ({"useful_scores": 1601}, "useful_scores must be at most .* = 1600, got 1601"),
            ({"visited_scores": 999}, "visited_scores must be at least 1000, got 999"),
            ({"backward_matmuls": 3}, "backward_matmuls must be at least 4, got 3"),
            ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
            ({"pass_": "both"}, "pass_ must be one of fwd, bwd, fwd_bwd, got 'both'"),
        ],
    )
    def test_bad_arguments_are_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            costs.attention(**{**QKV, "useful_scores": 1000, **change})

    def test_more_active_than_experts_is_refused(self) -> None:
        with pytest.raises(ValueError, match="n_experts must be at least 4, got 2"):
            costs.moe_feed_forward(10, 16, 8, "gelu", n_experts=2, top_k=4)

    def test_costs_need_no_array_library(self) -> None:
        code = "import sys, cegain.kernels.costs; print([m for m in ('numpy', 'torch') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestAttentionCounts:
    """Attention as torch counts the plain definitions: scores in full first, then minus the masked ones."""

    @pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 9}])
    @pytest.mark.parametrize("heads_kv", [8, 2, 1])
    @pytest.mark.parametrize(("seq_q", "seq_kv"), [(63, 63), (20, 111), (50, 30)])
    def test_training(self, seq_q: int, seq_kv: int, heads_kv: int, options: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch")
        from torch.utils.flop_counter import FlopCounterMode

        from cegain.kernels import reference
        from cegain.kernels.flash import flash_attention
        from cegain.kernels.mqa import mqa_attention

        shape = {"batch": 2, "heads_q": 8, "heads_kv": heads_kv, "seq_q": seq_q, "seq_kv": seq_kv, "head_dim": 20}
        q = torch.randn(2, 8, seq_q, 20, requires_grad=True)
        k, v = (torch.randn(2, heads_kv, seq_kv, 20, requires_grad=True) for _ in range(2))
        for op in [flash_attention] if "window" in options else [flash_attention, mqa_attention]:
            with FlopCounterMode(display=False) as forward:
                out = op(q, k, v, backend="reference", **options)
            with FlopCounterMode(display=False) as backward:
                out.sum().backward()
            in_full = 8 * seq_q * seq_kv
            for pass_, counter in (("fwd", forward), ("bwd", backward)):
                cost = costs.attention(**shape, useful_scores=in_full, pass_=pass_)  # type: ignore[arg-type]
                assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.005)

            mask = reference.positional_mask(seq_q, seq_kv, **options)
            masked = 0 if mask is None else 8 * sum(not seen for row in mask.tolist() for seen in row)
            with FlopCounterMode(display=False) as useful:
                op(q, k, v, backend="torch", **options).sum().backward()
            per_score = 3 * 4 * 2 * 20  # forward and backward, two products, two sequences of width 20
            counted = forward.get_total_flops() + backward.get_total_flops()
            assert useful.get_total_flops() == counted - per_score * masked

    def test_decoding(self) -> None:
        torch = pytest.importorskip("torch")
        from torch.utils.flop_counter import FlopCounterMode

        from cegain.kernels.mqa import mqa_decode

        q, lengths = torch.randn(3, 8, 20), torch.full((3,), 50)
        k, v = torch.randn(2, 3, 2, 50, 20)
        cost = costs.decode_attention(batch=3, heads_q=8, heads_kv=2, kv_tokens=50, head_dim=20)
        for backend in ("reference", "torch"):
            with FlopCounterMode(display=False) as counter:
                mqa_decode(q, k, v, lengths, backend=backend)  # type: ignore[arg-type]
            assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.005)
