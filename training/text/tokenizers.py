"""Text to token ids: bytes, or a byte-level BPE learnt on the corpus's own training split.

Id 0 ends a document in both. Bytes suit small budgets: no unembedding that outweighs the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cegain.training.text.data import MARK, CorpusError, token_dtype

if TYPE_CHECKING:
    import tokenizers

MARK_TEXT = "<|end|>"
VOCAB_RANGE = (257, 65536)
"""Of a BPE: all bytes and the mark, up to what fits in uint16."""
DEFAULT_VOCAB = 4096


class Tokenizer(Protocol):
    """What a corpus is written with."""

    name: str
    vocab_size: int

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Ids of each text, the mark after it, in the dtype of the vocabulary."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, each mark shown as a newline."""
        ...


class ByteTokenizer:
    """One token per UTF-8 byte. Byte 0x00 is the mark, so it is removed from texts."""

    name = "byte"
    vocab_size = 256

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Ids of each text, the mark after it. uint8."""
        return [np.frombuffer(text_bytes(text) + b"\0", dtype=np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, each mark shown as a newline, broken letters as U+FFFD."""
        return bytes(ids).replace(b"\0", b"\n").decode("utf-8", errors="replace")


class BpeTokenizer:
    """Byte-level byte-pair encoding (Radford et al. 2019) by the `tokenizers` library."""

    name = "bpe"

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self.vocab_size: int = inner.get_vocab_size()

    @classmethod
    def learn(cls, texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
        """Learn from `texts`; the result depends on nothing else.

        Raises:
            CorpusError: the library is missing, or the texts have too few pairs for `vocab_size` entries.
        """
        library = _library()
        inner = library.Tokenizer(library.models.BPE())
        inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[MARK_TEXT],
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator((text.replace(MARK_TEXT, "") for text in texts), trainer)
        made = cls(inner)
        if made.vocab_size != vocab_size:
            raise CorpusError(
                f"vocab must be at most the {made.vocab_size} entries of this text, got {vocab_size}; lower it, "
                "or use more text"
            )
        assert inner.token_to_id(MARK_TEXT) == MARK
        return made

    @classmethod
    def load(cls, path: Path) -> BpeTokenizer:
        """Read a `tokenizer.json`."""
        return cls(_library().Tokenizer.from_file(str(path)))

    def json(self) -> str:
        """What `load` reads."""
        text: str = self._inner.to_str(pretty=False)
        return text

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Ids of each text, the mark after it. uint16."""
        # A text that spells the mark must not become one: the mark ends documents and nothing else.
        found = self._inner.encode_batch_fast([text_bytes(t).decode().replace(MARK_TEXT, "") for t in texts])
        return [np.array([*one.ids, MARK], dtype=token_dtype(self.vocab_size)) for one in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, each mark shown as a newline."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=False)
        return text.replace(MARK_TEXT, "\n")


def text_bytes(text: str) -> bytes:
    """UTF-8 of a text without NUL; lone surrogates, which UTF-8 cannot hold, become question marks."""
    return text.replace("\0", "").encode("utf-8", errors="replace")


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise CorpusError(
            "tokenizer: bpe needs the `tokenizers` library, got none; run `pip install '.[torch]'` in the "
            "checkout, or use byte"
        ) from None
    return tokenizers
