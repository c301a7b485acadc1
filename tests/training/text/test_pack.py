"""A part of a corpus: whole documents, drawn the same way every time, and the same text to predict."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cegain.commands.ceg import ceg
from cegain.training.text import pack, tokenizers
from cegain.training.text.corpora import Source
from cegain.training.text.data import Corpus, CorpusError, open_corpus, prepare_command
from cegain.training.text.prepare import prepare


def documents(corpus: Corpus, split: str) -> list[bytes]:
    return bytes(corpus.tokens(split)).split(b"\0")[:-1]  # type: ignore[arg-type]


def test_whole_documents_in_their_order(tiny_corpus: Corpus, tmp_path: Path) -> None:
    wanted = tiny_corpus.train_tokens // 3
    made = pack.pack(tiny_corpus, tmp_path / "part", wanted, tiny_corpus.val_tokens // 2)
    made.verify()
    all_of_it, part = documents(tiny_corpus, "train"), documents(made, "train")
    assert wanted <= made.train_tokens < wanted + max(map(len, all_of_it)) + 1
    places = [all_of_it.index(one) for one in part]
    assert places == sorted(places)
    assert np.mean(places) == pytest.approx(len(all_of_it) / 2, rel=0.2)  # from all of it
    held_out = bytes(made.tokens("val"))
    assert bytes(tiny_corpus.tokens("val")).startswith(held_out)
    assert len(held_out) >= tiny_corpus.val_tokens // 2
    assert made.bytes_per_token == 1.0
    assert made.about["packed_from"] == {"name": tiny_corpus.name, "sha256": tiny_corpus.sha256}
    again = pack.pack(tiny_corpus, tmp_path / "again", wanted, tiny_corpus.val_tokens // 2)
    assert again.sha256 == made.sha256


def test_bytes_of_learnt_tokens(tmp_path: Path) -> None:
    texts = [f"number {i} says hé {i * i} times that it is number {i}" for i in range(300)]
    whole = prepare(
        tmp_path / "whole", "made", [Source({"name": "made"}, lambda: iter(texts))], tokenizer="bpe", vocab=300
    )
    made = pack.pack(whole, tmp_path / "part", 2000, 200)
    bpe = tokenizers.BpeTokenizer.load(made.folder / "tokenizer.json")
    assert made.about["val_bytes"] == len(bpe.decode(made.tokens("val").tolist()).encode())
    assert open_corpus(tmp_path / "part").about["val_bytes"] < made.about["train_bytes"]


def test_more_than_there_is(tiny_corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"train tokens must be at most the .* ask for fewer") as found:
        pack.pack(tiny_corpus, tmp_path / "part", 10**9, 10**9)
    assert len(found.value.problems) == 2
    assert not (tmp_path / "part").exists()


def test_command(tiny_corpus: Corpus, tmp_path: Path) -> None:
    arguments = ["data", "pack", str(tiny_corpus.folder), "--dir", str(tmp_path / "part")]
    small = CliRunner().invoke(ceg, [*arguments, "--tokens", "5"])
    assert (small.exit_code, "--tokens: 1e4 to 1e13" in small.output) == (2, True)
    # Held out text is short here.
    assert "val tokens must be at most" in CliRunner().invoke(ceg, [*arguments, "--tokens", "2e4"]).output


def test_its_name_says_how_it_is_made() -> None:
    assert pack.name_of("library", 40_000_000) == "library-40m"
    assert prepare_command("library-40m", "byte") == "ceg data pack library --tokens 40e6"
    assert prepare_command("library-2.5m", "bpe") == "ceg data pack library --tokens 2.5e6 --tokenizer bpe"
    assert prepare_command("library", "byte") == "ceg data prepare library"
