"""Plain English out of the formats in which packages carry it: readers from an archive's files to documents."""

from __future__ import annotations

import gzip
import html.parser
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator

_SHORTEST = 40
"""Characters; less is a stub, a heading or an index."""


def tidy(text: str) -> str:
    """Spaces at line ends and more than one empty line in a row removed, line ends as in Unix."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+(?=\n|$)", "", text)).strip()


def scenes(files: Iterable[tuple[str, bytes]]) -> Iterator[str]:
    """Markdown plays, cut at headings of the third level. A scene is small enough to weigh little in either split."""
    for _, content in files:
        for part in re.split(r"(?m)^(?=### )", content.decode("utf-8")):
            text = tidy(re.sub(r"(?m)^#+ |\*\*|_", "", part))
            if len(text) >= _SHORTEST:
                yield text


def chats(files: Iterable[tuple[str, bytes]]) -> Iterator[str]:
    """Conversations as JSON: {id: {"messages": [turns [messages {"text"}]]}}; a line per message."""
    for _, content in files:
        for conversation in json.loads(content).values():
            text = tidy("\n".join(" ".join(said["text"].split()) for turn in conversation["messages"] for said in turn))
            if len(text) >= _SHORTEST:
                yield text


def plain(files: Iterable[tuple[str, bytes]]) -> Iterator[str]:
    """A document per file, compressed or not; folders of translations are left out."""
    for name, content in files:
        if "/translations/" not in name:
            raw = gzip.decompress(content) if name.endswith(".gz") else content
            text = tidy(raw.decode("utf-8", errors="replace"))
            if len(text) >= _SHORTEST:
                yield text


def pages(files: Iterable[tuple[str, bytes]]) -> Iterator[str]:
    """HTML, a document per page: what is between tags, without scripts and navigation."""
    for _, content in files:
        text = _without_tags(content.decode("utf-8", errors="replace"))
        if len(text) >= _SHORTEST:
            yield text


def sword(files: Iterable[tuple[str, bytes]]) -> Iterator[str]:
    """Modules of the SWORD project: `.?zs` holds (offset, length, size) as `<III`, of zlib streams in `.?zz`."""
    found = dict(files)
    for name in sorted(found):
        if name.endswith("s"):
            for offset, length, _ in struct.iter_unpack("<III", found[name]):
                raw = zlib.decompress(found[name[:-1] + "z"][offset : offset + length])
                text = _without_tags(raw.decode("utf-8", errors="replace"))
                if len(text) >= _SHORTEST:
                    yield text


def dictionary(files: Iterable[tuple[str, bytes]]) -> Iterator[str]:
    """A dictd database: every second run of 20 entries, or so regular a text would outweigh prose."""
    for _, content in files:
        text = gzip.decompress(content).decode("utf-8", errors="replace")
        entries = re.split(r"\n\n(?=\S)", re.sub(r"(?m)^\s*\[[^\]\n]{1,40}\]\n", "", text))
        for i in range(0, len(entries), 40):
            yield tidy("\n\n".join(entries[i : i + 20]))


class _Text(html.parser.HTMLParser):
    """Collects text; tags that begin a line or a paragraph do so here."""

    _BREAKS = frozenset(
        ("p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "table", "ul", "ol",
         "dl", "dt", "dd", "title", "hr", "section")
    )  # fmt: skip
    _SKIPPED = frozenset(("script", "style", "nav", "head", "note"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []
        self._kept = 0
        """Depth of <pre>, in which spaces and line ends stay as they are."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._SKIPPED:
            self._hidden.append(tag)
        self._kept += tag == "pre"
        if tag in self._BREAKS:
            self.parts.append("\n\n" if tag in ("p", "pre", "blockquote") or tag[0] == "h" else "\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        self._kept -= tag == "pre" and self._kept > 0
        if tag in self._BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data if self._kept else re.sub(r"\s+", " ", data))


def _without_tags(source: str) -> str:
    reader = _Text()
    reader.feed(source)
    reader.close()
    return tidy(re.sub(r"(?m)^ (?=\S)", "", "".join(reader.parts)))
