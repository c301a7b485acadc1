"""A smaller corpus out of a prepared one, as tokens: for a machine that has no network and takes no large files.

Training documents are drawn evenly from all sources, by a hash of their tokens, and stay in their order. Held-out ones
are the first that there are: losses are measured on the first of them, so that a model has the same text to predict as
one that was trained on the whole corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cegain.training.text.data import MARK, SPLITS, Corpus, CorpusError, Split, open_corpus, sha256_of
from cegain.training.text.prepare import unigram_entropy
from cegain.training.text.tokenizers import BpeTokenizer

HELD_OUT = 2**20
"""Held-out tokens that come along: four times what a run's last evaluation takes."""


def name_of(corpus: str, tokens: int) -> str:
    """Of a pack, as `data.PACKED` reads it."""
    return f"{corpus}-{tokens / 1e6:g}m"


def pack(whole: Corpus, folder: Path, tokens: int, held_out: int = HELD_OUT) -> Corpus:
    """Write a part of a corpus to `folder`, which appears complete or not at all.

    Args:
        whole: what is packed.
        folder: must not exist yet, or be empty.
        tokens: whole documents are taken until the training split has this many.
        held_out: the same of the held-out split.

    Raises:
        CorpusError: the corpus is smaller, or has changed since it was written; the folder is in use or cannot be
            written.
    """
    wanted: dict[Split, int] = {"train": tokens, "val": held_out}
    have = {"train": whole.train_tokens, "val": whole.val_tokens}
    small = [
        f"{split} tokens must be at most the {have[split]:,} of {whole.name}, got {count:,}; ask for fewer, or prepare "
        "a larger corpus"
        for split, count in wanted.items()
        if count > have[split]
    ]
    if small:
        raise CorpusError(*small)
    whole.verify()
    bytes_of = _lengths(whole)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CorpusError(f"dir must be a new or an empty folder, got {folder}; empty it, or name another")
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            about = _write(temporary, whole, wanted, bytes_of)
            (temporary / "corpus.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o777 & ~umask)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CorpusError(f"{folder} must be writable, got {error.strerror}; make room, or name another") from None
    return open_corpus(folder.absolute())


def _write(
    folder: Path, whole: Corpus, wanted: dict[Split, int], bytes_of: Callable[[NDArray[Any]], int]
) -> dict[str, Any]:
    about: dict[str, Any] = {**whole.about, "name": name_of(whole.name, wanted["train"])}
    about["asked"] = {**whole.about.get("asked", {}), "tokens": wanted["train"], "held_out": wanted["val"]}
    about["packed_from"] = {"name": whole.name, "sha256": whole.sha256}
    counts: dict[str, NDArray[np.int64]] = {}
    for split in SPLITS:
        documents = _documents(np.asarray(whole.tokens(split)))
        chosen = _drawn(documents, wanted[split], by_hash=split == "train")
        taken = [documents[i] for i in chosen]
        written = np.concatenate(taken)
        (folder / f"{split}.bin").write_bytes(written.tobytes())
        counts[split] = np.bincount(written, minlength=whole.vocab_size)
        about |= {
            f"{split}_documents": len(taken),
            f"{split}_tokens": len(written),
            f"{split}_bytes": sum(map(bytes_of, taken)),
        }
    names = [f"{split}.bin" for split in SPLITS]
    if "tokenizer.json" in whole.about["sha256"]:
        shutil.copyfile(whole.folder / "tokenizer.json", folder / "tokenizer.json")
        names.append("tokenizer.json")
    about["unigram_entropy_nats"] = unigram_entropy(counts["train"], counts["val"])
    about["sha256"] = {name: sha256_of(folder / name) for name in names}
    return about


def _documents(tokens: NDArray[Any]) -> list[NDArray[Any]]:
    """Documents of a split, each with its mark."""
    ends = np.flatnonzero(tokens == MARK) + 1
    return [tokens[begin:end] for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]


def _drawn(documents: list[NDArray[Any]], tokens: int, *, by_hash: bool) -> list[int]:
    """Numbers of documents that have so many tokens together, ascending."""
    order = list(range(len(documents)))
    if by_hash:
        order.sort(key=lambda i: hashlib.sha256(documents[i].tobytes()).digest())
    total = np.cumsum([len(documents[i]) for i in order])
    return sorted(order[: int(np.searchsorted(total, tokens)) + 1])


def _lengths(whole: Corpus) -> Callable[[NDArray[Any]], int]:
    """Bytes of a document in UTF-8, its mark counted as one."""
    if whole.tokenizer != "bpe":
        return len
    bpe = BpeTokenizer.load(whole.folder / "tokenizer.json")
    return lambda document: len(bpe.decode(document.tolist()).encode())
