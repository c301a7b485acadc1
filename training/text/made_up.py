"""A small corpus of made-up words, for a rehearsal without text: `python -m cegain.training.text.made_up FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cegain.training.text.corpora import Source
from cegain.training.text.prepare import prepare

NAME = "rehearsal"
DOCUMENTS, WORDS = 200, 200


def documents() -> Iterator[str]:
    """Words of a Zipf law, the same ones every time."""
    random = np.random.default_rng(0)
    for _ in range(DOCUMENTS):
        yield " ".join(f"w{n % 999}" for n in random.zipf(1.3, WORDS))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), NAME, [Source({"name": NAME}, documents)])
