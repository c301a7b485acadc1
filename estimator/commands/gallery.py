"""`ceg plot --gallery`: all pictures of this project, each made by the command that stands beside it in the index.

The pictures name the last commit that changed code or tables, so commit those first, then make the gallery.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cegain import algorithms
from cegain.gain import contrasts, evidence
from cegain.ladders import seed_ladder
from cegain.tables import kernel_times, training_runs
from cegain.views import kernel_families

INDEX = "README.md"
_OPENING = "# Gallery\n\nMade by `ceg plot --gallery"
"""How an index begins, by which a folder is known as a gallery."""
_RANGE = "1e17:1e26"
_PATTERNS = {
    "strided": "two kinds of heads, one near and one far",
    "fixed": "blocks, and summary columns that all later tokens see",
    "window": "near tokens only",
    "causal": "all earlier tokens",
}


class Picture(NamedTuple):
    """A file of the gallery, what it shows, and the arguments of `ceg` that draw it, without the file's name."""

    file: str
    shows: str
    arguments: tuple[str, ...]


def pictures() -> list[Picture]:
    """All pictures, in the order of the index; those of ladders and kernels by what is in the tables."""
    return [
        Picture("ceg.svg", "The gain against scale, for three algorithms", _plot("moe,rope,muon")),
        Picture("ceg_all.svg", "The same for every algorithm with a gain in FLOP", _plot(",".join(_answered()))),
        Picture("stacks.svg", "Combinations, their parts and the product of these", _plot("layernorm+rope,moe+rope")),
        Picture(
            "time.svg",
            "The gain in device time: what is faster counts too",
            _plot("flash_attention,moe,mqa", "--currency", "time", "--device", "h100", "--seq-len", "8192"),
        ),
        Picture(
            "decode.svg",
            "The gain in seconds per decoded token",
            _plot("mqa,gqa,moe", "--currency", "decode", "--device", "h100", "--seq-len", "8192"),
        ),
        Picture("classes.svg", "Does a gain depend on compute?", ("classify",)),
        Picture("scenario.svg", "Hardware frozen: what algorithms alone bring", ("scenario", "--freeze", "1e26")),
        Picture(
            "scenario_registry.svg",
            "The same at the registry's pace, with a stack in use already",
            ("scenario", "--freeze", "1e26", "--pace", "registry", "--stack", "moe,rope"),
        ),
        Picture("coverage.svg", "Are the intervals honest on the literature?", ("plot", "--coverage")),
        Picture("backtest.svg", "Are forecasts of ladders honest?", ("plot", "--backtest")),
        *_ladders(),
        *_kernels(),
        *(
            Picture(f"pattern_{name}.svg", f"{name} attention: {words}", ("plot", "--pattern", name))
            for name, words in _PATTERNS.items()
        ),
    ]


def _plot(algo: str, *options: str) -> tuple[str, ...]:
    return ("plot", "--algo", algo, "--flops", _RANGE, *options)


def _answered() -> list[str]:
    """Algorithms that published or own rows give a level in FLOP."""
    rows = evidence.load().rows
    questions = {
        name: contrasts.question(rows, name, algorithms.get(name).replaces[0], "flop") for name in algorithms.names()
    }
    return [name for name, question in questions.items() if any(row.fixes_level for row in question.used)]


def _ladders() -> Iterator[Picture]:
    """A picture for each algorithm and combination of our own runs."""
    if not training_runs.TRAINING_RUNS.exists():
        return
    for stack, runs in seed_ladder.load(training_runs.TRAINING_RUNS).items():
        for algorithm, treatment, against in runs.pairs:
            name = f"ladder_{stack}_{algorithm.replace('+', '_')}.svg"
            shows = f"Our own runs: {treatment} against {against} on the {stack} stack"
            yield Picture(name, shows, ("ladder", "--algo", algorithm, "--stack", stack))


def _kernels() -> Iterator[Picture]:
    """Every family of kernels on every device that has times of it, and the device's roofline."""
    if not kernel_times.KERNEL_TIMES.exists():
        return
    rows = kernel_times.load(kernel_times.KERNEL_TIMES)
    for device in sorted({row.device for row in rows}):
        of_device = [row for row in rows if row.device == device]
        end = "".join(letter if letter.isalnum() else "_" for letter in device.lower().replace(", ", "_"))
        for family, kind in kernel_families.FAMILIES.items():
            if any(kind.belongs(row) for row in of_device):
                shows = f"{kind.title}: times and rates on {device}"
                arguments = ("plot", "--kernels", family, "--device", device)
                yield Picture(f"kernels_{family}_{end}.svg", shows, arguments)
        if kernel_families.ceilings(of_device) is not None:
            shows = f"All operations under the roofline of {device}"
            yield Picture(f"roofline_{end}.svg", shows, ("plot", "--roofline", "--device", device))


def check(folder: Path) -> list[str]:
    """What is wrong with a folder: a gallery is put in the place of nothing, of an empty folder, or of a gallery."""
    if not folder.parent.is_dir():
        return [f"--gallery: the folder above it exists (found none at {str(folder.parent)!r}). Create it first."]
    if folder.exists() and not folder.is_dir():
        return [f"--gallery: a folder is needed (found the file {str(folder)!r}). Name a folder."]
    if not os.access(folder.parent, os.W_OK):
        return [f"--gallery: the folder above it can be written (found {str(folder.parent)!r}). Choose another."]
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [name for name in names if name != INDEX and not name.endswith(".svg")]
    if names and (others or INDEX not in names):
        some = ", ".join((others or names)[:3])
        return [f"--gallery: the folder is new, empty, or a gallery (found {some} in it). Choose another."]
    if names and not (folder / INDEX).read_text(encoding="utf-8", errors="replace").startswith(_OPENING):
        return [f"--gallery: the folder is new, empty, or a gallery (found another {INDEX} in it). Choose another."]
    return []


def make(folder: Path, chosen: Sequence[Picture] | None = None) -> list[Picture]:
    """Draw pictures and their index into a folder that replaces `folder` when all of it is there.

    Args:
        folder: see `check`.
        chosen: `pictures` without it.

    Raises:
        click.ClickException: of a command; the folder is then as it was.
        OSError: the folder cannot be written.
    """
    from cegain.commands.ceg import ceg

    drawn = pictures() if chosen is None else list(chosen)
    target = folder.resolve()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as place:
        new, old = Path(place, "new"), Path(place, "old")
        new.mkdir()
        for picture in drawn:
            with contextlib.redirect_stdout(io.StringIO()):
                ceg.main([*picture.arguments, "-o", str(new / picture.file)], standalone_mode=False)
        (new / INDEX).write_text(index(drawn), encoding="utf-8")
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    return drawn


def index(drawn: Sequence[Picture]) -> str:
    """The index as Markdown: a line and the command for each picture, and the picture."""
    lines = [
        "# Gallery",
        "",
        "Made by `ceg plot --gallery docs/gallery/`. Each picture says on its last line what it is made of; the commit",
        "there is the last one that changed code or tables.",
    ]
    for picture in drawn:
        words = " ".join(f'"{word}"' if " " in word else word for word in picture.arguments)
        command = f"`ceg {words} -o {picture.file}`"
        lines += ["", f"**{picture.shows}**", "", command, "", f"![{picture.shows}]({picture.file})"]
    return "\n".join(lines) + "\n"
