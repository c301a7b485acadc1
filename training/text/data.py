"""Token files and what a run reads from them: batches in an order that the seed decides, and fixed validation rows.

A corpus is a folder: `train.bin` and `val.bin` (token ids without a header, uint8 up to 256 entries and little-endian
uint16 above), `corpus.json`, and `tokenizer.json` where there is a learnt tokenizer. `prepare` writes it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
MARK = 0
"""Token id that ends every document; with byte tokens the byte 0x00, which is taken out of the texts themselves."""
PACKED = r"(.+)-([\d.]+)m"
"""Names of parts of a corpus (`pack`): `library-40m` has at least 40 million training tokens of `library`."""
_ROUNDS = 6
_BLOCK = 4096
_COUNTS = ("vocab_size", "train_tokens", "val_tokens", "train_bytes", "val_bytes")


class CorpusError(Exception):
    """A corpus that is missing, harmed or cannot be made: one line per problem with rule, value and remedy."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class Corpus:
    """A corpus that has been prepared. Counts are in tokens, end-of-document marks included."""

    name: str
    tokenizer: str
    vocab_size: int
    sha256: str
    """One id of the whole: over tokenizer, vocabulary and the SHA-256 of every file of tokens."""
    bytes_per_token: float
    """Of the held-out text, UTF-8; a mark counts as one byte, so that all tokenizers share one denominator."""
    unigram_entropy: float
    """Nats per held-out token under the training split's frequencies (each count plus one): what a model that ignores
    its context can reach."""
    folder: Path
    train_tokens: int
    val_tokens: int
    about: Mapping[str, Any] = field(repr=False, compare=False)
    """All of `corpus.json`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the files."""
        return token_dtype(self.vocab_size)

    def tokens(self, split: Split) -> NDArray[Any]:
        """All ids of a split, mapped and not read: memory that the system may take back."""
        with (self.folder / f"{split}.bin").open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        # Windows are read in a random order: reading ahead would fetch a hundred times what is asked for.
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, dtype=self.dtype)

    def verify(self) -> None:
        """Read every file and compare it with what was written.

        Raises:
            CorpusError: naming every file that has changed.
        """
        changed = []
        for name, expected in self.about["sha256"].items():
            try:
                found = sha256_of(self.folder / name)
            except OSError as error:
                found = f"none ({error.strerror})"
            if found != expected:
                changed.append(
                    f"{self.folder / name} must have SHA-256 {expected}, got {found}; remove the folder and run "
                    f"`{prepare_command(self.name, self.tokenizer)}` again"
                )
        if changed:
            raise CorpusError(*changed)


def label(name: str, sha256: str) -> str:
    """A corpus as tables of runs name it: its name and the beginning of its hash."""
    return f"{name}@{sha256[:12]}"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Of the files of a vocabulary."""
    return np.dtype(np.uint8 if vocab_size <= 256 else "<u2")


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def corpus_id(about: Mapping[str, Any]) -> str:
    """`Corpus.sha256` of what a `corpus.json` says."""
    parts = [about["tokenizer"], about["vocab_size"], sorted(about["sha256"].items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def prepare_command(name: str, tokenizer: str) -> str:
    """The command line that makes a corpus."""
    of = "" if tokenizer == "byte" else f" --tokenizer {tokenizer}"
    packed = re.fullmatch(PACKED, name)
    if packed:
        return f"ceg data pack {packed[1]} --tokens {packed[2]}e6{of}"
    what = name if name in ("mini", "library") else f"--dataset {name}"
    return f"ceg data prepare {what}{of}"


def cache_folder() -> Path:
    """Where corpora and downloads are kept: `$CEG_CACHE`, else `ceg` in the user's cache folder."""
    named = os.environ.get("CEG_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ceg"


def corpus_folder(name: str, tokenizer: str) -> Path:
    """Where a corpus is kept unless another folder is named."""
    return cache_folder() / "corpora" / f"{name.replace('/', '--')}-{tokenizer}"


def open_corpus(name_or_path: str | os.PathLike[str], tokenizer: str = "byte") -> Corpus:
    """Open a prepared corpus: `corpus.json` is read, and the sizes of files are checked.

    Args:
        name_or_path: a name in the cache (`mini`), or a corpus's folder.
        tokenizer: which one of that name ("byte" or "bpe"); a folder says itself.

    Raises:
        CorpusError: it is not there (with the command that makes it), or not as it was written.
    """
    given = Path(name_or_path)
    named = corpus_folder(str(name_or_path), tokenizer)
    is_path = (given / "corpus.json").is_file() or (len(given.parts) != 1 and not named.is_dir())
    folder = given if is_path else named
    remedy = "remove the folder and prepare it again"
    try:
        about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        name, kind = str(about["name"]), str(about["tokenizer"])
        counts = {key: int(about[key]) for key in _COUNTS}
        entropy = float(about["unigram_entropy_nats"])
        whole = corpus_id(about)
        bytes_per_token = counts["val_bytes"] / counts["val_tokens"]
    except (FileNotFoundError, NotADirectoryError):
        how = "name a folder that has one" if is_path else f"run `{prepare_command(str(name_or_path), tokenizer)}`"
        raise CorpusError(
            f"a corpus must have been prepared, got none at {folder}; {how}, or see those that are there with "
            "`ceg data list`"
        ) from None
    except OSError as error:
        raise CorpusError(f"{folder / 'corpus.json'} must be readable, got {error.strerror}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CorpusError(f"{folder / 'corpus.json'} must describe a corpus, got {error!r}; {remedy}") from None
    width = token_dtype(counts["vocab_size"]).itemsize
    wrong = []
    for split in SPLITS:
        path, expected = folder / f"{split}.bin", counts[f"{split}_tokens"] * width
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            found = "no file" if size is None else f"{size}"
            wrong.append(f"{path} must have {expected} bytes, got {found}; {remedy}")
    if wrong:
        raise CorpusError(*wrong)
    return Corpus(
        name=name, tokenizer=kind, vocab_size=counts["vocab_size"], sha256=whole, bytes_per_token=bytes_per_token,
        unigram_entropy=entropy, folder=folder, train_tokens=counts["train_tokens"], val_tokens=counts["val_tokens"],
        about=about,
    )  # fmt: skip


def permuted(positions: NDArray[np.integer[Any]], size: int, key: bytes) -> NDArray[np.int64]:
    """Where a pseudo-random permutation of range(size) sends `positions`; O(1) memory whatever the size.

    A balanced Feistel network permutes the smallest range of 4^k numbers that holds `size`; numbers that leave
    range(size) are sent through it again until they are back, which keeps it a permutation (cycle walking: Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains"). Not for secrets.

    Args:
        positions: [n], each in range(size).
        size: at most 2^62.
        key: which permutation.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    keys = [int.from_bytes(hashlib.blake2b(key + bytes([i]), digest_size=8).digest(), "little") for i in range(_ROUNDS)]

    def once(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> shift, x & low
        for k in keys:
            left, right = right, left ^ (_mixed(right ^ np.uint64(k)) & low)
        return (left << shift) | right

    moved = once(np.asarray(positions, dtype=np.uint64))
    while (outside := moved >= np.uint64(size)).any():
        moved[outside] = once(moved[outside])
    return moved.astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014, "Fast splittable pseudorandom number generators")."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Batches:
    """Training sequences by number, in an order that depends on corpus, split, `seq_len` and `seed` only.

    An epoch is every non-overlapping window of the split once, in a pseudo-random order; each epoch has an order and a
    phase (the first window's start, 0 to seq_len - 1) of its own. Sequence i of a run is the same whatever the batch
    size, the number of processes and the point of resuming. What is kept in memory does not grow with the corpus.

    Raises:
        CorpusError: the split is shorter than two windows.
    """

    def __init__(self, corpus: Corpus, split: Split, seq_len: int, seed: int) -> None:
        self.corpus, self.split, self.seq_len = corpus, split, seq_len
        have = corpus.train_tokens if split == "train" else corpus.val_tokens
        if seq_len < 1 or have < 2 * seq_len:
            raise CorpusError(
                f"seq_len must be 1 to {have // 2}, half of the {have} tokens in {corpus.folder / split}.bin, got "
                f"{seq_len}; shorten it, or prepare a larger corpus"
            )
        self.epoch_windows = have // seq_len - 1
        """Sequences in an epoch; one window's length is left for the phase and the last target."""
        self._last = -1, np.empty(0, dtype=np.int64)
        self._key = f"{corpus.sha256} {split} {seq_len} {seed} ".encode()

    @cached_property
    def _tokens(self) -> NDArray[Any]:
        return self.corpus.tokens(self.split)

    def starts(self, first: int, count: int) -> NDArray[np.int64]:
        """Offset in the split of the first token of sequences `first` to `first + count - 1`. [count]"""
        number = first // _BLOCK
        blocks = [self._block(n) for n in range(number, (first + max(count, 1) - 1) // _BLOCK + 1)]
        return np.concatenate(blocks)[first - number * _BLOCK :][:count]

    def _block(self, number: int) -> NDArray[np.int64]:
        """`starts` of sequences number * _BLOCK and on: the last one is kept, for a few cost as much as thousands."""
        if self._last[0] != number:
            self._last = number, self._starts(number * _BLOCK)
        return self._last[1]

    def _starts(self, first: int) -> NDArray[np.int64]:
        epochs, positions = np.divmod(np.arange(first, first + _BLOCK, dtype=np.int64), self.epoch_windows)
        starts = np.empty(_BLOCK, dtype=np.int64)
        for epoch in np.unique(epochs):
            key = self._key + str(epoch).encode()
            phase = int.from_bytes(hashlib.blake2b(key + b" phase", digest_size=8).digest(), "little") % self.seq_len
            here = epochs == epoch
            starts[here] = phase + self.seq_len * permuted(positions[here], self.epoch_windows, key)
        return starts

    def rows(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Sequences `first` to `first + count - 1` of the run, numbered from 0 over all epochs.

        Returns:
            tokens int64 [count, seq_len], and targets int64 [count, seq_len], each the token after.
        """
        import torch

        windows = np.empty((count, self.seq_len + 1), dtype=np.int64)
        for row, start in zip(windows, self.starts(first, count), strict=True):
            row[:] = self._tokens[start : start + self.seq_len + 1]
        both = torch.from_numpy(windows)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


class ValidationRows:
    """Held-out sequences in order, to be sliced: `rows[a:b]` gives tokens and targets, int64 [b - a, seq_len] each."""

    def __init__(self, corpus: Corpus, seq_len: int, count: int) -> None:
        self.corpus, self.seq_len, self._count = corpus, seq_len, count

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _tokens(self) -> NDArray[Any]:
        return self.corpus.tokens("val")

    def __getitem__(self, rows: slice) -> tuple[Tensor, Tensor]:
        import torch

        start, stop, step = rows.indices(self._count)
        if step != 1:
            raise ValueError(f"rows must be a slice of step 1, got step {step}; leave the step out")
        low, high = start * self.seq_len, max(start, stop) * self.seq_len
        both = torch.from_numpy(self._tokens[low : high + 1].astype(np.int64))
        return both[:-1].view(-1, self.seq_len), both[1:].view(-1, self.seq_len)


def validation_rows(corpus: Corpus, seq_len: int, tokens: int = 2**17) -> ValidationRows:
    """The first `tokens` held-out targets (or all, if fewer) as non-overlapping windows of `seq_len`.

    Every `seq_len` that divides `tokens` covers the same targets; where it does not divide, the rest is left out.

    Raises:
        CorpusError: no window fits.
    """
    count = min(tokens, corpus.val_tokens - 1) // seq_len
    if count < 1:
        raise CorpusError(
            f"seq_len must be at most {min(tokens, corpus.val_tokens - 1)} to evaluate on {corpus.folder / 'val.bin'}, "
            f"got {seq_len}; shorten it, or prepare a larger corpus"
        )
    return ValidationRows(corpus, seq_len, count)
