"""Which room may import from which: the table, and that every file keeps to it; one name for every module."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"cegain.benchmarks": "benchmarks", "cegain.kernels": "kernels", "cegain.training": "training"}
FOLDERS |= {"cegain": "estimator"}
BARE = ("estimator", "kernels", "training", "benchmarks")
HEAVY = ("torch", "triton", "fvcore")
MOST_FILES = 16
"""Of a folder of `estimator` or `training`; the registry and the commands may have more."""

PLAIN = ("algorithms", "common")
ROOMS: dict[str, tuple[str, ...]] = {
    "kernels.costs": (),
    "kernels.patterns": (),
    "kernels": ("kernels.costs", "kernels.patterns"),
    "algorithms": (),
    "common": (),
    "paper": (),
    "tables": PLAIN,
    "run_tables": (*PLAIN, "tables"),
    "shapes": (*PLAIN, "kernels.costs", "kernels.patterns"),
    "speed": (*PLAIN, "tables", "shapes", "kernels.costs", "kernels.patterns"),
    "ladders": (*PLAIN, "tables", "run_tables", "shapes"),
    "comparison": (*PLAIN, "tables", "run_tables", "ladders"),
    "gain": (*PLAIN, "tables", "run_tables", "shapes", "speed", "ladders"),
    "checks": (*PLAIN, "tables", "ladders", "gain"),
    "views": (*PLAIN, "paper", "tables", "ladders", "gain"),
    "pictures": (*PLAIN, "tables", "ladders", "comparison", "gain", "checks", "views", "kernels.patterns"),
    "explorer": (
        *PLAIN, "tables", "shapes", "speed", "ladders", "gain", "checks", "views", "kernels.costs", "kernels.patterns",
    ),
    "training.models": ("common", "shapes", "kernels", "kernels.costs", "kernels.patterns"),
    "training.text": ("common",),
    "training.run": ("common", "tables", "shapes", "pictures", "kernels", "training.models", "training.text"),
    "training.sweeps": ("common", "tables", "shapes", "speed", "training.models", "training.text", "training.run"),
    "benchmarks": ("common", "tables", "shapes", "speed", "ladders", "kernels", "kernels.costs", "kernels.patterns"),
    "commands": (
        *PLAIN, "paper", "tables", "run_tables", "shapes", "speed", "ladders", "comparison", "gain", "checks",
        "views", "pictures", "explorer", "kernels.patterns",
    ),
    "training.commands": (
        "common", "tables", "shapes", "speed", "pictures", "commands", "training.models", "training.text",
        "training.run", "training.sweeps",
    ),
    "api": (
        *PLAIN, "tables", "run_tables", "speed", "ladders", "comparison", "gain", "checks", "pictures", "commands",
    ),
    "cegain": ("api", "run_tables"),
}  # fmt: skip
"""Room -> what its files may import besides their neighbours. A row names rooms of rows above it only."""
EXCEPTIONS = {
    ("benchmarks/test_training.py", "training.models"): "times a training step",
    ("benchmarks/test_training.py", "training.run"): "times a training step",
    ("benchmarks/test_sweep.py", "training.run"): "times a sweep",
    ("benchmarks/test_sweep.py", "training.sweeps"): "times a sweep",
    ("benchmarks/test_sweep.py", "training.text"): "times a sweep",
    ("benchmarks/cli_bench.py", "commands"): "is a command",
    ("benchmarks/gpu.py", "commands"): "is a command",
}
ABSOLUTE_PATH = re.compile(r"(?<![\w./~:])/(work|home|root|Users|mnt|media|srv|opt|tmp|scratch|data)/[\w.-]")
BARE_CALL = re.compile(rf"""-m["',\s]+({"|".join(BARE)})\.""")


def name_of(path: Path) -> str:
    """The dotted name that a file is imported under; tests have their own."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    package = next((package for package, folder in FOLDERS.items() if folder == parts[0]), parts[0])
    return ".".join([package, *parts[1:]]).removesuffix(".__init__")


def room_of(name: str) -> str:
    """The row of the table that a module belongs to."""
    parts = name.split(".")[1:]
    if not parts:
        return "cegain"
    for room in (".".join(parts[:2]), parts[0]):
        if room in ROOMS:
            return room
    return "training.commands" if parts[0] == "training" else "cegain"


def sources() -> dict[str, Path]:
    """All modules of the project, tests apart, by name."""
    return {name_of(path): path for folder in FOLDERS.values() for path in sorted((ROOT / folder).rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = (
                    [*name_of(path).split("."), "__init__"] if path.name == "__init__.py" else name_of(path).split(".")
                )
                base = ".".join([*parents[: -node.level], base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_files(path: Path, names: dict[str, Path]) -> set[str]:
    """Modules of the project that a file names; a package's empty `__init__` is no import of what is beside it."""
    found = {name for name in imports(path) if name in names}
    inner = {name for name in found if any(other.startswith(f"{name}.") for other in found)}
    return found - {name for name in inner if names[name].name == "__init__.py"} - {name_of(path)}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of two or more nodes that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += graph.get(node, ())
        reach[start] = seen
    groups = {tuple(sorted({a} | {b for b in reach[a] if a in reach.get(b, ())})) for a in graph if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def test_rows_name_rooms_above_them_only() -> None:
    rows = list(ROOMS)
    assert [(room, other) for i, room in enumerate(rows) for other in ROOMS[room] if other not in rows[:i]] == []


def test_every_file_keeps_to_its_row() -> None:
    names, breaches, used = sources(), [], set()
    for name, path in names.items():
        room, file = room_of(name), path.relative_to(ROOT).as_posix()
        for other in sorted(imported_files(path, names)):
            its = room_of(other)
            if (file, its) in EXCEPTIONS:
                used.add((file, its))
            elif its not in (room, *ROOMS[room]):
                breaches.append(f"{file} ({room}) imports {other} ({its})")
    assert breaches == []
    assert used == set(EXCEPTIONS)


def test_no_file_stands_in_the_hall() -> None:
    names = sources()
    lost = [name for name in names if room_of(name) == "cegain" and name != "cegain"]
    assert lost == []
    assert {room_of(name) for name in names} == set(ROOMS)


def test_no_circle_of_files() -> None:
    names = sources()
    assert circles({name: imported_files(path, names) for name, path in names.items()}) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}) == [["a", "b", "c"], ["e"]]


def test_folders_are_small() -> None:
    sizes: dict[Path, int] = {}
    for path in sources().values():
        sizes[path.parent] = sizes.get(path.parent, 0) + 1
    counted = {f.relative_to(ROOT).as_posix(): n for f, n in sizes.items()}
    free = ("estimator/algorithms", "estimator/commands", "kernels", "benchmarks")
    assert {folder: n for folder, n in counted.items() if n > MOST_FILES and folder not in free} == {}


def test_what_answers_never_imports_torch() -> None:
    light = {
        name: path for name, path in sources().items() if not name.startswith(("cegain.kernels", "cegain.training"))
    }
    light = {name: path for name, path in light.items() if not name.startswith("cegain.benchmarks")}
    light |= {f"cegain.kernels.{name}": ROOT / "kernels" / f"{name}.py" for name in ("costs", "patterns")}
    assert len(light) > 50
    assert [f"{p.name}: {n}" for p in light.values() for n in imports(p) if n.split(".")[0] in HEAVY] == []


def _ours() -> list[Path]:
    return [*sources().values(), *sorted((ROOT / "tests").rglob("*.py"))]


def test_no_file_imports_a_bare_top_level_name() -> None:
    found = [f"{path.relative_to(ROOT)}: {n}" for path in _ours() for n in imports(path) if n.split(".")[0] in BARE]
    assert found == []


def test_no_text_calls_a_module_by_a_bare_name() -> None:
    found = [f"{f.relative_to(ROOT)}: {m[0]}" for f in _tracked() for m in BARE_CALL.finditer(f.read_text("utf-8"))]
    assert found == []
    assert BARE_CALL.search("python -m " + "kernels.aot")


def test_no_package_imports_tests() -> None:
    assert [name for name, path in sources().items() if any(n.split(".")[0] == "tests" for n in imports(path))] == []


@pytest.mark.parametrize("benchmarks", [False, True])
def test_no_module_is_loaded_under_two_names(benchmarks: bool) -> None:
    pytest.importorskip("torch")
    code = f"""
import importlib, os, sys
import pytest
if {benchmarks}:
    assert pytest.main(["benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider"]) == 0
names = {sorted(n for n in sources() if "benchmarks" not in n and "_triton" not in n)!r}
for name in names:
    importlib.import_module(name)
seen = {{}}
for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None)
    if file and os.path.realpath(file).startswith({str(ROOT)!r} + os.sep) and "/.venv" not in file:
        seen.setdefault(os.path.realpath(file), {{}})[id(module)] = name
twice = [sorted(modules.values()) for modules in seen.values() if len(modules) > 1]
print(len(seen), twice)
sys.exit(bool(twice) or len(seen) < len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_walker_sees_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "kernels" / "deep").mkdir(parents=True)
    source = "def f():\n    import cegain.training.text.data\n    from .. import costs\n    from ...gain import study\n"
    path = tmp_path / "kernels" / "deep" / "x.py"
    path.write_text(source)
    assert list(imports(path)) == [
        "cegain.training.text.data", "cegain.kernels", "cegain.kernels.costs", "cegain.gain", "cegain.gain.study",
    ]  # fmt: skip


def test_the_list_of_packages_is_that_of_the_folders() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert tool["package-dir"] == dict(FOLDERS)
    folders = {name_of(path.parent / "__init__.py") for path in sources().values()}
    assert sorted(tool["packages"]) == sorted(folders)


def test_packages_are_docstrings() -> None:
    for path in sources().values():
        if path.name == "__init__.py" and path.parent.name not in ("estimator", "algorithms"):
            (only,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(only, ast.Expr), path


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


def test_no_file_holds_a_merge_that_was_left_half_done() -> None:
    pages = sorted((ROOT / "estimator" / "explorer").rglob("*.*s"))  # scripts and styles are no part of `_tracked`
    assert len(pages) > 10
    half = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
    assert [str(f.relative_to(ROOT)) for f in {*_tracked(), *pages} if half.search(f.read_text("utf-8"))] == []
    assert half.search("a\n" + "=" * 7 + "\nb")
