"""Where a measurement comes from: the checkout's commit, versions, the CPU's name; and which table is the project's."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
COMMIT = "CEG_COMMIT"
"""In the environment: what is measured, for a copy of the tree that came without its repository."""


def commit() -> str:
    """The checkout's commit, `-dirty` where files differ from it; outside a checkout what `COMMIT` says, or else the
    package's version."""
    if os.environ.get(COMMIT) and not (_ROOT / ".git").exists():
        return os.environ[COMMIT]
    if not ((_ROOT / ".git").exists() and (_ROOT / "pyproject.toml").exists()):  # installed, perhaps inside another's
        return version("cegain")
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return version("cegain")
    return git.stdout.strip()


def version(package: str) -> str:
    """A package's version; empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cpu_name(threads: int) -> str:
    """The CPU's model and the number of threads that were used."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = match[1].strip() if match else ""
    return f"{model or platform.processor() or platform.machine()}, {threads} threads"


def own_table(table: Path) -> Path | None:
    """One of the project's tables, for one who stands in its checkout; else None: other people's rows stay out."""
    in_checkout = (_ROOT / "pyproject.toml").exists() and Path.cwd().resolve() == _ROOT.resolve()
    return table if in_checkout else None


@functools.cache
def code_commit(paths: tuple[str, ...] = ("estimator", "kernels", "training")) -> str:
    """The last commit that touched the code and the tables, ten digits; empty outside a checkout.

    A committed picture cannot name the commit that holds it. So pictures, which lie outside these folders, name the
    last commit that changed what they are made of: the folders are the same there and now, and drawing again leaves
    the name as it is. `and changes` follows where files in the folders differ from it. In a shallow clone it may be a
    later commit, with the same folders.
    """
    if not ((_ROOT / ".git").exists() and (_ROOT / "pyproject.toml").exists()):  # installed, perhaps inside another's
        return ""
    try:
        commit, changes = (
            subprocess.run([*command, "--", *paths], cwd=_ROOT, capture_output=True, text=True, check=True).stdout
            for command in (["git", "log", "-1", "--format=%H"], ["git", "status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit[:10] + (" and changes" if commit and changes.strip() else "")
