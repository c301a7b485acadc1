"""`ceg plot --kernels` and `--roofline`: pictures of a table, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cegain.commands.ceg import ceg
from cegain.pictures import kernels
from cegain.tables import kernel_times
from cegain.views import kernel_families
from tests.benchmarks.made_rows import BYTES_PER_S, DEVICE, FLOPS_PER_S, attention, mixture, session


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "kernel_times.csv"
    kernel_times.append(path, session())
    return path


def plot(*arguments: str | Path) -> Any:
    return CliRunner().invoke(ceg, ["plot", *map(str, arguments)])


@pytest.mark.parametrize("family", kernel_families.FAMILIES)
def test_every_family_is_drawn_with_its_lines_and_source(family: str, table: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.svg"
    found = plot("--kernels", family, "--times", table, "-o", picture)
    assert found.exit_code == 0, found.output
    said = picture.read_text().replace("\N{NO-BREAK SPACE}", " ")
    kind = kernel_families.FAMILIES[family]
    names = {row.implementation for row in kernel_times.load(table) if kind.belongs(row)}
    for text in (*names, "roofline", DEVICE, "commit abc1234", "100 TFLOP/s", "1 TB/s"):
        assert f"{text.replace('_', ' ')}" in said, text  # svg keeps texts in comments


def test_the_roofline_is_drawn(table: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.svg"
    assert plot("--roofline", "--times", table, "--device", "made", "-o", picture).exit_code == 0
    for text in (*kernel_families.FAMILIES, "matrix product", DEVICE):
        assert text in picture.read_text(), text


def test_the_latest_session_of_the_device_is_drawn() -> None:
    old = session()
    new = [row._replace(commit="def5678", date="2026-02-01", median_s=row.p20_s) for row in old[:8]]
    other = [row._replace(device="Other GPU", date="2026-03-01") for row in old]
    mine, whole = kernel_families.choose([*old, *new, *other], "made-up", kernel_families.FAMILIES["flash"].belongs)
    assert {row.commit for row in mine} == {"def5678"}
    assert whole == new


def test_ceilings_are_the_sessions_best() -> None:
    rows = session()
    slow = [row._replace(median_s=2 * row.median_s) for row in rows]
    found = kernel_families.ceilings([*slow, *rows])
    assert found is not None
    assert found.flops_per_s == pytest.approx(FLOPS_PER_S)
    assert found.bytes_per_s == pytest.approx(BYTES_PER_S)
    assert kernel_families.ceilings(rows[1:]) is None


def test_a_session_without_ceilings_is_drawn_without_roofline(tmp_path: Path) -> None:
    rows = [attention("flash", tokens, 0.5) for tokens in (512, 1024)]
    said = kernels.draw(rows, "flash", None, ".svg").decode()
    assert "No ceilings were measured" in said
    with pytest.raises(ValueError, match="gemm and copy rows"):
        kernels.draw_roofline(rows, None, ".svg")


def test_one_point_can_be_drawn_and_bytes_repeat() -> None:
    rows = [mixture("moe_dispatch", 512, 0.5)]
    assert kernels.draw(rows, "moe", None, ".svg") == kernels.draw(rows, "moe", None, ".svg")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kernels", "flsh"], "--kernels: one of flash, sparse, mqa, decode, moe is needed (found 'flsh')"),
        (["--kernels", "flash", "--roofline"], "--roofline: it goes without --kernels"),
        (["--kernels", "flash", "--algo", "moe"], "--kernels: it goes without --algo"),
        (["--roofline", "--pattern", "fixed"], "--roofline: it goes without --pattern"),
        (["--kernels", "flash", "--device", "H900"], f"one device of {DEVICE} is needed (found 'H900')"),
        (["--algo", "moe", "--flops", "1e20:1e24", "--times", "x"], "--times: it goes with --kernels or --roofline"),
    ],
)
def test_bad_questions_are_refused(arguments: list[str], said: str, table: Path, tmp_path: Path) -> None:
    times = [] if "--algo" in arguments and "--kernels" not in arguments else ["--times", table]
    found = plot(*arguments, *times, "-o", tmp_path / "x.png")
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())
    assert not (tmp_path / "x.png").exists()


def test_several_devices_need_a_name_and_bad_tables_are_refused(tmp_path: Path) -> None:
    rows = [attention("flash", 512, 0.5), attention("flash", 512, 0.5)._replace(device="Other GPU")]
    kernel_times.append(tmp_path / "t.csv", rows)
    found = plot("--kernels", "flash", "--times", tmp_path / "t.csv", "-o", tmp_path / "x.png")
    assert f"one device of {DEVICE}; Other GPU is needed (none was given)" in " ".join(found.output.split())
    (tmp_path / "t.csv").write_text("a,b\n")
    found = plot("--kernels", "flash", "--times", tmp_path / "t.csv", "-o", tmp_path / "x.png")
    assert found.exit_code == 2
    assert "the columns are device,op" in " ".join(found.output.split())
    found = plot("--kernels", "moe", "--times", tmp_path / "none.csv", "-o", tmp_path / "x.png")
    assert "the file can be read" in " ".join(found.output.split())
