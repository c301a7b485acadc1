"""Grids of answers that were computed before, kept in the user's cache folder.

A file's name is the hash of everything its answers follow from: the evidence, the stacks, and every file of the package
that computes them. A folder that cannot be written to costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cegain.kernels import costs, patterns
from cegain.tables.files import write_atomically

PACKAGE = Path(__file__).parents[1]
MOST = 8
"""Files that are kept, the latest."""


def folder() -> Path:
    """The folder of this user's caches for `cegain`: CEG_CACHE, or the system's usual place."""
    if named := os.environ.get("CEG_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "cegain" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cegain"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cegain"


def key(*parts: object) -> str:
    """Hash of some values and of the files that answers follow from."""
    digest = hashlib.sha256(repr(parts).encode())
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE / "data").glob("*.json"), *(PACKAGE / "data").glob("*.csv")]
    for path in (*sorted(files), Path(costs.__file__), Path(patterns.__file__)):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def load(name: str) -> bytes | None:
    """What was kept under a key, compressed; None where there is nothing whole."""
    try:
        content = _path(name).read_bytes()
        gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return None
    return content


def keep(name: str, document: dict[str, Any]) -> bytes:
    """Keep a document under a key, of all that are kept the latest; its JSON, compressed."""
    content = gzip.compress(json.dumps(document, allow_nan=False, separators=(",", ":")).encode(), mtime=0)
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        write_atomically(_path(name), content)
        for old in _latest(list(folder().glob("answers-*.json.gz")))[MOST:]:
            old.unlink(missing_ok=True)
    return content


def _latest(paths: Sequence[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _path(name: str) -> Path:
    return folder() / f"answers-{name[:32]}.json.gz"
