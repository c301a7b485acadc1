"""The registry is complete: every file holds a whole algorithm, or says what is missing."""

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cegain import algorithms
from cegain.algorithms import Algorithm, UnknownAlgorithm
from cegain.shapes.architecture import ModelShape, flops_per_token, parameters, stack

NAMES = algorithms.names()
PAPER_DEPENDENT = {"transformer", "sparse_attention", "moe", "mqa"}
PAPER_INDEPENDENT = {"rope", "flash_attention", "layernorm"}
UNLOCKING = {"mixed_precision", "tensor_parallelism", "pipeline_parallelism", "zero"}
WITH_ARM = PAPER_DEPENDENT | PAPER_INDEPENDENT | {"rmsnorm", "swiglu", "gqa", "muon"}
# The ones that a kernel of ours is written for; the others may state `no kernel:`.
WITH_KERNEL = {"flash_attention", "sparse_attention", "mqa", "gqa", "moe"}
IMPLEMENTATIONS = {"flash", "block_sparse", "mqa", "moe_dispatch"}
BASELINE_IMPLEMENTATIONS = {"materialised", "flash", "sdpa", "grouped_mm", "dense_ffn"}

# What each ablation switches, and nothing else. The table repeats the files on purpose: a second field that
# slips into an arm would be paid for in compute and reported as the gain of the first.
SWITCHED = {
    "transformer": {"kind"},
    "sparse_attention": {"pattern"},
    "moe": {"feed_forward", "expert_activation"},
    "mqa": {"heads"},
    "gqa": {"heads"},
    "rope": {"positions"},
    "flash_attention": {"attention"},
    "layernorm": {"norm"},
    "rmsnorm": {"norm"},
    "swiglu": {"feed_forward"},
    "muon": {"optimizer"},
    "sliding_window": {"pattern"},
}


def has_arm(algorithm: Algorithm) -> bool:
    return bool(algorithm.arm or algorithm.baseline_arm)


def arms(algorithm: Algorithm) -> tuple[ModelShape, ModelShape]:
    """The baseline and the treatment, at a size that every switch allows."""
    size = {"n_layers": 2, "d_model": 128, "n_heads": 8, "vocab_size": 512, "seq_len": 256}
    baseline = stack(algorithm.stack, **{**size, **algorithm.baseline_arm})
    return baseline, stack(algorithm.stack, **{**size, **algorithm.arm})


@pytest.mark.parametrize("name", NAMES)
class TestEveryAlgorithm:
    def test_the_file_holds_one_constant_and_no_code(self, name: str) -> None:
        module = importlib.import_module(f"cegain.algorithms.{name}")
        public = {key for key in vars(module) if not key.startswith("_")}
        assert public == {"Algorithm", "ALGORITHM"}
        assert module.ALGORITHM is algorithms.get(name)
        assert (module.__doc__ or "").strip()

    def test_the_texts_are_there(self, name: str) -> None:
        algorithm = algorithms.get(name)
        assert algorithm.title.strip()
        assert re.search(r"\b(19|20)\d\d, .*arXiv \d{4}\.\d{5}\b", algorithm.paper)
        assert re.fullmatch(r"[A-Z][^.]+\.", algorithm.summary), "one sentence"
        assert len(algorithm.costs) > 80
        for word in ("FLOPs", "Parameters", "Bytes|KV cache|Decoding"):
            assert re.search(word, algorithm.costs, re.IGNORECASE), f"costs do not speak of {word}"
        symbols = set(re.findall(r"\b[a-z]+_[a-z_]+\b", algorithm.costs))
        assert symbols <= {field.name for field in dataclasses.fields(ModelShape)}

    def test_it_has_canonical_baselines(self, name: str) -> None:
        algorithm = algorithms.get(name)
        assert algorithm.replaces
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", baseline) for baseline in algorithm.replaces)
        assert len(set(algorithm.replaces)) == len(algorithm.replaces)
        assert name not in algorithm.replaces

    def test_what_is_missing_is_stated_and_nothing_else(self, name: str) -> None:
        algorithm = algorithms.get(name)
        assert has_arm(algorithm) != any(gap.startswith("no training arm: ") for gap in algorithm.gaps)
        assert bool(algorithm.kernels) != any(gap.startswith("no kernel: ") for gap in algorithm.gaps)
        assert bool(algorithm.kernels) == bool(algorithm.kernel_baselines)
        assert set(algorithm.kernels) <= IMPLEMENTATIONS
        assert set(algorithm.kernel_baselines) <= BASELINE_IMPLEMENTATIONS
        assert all(gap.endswith(".") for gap in algorithm.gaps)

    def test_unlocking_is_a_statement_in_place_of_a_gain(self, name: str) -> None:
        algorithm = algorithms.get(name)
        assert (algorithm.paper_class == "unlocking") == bool(algorithm.unlocking) == (name in UNLOCKING)
        if algorithm.unlocking:
            assert not has_arm(algorithm)
            assert "No compute-equivalent gain" in algorithm.unlocking
            assert "unlocks" in algorithm.unlocking

    def test_aliases_have_the_form_that_resolve_looks_up(self, name: str) -> None:
        for alias in algorithms.get(name).aliases:
            assert re.fullmatch(r"[a-z][a-z0-9_]*", alias)
            assert algorithms.resolve(alias) == name

    def test_baseline_and_arm_differ_in_the_intervention_only(self, name: str) -> None:
        algorithm = algorithms.get(name)
        if not has_arm(algorithm):
            assert name not in SWITCHED
            return
        fields = {field.name for field in dataclasses.fields(ModelShape)}
        assert set(algorithm.arm) | set(algorithm.baseline_arm) <= fields
        baseline, treatment = arms(algorithm)
        differing = {field for field in fields if getattr(baseline, field) != getattr(treatment, field)}
        assert differing == SWITCHED[name]
        assert differing == set(algorithm.arm) | set(algorithm.baseline_arm), "an override changes nothing"
        source = inspect.getsource(importlib.import_module(f"cegain.algorithms.{name}"))
        assert len(re.findall(r"^    (?:baseline_)?arm=.*# this is the intervention", source, re.M)) == 1

    def test_the_shapes_can_be_costed(self, name: str) -> None:
        algorithm = algorithms.get(name)
        for shape in arms(algorithm):
            assert parameters(shape).total > 0
            assert flops_per_token(shape) > 0


def test_the_algorithms_that_the_project_promises_have_an_arm_and_a_kernel() -> None:
    assert {name for name in NAMES if has_arm(algorithms.get(name))} >= WITH_ARM
    assert {name for name in NAMES if algorithms.get(name).kernels} >= WITH_KERNEL


def test_the_classes_are_those_of_the_source_paper() -> None:
    by_class = {name: algorithms.get(name).paper_class for name in NAMES}
    assert {name for name, value in by_class.items() if value == "dependent"} == PAPER_DEPENDENT
    assert {name for name, value in by_class.items() if value == "independent"} == PAPER_INDEPENDENT


def test_aliases_are_unique_in_the_registry() -> None:
    words = [word for name in NAMES for word in (name, *algorithms.get(name).aliases)]
    assert sorted(words) == sorted(set(words))


def test_every_file_is_an_algorithm() -> None:
    files = {path.stem for path in Path(algorithms.__path__[0]).glob("*.py")} - {"__init__"}
    assert set(NAMES) == files
    assert list(NAMES) == sorted(NAMES)


def test_exact_algorithms_leave_useful_flops_and_parameters_alone() -> None:
    exact = [name for name in NAMES if algorithms.get(name).exact_in_flop]
    assert exact == ["flash_attention"]
    baseline, treatment = arms(algorithms.get("flash_attention"))
    assert flops_per_token(baseline) == flops_per_token(treatment)
    assert parameters(baseline) == parameters(treatment)


def test_equal_size_is_kept_where_the_costs_say_so() -> None:
    """Muon changes no parameter; SwiGLU's narrower layer is equal but for rounding up to a multiple of 8."""
    baseline, treatment = arms(algorithms.get("muon"))
    assert parameters(baseline) == parameters(treatment)
    baseline, treatment = arms(algorithms.get("swiglu"))
    assert parameters(treatment).total == pytest.approx(parameters(baseline).total, rel=0.02)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("moe", "moe"),
        ("MoE", "moe"),
        ("flash-attention", "flash_attention"),
        ("Flash Attention", "flash_attention"),
        (" FA ", "flash_attention"),
        ("Layer-Norm", "layernorm"),
        ("mixture-of-experts", "moe"),
        ("tp", "tensor_parallelism"),
    ],
)
def test_a_name_may_be_written_in_any_usual_way(written: str, canonical: str) -> None:
    assert algorithms.resolve(written) == canonical
    assert algorithms.get(written) is algorithms.get(canonical)


@pytest.mark.parametrize(
    ("written", "nearest"),
    [("flash_atention", "flash_attention"), ("muonn", "muon"), ("grouped_querry_attention", "gqa")],
)
def test_an_unknown_name_is_answered_with_the_nearest(written: str, nearest: str) -> None:
    with pytest.raises(UnknownAlgorithm) as error:
        algorithms.get(written)
    assert error.value.suggestions[0] == nearest
    assert len(set(error.value.suggestions)) == len(error.value.suggestions) <= algorithms.MAX_SUGGESTIONS
    message = str(error.value)
    assert "must be" in message, "the rule"
    assert repr(written) in message, "the value"
    assert nearest in message
    assert "`ceg list`" in message, "the remedy"


@pytest.mark.parametrize("written", ["", "qqqqqqq", "__init__"])
def test_a_name_like_no_other_is_refused_without_a_guess(written: str) -> None:
    with pytest.raises(UnknownAlgorithm) as error:
        algorithms.resolve(written)
    assert error.value.suggestions == ()
    assert "Did you mean" not in str(error.value)
    assert "`ceg list`" in str(error.value)


def test_looking_up_a_name_imports_that_file_and_no_heavy_package() -> None:
    code = (
        "import sys; from cegain import algorithms as a; a.names(); a.get('moe');"
        "print(*sorted(m for m in sys.modules if m.startswith('cegain.algorithms.')"
        " or m in ('torch', 'pandas', 'matplotlib')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["cegain.algorithms.moe"]
