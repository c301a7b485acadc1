"""Which backend runs, and how arguments are refused."""

import pytest
import torch

from cegain.kernels.backend import BACKENDS, OPS, Checks, choose, explain

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class TestChoose:
    @pytest.mark.parametrize("op", OPS)
    def test_auto_is_torch_on_a_cpu_whether_a_kernel_exists_or_not(
        self, op: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for exists in (False, True):
            monkeypatch.setitem(OPS, op, exists)
            chosen, why = choose(op, "auto", CPU)
            assert chosen == "torch"
            assert "tensors are on cpu" in why

    def test_auto_is_triton_on_cuda_where_the_kernel_exists(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(OPS, "flash_attention", True)
        monkeypatch.setitem(OPS, "mqa_decode", False)
        assert choose("flash_attention", "auto", CUDA)[0] == "triton"
        assert choose("mqa_decode", "auto", CUDA) == ("torch", "there is no Triton kernel for mqa_decode")

    @pytest.mark.parametrize("device", [CPU, CUDA])
    @pytest.mark.parametrize("backend", ["torch", "reference"])
    def test_a_named_backend_is_taken(self, backend: str, device: torch.device) -> None:
        assert choose("flash_attention", backend, device) == (backend, "asked for")

    def test_triton_is_refused_where_it_cannot_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(OPS, "flash_attention", True)
        monkeypatch.setitem(OPS, "mqa_decode", False)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        assert choose("flash_attention", "triton", CUDA) == ("triton", "asked for")
        with pytest.raises(ValueError, match="backend 'triton' must get CUDA tensors, got cpu; use auto or torch"):
            choose("flash_attention", "triton", CPU)
        with pytest.raises(ValueError, match="must have a kernel for mqa_decode, there is none; use auto or torch"):
            choose("mqa_decode", "triton", CUDA)

    def test_the_interpreter_runs_triton_anywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert choose("flash_attention", "triton", CPU) == ("triton", "asked for")
        assert choose("flash_attention", "auto", CPU)[0] == "torch"

    def test_what_a_kernel_does_not_take(self) -> None:
        assert choose("flash_attention", "auto", CUDA, "float64") == (
            "torch",
            "the Triton kernel for flash_attention does not take float64",
        )
        with pytest.raises(ValueError, match="got float64; use auto or torch"):
            choose("flash_attention", "triton", CUDA, "float64")

    def test_devices_that_no_kernel_is_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        why = "Triton kernels are not for a device of compute capability 7.5, below 8.0"
        assert choose("flash_attention", "auto", CUDA) == ("torch", why)
        assert f"flash_attention: torch ({why})" in explain("cuda").splitlines()
        with pytest.raises(ValueError, match=r"for, got compute capability 7\.5, below 8\.0; use auto or torch"):
            choose("flash_attention", "triton", CUDA)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        assert choose("flash_attention", "auto", CUDA)[0] == "triton"

    def test_asking_a_device_leaves_one_graph(self) -> None:
        def op(x: torch.Tensor) -> torch.Tensor:
            return x + (choose("flash_attention", "auto", CUDA)[0] == "triton")

        compiled = torch.compile(op, fullgraph=True, backend="eager")
        assert compiled(torch.zeros(1)) == op(torch.zeros(1))

    def test_unknown_backend(self) -> None:
        with pytest.raises(ValueError, match=f"backend must be one of {', '.join(BACKENDS)}, got 'cuda'; use auto"):
            choose("flash_attention", "cuda", CPU)


class TestExplain:
    def test_one_line_for_each_operation(self) -> None:
        lines = explain("cpu").splitlines()
        assert [line.split(":")[0] for line in lines] == list(OPS)
        assert all(": torch (tensors are on cpu" in line for line in lines)

    def test_a_refusal_is_a_line_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(OPS, "flash_attention", True)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        lines = explain("cpu", "triton").splitlines()
        assert len(lines) == len(OPS)
        assert lines[0].startswith("flash_attention: refused (backend 'triton' must get CUDA tensors")


class TestChecks:
    def test_nothing_wrong(self) -> None:
        checks = Checks("op")
        checks.tensors(x=torch.zeros(2), y=torch.zeros(3))
        assert checks.shape("x", torch.zeros(2, 3), "[A, B]", [2, None])
        checks.that(True, "n", "be 1", 2, "give 1")
        checks.done()

    def test_every_problem_is_said(self) -> None:
        checks = Checks("op")
        checks.tensors(x=torch.zeros(2), y=torch.zeros(3).double(), z=torch.zeros(3, device="meta"))
        assert not checks.shape("x", torch.zeros(2, 3), "[A, B]", [None, 4])
        assert not checks.shape("y", torch.zeros(3), "[A, B]", [3, None])
        checks.that(False, "n", "be 1", 2, "give 1")
        with pytest.raises(ValueError, match=r"^op: ") as error:
            checks.done()
        assert str(error.value).removeprefix("op: ").splitlines() == [
            "y must have x's dtype torch.float32, got torch.float64; convert it",
            "z must be on x's device cpu, got meta; move it",
            "x must be [A, B] = [any, 4], got [2, 3]; reshape it",
            "y must be [A, B] = [3, any], got [3]; reshape it",
            "n must be 1, got 2; give 1",
        ]

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    def test_dtypes_that_are_no_floats(self, dtype: torch.dtype) -> None:
        checks = Checks("op")
        checks.tensors(x=torch.zeros(2, dtype=dtype))
        with pytest.raises(ValueError, match=f"x must be float16, bfloat16, float32 or float64, got {dtype}"):
            checks.done()
