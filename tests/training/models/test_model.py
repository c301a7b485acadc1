"""Every arm and every switch: the same function on every backend, causal, and with gradients everywhere."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cegain.kernels import patterns, reference
from cegain.shapes import arms
from cegain.shapes.architecture import STACKS, ModelShape, flop_parts, parameters, stack
from cegain.training.models import attention, feed_forward, model
from cegain.training.models.model import LanguageModel, build
from tests.training.cases import ARMS, CASES, SIZE

every_case = pytest.mark.parametrize("name", CASES)
every_arm = pytest.mark.parametrize("name", [f"{name}-{arm}" for name, arm in ARMS])


def some_tokens(shape: ModelShape, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(shape.vocab_size, (batch, shape.seq_len), generator=generator)


def train_loss(lm: nn.Module, tokens: Tensor) -> Tensor:
    hidden, auxiliary = lm.hidden(tokens)
    logits = functional.linear(hidden, lm.unembedding)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) + auxiliary


@every_case
def test_parameters_loss_and_gradients(name: str) -> None:
    shape = CASES[name]
    lm = build(shape, seed=0)
    assert sum(p.numel() for p in lm.parameters()) == parameters(shape).total
    tokens = some_tokens(shape)
    loss = train_loss(lm, tokens)
    loss.backward()
    assert abs(float(loss.detach()) - math.log(shape.vocab_size)) < 1.0
    for parameter_name, parameter in lm.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name
    hidden, auxiliary = lm.hidden(tokens)
    assert hidden.shape == (3, 24, 32)
    assert auxiliary.shape == ()
    assert (auxiliary > 0) == (shape.feed_forward == "moe")
    assert torch.equal(lm(tokens), hidden @ lm.unembedding.T)
    assert (lm.unembedding is lm.embedding.weight) == shape.tied_head
    assert lm.unembedding.shape == (61, 32)


@every_case
def test_a_later_token_changes_no_earlier_logit(name: str) -> None:
    lm = build(CASES[name], seed=0).double()
    tokens = some_tokens(lm.shape, batch=1)
    changed = tokens.clone()
    changed[0, 15] = (tokens[0, 15] + 1) % lm.shape.vocab_size
    difference = (lm(tokens) - lm(changed)).abs().amax(-1)[0]
    assert difference[:15].max() < 1e-12
    assert difference[15] > 1e-6
    assert difference[16:].max() > 1e-9, "nothing is passed on"
    # fewer tokens are a prefix
    assert (lm(tokens[:, :10]) - lm(tokens)[:, :10]).abs().max() < 1e-12


@every_case
def test_every_backend_computes_the_same(name: str) -> None:
    shape = CASES[name]
    found = []
    for backend in ("auto", "reference"):
        lm = build(shape, seed=0, backend=backend).double()
        loss = train_loss(lm, some_tokens(shape))
        assert loss.dtype == torch.float64
        found.append([loss, *torch.autograd.grad(loss, list(lm.parameters()))])
    for fast, plain in zip(*found, strict=True):
        assert (fast - plain).abs().max() < 1e-12


def test_flash_is_materialised_attention_to_rounding() -> None:
    shape = stack("bare", **SIZE, norm="layer")
    tokens = some_tokens(shape)
    found = [
        build(dataclasses.replace(shape, attention=kind), seed=0)(tokens) for kind in ("materialised", "flash")
    ]  # fmt: skip
    exact = build(shape, seed=0).double()(tokens)
    errors = [float((logits - exact).abs().max().detach()) for logits in found]
    assert not torch.equal(found[0], found[1])
    assert errors[1] <= 2 * errors[0] + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("kind", ["materialised", "flash"])
@pytest.mark.parametrize("pattern", ["causal", "window", "strided", "fixed"])
def test_what_a_query_sees_is_what_is_counted(pattern: Any, kind: Any) -> None:
    shape = ModelShape(**SIZE, head_dim=24, pattern=pattern, attention=kind)
    heads, tokens = shape.n_heads, shape.seq_len
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, tokens, tokens, generator=generator, dtype=torch.float64) for _ in range(2))
    # with one-hot values the output is the table of probabilities
    values = torch.eye(tokens, dtype=torch.float64).expand(1, heads, -1, -1)
    seen = attention.Scores(shape, "auto")(q, k, values, attention.score_mask(shape))[0] > 0
    expected = [patterns.mask(head, tokens, tokens) for head in attention.patterns_of(shape)]
    assert torch.equal(seen, torch.stack([torch.from_numpy(mask) for mask in expected]))
    hidden = flop_parts(shape, "full")["scores"] - flop_parts(shape)["scores"]
    # two products forward and four backward, 2 FLOP per multiply-add, each as wide as a head
    assert round(hidden * tokens) == shape.n_layers * int((~seen).sum()) * 24 * 12


@pytest.mark.parametrize("kind", ["materialised", "flash"])
@pytest.mark.parametrize("pattern", ["causal", "window", "strided"])
def test_shared_heads_are_repeated_heads(pattern: Any, kind: Any) -> None:
    shape = ModelShape(**SIZE, heads="gqa", gqa_group=2, pattern=pattern, attention=kind, positions="rope")
    grouped = attention.Attention(shape, "auto").double()
    full = attention.Attention(dataclasses.replace(shape, heads="mha"), "auto").double()
    with torch.no_grad():
        for mine, its in ((full.query, grouped.query), (full.out, grouped.out)):
            mine.weight.copy_(its.weight)
        for mine, its in ((full.key, grouped.key), (full.value, grouped.value)):
            mine.weight.copy_(its.weight.view(2, 8, 32).repeat_interleave(2, dim=0).flatten(0, 1))
    x = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tables = attention.rotation(shape).double(), attention.score_mask(shape)
    assert (grouped(x, *tables) - full(x, *tables)).abs().max() < 1e-12


def test_materialised_attention_is_the_reference() -> None:
    shape = ModelShape(**SIZE, pattern="fixed", heads="gqa", gqa_group=2)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 24, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    mask = attention.score_mask(shape)
    expected, _ = reference.attention(q, k, v, mask == 0)
    assert (attention.Scores(shape, "auto")(q, k, v, mask) - expected).abs().max() < 1e-14


def test_rotary_scores_depend_on_distance_only() -> None:
    shape = ModelShape(**SIZE, positions="rope")
    turn = attention.rotation(shape).double()
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, generator=generator, dtype=torch.float64).expand(1, 1, 24, 8) for _ in range(2))
    scores = (attention.rotate(q, turn) @ attention.rotate(k, turn).transpose(-2, -1))[0, 0]
    for distance in (0, 1, 7):
        same = scores.diagonal(-distance)
        assert (same - same[0]).abs().max() < 1e-6
    assert abs(float(scores[0, 0] - q[0, 0, 0] @ k[0, 0, 0])) < 1e-12
    assert scores[:, 0].std() > 0.1


def test_sinusoidal_positions_are_as_large_as_learned_ones() -> None:
    waves = LanguageModel(ModelShape(**SIZE, positions="sinusoidal")).waves  # products depend on distance
    assert waves is not None
    std = model.POSITION_GAIN / math.sqrt(32)
    assert waves.square().mean().sqrt() == pytest.approx(std, rel=1e-6)
    products = waves @ waves.T
    assert products.diagonal(-5).std() < 1e-6 < products[:, 0].std()
    learned = build(ModelShape(**SIZE), seed=0).positions
    assert learned is not None
    assert learned.detach().std() == pytest.approx(std, rel=0.1)


def test_qk_norm_makes_the_scale_of_queries_and_keys_irrelevant() -> None:
    for qk_norm in (True, False):
        lm = build(stack("modern", **SIZE, qk_norm=qk_norm), seed=0).double()
        before = lm(some_tokens(lm.shape))
        with torch.no_grad():
            lm.blocks[0].attention.query.weight.mul_(50)
        difference = (lm(some_tokens(lm.shape)) - before).abs().max()
        assert difference < 1e-3 if qk_norm else difference > 1e-2


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_norms(norm: Any) -> None:
    lm = build(ModelShape(**SIZE, norm=norm, biases=True), seed=0)
    hidden, _ = lm.hidden(some_tokens(lm.shape))
    mean, scale = hidden.mean(-1).abs().max(), hidden.square().mean(-1).sqrt()
    assert (mean < 1e-5) == (norm == "layer")
    assert bool((scale - 1).abs().max() < 0.01) == (norm != "none")


class TestMixture:
    SHAPE = ModelShape(**SIZE, feed_forward="moe", n_experts=6, top_k=2)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def mixture(self, **fields: Any) -> feed_forward.Mixture:
        lm = build(dataclasses.replace(self.SHAPE, **fields), seed=0).double()
        mixture = lm.blocks[0].feed_forward
        assert isinstance(mixture, feed_forward.Mixture)
        with torch.no_grad():
            for name, parameter in mixture.named_parameters():
                if "bias" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        return mixture

    @pytest.mark.parametrize("activation", ["gelu", "swiglu"])
    def test_it_is_the_reference(self, activation: Any) -> None:
        mixture = self.mixture(expert_activation=activation, n_shared_experts=1)
        routed, shared = mixture.routed, mixture.shared
        assert shared is not None
        weights = [mixture.router.weight, routed.up, routed.down, routed.gate]
        alone = [None if weight is None else weight[0] for weight in (shared.up, shared.down, shared.gate)]
        expected, balance = reference.moe_feed_forward(
            self.x.flatten(0, 1), *weights, top_k=2, activation=activation, shared=tuple(alone)
        )
        out, auxiliary = mixture(self.x)
        assert (out.flatten(0, 1) - expected).abs().max() < 1e-12
        assert (auxiliary - 0.01 * balance).abs() < 1e-15

    @pytest.mark.parametrize("activation", ["gelu", "swiglu"])
    def test_biases_of_experts(self, activation: Any) -> None:
        mixture = self.mixture(expert_activation=activation, biases=True, n_shared_experts=2)
        routing = reference.route(mixture.router(self.x.flatten(0, 1)), 2)
        found = mixture.routed.grouped(self.x.flatten(0, 1), routing, "torch")
        assert (found - mixture.routed.plain(self.x.flatten(0, 1), routing)).abs().max() < 1e-12
        shape = ModelShape(**SIZE, feed_forward="gelu", d_ff=mixture.routed.up.shape[2], biases=True)
        if activation == "swiglu":
            shape = dataclasses.replace(shape, feed_forward="swiglu")
        dense = feed_forward.FeedForward(shape).double()
        experts = mixture.shared
        assert experts is not None
        total = torch.zeros_like(self.x.flatten(0, 1))
        for e in range(2):
            state = {}
            for name in ("up", "gate", "down"):
                if getattr(experts, name) is not None:
                    state[f"{name}.weight"] = getattr(experts, name)[e].T
                    state[f"{name}.bias"] = getattr(experts, f"{name}_bias")[e]
            dense.load_state_dict(state)
            total = total + dense(self.x.flatten(0, 1))[0]
        assert (experts.every(self.x.flatten(0, 1)) - total).abs().max() < 1e-12

    def test_two_processes_are_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mixture = self.mixture()
        halves = self.x.chunk(2)
        whole = torch.autograd.grad(mixture(self.x)[1], mixture.router.weight)[0]
        logits = [mixture.router(half.flatten(0, 1)) for half in halves]
        counts = [reference.route(part, 2).experts.flatten().bincount(minlength=6) for part in logits]
        monkeypatch.setattr(feed_forward.dist, "is_initialized", lambda: True)
        parts, losses = [], []
        for half, other in zip(halves, reversed(counts), strict=True):
            monkeypatch.setattr(feed_forward.dist, "all_reduce", lambda mine, other=other: mine.add_(other))
            losses.append(mixture(half)[1])
            parts.append(torch.autograd.grad(losses[-1], mixture.router.weight)[0])
        assert (sum(parts) / 2 - whole).abs().max() < 1e-15
        monkeypatch.undo()
        assert float(sum(losses).detach()) / 2 == pytest.approx(float(mixture(self.x)[1].detach()), rel=1e-12)
        apart = [torch.autograd.grad(mixture(half)[1], mixture.router.weight)[0] for half in halves]
        assert (sum(apart) / 2 - whole).abs().max() > 1e-6, "the exchange makes no difference here"


class TestLSTM:
    @pytest.mark.parametrize("biases", [False, True])
    def test_it_is_torchs(self, biases: bool) -> None:
        lm = build(ModelShape(**SIZE, kind="lstm", biases=biases), seed=0).double()
        mine = lm.blocks[0].lstm
        theirs = nn.LSTM(32, 32, bias=biases, batch_first=True).double()
        theirs.load_state_dict({f"{name}_l0": value for name, value in mine.state_dict().items()})
        x = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert (mine(x) - theirs(x)[0]).abs().max() < 1e-12
        assert (mine._plain(x) - theirs(x)[0]).abs().max() < 1e-12

    @pytest.mark.parametrize("steps", [1, 4])
    def test_gradients_of_the_recurrence(self, steps: int) -> None:
        from cegain.training.models.lstm import recurrence

        generator = torch.Generator().manual_seed(0)
        gates = torch.randn(steps, 2, 12, generator=generator, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        first: Callable[..., Tensor] = lambda *inputs: recurrence(*inputs)[0]  # noqa: E731
        assert torch.autograd.gradcheck(first, (gates, weight))
        torch.library.opcheck(recurrence, (gates, weight), test_utils=("test_schema", "test_faketensor"))


class TestInitialWeights:
    def test_arms_share_them_where_name_and_size_are_equal(self) -> None:
        for name in STACKS:
            base = dict(build(stack(name, **SIZE), seed=3).named_parameters())
            for arm in arms.arms(name):
                lm = build(CASES[f"{name}-{arm}"], seed=3)
                for key, parameter in lm.named_parameters():
                    if key in base and base[key].shape == parameter.shape:
                        assert torch.equal(parameter, base[key]), (arm, key)

    def test_seeds_and_names_differ(self) -> None:
        draws = [build(stack("modern", **SIZE), seed=seed) for seed in (0, 1)]
        matrices = [p.flatten() for lm in draws for p in lm.parameters() if p.dim() > 1]
        assert not [1 for a, b in itertools.combinations(matrices, 2) if torch.equal(a[:32], b[:32])]
        torch.manual_seed(7)
        again = build(stack("modern", **SIZE), seed=0)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), draws[0].parameters(), strict=True))

    def test_scales(self) -> None:
        moe = {"feed_forward": "moe", "n_experts": 4, "n_shared_experts": 1, "biases": True, "norm": "layer"}
        lm = build(ModelShape(**{**SIZE, "d_model": 128, "n_heads": 4, **moe}), seed=0)
        branches = math.sqrt(2 * 2)
        width = lm.shape.expert_width
        expected = {
            "embedding.weight": model.TABLE_GAIN / math.sqrt(128),
            "positions": model.POSITION_GAIN / math.sqrt(128),
            "blocks.1.attention.query.weight": 1 / math.sqrt(128),
            "blocks.1.attention.out.weight": 1 / math.sqrt(128) / branches,
            "blocks.1.feed_forward.router.weight": 1 / math.sqrt(128),
            "blocks.0.feed_forward.routed.up": 1 / math.sqrt(128),
            "blocks.0.feed_forward.routed.down": 1 / math.sqrt(width) / branches,
            "blocks.0.feed_forward.shared.down": 1 / math.sqrt(width) / branches,
        }
        state = lm.state_dict()
        for key, std in expected.items():
            assert state[key].std() == pytest.approx(std, rel=0.1), key
        assert not state["blocks.0.feed_forward.routed.up_bias"].any()
        assert (state["blocks.0.attention_norm.weight"] == 1).all()
        lstm = build(ModelShape(**SIZE, kind="lstm", biases=True), seed=0).blocks[0].lstm
        assert lstm.bias_ih.view(4, 32).mean(1).tolist() == [0, model.FORGET_BIAS, 0, 0]
        assert not lstm.bias_hh.any()

    def test_tables_that_the_shape_gives_are_not_saved(self) -> None:
        for name in CASES:
            lm = LanguageModel(CASES[name])
            assert set(lm.state_dict()) - {"head"} == {key for key, _ in lm.named_parameters()} - {"head"}


def test_dropout_is_for_training() -> None:
    for kind in ("transformer", "lstm"):
        lm = build(ModelShape(**SIZE, kind=kind), seed=0, dropout=0.3)
        plain = build(ModelShape(**SIZE, kind=kind), seed=0)
        tokens = some_tokens(lm.shape)
        assert not torch.equal(lm(tokens), lm(tokens))
        assert torch.equal(lm.eval()(tokens), plain(tokens))


def test_refusals() -> None:
    lm = build(ModelShape(**SIZE), seed=0)
    with pytest.raises(ValueError, match="at most seq_len=24 per sequence, got 25"):
        lm(torch.zeros(1, 25, dtype=torch.int64))
    with pytest.raises(ValueError, match="dropout must be from 0 to below 1, got 1"):
        build(ModelShape(**SIZE), seed=0, dropout=1.0)


@every_arm
def test_half_precision(name: str) -> None:
    lm = build(CASES[name], seed=0)
    tokens = some_tokens(lm.shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = train_loss(lm, tokens)
    loss.backward()
    exact = train_loss(build(CASES[name], seed=0), tokens)
    assert float((loss - exact).abs().detach()) < 0.01
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lm.parameters())


def compiles(name: str) -> None:
    torch.compiler.reset()
    lm = build(CASES[name], seed=0)
    tokens = some_tokens(lm.shape)
    compiled = torch.compile(partial(train_loss, lm), backend="aot_eager", fullgraph=True)
    weights = list(lm.parameters())
    found = torch.autograd.grad(compiled(tokens), weights)
    for one, other in zip(found, torch.autograd.grad(train_loss(lm, tokens), weights), strict=True):
        assert (one - other).abs().max() < 1e-5


def test_a_full_graph() -> None:
    compiles("bare-lstm")


@pytest.mark.slow
@every_arm
def test_a_full_graph_of_every_arm(name: str) -> None:
    compiles(name)


@pytest.mark.slow
def test_a_full_graph_in_half_precision() -> None:
    torch.compiler.reset()
    lm = build(CASES["modern-moe"], seed=0)
    compiled = torch.compile(lm.hidden, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, _ = compiled(some_tokens(lm.shape))
        assert (hidden - lm.hidden(some_tokens(lm.shape))[0]).abs().max() < 0.05


def one_of_two(rank: int, folder: str) -> None:
    """A process that holds half of the batch; writes its loss and its gradient of a router."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    lm = build(CASES["modern-moe"], seed=0).double()
    tokens = some_tokens(lm.shape, batch=4).chunk(2)[rank]
    compiled = torch.compile(lm.hidden, backend="aot_eager", fullgraph=True)
    results = [hidden(tokens)[1] for hidden in (lm.hidden, compiled)]
    router = lm.blocks[0].feed_forward.router.weight
    torch.save([(r.detach(), torch.autograd.grad(r, router)[0]) for r in results], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_real_processes_are_one(tmp_path: Any) -> None:
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    lm = build(CASES["modern-moe"], seed=0).double()
    whole = lm.hidden(some_tokens(lm.shape, batch=4))[1]
    gradient = torch.autograd.grad(whole, lm.blocks[0].feed_forward.router.weight)[0]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for way in range(2):
        assert float(ranks[0][way][0] + ranks[1][way][0]) / 2 == pytest.approx(float(whole.detach()), rel=1e-12)
        assert ((ranks[0][way][1] + ranks[1][way][1]) / 2 - gradient).abs().max() < 1e-14
