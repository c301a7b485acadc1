"""What every result of the API can do, and the picture that it draws."""

from __future__ import annotations

import html
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cegain.gain.question import QuestionError
from cegain.tables.files import write_atomically

ENDINGS = (".svg", ".pdf", ".png")


@dataclass(frozen=True)
class Picture:
    """A picture as the commands draw it: a notebook shows it, `save` writes it."""

    draw: Callable[[str], bytes] = field(repr=False)
    """The file's bytes, by its ending."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as .svg, .pdf or .png, the ending of `path`.

        Raises:
            QuestionError: another ending.
            OSError: the folder is missing or not writable.
        """
        ending = Path(path).suffix.lower()
        if ending not in ENDINGS:
            raise QuestionError([f"path: an ending of {', '.join(ENDINGS)} is needed (found {ending!r}). Try .svg."])
        write_atomically(Path(path), self.draw(ending))

    def _repr_svg_(self) -> str:
        return self.draw(".svg").decode()


class Result(ABC):
    """An answer: `print` shows what the command prints, `to_dict` holds what its `--json` does."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The answer as plain data, for JSON: see docs/json.md."""

    @abstractmethod
    def plot(self) -> Picture:
        """The answer as a picture."""

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
