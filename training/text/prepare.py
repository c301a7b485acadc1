"""Write a corpus: documents to token files, train and held-out split by document, everything hashed."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cegain.training.text.corpora import Source
from cegain.training.text.data import SPLITS, Corpus, CorpusError, open_corpus, sha256_of
from cegain.training.text.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer, text_bytes

VALIDATION_SHARE = 0.05
"""Of documents."""
_LARGE_SHARE, _LARGE_TOKENS = 0.005, 2**21
LEARN_BYTES = 2**26
"""Text that a BPE is learnt from: the first 64 MiB of the training split."""
_TOGETHER = 512
"""Documents encoded at once."""


def share_of(limit: int) -> float:
    """Share to hold out of a data set of `limit` tokens: about two million tokens, within 0.5% and 5%."""
    return min(VALIDATION_SHARE, max(_LARGE_SHARE, _LARGE_TOKENS / limit))


def side(text: bytes, share: float) -> tuple[bool, bytes]:
    """Whether a document is held out, and its place among those that are: both by a hash of its text alone.

    Equal documents are so never on both sides, and held-out text is mixed evenly from all sources.
    """
    digest = hashlib.sha256(text).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64, digest[8:]


def prepare(
    folder: Path,
    name: str,
    sources: Sequence[Source],
    *,
    tokenizer: str = "byte",
    vocab: int | None = None,
    limit: int | None = None,
    share: float = VALIDATION_SHARE,
    progress: Callable[[int], None] = lambda _: None,
) -> Corpus:
    """Build a corpus in `folder`, which appears complete or not at all.

    Args:
        folder: must not exist yet, or be empty.
        name: what runs will record.
        sources: in this order; their text is read once.
        tokenizer: "byte" or "bpe".
        vocab: entries of a BPE.
        limit: stop when the training split has this many tokens.
        share: of documents to hold out.
        progress: called with the bytes of text written since the last call.

    Raises:
        CorpusError: the folder is in use or cannot be written, or the text is too short to be split.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CorpusError(f"dir must be a new or an empty folder, got {folder}; empty it, or name another")
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise CorpusError(f"{folder.parent} must be a writable folder, got {error.strerror}; name another") from None
    try:
        about = {"name": name, **_write(temporary, sources, tokenizer, vocab, limit, share, progress)}
        (temporary / "corpus.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "corpus.json").is_file():  # else another process has made it in the meantime
                raise
    except OSError as error:
        raise CorpusError(f"{folder} must be writable, got {error.strerror}; make room, or name another") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_corpus(folder)


class _SplitFile:
    """Counts what goes into a token file while it is written."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.stream: BinaryIO = path.open("wb")
        self.counts = np.zeros(vocab_size, dtype=np.int64)
        self.documents = self.bytes = 0

    def add(self, ids: NDArray[Any], n_bytes: int) -> None:
        self.stream.write(ids.tobytes())
        self.counts += np.bincount(ids, minlength=len(self.counts))
        self.documents += 1
        self.bytes += n_bytes + 1  # the mark counts as a byte

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())


def _documents(sources: Sequence[Source]) -> Iterator[tuple[int, str]]:
    for i, source in enumerate(sources):
        for text in source.documents():
            yield i, text_bytes(text).decode()


def _write(
    folder: Path, sources: Sequence[Source], kind: str, vocab: int | None, limit: int | None, share: float,
    progress: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    documents = _documents(sources)
    tokenizer: Tokenizer = ByteTokenizer()
    if kind == "bpe":
        sample = list(_until(documents, LEARN_BYTES))
        learnt = (text for _, text in sample if not side(text.encode(), share)[0])
        tokenizer = bpe = BpeTokenizer.learn(learnt, vocab or 0)
        (folder / "tokenizer.json").write_text(bpe.json(), encoding="utf-8")
        documents = itertools.chain(sample, documents)
    files = {split: _SplitFile(folder / f"{split}.bin", tokenizer.vocab_size) for split in SPLITS}
    train, val = files["train"], files["val"]
    held_out: list[tuple[bytes, int, NDArray[Any]]] = []
    texts = [hashlib.sha256() for _ in sources]
    n_documents, n_bytes = [0] * len(sources), [0] * len(sources)
    full = False
    while not full and (batch := list(itertools.islice(documents, _TOGETHER))):
        written = 0
        for (i, text), ids in zip(batch, tokenizer.encode([text for _, text in batch]), strict=True):
            raw = text.encode()
            held, place = side(raw, share)
            if held:
                held_out.append((place, len(raw), ids))
            else:
                train.add(ids, len(raw))
            texts[i].update(raw + b"\0")
            n_documents[i] += 1
            n_bytes[i] += len(raw)
            written += len(raw)
            if full := limit is not None and train.tokens >= limit:
                break
        progress(written)
    for _, length, ids in sorted(held_out, key=lambda document: document[0]):
        val.add(ids, length)
    for file in files.values():
        file.stream.flush()
        os.fsync(file.stream.fileno())
        file.stream.close()
    if not (train.documents and val.documents):
        raise CorpusError(
            f"a corpus must have documents on both sides of the split, got {train.documents} to train on and "
            f"{val.documents} held out; give more text"
        )
    names = [f"{split}.bin" for split in SPLITS] + ["tokenizer.json"] * (kind == "bpe")
    return {
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "asked": {"vocab": vocab, "tokens": limit},
        "mark": "token 0 ends every document",
        **{f"{split}_documents": file.documents for split, file in files.items()},
        **{f"{split}_tokens": file.tokens for split, file in files.items()},
        **{f"{split}_bytes": file.bytes for split, file in files.items()},
        "unigram_entropy_nats": unigram_entropy(train.counts, val.counts),
        "sha256": {name: sha256_of(folder / name) for name in names},
        "sources": [
            {**source.record, "documents": n_documents[i], "bytes": n_bytes[i], "text_sha256": texts[i].hexdigest()}
            for i, source in enumerate(sources)
        ],
    }


def _until(documents: Iterator[tuple[int, str]], n_bytes: int) -> Iterator[tuple[int, str]]:
    have = 0
    for i, text in documents:
        yield i, text
        have += len(text)
        if have >= n_bytes:
            return


def unigram_entropy(train: NDArray[np.int64], val: NDArray[np.int64]) -> float:
    """Cross-entropy of held-out tokens under training frequencies, each count plus one. Nats per token.

    Args:
        train: how often each token occurs there [vocab].
        val: the same of the held-out text [vocab].
    """
    nats = math.log(train.sum() + len(train)) - np.log(train + 1.0)
    return float((val * nats).sum() / val.sum())
