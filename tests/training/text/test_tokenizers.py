import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from cegain.training.text.data import MARK, CorpusError
from cegain.training.text.tokenizers import MARK_TEXT, BpeTokenizer, ByteTokenizer
from tests.training.conftest import made_up_documents

TEXTS = ["plain", "naïve café — “quoted” 🙂", "", "line\nline\n\n  indented\ttab", "a\0b", "lone \ud800 surrogate"]


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return BpeTokenizer.learn(made_up_documents(0, 50_000), 400)


def test_bytes_are_utf8_and_end_with_the_mark() -> None:
    ids = ByteTokenizer().encode(["né"])[0]
    assert ids.dtype == np.uint8
    assert ids.tolist() == [*"né".encode(), MARK]


def test_bytes_come_back() -> None:
    tokenizer = ByteTokenizer()
    found = [tokenizer.decode(ids) for ids in tokenizer.encode(TEXTS)]
    assert found == [f"{text}\n" for text in [*TEXTS[:4], "ab", "lone ? surrogate"]]
    assert tokenizer.decode([0xC3]) == "�"


def test_the_mark_ends_a_document_and_is_nowhere_else(bpe: BpeTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        for ids in tokenizer.encode([*TEXTS, f"spells {MARK_TEXT} out"]):
            assert ids[-1] == MARK
            assert MARK not in ids[:-1]


def test_bpe_comes_back(bpe: BpeTokenizer) -> None:
    found = [bpe.decode(ids) for ids in bpe.encode(TEXTS)]
    assert found == [f"{text}\n" for text in [*TEXTS[:4], "ab", "lone ? surrogate"]]
    assert bpe.encode(["x"])[0].dtype == np.dtype("<u2")
    assert bpe.vocab_size == 400


def test_bpe_is_shorter_than_bytes(bpe: BpeTokenizer) -> None:
    text = next(made_up_documents(1, 1))
    assert len(bpe.encode([text])[0]) < 0.4 * len(ByteTokenizer().encode([text])[0])


def test_bpe_is_the_same_each_time_and_after_a_file(bpe: BpeTokenizer, tmp_path: Path) -> None:
    again = BpeTokenizer.learn(made_up_documents(0, 50_000), 400)
    assert again.json() == bpe.json()
    (tmp_path / "tokenizer.json").write_text(bpe.json())
    loaded = BpeTokenizer.load(tmp_path / "tokenizer.json")
    text = list(islice(made_up_documents(2, 10**6), 5))
    assert [a.tolist() for a in loaded.encode(text)] == [b.tolist() for b in bpe.encode(text)]


def test_too_large_a_vocabulary_for_the_text_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"vocab must be at most the \d+ entries of this text, got 5000"):
        BpeTokenizer.learn(["a few words", "and a few more"], 5000)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(CorpusError, match=r"pip install '\.\[torch\]'"):
        BpeTokenizer.learn(["text"], 300)
