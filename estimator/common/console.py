"""What is printed on a console, beside plain lines."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def empty_table(
    columns: Iterable[str], *, left: Collection[str] = (), wrapped: Collection[str] = (), **settings: Any
) -> Table:
    """A rich table with no lines; its columns stand right and stay on one line, but for those named.

    `settings` are rich's, such as the title. rich is imported here: who prints no table does not need it.
    """
    from rich.table import Table

    table = Table(title_justify="left", box=None, **settings)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=name not in wrapped)
    return table
