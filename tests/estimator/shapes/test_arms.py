"""Names of arms: what they change, and what is refused."""

import pytest

from cegain import algorithms
from cegain.shapes import arms
from cegain.shapes.architecture import STACKS, Stack, stack

SIZE = {"n_layers": 1, "d_model": 32, "n_heads": 4, "vocab_size": 61, "seq_len": 24}


def test_every_algorithm_with_an_arm_is_an_arm_of_its_stack() -> None:
    for name in algorithms.names():
        entry = algorithms.get(name)
        if entry.arm:
            assert name in arms.arms(entry.stack)
            assert arms.arm_shape_fields(entry.stack, name) == entry.arm
            for alias in entry.aliases:
                assert arms.canonical(entry.stack, alias) == name
        elif entry.baseline_arm:
            assert arms.arm_shape_fields(entry.stack, entry.replaces[0]) == entry.baseline_arm
            assert entry.replaces[0] in arms.arms(entry.stack)


@pytest.mark.parametrize("name", STACKS)
def test_arms_of_a_stack_differ_from_it_and_from_each_other(name: Stack) -> None:
    known = arms.arms(name)
    shapes = [stack(name, **SIZE, **arms.arm_shape_fields(name, arm)) for arm in known]
    assert known[0] == arms.BASELINE
    assert shapes[0] == stack(name, **SIZE)
    assert len(set(shapes)) == len(shapes) > 10
    assert all(arms.canonical(name, arm) == arm for arm in known)


def test_leave_one_out_takes_the_value_of_the_bare_stack() -> None:
    left_out = {arm: arms.arm_shape_fields("modern", arm) for arm in arms.arms("modern") if arm.startswith("no_")}
    assert left_out == {
        "no_flash_attention": {"attention": "materialised"},
        "no_rmsnorm": {"norm": "none"},
        "no_rope": {"positions": "learned"},
        "no_swiglu": {"feed_forward": "gelu"},
    }
    assert not [arm for arm in arms.arms("bare") if arm.startswith("no_")]
    assert arms.canonical("modern", "Without-RoPE") == "no_rope"
    assert arms.canonical("bare", "no_transformer") == "lstm"


def test_the_papers_combination_is_an_arm_in_any_order() -> None:
    paper = "layernorm+rope+flash_attention"
    assert paper in arms.arms("bare")
    assert arms.canonical("bare", "fa + rotary + ln") == paper
    fields = {"norm": "layer", "positions": "rope", "attention": "flash"}
    assert arms.arm_shape_fields("bare", paper) == fields
    assert arms.canonical("bare", "rope+layernorm") == arms.canonical("bare", "layernorm+rope") == "layernorm+rope"


def test_experts_have_the_activation_of_the_layer_that_they_replace() -> None:
    def activation(name: Stack, arm: str) -> object:
        fields = arms.arm_shape_fields(name, arm)
        assert fields.pop("feed_forward") == "moe"
        return fields.pop("expert_activation")

    assert activation("bare", "moe") == "gelu"
    assert activation("modern", "moe") == "swiglu"
    assert activation("bare", "swiglu+moe") == activation("bare", "moe+swiglu") == "swiglu"
    assert activation("modern", "moe+no_swiglu") == "gelu"


def test_what_an_arm_is_about() -> None:
    about = {"lstm": "transformer", "no_rope": "rope", "baseline": "baseline", "ln+fa": "layernorm+flash_attention"}
    assert {arm: arms.algorithm(arm) for arm in about} == about


@pytest.mark.parametrize(
    ("name", "arm", "message"),
    [
        ("modern", "rope", "'rope', which the modern stack has; use no_rope to leave it out, or the bare stack to add"),
        ("bare", "transformer", "which the bare stack has; use no_transformer to leave it out$"),
        ("bare", "no_rope", "must leave out what its stack has, got 'no_rope'; the bare stack is without it"),
        ("modern", "no_moe", "the modern stack is without it"),
        ("modern", "rop", r"got 'rop' \(did you mean rope\?\)"),
        ("modern", "no_rop", r"did you mean no_rope\?"),
        ("bare", "lsmt", r"did you mean lstm\?"),
        ("bare", "zero", "got 'zero', which has no training arm: "),
        ("bare", "no_zero", "got 'no_zero', which has no training arm: "),
        ("bare", "rmsnorm+layernorm", "must set norm once, got 'rms' by rmsnorm and 'layer' by layernorm"),
        ("bare", "rope+rotary", "must name each part once, got 'rotary' again"),
        ("bare", "baseline+rope", "must not combine baseline with others"),
        ("bare", "lstm+rope", "must not change positions of an LSTM, which has none"),
        ("bare", "", "got ''"),
        ("odd", "rope", "stack must be one of bare, modern, got 'odd'"),
    ],
)
def test_refusals(name: Stack, arm: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arms.arm_shape_fields(name, arm)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ValueError, match="'foo'") as caught:
        arms.arm_shape_fields("modern", "foo+rope+zero")
    assert len(str(caught.value).splitlines()) == 3


def test_a_new_file_is_a_new_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    gqa = algorithms.get("gqa")
    monkeypatch.setattr(algorithms, "names", lambda: ("gqa", "qk_norm", "transformer"))
    monkeypatch.setattr(algorithms, "_load", lambda name: type(gqa)(
        **{**vars(gqa), "aliases": (), "arm": {"qk_norm": True} if name == "qk_norm" else {"heads": "gqa"}}
    ))  # fmt: skip
    assert "qk_norm" in arms.arms("bare")
    assert arms.arm_shape_fields("modern", "gqa+qk-norm") == {"heads": "gqa", "qk_norm": True}
