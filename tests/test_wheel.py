"""An installed wheel answers from any folder: its data came along, and it needs no checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("estimator", "kernels", "training", "benchmarks")
NEEDED_TO_ANSWER = ("click", "numpy", "rich", "scipy")
STAND_INS = {"kernels": "", "ceg": "[project.scripts]\nceg = 'ceg:main'\n"}
"""Packages on the public index that have a name of ours, and the command that one of them installs."""
pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy, so that no build folder is left in the checkout and no stale one gets into the wheel.
    source = tmp_path_factory.mktemp("source")
    kept = [p for p in ROOT.iterdir() if p.name in FOLDERS or p.is_file()]
    _run("cp", "-r", *kept, source, cwd=ROOT)
    isolation = ["--no-build-isolation"] if find_spec("setuptools") else []
    _run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-q", *isolation, "-w", folder, cwd=source)
    (built,) = folder.glob("cegain-*.whl")
    return built


def _environment(home: Path, python: str | Path = sys.executable) -> Path:
    """The scripts of a new, empty environment."""
    _run(python, "-m", "venv", "--without-pip", home, cwd=home.parent)
    return home / "bin"


def _pip(scripts: Path, *words: str | Path) -> None:
    _run(sys.executable, "-m", "pip", "--python", scripts / "python", *words, "-q", cwd=scripts)


def _sees_our_dependencies(scripts: Path) -> None:
    """By a plain path: the .pth files over there, such as the one of an editable install, are not read."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_run(scripts / "python", "-c", code, cwd=scripts).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")


def _answers(scripts: Path, cwd: Path) -> None:
    document = json.loads(_run(scripts / "ceg-estimate", "--algo", "moe", "--flops", "1e24", "--json", cwd=cwd))
    assert document["algorithms"] == ["moe"]
    assert document["estimates"][0]["evidence"]["rows_level"] > 0


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of a fresh environment that has the wheel, and sees only this one's dependencies."""
    scripts = _environment(tmp_path_factory.mktemp("here") / "venv")
    _pip(scripts, "install", "--no-deps", wheel)
    _sees_our_dependencies(scripts)
    return scripts


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Wheels of packages that are called as others' are."""
    wheels = tmp_path_factory.mktemp("stand_ins")
    for name, scripts in STAND_INS.items():
        source = tmp_path_factory.mktemp(name)
        (source / name).mkdir()
        (source / name / "__init__.py").write_text("def main():\n    print('not yours')\n")
        (source / "pyproject.toml").write_text(f"[project]\nname = '{name}'\nversion = '9'\n{scripts}")
        isolation = ["--no-build-isolation"] if find_spec("setuptools") else []
        _run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-q", *isolation, "-w", wheels, cwd=source)
    return sorted(wheels.glob("*.whl"))


def _pythons() -> list[str]:
    """Interpreters of other supported versions on this machine, on the path or where pyenv keeps them."""
    here = f"3.{sys.version_info.minor}"
    found = []
    for version in ("3.11", "3.12", "3.13"):
        kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
        python = shutil.which(f"python{version}") if version != here else None
        works = python and not subprocess.run([python, "--version"], capture_output=True, check=False).returncode
        found += [str(python)] if works else [str(kept[-1])] if kept and version != here else []
    return found


def test_data_is_in_the_wheel_and_tests_are_not(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    data = [f"cegain/data/{p.name}" for p in (ROOT / "estimator" / "data").iterdir() if p.suffix in (".csv", ".json")]
    assert data
    page = [
        f"cegain/{p.relative_to(ROOT / 'estimator').as_posix()}"
        for ending in ("html", "css", "js")
        for p in (ROOT / "estimator" / "explorer").rglob(f"*.{ending}")
    ]
    assert any(name.endswith("page.html") for name in page)
    assert {*data, *page} <= set(names)
    assert not [name for name in names if name.startswith("tests") or "__pycache__" in name]
    folders = {"cegain": "estimator", **{f"cegain/{name}": name for name in ("benchmarks", "kernels", "training")}}
    for package, folder in folders.items():
        sources = {f"{package}/{p.relative_to(ROOT / folder).as_posix()}" for p in (ROOT / folder).rglob("*.py")}
        assert sources <= set(names)
    assert {name.split("/")[0].split(".")[0].split("-")[0] for name in names} == {"cegain"}


def test_the_installed_command_answers_from_another_folder(installed: Path, tmp_path: Path) -> None:
    _answers(installed, tmp_path)
    where = _run(installed / "python", "-c", "import cegain; print(cegain.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    for command in (["list"], ["show", "moe"], ["paper"], ["--version"]):
        assert _run(installed / "ceg", *command, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command_writes_the_page(installed: Path, tmp_path: Path) -> None:
    _run(installed / "ceg", "report", "-o", "ceg.html", "--algo", "rope", cwd=tmp_path)
    (written,) = tmp_path.iterdir()
    assert '"start":{"algorithms":["rope"]' in written.read_text(encoding="utf-8")


@pytest.mark.parametrize("ours_first", [True, False])
def test_others_of_the_same_names_harm_nothing(
    wheel: Path, stand_ins: list[Path], tmp_path: Path, ours_first: bool
) -> None:
    scripts = _environment(tmp_path / "venv")
    _sees_our_dependencies(scripts)
    for one in [[wheel], stand_ins] if ours_first else [stand_ins, [wheel]]:
        _pip(scripts, "install", "--no-deps", *one)
    _answers(scripts, tmp_path)
    code = "import kernels, ceg, cegain.kernels.costs as costs; print(kernels.main, costs.__name__)"
    assert "cegain.kernels.costs" in _run(scripts / "python", "-c", code, cwd=tmp_path)
    _pip(scripts, "uninstall", "-y", *STAND_INS)
    _answers(scripts, tmp_path)
    _run(scripts / "python", "-c", "from cegain.kernels import costs, patterns", cwd=tmp_path)


@pytest.mark.parametrize("python", _pythons())
def test_other_versions_of_python_answer(wheel: Path, tmp_path: Path, python: str) -> None:
    scripts = _environment(tmp_path / "venv", python)
    _pip(scripts, "install", "--no-deps", wheel)
    _pip(scripts, "install", *NEEDED_TO_ANSWER)
    _answers(scripts, tmp_path)
