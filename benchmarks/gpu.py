"""Everything that is measured on a machine with a GPU, by one command, in slices that fit a short loan of it.

    python3 -m cegain.benchmarks.gpu --out DIR              # all slices, one after another
    python3 -m cegain.benchmarks.gpu --out DIR --slice tests:200,attention   # some, and for how many seconds
    python3 -m cegain.benchmarks.gpu --out DIR --rehearse   # all of them, tiny, on a CPU: nothing of it is a result

Needs the machine's own python3 with torch, triton, numpy, scipy, click and rich, and no network. Every slice works in
processes of its own, writes what it has after each case, goes on where it was stopped, and ends in its time. What is
kept between calls lies in --work; --out gets a copy of every result as it is written. See docs/gpu.md.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import click

from cegain.benchmarks.gpu_processes import LADDERS, Place, ladder, says, steps, tests
from cegain.commands.options import BadInput, Command
from cegain.tables import provenance

SECONDS = 540
"""Of a slice: a minute less than the ten that such machines often give a command."""
GRACE = 20.0
"""Seconds past its time in which a slice's process may end by itself, before it is ended."""
KERNEL_SLICES = ("ceilings", "attention", "sparse", "decode", "moe")
SLICES = ("tests", "ceilings", "tune", "attention", "moe", "decode", "sparse", "steps", *LADDERS)
"""In the order in which `all` takes them."""


@click.command("gpu", cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", metavar="DIR", help="Where results are copied to: at most eight files.")
@click.option(
    "--slice", "names", default="all", metavar="NAME[:N][,...]",
    help=f"{', '.join(SLICES)}, or all (all). NAME:N gives one N seconds.",
)  # fmt: skip
@click.option("--seconds", type=float, default=SECONDS, metavar="N", help=f"Time of each other slice ({SECONDS}).")
@click.option("--work", default=".gpu", metavar="DIR", help="What is kept between calls, caches too (.gpu).")
@click.option("--corpus", default="corpora/library-40m", metavar="DIR", help="Of ladders (corpora/library-40m).")
@click.option("--jobs", type=int, default=16, metavar="N", help="Models of a ladder that share the card (16).")
@click.option("--commit", metavar="NAME", help="Of the code, where the tree came without its repository.")
@click.option("--mps", is_flag=True, help="Let processes share the card through NVIDIA's multi-process service.")
@click.option("--force", is_flag=True, help="Begin a ladder that does not fit its time; what ends counts.")
@click.option("--rehearse", is_flag=True, help="Tiny sizes on a CPU, to see that everything works.")
@click.option("--inside", is_flag=True, hidden=True)
def main(inside: bool, out: str | None, names: str, **given: object) -> None:
    """Test, tune and time the kernels, time training steps, and train ladders, on this machine's GPU."""
    seconds, jobs, commit = float(str(given["seconds"])), int(str(given["jobs"])), given["commit"]
    commit = str(commit) if commit else os.environ.get(provenance.COMMIT) or provenance.commit()
    problems: list[str] = []
    if out is None:
        problems.append("--out: a folder for results is needed (none given). Try --out results.")
    chosen = _chosen(names, seconds, problems)
    if jobs < 1:
        problems.append(f"--jobs: a whole number of at least 1 is needed (found {jobs}). Try 16.")
    if not commit:
        problems.append(
            "--commit: what is measured has a name (no repository here, none given). Give the commit's hash."
        )
    missing = [package for package in ("torch", "triton", "numpy", "scipy") if find_spec(package) is None]
    if missing:
        problems.append(f"this Python has {', '.join(missing)} (not found by {sys.executable}). Use one that has.")
    if problems or out is None:
        raise BadInput(problems)
    place = Place(
        out=Path(out), work=Path(str(given["work"])) / ("rehearsal" if given["rehearse"] else "measured"),
        corpus=Path(str(given["corpus"])), jobs=jobs, commit=commit, rehearsal=bool(given["rehearse"]),
        mps=bool(given["mps"]), force=bool(given["force"]),
    )  # fmt: skip
    if inside:
        ((name, time_left),) = chosen.items()
        raise SystemExit(_inside(name, place, time_left))
    raise SystemExit(max([_slice(name, place, time_left) for name, time_left in chosen.items()]))


def _chosen(text: str, seconds: float, problems: list[str]) -> dict[str, float]:
    """Slices, and the seconds of each."""
    chosen: dict[str, float] = {}
    for one in SLICES if text == "all" else text.split(","):
        name, _, own = one.partition(":")
        if name not in SLICES:
            problems.append(f"--slice: one of {', '.join(SLICES)} or all is needed (found {name!r}). Use one of these.")
        try:
            chosen[name] = float(own) if own else seconds
        except ValueError:
            chosen[name] = 0.0
        if not 1 <= chosen[name] <= 86400:
            said, value = (f"--slice {name}:N", own) if own else ("--seconds", f"{seconds:g}")
            problems.append(f"{said}: 1 to 86400 seconds (found {value}). Try {SECONDS}.")
    return chosen


def _slice(name: str, place: Place, seconds: float) -> int:
    """Run a slice within its time: 0 where all of it is done, 1 where something is left or wrong, 2 where refused."""
    began = time.monotonic()
    deadline = began + seconds
    says(place, f"== {name}, at most {seconds:.0f} s")
    by_name: Mapping[str, Callable[[Place, float], int]] = {"tests": tests, "steps": steps}
    if name in by_name:
        code = by_name[name](place, deadline)
    elif name in LADDERS:
        code = ladder(name, place, deadline)
    else:
        code = _kernels(name, place, deadline)
    said = {0: "done", 1: "something is left or wrong: see above, and give the same command again", 2: "refused"}[code]
    says(place, f"== {name}: {said}, {time.monotonic() - began:.0f} s")
    return code


def _kernels(name: str, place: Place, deadline: float) -> int:
    """A slice that runs kernels, in a process that they may take down: another one goes on with the next case."""
    command = [sys.executable, "-m", "cegain.benchmarks.gpu", "--inside", *place.options(), "--slice"]
    while True:
        before = place.record().document["ended_in"]
        left = deadline - time.monotonic()
        code = place.run([*command, f"{name}:{max(1.0, left):.0f}"], deadline + GRACE, interpret=name == "tune")
        if code in (0, 1) or time.monotonic() > deadline:
            return min(code, 1) if code >= 0 else 1
        if place.record().document["ended_in"] == before:  # it did not come as far as a case
            return 1


def _inside(name: str, place: Place, seconds: float) -> int:
    """The process that runs kernels."""
    import torch

    from cegain.benchmarks import gpu_kernels, tune

    if not place.rehearsal and not torch.cuda.is_available():
        raise BadInput(["a CUDA device is there (torch finds none). Use a machine with a GPU, or --rehearse."])
    device = torch.device("cpu" if place.rehearsal else "cuda")
    deadline = time.monotonic() + seconds
    if name != "tune":
        left = gpu_kernels.run(name, place.record(), device, deadline)
    else:
        left = tune.run(place.record(), device, deadline, place.write_table)
    if left:
        print(f"{left} cases left", flush=True)
    wrong = [how for how in place.record().document["done"].values() if "WRONG" in how]
    return 1 if left or wrong else 0


if __name__ == "__main__":
    main()
