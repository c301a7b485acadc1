"""The folder of the data that come with the package, and writing without leaving halves."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it.

    Raises:
        OSError: when the folder is missing or not writable.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # or a power cut could leave the new name with nothing in it
        # mkstemp makes files private; a result file gets the permissions any new file would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
