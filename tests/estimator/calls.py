"""Calling a command as a user does, and what must hold of every answer and refusal."""

import json
from typing import Any

from click.testing import CliRunner, Result

from cegain.commands.ceg import ceg


class Calls:
    """`ceg` with some first words."""

    def __init__(self, *first: str) -> None:
        self.first = first

    def call(self, *words: object) -> Result:
        return CliRunner().invoke(ceg, [*self.first, *map(str, words)])

    def answer(self, *words: object) -> dict[str, Any]:
        """What --json gives."""
        result = self.call(*words, "--json")
        assert result.exit_code == 0, result.output
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    def refused(self, *words: object) -> str:
        """What is said of bad input."""
        result = self.call(*words)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        return result.stderr
