"""Import direction, and no machine in the project's text: `kernels` is a leaf, `estimator` never needs torch."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import estimator
import kernels

ROOT = Path(__file__).parent.parent
OURS = ("estimator", "kernels", "training", "benchmarks", "tests")
HEAVY = ("torch", "triton", "fvcore")
ABSOLUTE_PATH = re.compile(r"(?<![\w./~:])/(work|home|root|Users|mnt|media|srv|opt|tmp|scratch|data)/[\w.-]")


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = path.relative_to(ROOT).parts[: -node.level]
                base = ".".join([*parents, base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _of_ours(path: Path) -> set[str]:
    return {name for name in _imports(path) if name.split(".")[0] in OURS}


def _breaches(package: str, allowed: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _sources(package)
        for name in sorted(_of_ours(path))
        if name not in allowed and not any(name.startswith(f"{a}.") for a in allowed)
    ]


def test_kernels_import_nothing_of_ours_but_kernels() -> None:
    assert _breaches("kernels", ("kernels",)) == []


def test_estimator_uses_only_two_modules_of_kernels() -> None:
    # `from kernels import costs` names `kernels` itself, which is an empty package.
    found = _breaches("estimator", ("estimator", "kernels.costs", "kernels.patterns"))
    assert [b for b in found if not b.endswith(" imports kernels")] == []


@pytest.mark.parametrize("package", ["estimator", "kernels/costs.py", "kernels/patterns.py"])
def test_estimator_and_what_it_uses_never_import_torch(package: str) -> None:
    paths = [ROOT / package] if package.endswith(".py") else _sources(package)
    assert paths
    assert [f"{p.name}: {n}" for p in paths for n in _imports(p) if n.split(".")[0] in HEAVY] == []


def test_training_and_benchmarks_never_import_each_other() -> None:
    assert _breaches("training", ("training", "estimator", "kernels")) == []
    # Two benchmarks time training: a step, and a sweep.
    found = _breaches("benchmarks", ("benchmarks", "estimator", "kernels"))
    allowed = tuple(f"benchmarks/{name} imports training" for name in ("test_training.py", "test_sweep.py"))
    assert [b for b in found if not b.startswith(allowed)] == []


def test_no_package_imports_tests() -> None:
    for package in OURS[:-1]:
        assert not [p for p in _sources(package) if any(n.split(".")[0] == "tests" for n in _imports(p))]


def test_the_walker_sees_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "kernels" / "deep").mkdir(parents=True)
    source = "def f():\n    import training.data\n    from .. import costs\n    from ...estimator import gain\n"
    (tmp_path / "kernels" / "deep" / "x.py").write_text(source)
    found = _breaches("kernels", ("kernels",))
    assert [b.split()[-1] for b in found] == ["estimator", "estimator.gain", "training.data"]


def test_kernels_is_ours() -> None:
    assert kernels.__file__ is not None
    assert estimator.__file__ is not None
    assert Path(kernels.__file__).parent.parent == Path(estimator.__file__).parent.parent


def test_kernels_package_is_a_docstring() -> None:
    body = ast.parse((ROOT / "kernels" / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def _tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.md", "*.toml", "*.csv", "*.json", "*.yml"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def test_project_text_names_no_path_of_a_machine() -> None:
    files = [f for f in _tracked() if f != Path(__file__)]
    assert len(files) > 10
    found = [
        f"{file.relative_to(ROOT)}:{i}: {line.strip()}"
        for file in files
        for i, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if ABSOLUTE_PATH.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("text", ['open("/home/me/x")', "see /srv/x", "`/tmp/out.csv`"])
def test_the_pattern_finds_paths(text: str) -> None:
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("text", ["https://x.org/home/a", "estimator/data/x.csv", "FLOP/s per token", "1/work"])
def test_the_pattern_lets_other_slashes_pass(text: str) -> None:
    assert not ABSOLUTE_PATH.search(text)
