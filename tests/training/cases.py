"""Small shapes: every arm of every stack, and every switch of `ModelShape` that no arm has."""

from typing import Any

from cegain.shapes import arms
from cegain.shapes.architecture import STACKS, ModelShape, stack
from tests.estimator.shapes.test_architecture import SWITCHES

SIZE: dict[str, Any] = {"n_layers": 2, "d_model": 32, "n_heads": 4, "vocab_size": 61, "seq_len": 24}
ARMS = [(name, arm) for name in STACKS for arm in arms.arms(name)]
CASES: dict[str, ModelShape] = {
    f"{name}-{arm}": stack(name, **SIZE, **arms.arm_shape_fields(name, arm)) for name, arm in ARMS
}
for _switch, (_fields, _) in SWITCHES.items():
    _shape = ModelShape(**{**SIZE, **_fields, "seq_len": 24})
    if _shape not in CASES.values():
        CASES[f"switch-{_switch}"] = _shape
