"""What `make aot` finds in the compiled kernels: two of them here, all of them among the slow tests."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import aot
from kernels.aot_case import AotCase

SAMPLE = ["flash_forward.fp16.d64.causal.sm90", "decode.fp16.d64.g16.n64.w4.sm90"]
DOCS = Path(__file__).parents[2] / "docs"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m kernels.aot` in a process that compiles kernels rather than interpreting them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_part_keeps_the_rules(tmp_path: Path) -> None:
    out = tmp_path / "aot.csv"
    said = run("--arch", "90", "--jobs", "1", "--out", str(out), "--only", *SAMPLE)
    assert said.returncode == 0, said.stderr
    with out.open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert list(rows) == SAMPLE
    for row in rows.values():
        assert 16 <= int(row["registers"]) <= 255
        assert 1024 <= int(row["shared"]) <= aot.SHARED_LIMIT[90]
        assert row["spilled"] == "0"
        assert row["torch"]
        assert row["triton"]
    assert "wgmma" in rows[SAMPLE[0]]["instructions"]
    assert rows[SAMPLE[-1]]["instructions"] == "mma"


@pytest.mark.slow
def test_all_keep_the_rules() -> None:
    said = run("--jobs", "2")
    assert said.returncode == 0, said.stderr


def test_what_training_needs_is_expected() -> None:
    """Matrix instructions of the largest size where rows are aligned, of the small one where decoding has few rows."""
    for name, found in aot.cases().items():
        kernel = name.split("_")[0].split(".")[0]
        width = found.constexprs.get("D", 0)
        if kernel in ("flash", "sparse") and not name.startswith("flash_delta") and ".blocks24." not in name:
            aligned = width % 16 == 0 and width <= 128
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
        (case(), row("sm_80", shared=166_913), "some sm_80: shared memory must be at most 166912 bytes, is 166913"),
        (case(), row(instructions="mma"), "some sm_90: wgmma must be there, found mma"),
        (case(expects="mma"), row(instructions="wgmma"), "some sm_90: mma must be there, found wgmma"),
        (case(), row(instructions=""), "some sm_90: wgmma must be there, found no matrix instruction"),
        (case(), row("sm_80", instructions="mma"), None),
        (case(expects=""), row(instructions=""), None),
    ],
)
def test_rules(of: AotCase, found: aot.Row, broken: str | None) -> None:
    assert aot.broken_rules(of, found) == ([broken] if broken else [])


def test_interpreted_kernels_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="2"):
        aot.main([])
    assert "TRITON_INTERPRET must be unset" in capsys.readouterr().err


def test_unknown_cases_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit, match="2"):
        aot.main(["--only", "flash_sideways"])
    assert "--only must name cases, got flash_sideways; there are " in capsys.readouterr().err
