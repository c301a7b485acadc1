"""`ceg plot --gallery`: all pictures at once or none, and the committed ones are those that it makes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cegain.checks import backtest_scores
from cegain.commands import gallery
from cegain.commands.ceg import ceg
from cegain.commands.gallery import Picture
from cegain.pictures import scores
from cegain.tables import provenance

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "docs" / "gallery"
FAST = ("pattern_window.svg", "coverage.svg", "backtest.svg")


def some() -> list[Picture]:
    return [picture for picture in gallery.pictures() if picture.file in FAST]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_pictures_and_index_replace_an_older_gallery_and_are_the_same_twice(tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    gallery.make(folder, some())
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {*FAST, gallery.INDEX}
    (folder / "of_before.svg").touch()
    gallery.make(folder, some())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert names(tmp_path) == {"gallery"}
    for name in FAST:
        assert b"<svg" in first[name]
        assert f"Source: ceg {provenance.version('cegain')}" in first[name].decode()


def test_a_failing_picture_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    gallery.make(folder, some()[:1])
    before = names(folder)
    with pytest.raises(click.ClickException):
        gallery.make(folder, [*some(), Picture("x.svg", "nothing", ("plot", "--pattern", "none"))])
    assert names(folder) == before
    assert names(tmp_path) == {"gallery"}


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for folder, said in ((tmp_path, "found notes.txt in it"), (tmp_path / "a" / "b", "the folder above it exists")):
        found = CliRunner().invoke(ceg, ["plot", "--gallery", str(folder), "--algo", "moe"])
        assert found.exit_code == 2
        assert said in " ".join(found.output.split())
        assert "--gallery: it goes without --algo" in found.output
    assert names(tmp_path) == {"notes.txt"}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("# My own figures\n")
    (mine / "figure.svg").touch()
    found = CliRunner().invoke(ceg, ["plot", "--gallery", str(mine)])
    assert found.exit_code == 2
    assert "found another README.md in it" in " ".join(found.output.split())
    assert names(mine) == {"README.md", "figure.svg"}


def test_the_committed_gallery_has_the_files_and_the_index_that_the_command_makes() -> None:
    if not COMMITTED.exists():
        pytest.skip("installed without the repository")
    found = gallery.pictures()
    assert names(COMMITTED) == {*(picture.file for picture in found), gallery.INDEX}, "run `ceg plot --gallery`"
    assert (COMMITTED / gallery.INDEX).read_text(encoding="utf-8") == gallery.index(found)


def test_commands_of_the_index_are_those_that_draw() -> None:
    found = gallery.pictures()
    commands = re.findall(r"^`ceg (.*)`$", gallery.index(found), re.MULTILINE)
    assert [shlex.split(command) for command in commands] == [[*p.arguments, "-o", p.file] for p in found]


@pytest.mark.slow
def test_the_whole_gallery(tmp_path: Path) -> None:
    made = CliRunner().invoke(ceg, ["plot", "--gallery", str(tmp_path / "all")])
    assert made.exit_code == 0, made.output
    assert names(tmp_path / "all") == {*(picture.file for picture in gallery.pictures()), gallery.INDEX}


def test_points_of_the_stored_backtests_are_those_of_its_summary() -> None:
    for entry in backtest_scores.load():
        columns = entry["points"]
        counts = {s["set"]: s["points"] for s in entry["summary"] if s["cut"] == "all" and s["method"] == "forecast"}
        for name in dict.fromkeys(columns["set"]):
            at = [i for i, owner in enumerate(columns["set"]) if owner == name]
            assert counts[name] == len(at)
            inside = sum(columns["low"][i] <= columns["actual"][i] <= columns["high"][i] for i in at)
            (share,) = {
                s["coverage_90"]
                for s in entry["summary"]
                if (s["set"], s["cut"], s["method"]) == (name, "all", "forecast")
            }
            assert share == pytest.approx(inside / len(at), abs=1e-3)


def test_without_stored_points_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="points are stored"):
        scores.draw_backtest([], ".svg")


def test_the_commit_of_pictures_is_the_last_one_that_changed_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    ask = provenance.code_commit.__wrapped__
    assert ask() == ""
    git("init", "-q")
    for name in ("estimator/a.py", "docs/x.svg", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        git("add", name)
        git("commit", "-qm", name)
    of_code = git("log", "--format=%H", "--", "estimator")
    assert ask() == of_code[:10]
    assert git("rev-parse", "HEAD") != of_code
    (tmp_path / "docs" / "x.svg").write_text("drawn again")
    assert ask() == of_code[:10]
    (tmp_path / "estimator" / "a.py").write_text("other")
    assert ask() == f"{of_code[:10]} and changes"
