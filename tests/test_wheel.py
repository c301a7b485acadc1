"""An installed wheel answers from any folder: its data came along, and it needs no checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
    kept = [p for p in ROOT.iterdir() if p.name in ("estimator", "kernels", "training", "benchmarks") or p.is_file()]
    _run("cp", "-r", *kept, source, cwd=ROOT)
    isolation = ["--no-build-isolation"] if find_spec("setuptools") else []
    _run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-q", *isolation, "-w", folder, cwd=source)
    (built,) = folder.glob("cegain-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of a fresh environment that has the wheel, and sees only this one's dependencies."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "-q", wheel, cwd=home)
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    # A plain path: the .pth files over there, such as the one of an editable install, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


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
    out = _run(installed / "ceg-estimate", "--algo", "moe", "--flops", "1e24", "--json", cwd=tmp_path)
    document = json.loads(out)
    assert document["algorithms"] == ["moe"]
    assert document["estimates"][0]["evidence"]["rows_level"] > 0
    where = _run(installed / "python", "-c", "import cegain; print(cegain.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    for command in (["list"], ["show", "moe"], ["paper"], ["--version"]):
        assert _run(installed / "ceg", *command, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command_writes_the_page(installed: Path, tmp_path: Path) -> None:
    _run(installed / "ceg", "report", "-o", "ceg.html", "--algo", "rope", cwd=tmp_path)
    (written,) = tmp_path.iterdir()
    assert '"start":{"algorithms":["rope"]' in written.read_text(encoding="utf-8")
