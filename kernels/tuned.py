"""Configurations that were measured to be fastest on a device: a table that launches look into before they tune.

`tuned.json` is part of the project: {device: [entry, ...]}, a device by the name that torch gives it. An entry stands
for launches of one kernel that are alike (`Launch`), and says what was fastest (`meta`, fields of the kernel's
MetaParameters), in how many seconds, the default's seconds, how many were tried, with which versions and when.
`python3 -m cegain.benchmarks.gpu --slice tune` makes such entries; CEG_TUNED names another table.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("tuned.json")
VARIABLE = "CEG_TUNED"


class Launch(NamedTuple):
    """What launches have in common that share a configuration, in words.

    `default` is the first candidate with its values: where it has another tile, tables of work were made for another
    one, and where the list in the code was changed, what was measured against the old one no longer counts.
    """

    kernel: str
    dtype: str
    key: str
    constants: str
    default: str

    @classmethod
    def of(
        cls, kernel: Any, dtype: object, key: Sequence[Any], constants: Sequence[tuple[str, Any]], default: object
    ) -> Launch:
        """Of a kernel that `triton.jit` made; other arguments as `launch` has them."""
        function = getattr(kernel, "fn", kernel)
        module = str(getattr(function, "__module__", "")).rpartition(".")[2]
        return cls(
            f"{module}.{getattr(function, '__name__', '')}",
            str(dtype).removeprefix("torch."),
            ", ".join(map(str, key)),
            ", ".join(f"{name}={value}" for name, value in constants),
            ", ".join(f"{name}={value}" for name, value in vars(default).items()),
        )


def find(device: str, launch: Launch) -> Mapping[str, int] | None:
    """Fields of the fastest configuration; None where the table does not know the device or the launch."""
    return _entries(str(path())).get((device, launch))


def path() -> Path:
    """The table that is looked into."""
    return Path(os.environ.get(VARIABLE) or TABLE)


def forget() -> None:
    """Read the table again at the next launch, as after a change of it."""
    _entries.cache_clear()


@functools.cache
def _entries(file: str) -> dict[tuple[str, Launch], Mapping[str, int]]:
    if not Path(file).exists():
        return {}
    document: dict[str, list[dict[str, Any]]] = json.loads(Path(file).read_text(encoding="utf-8") or "{}")
    return {
        (device, Launch(**{field: entry[field] for field in Launch._fields})): entry["meta"]
        for device, entries in document.items()
        for entry in entries
    }
