"""Our FLOP count of every arm against torch's and fvcore's of the model that is trained."""

import dataclasses
import json
from typing import Any

import pytest
from click.testing import CliRunner

from cegain.shapes import arms
from cegain.shapes.architecture import ModelShape, flop_parts, optimizer_flops, stack
from cegain.training.commands.flops import flops_command
from cegain.training.models import flops
from cegain.training.models.flops import count, fvcore_flops, torch_flops, torch_optimizer_flops
from tests.training.cases import CASES

# fvcore traces, which takes longer: all in the slow tests
FVCORE = ("bare-baseline", "bare-layernorm", "modern-moe", "modern-sparse_attention", "modern-gqa")


def as_fvcore_counts(name: str) -> None:
    shape = CASES[name]
    assert fvcore_flops(shape) == pytest.approx(counted_parts(shape, passes="forward"), rel=1e-12)


def counted_parts(shape: ModelShape, **options: Any) -> dict[str, float]:
    parts = flop_parts(shape, "full", **options)
    del parts["optimizer"]
    return parts


@pytest.mark.parametrize("name", CASES)
def test_every_part_is_what_torch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "LSTM_TOKENS", 16)
    shape = CASES[name]
    seen = torch_flops(shape)
    assert {part: both[0] for part, both in seen.items()} == pytest.approx(counted_parts(shape, passes="forward"))
    expected = counted_parts(shape)
    if shape.kind == "lstm":  # the first state is zero and has no gradient: one product less
        expected["recurrent"] -= shape.n_layers * 2 * 4 * shape.d_model**2 / 16
    assert {part: sum(both) for part, both in seen.items()} == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore")  # fvcore's own, on import and while tracing
@pytest.mark.parametrize("name", FVCORE)
def test_every_part_is_what_fvcore_counts(name: str) -> None:
    as_fvcore_counts(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CASES if name not in FVCORE])
def test_every_part_of_every_arm_is_what_fvcore_counts(name: str) -> None:
    as_fvcore_counts(name)


@pytest.mark.parametrize("name", ["bare-muon", "modern-muon", "switch-moe_swiglu", "bare-gqa", "bare-lstm"])
def test_the_optimizer_step_is_what_torch_counts(name: str) -> None:
    shape = dataclasses.replace(CASES[name], optimizer="muon")
    assert torch_optimizer_flops(shape) == optimizer_flops(shape) > 0
    assert torch_optimizer_flops(dataclasses.replace(shape, optimizer="adamw")) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arm", ["baseline", "moe", "muon+sliding_window", "lstm"])
def test_a_model_for_1e24_flop_is_counted(arm: str) -> None:
    fields = arms.arm_shape_fields("modern", arm)
    shape = stack("modern", n_layers=94, d_model=9216, n_heads=72, vocab_size=50304, **fields)
    terms = count(shape, 2**22)
    assert all(term.agrees() for term in terms.values())
    assert terms["total"].useful > 3e11


@pytest.mark.filterwarnings("ignore")
def test_terms_and_their_total() -> None:
    shape = CASES["modern-muon"]
    terms = count(shape, batch_tokens=100)
    assert list(terms) == ["projections", "scores", "feed_forward", "unembedding", "optimizer", "total"]
    for i in range(len(flops.Term._fields)):
        assert sum(term[i] for name, term in terms.items() if name != "total") == pytest.approx(terms["total"][i])
    assert terms["scores"].useful < terms["scores"].full == pytest.approx(terms["scores"].torch)
    assert terms["optimizer"].torch == optimizer_flops(shape) / 100
    assert all(term.agrees() for term in terms.values())


@pytest.mark.parametrize("field", ["torch", "forward_torch", "forward_fvcore"])
def test_a_count_that_is_off_by_more_than_a_percent_does_not_agree(field: str) -> None:
    term = flops.Term(1.0, 100.0, 100.0, 100.0, 100.0, 100.0)
    assert term._replace(**{field: 100.9}).agrees()
    assert not term._replace(**{field: 101.1}).agrees()
    assert not term._replace(**{field: 98.9}).agrees()


def run(*options: str) -> Any:
    return CliRunner().invoke(flops_command, [*options])


@pytest.mark.filterwarnings("ignore")
def test_the_command_prints_a_table() -> None:
    done = run("--arm", "rope", "--flops", "1e12", "--seq-len", "32")
    assert done.exit_code == 0, done.output
    assert "rope on the bare stack: " in done.output
    for part in ("projections", "scores", "feed forward", "unembedding", "optimizer", "total"):
        assert any(line.strip().startswith(part) for line in done.output.splitlines())
    assert "All counts are within 1% of ours." in done.output


@pytest.mark.filterwarnings("ignore")
def test_the_command_gives_json() -> None:
    done = run("--arm", "ln", "--flops", "1e12", "--seq-len", "32", "--vocab", "300", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["schema"], document["arm"], document["agrees"]) == ("ceg.flops", "layernorm", True)
    shape = ModelShape(**document["shape"])
    assert (shape.norm, shape.seq_len, shape.vocab_size) == ("layer", 32, 300)
    total = document["flops_per_token"]["total"]["useful"]
    assert total * document["tokens"] == pytest.approx(document["flops"])


def test_a_count_that_does_not_agree_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"total": flops.Term(1.0, 1.0, 2.0, 1.0, 1.0, 1.0)}
    monkeypatch.setattr(flops, "count", lambda *_: wrong)
    done = run("--flops", "1e12")
    assert done.exit_code == 1
    assert "A COUNT IS FURTHER THAN 1% FROM OURS." in done.output


def test_bad_input_is_refused_at_once() -> None:
    done = run("--arm", "rop", "--flops", "1e12,1e13", "--vocab", "many")
    assert done.exit_code == 2
    for part in ("did you mean rope?", "--flops: one budget is needed", "--vocab: a whole number is needed"):
        assert part in done.output
    done = run("--flops", "1e12", "--seq-len", "0")
    assert done.exit_code == 2
    assert "seq_len must be an integer of at least 1, got 0" in done.output
    done = run("--arm", "gqa", "--flops", "1e3")
    assert done.exit_code == 2
