"""What documents say of the code is so: files, modules, links, rooms, words, and the way to an answer."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

import cegain
from tests import answer_path
from tests.test_layers import ROOMS, sources

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="installed without the repository")
TOUR, GLOSSARY, LOG = ROOT / "docs" / "tour.md", ROOT / "docs" / "glossary.md", ROOT / "CHANGELOG.md"
DOCUMENTS = [ROOT / "README.md", LOG, ROOT / "estimator" / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FILE = re.compile(r"[\w.-]+\.(?:py|js|md|csv|json|jsonl|toml|html|svg|png|txt)")
PATH = re.compile(r"(?<![\w./-])(?:docs|estimator|kernels|training|benchmarks|tests)/[\w./-]*(?<![.-])")
WRITTEN = {
    "config.json", "environment.json", "failures.jsonl", "log.txt", "loss.png", "metrics.jsonl", "results.json",
    "runs/failures.jsonl", "steps.txt", "summary.json", "tests.txt",
}  # fmt: skip
"""Files that commands write, and that are not part of the repository."""
EXAMPLES = {"ceg.html", "ceg.svg", "x.svg", "trainer_state.json"}
"""Names in commands that a reader may choose."""
OTHERS = {"ceg", "evidence", "nats", "torch"}
"""What stands before the dot in names that are no modules of ours: schemas, keys of JSON, other packages."""
FORMER = {"estimator", "kernels", "training"}
"""The same in the changelog, which says what things were called."""


def spans(text: str) -> list[str]:
    """Inline code, with one space for every break; fenced blocks are left out."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).exists()]


def missing_files(text: str, folder: Path, names: set[str]) -> list[str]:
    """Paths and names of files in a document that are not there."""
    missing = [path for path in PATH.findall(text) if not _exists(path)]
    for span in spans(text):
        if not re.fullmatch(r"[\w./-]+", span) or not FILE.fullmatch(span.rpartition("/")[2]):
            continue
        if span in WRITTEN | EXAMPLES or PATH.fullmatch(span):
            continue
        if not (folder / span).exists() and (("/" in span and not (ROOT / span).exists()) or span not in names):
            missing.append(span)
    return missing


def _exists(path: str) -> bool:
    # What was measured on a device comes with the measurement.
    return path.startswith("benchmarks/results/") or (ROOT / path).exists()


def missing_names(text: str, modules: dict[str, Path], former: Collection[str] = ()) -> list[str]:
    """Names `cegain.room.module...` anywhere, and `module.name` in inline code, that the code does not have."""
    missing = [name for name in re.findall(r"(?<![\w./-])cegain(?:\.\w+)+", text) if not _is_there(name, modules)]
    by_file: dict[str, list[Path]] = {}
    for name, path in modules.items():
        by_file.setdefault(name.rpartition(".")[2], []).append(path)
    for span in spans(text):
        call = re.match(r"([a-z]\w*)\.([A-Za-z]\w*)(?=$|\()", span)
        if not call or FILE.fullmatch(span) or call[1] in OTHERS.union(former) or call[1] == "cegain" or span in ROOMS:
            continue
        if not any(_defines(path, call[2]) for path in by_file.get(call[1], ())):
            missing.append(span)
    return missing


def _is_there(name: str, modules: dict[str, Path]) -> bool:
    module, _, attribute = name.rpartition(".")
    return (
        name in modules
        or (module == "cegain" and attribute in cegain.__all__)
        or (module in modules and _defines(modules[module], attribute))
    )


def _defines(path: Path, name: str) -> bool:
    text = path.read_text(encoding="utf-8")
    return re.search(rf"^\s*(?:def|class) {name}\b|^{name}\b.*=|^\s+{name}: ", text, re.MULTILINE) is not None


def broken_links(text: str, folder: Path) -> list[str]:
    """Targets of links inside the repository that are not there, headings included."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, heading = target.partition("#")
        there = not path or (folder / path).exists()
        if there and heading:
            there = heading in anchors((folder / path).read_text("utf-8") if path else text)
        if not there:
            broken.append(target)
    return broken


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_rows(text: str) -> Iterator[list[str]]:
    """Cells of every row of every table, the heads left out."""
    lines = text.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("| ") and not re.match(r"\|[-| ]+\|$", below):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_files_modules_and_links_that_are_there(document: Path) -> None:
    text, names = document.read_text("utf-8"), {path.name for path in tracked()}
    assert missing_files(text, document.parent, names) == []
    assert missing_names(text, sources(), FORMER if document == LOG else ()) == []
    assert broken_links(text, document.parent) == []


def test_what_is_not_there_is_found() -> None:
    text = "`estimator/hierarchy.py`, `rival.py`, `tests/no/`, `paired.read()`, cegain.kernels.fast [a](b.md) [c](#d)\n"
    assert missing_files(text, ROOT, {"a.py"}) == ["estimator/hierarchy.py", "tests/no/", "rival.py"]
    assert missing_names(text, sources()) == ["cegain.kernels.fast", "paired.read()"]
    assert broken_links(text, ROOT) == ["b.md", "#d"]


def eight_files() -> set[str]:
    eight = re.findall(r"^\d\. `([\w./]+)`", TOUR.read_text("utf-8"), re.MULTILINE)
    assert len(eight) == 8
    return set(eight)


def test_the_eight_files_are_loaded_for_an_answer() -> None:
    code = f"""
import os, sys
sys.argv = {answer_path.QUESTION!r}
from cegain.commands.ceg import estimate_command
try:
    estimate_command()
finally:
    loaded = [module.__file__ for name, module in sys.modules.items() if name.startswith("cegain.")]
    print(*(os.path.realpath(path) for path in loaded), sep="\\n", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {Path(line) for line in done.stderr.splitlines()}
    assert {name for name in eight_files() if ROOT / name not in loaded} == set()


@pytest.mark.slow
def test_an_answer_goes_through_the_eight_files() -> None:
    assert eight_files() <= set(answer_path.entered())


def test_the_rooms_of_the_tour_are_those_of_the_table() -> None:
    (section,) = re.findall(r"^## The rooms\n(.*?)^## ", TOUR.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    rows = [cells for cells in table_rows(section) if len(cells) == 3]
    assert [room.strip("`") for room, _, _ in rows] == list(ROOMS)


def test_every_word_stands_in_the_files_that_the_glossary_names() -> None:
    rows = [cells for cells in table_rows(GLOSSARY.read_text("utf-8")) if len(cells) == 4]
    assert len(rows) > 80
    lost = []
    for words, _, _, where in rows:
        files = [ROOT / name for name in re.findall(r"`([^`]+)`", where)]
        assert files, words
        text = " ".join(" ".join([file.stem, *file.read_text("utf-8").lower().split()]) for file in files)
        for word in re.sub(r" \([^)]*\)|`", "", words.lower()).split(", "):
            pattern = r"\b" + re.sub(r"[ _-]", "[ _-]", re.escape(word).replace(r"\ ", " ").replace(r"\-", "-"))
            if not re.search(pattern, text):
                lost.append(f"{word}: {where}")
    assert lost == []
