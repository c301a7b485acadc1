import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cegain.training.text import data
from cegain.training.text.data import Batches, Corpus, CorpusError, open_corpus, permuted, validation_rows


def _of_zeros(folder: Path, train_tokens: int, vocab_size: int = 256) -> Path:
    """A corpus whose token files are holes."""
    folder.mkdir(parents=True)
    counts = {"train": train_tokens, "val": 5000}
    for split, tokens in counts.items():
        with (folder / f"{split}.bin").open("wb") as stream:
            stream.truncate(tokens * data.token_dtype(vocab_size).itemsize)
    about = {
        "name": "zeros", "tokenizer": "byte", "vocab_size": vocab_size, "unigram_entropy_nats": 0.0,
        "sha256": {"train.bin": "0", "val.bin": "0"},
        **{f"{split}_tokens": n for split, n in counts.items()}, **{f"{split}_bytes": n for split, n in counts.items()},
    }  # fmt: skip
    (folder / "corpus.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("size", [*range(1, 70), 1000, 4096, 4097])
def test_permuted_is_a_permutation(size: int) -> None:
    assert sorted(permuted(np.arange(size), size, b"key").tolist()) == list(range(size))


def test_permuted_takes_any_part_of_the_positions() -> None:
    size = 2**40 + 12345
    positions = np.array([0, 1, size - 1, 2**39, 7])
    together = permuted(positions, size, b"key")
    assert [int(permuted(np.array([p]), size, b"key")[0]) for p in positions] == together.tolist()
    assert (together < size).all()


def test_every_place_is_as_likely_for_small_sizes() -> None:
    # 2000 keys over 10 places: 200 each with a standard deviation of 13.4.
    counts = np.zeros((10, 10))
    for i in range(2000):
        counts[np.arange(10), permuted(np.arange(10), 10, str(i).encode())] += 1
    assert np.abs(counts - 200).max() < 5 * 13.4


def test_neighbours_are_scattered() -> None:
    moved = permuted(np.arange(100_000), 100_000, b"key")
    correlation = np.corrcoef(moved[:-1], moved[1:])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(100_000)
    assert (np.diff(moved) == 1).mean() < 1e-3


def test_the_order_is_the_same_for_ever(tiny_corpus: Corpus) -> None:
    # A run resumed with a later version must go on where it was: these numbers may not change.
    fixed = dataclasses.replace(tiny_corpus, sha256="0" * 64, train_tokens=100_000)
    batches = Batches(fixed, "train", 64, seed=1)
    assert batches.epoch_windows == 1561
    assert batches.starts(0, 4).tolist() == [98024, 93480, 68840, 95784]
    assert batches.starts(1560, 2).tolist() == [27368, 35457]


def test_an_epoch_visits_every_window_once(tiny_corpus: Corpus) -> None:
    batches = Batches(tiny_corpus, "train", 100, seed=3)
    n = batches.epoch_windows
    assert n == tiny_corpus.train_tokens // 100 - 1
    phases, orders = [], []
    for epoch in range(4):
        starts = batches.starts(epoch * n, n)
        phase = int(starts.min())
        assert phase < 100
        assert sorted(starts) == [phase + 100 * i for i in range(n)]
        assert starts.max() + 101 <= tiny_corpus.train_tokens
        phases.append(phase)
        orders.append(tuple((starts - phase).tolist()))
    assert len(set(phases)) > 1
    assert len(set(orders)) == 4


def test_rows_are_windows_and_the_tokens_after(tiny_corpus: Corpus) -> None:
    batches = Batches(tiny_corpus, "train", 50, seed=0)
    tokens, targets = batches.rows(7, 3)
    assert tokens.shape == targets.shape == (3, 50)
    assert tokens.dtype == targets.dtype == torch.int64
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    everything = tiny_corpus.tokens("train")
    for row, last, start in zip(tokens, targets[:, -1], batches.starts(7, 3), strict=True):
        assert row.tolist() == everything[start : start + 50].tolist()
        assert last.item() == everything[start + 50]


@pytest.mark.parametrize("end", ["epoch", "block"])
@pytest.mark.parametrize("parts", [[60], [1] * 60, [7, 13, 40], [59, 1]])
def test_order_does_not_depend_on_how_it_is_asked_for(tiny_corpus: Corpus, parts: list[int], end: str) -> None:
    ends = {"epoch": Batches(tiny_corpus, "train", 128, seed=5).epoch_windows, "block": data._BLOCK}
    first = ends[end] - 30
    expected = Batches(tiny_corpus, "train", 128, seed=5).rows(first, 60)[0]
    found, at = [], first
    for count in parts:
        found.append(Batches(tiny_corpus, "train", 128, seed=5).rows(at, count)[0])  # anew, as after a resume
        at += count
    assert torch.equal(torch.cat(found), expected)


def test_processes_that_share_a_step_read_what_one_would(tiny_corpus: Corpus) -> None:
    one = Batches(tiny_corpus, "train", 32, seed=0)
    step, batch, world = 11, 8, 4
    whole = one.rows(step * batch, batch)[1]
    each = [Batches(tiny_corpus, "train", 32, 0).rows(step * batch + r * 2, 2)[1] for r in range(world)]
    assert torch.equal(torch.cat(each), whole)


def test_order_depends_on_seed_length_split_and_corpus(tiny_corpus: Corpus) -> None:
    other = dataclasses.replace(tiny_corpus, sha256="f" * 64)
    orders = [
        tuple((Batches(corpus, split, seq_len, seed).starts(0, 20) // seq_len).tolist())
        for corpus, split, seq_len, seed in (
            (tiny_corpus, "train", 64, 0), (tiny_corpus, "train", 64, 1), (tiny_corpus, "train", 63, 0),
            (tiny_corpus, "val", 64, 0), (other, "train", 64, 0),
        )
    ]  # fmt: skip
    assert len(set(orders)) == len(orders)


def test_more_epochs_than_one_in_a_batch(tiny_corpus: Corpus) -> None:
    small = dataclasses.replace(tiny_corpus, train_tokens=1000)
    batches = Batches(small, "train", 300, seed=0)
    assert batches.epoch_windows == 2
    starts = batches.starts(0, 10)
    assert starts.max() + 301 <= 1000
    for epoch in starts.reshape(5, 2):
        assert abs(int(epoch[0] - epoch[1])) == 300


@pytest.mark.parametrize("seq_len", [0, 10**9])
def test_a_split_that_is_too_short_is_refused(tiny_corpus: Corpus, seq_len: int) -> None:
    with pytest.raises(CorpusError, match=rf"seq_len must be 1 to \d+.*got {seq_len}; shorten it"):
        Batches(tiny_corpus, "train", seq_len, 0)


def test_validation_covers_the_same_targets_at_every_length(tiny_corpus: Corpus) -> None:
    everything = torch.from_numpy(tiny_corpus.tokens("val").astype(np.int64))
    for seq_len in (32, 256, 2048):
        rows = validation_rows(tiny_corpus, seq_len, 8192)
        assert len(rows) == 8192 // seq_len
        tokens, targets = rows[:]
        assert tokens.shape == targets.shape == (len(rows), seq_len)
        assert torch.equal(tokens.flatten(), everything[:8192])
        assert torch.equal(targets.flatten(), everything[1:8193])


@pytest.mark.parametrize("at_once", [1, 3, 64, 1000])
def test_validation_does_not_depend_on_batch_size(tiny_corpus: Corpus, at_once: int) -> None:
    rows = validation_rows(tiny_corpus, 64, 4096)
    parts = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]
    assert torch.equal(torch.cat([targets for _, targets in parts]), rows[:][1])


def test_validation_takes_all_there_is(tiny_corpus: Corpus) -> None:
    rows = validation_rows(tiny_corpus, 100, 10**9)
    assert len(rows) == (tiny_corpus.val_tokens - 1) // 100
    assert rows[len(rows) - 1 :][1].shape == (1, 100)
    assert rows[len(rows) :][0].shape == (0, 100)


def test_validation_says_what_it_cannot_do(tiny_corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match="seq_len must be at most 64"):
        validation_rows(tiny_corpus, 65, 64)
    with pytest.raises(ValueError, match="step 1, got step 2"):
        validation_rows(tiny_corpus, 8, 64)[::2]


def test_a_corpus_is_opened_by_name_or_folder(
    tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEG_CACHE", str(tmp_path))
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "tiny-byte").symlink_to(tiny_corpus.folder)
    by_name = open_corpus("tiny")
    assert by_name == dataclasses.replace(tiny_corpus, folder=by_name.folder)
    assert open_corpus(tiny_corpus.folder) == tiny_corpus
    monkeypatch.chdir(tiny_corpus.folder.parent)
    assert open_corpus(tiny_corpus.folder.name).sha256 == tiny_corpus.sha256


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CEG_CACHE": "a", "XDG_CACHE_HOME": "b"}, Path("a")),
        ({"XDG_CACHE_HOME": "b"}, Path("b/ceg")),
        ({"HOME": "c"}, Path("c/.cache/ceg")),
    ],
)
def test_where_corpora_are_kept(variables: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CEG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert data.cache_folder() == expected


@pytest.mark.parametrize(
    ("name", "tokenizer", "command"),
    [
        ("mini", "byte", "`ceg data prepare mini`"),
        ("library", "bpe", "`ceg data prepare library --tokenizer bpe`"),
        ("openwebtext", "byte", "`ceg data prepare --dataset openwebtext`"),
    ],
)
def test_a_missing_corpus_says_how_to_make_it(
    name: str, tokenizer: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEG_CACHE", str(tmp_path))
    with pytest.raises(CorpusError) as caught:
        open_corpus(name, tokenizer)
    assert command in str(caught.value)


def test_a_missing_folder_is_not_a_name(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="name a folder that has one"):
        open_corpus(tmp_path / "none")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_truncated_file_is_found_at_once(tmp_path: Path, split: str) -> None:
    folder = _of_zeros(tmp_path / "zeros", 10_000)
    os.truncate(folder / f"{split}.bin", 999)
    with pytest.raises(CorpusError, match=rf"{split}.bin must have \d+ bytes, got 999; remove the folder"):
        open_corpus(folder)
    (folder / f"{split}.bin").unlink()
    with pytest.raises(CorpusError, match="got no file"):
        open_corpus(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', '{"name": "x", "tokenizer": "byte"}'])
def test_a_harmed_description_is_one_sentence(tmp_path: Path, content: str) -> None:
    folder = _of_zeros(tmp_path / "zeros", 10_000)
    (folder / "corpus.json").write_text(content)
    with pytest.raises(CorpusError, match=r"corpus\.json must describe a corpus"):
        open_corpus(folder)


def test_verify_finds_one_changed_byte(tmp_path: Path, tiny_corpus: Corpus) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny_corpus.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    copy = open_corpus(folder)
    copy.verify()
    content = bytearray((folder / "train.bin").read_bytes())
    content[1000] ^= 1
    (folder / "train.bin").write_bytes(content)
    (folder / "val.bin").unlink()
    with pytest.raises(CorpusError) as caught:
        copy.verify()
    assert len(caught.value.problems) == 2
    assert "train.bin must have SHA-256" in str(caught.value)


def test_ids_above_a_byte_are_read_as_two(tmp_path: Path) -> None:
    folder = _of_zeros(tmp_path / "wide", 10_000, vocab_size=4096)
    np.arange(10_000, dtype="<u2").tofile(folder / "train.bin")
    batches = Batches(open_corpus(folder), "train", 10, 0)
    assert batches.rows(0, 5)[0][:, 0].tolist() == batches.starts(0, 5).tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_gigabytes_add_no_memory(tmp_path: Path) -> None:
    folder = _of_zeros(tmp_path / "large", 10 * 10**9)
    program = f"""
from pathlib import Path
import torch  # not the corpus's memory
from cegain.training.text.data import Batches, open_corpus, validation_rows
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
before = anonymous()
corpus = open_corpus({str(folder)!r})
batches = Batches(corpus, "train", 1024, 0)
for step in range(100):
    batches.rows(step * 32, 32)
validation_rows(corpus, 1024, 4096)[:]
print(batches.epoch_windows, anonymous() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    windows, added_kb = map(int, done.stdout.split())
    assert windows == 10 * 10**9 // 1024 - 1
    assert added_kb < 50_000
