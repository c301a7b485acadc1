"""A small corpus of made-up English, the same in every test: no network and no cache folder is needed."""

import random
from collections.abc import Iterator

import pytest

from cegain.training.text.corpora import Source
from cegain.training.text.data import Corpus
from cegain.training.text.prepare import prepare

NOUNS = [
    "king", "ship", "river", "storm", "letter", "garden", "friend", "night", "window", "battle", "daughter", "road",
    "voice", "lantern", "winter", "horse",
]  # fmt: skip
VERBS = ["sees", "finds", "follows", "remembers", "leaves", "answers", "carries", "fears", "forgives", "calls"]
ADJECTIVES = ["old", "quiet", "golden", "bitter", "distant", "gentle", "broken", "proud", "sudden", "green"]
LINKS = ["and then", "while", "because", "until", "but"]


def made_up_documents(seed: int, n_bytes: int) -> Iterator[str]:
    """English-like documents: words by Zipf's law, a grammar, and a subject that a document keeps to."""
    draw = random.Random(seed)

    def one_of(words: list[str]) -> str:
        return draw.choices(words, weights=[1 / (i + 1) for i in range(len(words))])[0]

    def clause(subject: str) -> str:
        adjective = f"{one_of(ADJECTIVES)} " if draw.random() < 0.5 else ""
        return f"the {subject} {one_of(VERBS)} the {adjective}{one_of(NOUNS)}"

    written = 0
    while written < n_bytes:
        subject, sentences = one_of(NOUNS), []
        for _ in range(draw.randint(3, 30)):
            words = clause(subject)
            if draw.random() < 0.4:
                words += f" {one_of(LINKS)} {clause(one_of(NOUNS))}"
            sentences.append(f"{words.capitalize()}.")
        text = " ".join(sentences)
        written += len(text)
        yield text


def made_up(seed: int = 0, n_bytes: int = 300_000) -> list[Source]:
    """Sources for `prepare`."""
    return [Source({"name": "made-up", "licence": "none"}, lambda: made_up_documents(seed, n_bytes))]


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """About 300 kB in bytes, 5% of it held out; a model can learn much of it in few steps."""
    return prepare(tmp_path_factory.mktemp("corpora") / "tiny-byte", "tiny", made_up())
