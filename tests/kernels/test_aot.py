"""What `make aot` finds in the compiled kernels: two of them here, all of them among the slow tests."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from cegain.kernels import aot
from cegain.kernels.aot_case import AotCase

SAMPLE = [
    "flash_forward.fp16.d64.causal.sm90",
    # These come closest to more registers than there are, with the oldest Triton and with a newer one.
    "sparse_dkv.fp16.d64.heads.sm90",
    "sparse_dkv.fp16.d128.heads.sm90",
    "decode.fp16.d64.g16.n64.w4.sm90",
]
DOCS = Path(__file__).parents[2] / "docs"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m cegain.kernels.aot` in a process that compiles kernels rather than interpreting them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "cegain.kernels.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_part_keeps_the_rules() -> None:
    said = run("--arch", "90", "--jobs", "1", "--only", *SAMPLE)
    assert said.returncode == 0, said.stderr
    assert said.stderr == ""
    *lines, versions = said.stdout.splitlines()
    assert [line.split(" sm_90 ")[0] for line in lines] == SAMPLE
    for line in lines:
        found = re.search(r" registers (\d+) spilled 0 shared (\d+) (?:wgmma|mma|mma wgmma)$", line)
        assert found, line
        assert 16 <= int(found[1]) <= 255
        assert 1024 <= int(found[2]) <= aot.SHARED_LIMIT[90]
    assert "wgmma" in lines[0]
    assert lines[-1].endswith(" mma")
    assert versions.startswith(f"torch {torch.__version__} triton {triton.__version__} commit ")


def test_the_table_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(aot, "cases", lambda: {"some": case()})
    monkeypatch.setattr(aot, "compile_all", lambda names, capabilities, jobs: iter([row(spilled=8)]))
    assert aot.main(["--out", str(tmp_path / "aot.csv")]) == 1
    with (tmp_path / "aot.csv").open() as file:
        (read,) = csv.DictReader(file)
    assert list(read.values())[:7] == [str(value) for value in row(spilled=8)]
    assert read["triton"] == triton.__version__


@pytest.mark.slow
def test_all_keep_the_rules() -> None:
    said = run("--jobs", "2")
    assert said.returncode == 0, said.stderr


def test_what_training_needs_is_expected() -> None:
    """Matrix instructions of the largest size where rows are aligned, of the small one where decoding has few rows."""
    for name, found in aot.cases().items():
        kernel = name.split("_")[0].split(".")[0]
        width = found.constexprs.get("D", 0)
        if kernel in ("flash", "sparse") and not name.startswith("flash_delta"):
            rows = found.constexprs["BLOCK_N" if "_dkv." in name else "BLOCK_M"]
            # Blocks of masks that are smaller leave no larger tiles.
            aligned = width % 16 == 0 and width <= 128 and (".blocks" not in name or rows >= 64)
            assert not (aot.is_half(found) and aligned) or found.expects == "wgmma", name
        elif kernel == "decode" and ".g16." in name:
            assert found.expects == ("mma" if aot.is_half(found) else ""), name


def committed() -> list[dict[str, str]]:
    with (DOCS / "aot.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_committed_table_fits_the_code() -> None:
    """Each case where it is shipped, as it is now configured, within the rules; one commit and versions for all."""
    found = {(row["case"], row["arch"]): row for row in committed()}
    cases = {(name, f"sm_{c}"): case for name, case in aot.cases().items() for c in case.capabilities}
    assert list(found) == list(cases), "run make aot"
    for where, case in cases.items():
        texts = found[where]
        numbers = (int(texts[name]) for name in ("registers", "spilled", "shared"))
        row = aot.Row(*where, texts["configuration"], *numbers, texts["instructions"])
        assert row.configuration == aot.configuration(case), f"{where}: run make aot"
        assert aot.broken_rules(case, row) == []
    assert len({(row["torch"], row["triton"], row["commit"]) for row in found.values()}) == 1
    assert all(row["torch"] and row["triton"] and row["commit"] for row in found.values())


def test_documented_figures_are_those_of_the_table() -> None:
    """Rows of docs/kernels.md that start with a case's name hold what the table says of it on sm_90."""
    columns = ("configuration", "registers", "spilled", "shared", "instructions")
    table = {row["case"]: [row[name] for name in columns] for row in committed() if row["arch"] == "sm_90"}
    lines = [line.strip(" |").split(" | ") for line in (DOCS / "kernels.md").read_text().splitlines() if "|" in line]
    documented = {cells[0].strip("`"): cells[1:] for cells in lines if cells[0].strip("`") in table}
    assert len(documented) >= 8
    for name, cells in documented.items():
        assert [cell.replace(",", "") for cell in cells] == table[name], name


def case(pointer: str = "*fp16", width: int = 128, expects: str = "wgmma") -> AotCase:
    return AotCase("some", None, {"q": pointer}, {"D": width}, {}, 4, 2, expects)  # type: ignore[arg-type]


def row(arch: str = "sm_90", spilled: int = 0, shared: int = 1000, instructions: str = "mma wgmma") -> aot.Row:
    return aot.Row("some", arch, "num_warps=4 num_stages=2", 200, spilled, shared, instructions)


@pytest.mark.parametrize(
    ("of", "found", "broken"),
    [
        (case(), row(), None),
        (case(), row(spilled=8), "some sm_90: nothing may be spilled, 8 bytes are"),
        (case("*bf16", 64), row(spilled=8), "some sm_90: nothing may be spilled, 8 bytes are"),
        (case("*bf16", 256), row(spilled=8), None),
        (case("*fp32"), row(spilled=8), None),
        (case(), row("sm_80", spilled=8), None),
        (case(), row(shared=232_448), None),
        (case(), row(shared=232_449), "some sm_90: shared memory must be at most 232448 bytes, is 232449"),
        (case(), row("sm_80", shared=101_376), None),
        (case(), row("sm_80", shared=101_377), "some sm_80: shared memory must be at most 101376 bytes, is 101377"),
        (case(), row(instructions="mma"), "some sm_90: wgmma must be there, found mma"),
        (case(expects="mma"), row(instructions="wgmma"), "some sm_90: mma must be there, found wgmma"),
        (case(), row(instructions=""), "some sm_90: wgmma must be there, found no matrix instruction"),
        (case(), row("sm_80", instructions="mma"), None),
        (case(expects=""), row(instructions=""), None),
    ],
)
def test_rules(of: AotCase, found: aot.Row, broken: str | None) -> None:
    assert aot.broken_rules(of, found) == ([broken] if broken else [])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--only", "flash_sideways"], "--only must name cases, got flash_sideways; there are "),
        (["--arch", "90", "--only", "old", "some"], "shipped on --arch, got old; use --arch 80\n"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0; leave it out for all cores"),
        (["--only", "some", "--out", "x.csv"], "--out must not come with --only, got x.csv: a part would replace"),
        (["--out", "not/there/x.csv"], "--out must lie in a directory, got not/there/x.csv; make not/there first"),
        (["--out", "."], "--out must be a file, got the directory .; name a file in it"),
    ],
)
def test_arguments_are_refused_before_work(
    arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All problems at once: kernels that are interpreted are one of them."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(aot, "cases", lambda: {"some": case(), "old": case()._replace(capabilities=(80,))})
    monkeypatch.setattr(aot, "compile_all", lambda *_: pytest.fail("work was done"))
    with pytest.raises(SystemExit, match="2"):
        aot.main(arguments)
    said = capsys.readouterr().err
    assert "TRITON_INTERPRET must be unset" in said
    assert problem in said
