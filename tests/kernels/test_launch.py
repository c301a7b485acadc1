"""Which candidates run: by device, dtype and width, tuned or not; and what is compiled ahead of time."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from cegain.kernels import tuned
from cegain.kernels.aot_case import STRIDES, aot_case, aot_cases_of
from cegain.kernels.launch import MetaParameters, Tuning, _from_table, launch, padded, searching


@dataclass(frozen=True)
class Meta(MetaParameters):
    block_m: int
    num_warps: int
    num_stages: int


SMALL, LARGE, ODD = Meta(16, 4, 1), Meta(128, 8, 3), Meta(32, 4, 2)
TUNING = Tuning({80: {64: (LARGE, SMALL)}, 90: {64: (LARGE,), 256: (SMALL,)}}, {256: (SMALL,)}, ODD, {32: (ODD,)})
HALF = torch.float16


class Kernel:
    """Remembers its launches, and has arguments like a compiled one."""

    arg_names = ("x", "s_x", "n", "mask", "D", "BLOCK_M")

    def __init__(self) -> None:
        self.launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **options: self.launches.append((grid, arguments, options))


class TestTuning:
    @pytest.mark.parametrize(
        ("dtype", "width", "capability", "found"),
        [
            (HALF, 64, 80, (LARGE, SMALL)),
            (HALF, 64, 89, (LARGE, SMALL)),
            (HALF, 64, 90, (LARGE,)),
            (HALF, 64, 103, (LARGE,)),
            (HALF, 64, 110, (LARGE, SMALL)),
            (HALF, 64, 120, (LARGE, SMALL)),
            (torch.bfloat16, 80, 90, (SMALL,)),
            (HALF, 20, 90, (ODD,)),
            (torch.float32, 20, 90, (SMALL,)),
        ],
    )
    def test_candidates(self, dtype: torch.dtype, width: int, capability: int, found: tuple[Meta, ...]) -> None:
        assert TUNING.candidates(dtype, width, capability) == found

    def test_too_wide(self) -> None:
        with pytest.raises(ValueError, match="width must be at most 64, got 80"):
            TUNING.candidates(HALF, 80, 80)

    def test_one_when_interpreting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert TUNING.on(torch.ones(1), 300) == (ODD,)

    def test_padded(self) -> None:
        assert [padded(width) for width in (1, 16, 17, 64, 65, 256)] == [16, 16, 32, 64, 128, 256]


class TestLaunch:
    def test_the_first_candidate_where_nothing_is_tuned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, kernel = torch.ones(1), Kernel()
        monkeypatch.setenv("CEG_AUTOTUNE", "0")
        launch(kernel, (3,), (LARGE, SMALL), (x, 5), {"D": 8})
        monkeypatch.delenv("CEG_AUTOTUNE")
        launch(kernel, (3,), (LARGE,), (x, 5), {"D": 8})
        options = {"D": 8, "BLOCK_M": 128, "num_warps": 8, "num_stages": 3}
        assert kernel.launches == [((3,), (x, 5), options)] * 2

    def test_tuned_once_for_calls_that_are_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tuned: list[list[triton.Config]] = []

        def autotune(configs: list[triton.Config], key: list[str]) -> Any:
            tuned.append(configs)
            return lambda kernel: kernel

        monkeypatch.setattr(triton, "autotune", autotune)
        monkeypatch.delenv("CEG_AUTOTUNE", raising=False)
        x, kernel = torch.ones(1), Kernel()
        calls: list[tuple[torch.Tensor, int, int]] = [(x, 8, 1), (x, 8, 1), (x, 8, 2), (x, 16, 2), (x.half(), 16, 2)]
        for tensor, width, key in calls:
            launch(kernel, (3,), (LARGE, SMALL), (tensor, 5), {"D": width}, (key,))
        assert len(tuned) == 4
        assert [(c.kwargs, c.num_warps, c.num_stages) for c in tuned[0]] == [
            ({"BLOCK_M": 128}, 8, 3),
            ({"BLOCK_M": 16}, 4, 1),
        ]
        assert kernel.launches[0] == ((3,), (x, 5), {"D": 8})


class TestTable:
    """On a device whose name and tensors are made up: only names and versions decide what is found."""

    @pytest.fixture
    def tuned_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
        def write(kernel: Any, metas: tuple[Meta, ...], found: Meta, dtype: torch.dtype = torch.float32) -> None:
            launched = tuned.Launch.of(kernel, dtype, (7,), (("D", 8),), metas[0])
            entry = {**launched._asdict(), "meta": vars(found), "seconds": 1.0}
            (tmp_path / "tuned.json").write_text(json.dumps({"Made-up GPU": [entry]}))
            tuned.forget()
            _from_table.cache_clear()

        monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "tuned.json"))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Made-up GPU")
        yield write
        tuned.forget()
        _from_table.cache_clear()

    def find(self, kernel: Any, metas: tuple[Meta, ...], *alike: Any) -> Meta | None:
        return _from_table(kernel, metas, ("cuda:0", *alike))

    def test_what_was_found_runs_where_all_is_alike(self, tuned_for: Callable[..., None]) -> None:
        kernel, metas = Kernel(), (LARGE, SMALL)
        tuned_for(kernel, metas, ODD)
        assert self.find(kernel, metas, torch.float32, (7,), ("D", 8)) == ODD
        assert self.find(kernel, metas, torch.float16, (7,), ("D", 8)) is None
        assert self.find(kernel, metas, torch.float32, (8,), ("D", 8)) is None
        assert self.find(kernel, metas, torch.float32, (7,), ("D", 16)) is None
        assert self.find(kernel, (SMALL, LARGE), torch.float32, (7,), ("D", 8)) is None  # tables for other tiles
        assert _from_table(kernel, metas, ("cpu", torch.float32, (7,), ("D", 8))) is None

    def test_no_table_and_an_empty_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for content in (None, "", "{}"):
            if content is not None:
                (tmp_path / "t.json").write_text(content)
            monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "t.json"))
            tuned.forget()
            assert tuned.find("any", tuned.Launch("", "", "", "", "")) is None
        tuned.forget()

    def test_names_tell_kernels_of_one_name_apart(self) -> None:
        from cegain.kernels import block_sparse_triton, flash_triton

        both = (flash_triton.forward_kernel, block_sparse_triton.forward_kernel)
        names = {tuned.Launch.of(one, HALF, (), (), SMALL).kernel for one in both}
        assert names == {"flash_triton.forward_kernel", "block_sparse_triton.forward_kernel"}

    def test_the_projects_own(self) -> None:
        for device, entries in json.loads(tuned.TABLE.read_text()).items():
            assert device
            for entry in entries:
                assert set(tuned.Launch._fields) | {"meta", "seconds", "default_seconds", "triton", "commit"} <= set(
                    entry
                )
                assert entry["seconds"] <= entry["default_seconds"]

    def test_a_search_sees_every_launch_and_the_default_runs_after_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CEG_AUTOTUNE", "0")
        x, kernel = torch.ones(1), Kernel()
        seen: list[Any] = []
        with searching(lambda *given: seen.append(given)):
            launch(kernel, (3,), (LARGE, SMALL), (x, 5), {"D": 8}, (7,))
        launch(kernel, (3,), (LARGE, SMALL), (x, 5), {"D": 8}, (7,))
        assert seen == [(kernel, (3,), (LARGE, SMALL), (x, 5), {"D": 8}, (7,))]
        assert [options["BLOCK_M"] for _, _, options in kernel.launches] == [128, 128]


class TestCases:
    def test_signature(self) -> None:
        types = {"x": "*fp16", "s_x": STRIDES, "n": "i32", "unused": "i32"}
        case = aot_case("some", Kernel(), types, {"mask": None, "D": 64, "E": 1}, SMALL, "mma", (90,), ("n",))
        assert case.signature == {
            "x": "*fp16", "s_x": STRIDES, "n": "i32", "mask": "constexpr", "D": "constexpr", "BLOCK_M": "constexpr"
        }  # fmt: skip
        assert case.constexprs == {(1, 3): 1, "mask": None, "D": 64, "BLOCK_M": 16}
        assert set(case.attrs) == {(0,), (1, 0), (1, 1), (1, 2), (2,)}
        assert (case.num_warps, case.num_stages, case.expects, case.capabilities) == (4, 1, "mma", (90,))

    def test_rows_that_start_anywhere(self) -> None:
        types = {"x": "*fp16", "s_x": STRIDES, "n": "i32"}
        case = aot_case("some", Kernel(), types, {"mask": None, "D": 60}, SMALL, "", aligned=False)
        assert set(case.attrs) == {(0,)}

    def test_names_of_candidates(self) -> None:
        types = {"x": "*fp16", "s_x": STRIDES, "n": "i32", "mask": "*i8", "D": "i32"}
        cases = aot_cases_of("some", Kernel(), types, {}, (SMALL, LARGE), "", (80, 90))
        found = [(case.name, case.constexprs["BLOCK_M"], case.capabilities) for case in cases]
        assert found == [("some", 16, (80, 90)), ("some.2", 128, (80,))]

    def test_every_argument_is_given(self) -> None:
        with pytest.raises(ValueError, match="every argument must have a type or a value, s_x, mask have none"):
            aot_case("some", Kernel(), {"x": "*fp16", "n": "i32"}, {"D": 64}, SMALL, "")
