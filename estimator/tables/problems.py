"""What is wrong with a table: all of it, with rule, value and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MOST_LETTERS = 240
"""Of what was found, and of a remedy: names and cells of any length may stand in them."""


class Problem(NamedTuple):
    """One thing wrong with a table: where it is, what the rule says, what was found, and what to do."""

    where: str
    rule: str
    value: str
    remedy: str

    def __str__(self) -> str:
        value = f" (found {shortened(self.value)})" if self.value else ""
        return f"{self.where}: {self.rule}{value}. {shortened(self.remedy)}"


def shortened(text: str) -> str:
    """At most `MOST_LETTERS` of a text, without letters that a terminal would obey."""
    shown = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return shown if len(shown) <= MOST_LETTERS else f"{shown[:MOST_LETTERS]}..."


class EvidenceError(ValueError):
    """A table that cannot be used; `problems` holds all that is wrong with it, in file order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


def refusal(where: object, rule: str, value: str, remedy: str) -> EvidenceError:
    """The error of a table that one thing is wrong with."""
    return EvidenceError([Problem(str(where), rule, value, remedy)])
