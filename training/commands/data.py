"""`ceg data`: prepare a corpus, pack a part of it, list those that are there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cegain.commands.options import BadInput, Command, Group, console, number, print_json, refuse, single
from cegain.training.text import corpora, prepare
from cegain.training.text.data import Corpus, CorpusError, cache_folder, corpus_folder, open_corpus
from cegain.training.text.tokenizers import DEFAULT_VOCAB, VOCAB_RANGE

_TOKENIZERS = ("byte", "bpe")
_DEFAULT_TOKENS = 10**9


@click.group("data", cls=Group)
def data_command() -> None:
    """Text to train on: prepare a corpus, pack a part of it, list those that are there."""


@data_command.command("prepare", cls=Command)
@click.argument("name", metavar="[mini|library]", required=False)
@single("--dataset", metavar="NAME", help="Stream it from the `datasets` hub: openwebtext, fineweb-edu or owner/name.")
@single("--tokenizer", default="byte", metavar="byte|bpe", help="What a token is (byte).")
@single("--vocab", metavar="N", help=f"Entries of a BPE ({DEFAULT_VOCAB}).")
@single("--tokens", metavar="N", help="Training tokens to take of a data set (1e9).")
@single("--dir", "folder", metavar="PATH", help="The corpus's folder; one in the cache folder without it.")
def prepare_command(name: str | None, **options: Any) -> None:
    """Fetch text and write it as tokens, ready for `ceg train`.

    mini is 18 MB of plays and conversations from two Python packages; library adds essays, commentaries, a dictionary
    and manuals from Debian packages, 100 MB and more.

    \b
    ceg data prepare mini
    ceg data prepare library --tokenizer bpe --vocab 4096
    ceg data prepare --dataset fineweb-edu --tokens 1e8 --tokenizer bpe
    """
    problems: list[str] = []
    dataset, tokenizer = options["dataset"], options["tokenizer"]
    if (name is None) == (dataset is None):
        found = "neither" if name is None else f"{name!r} and {dataset!r}"
        problems.append(f"mini, library or --dataset: one corpus is named (found {found}). Try mini.")
    elif name is not None and name not in corpora.PACKAGED:
        problems.append(f"the corpus is mini or library (found {name!r}). For a data set: --dataset {name}.")
    if tokenizer not in _TOKENIZERS:
        problems.append(f"--tokenizer: one of {', '.join(_TOKENIZERS)} (found {tokenizer!r}). Try byte.")
    vocab = _vocab(options["vocab"], tokenizer, problems)
    limit = _limit(options["tokens"], dataset, problems)
    refuse(problems)
    what = str(name or dataset)
    folder = Path(options["folder"]).expanduser() if options["folder"] else corpus_folder(what, tokenizer)
    started = time.monotonic()
    try:
        corpus = _there(folder, what, tokenizer, vocab, limit)
        if corpus is not None:
            click.echo(f"{folder} is there already; all its files are as they were written")
        else:
            corpus = _make(folder, what, dataset is not None, tokenizer, vocab, limit)
            click.echo(f"wrote {folder} in {time.monotonic() - started:.1f} s")
    except CorpusError as error:
        raise BadInput(error.problems) from None
    _print([corpus])


def _vocab(text: str | None, tokenizer: str, problems: list[str]) -> int | None:
    if tokenizer != "bpe":
        if text is not None:
            problems.append(f"--vocab: goes with --tokenizer bpe (found {text!r}). Leave it out.")
        return None
    vocab: int | None = number("--vocab", text or str(DEFAULT_VOCAB), problems, str(DEFAULT_VOCAB), int)
    low, high = VOCAB_RANGE
    if vocab is not None and not low <= vocab <= high:
        problems.append(f"--vocab: {low} to {high} entries (found {vocab}). Try {DEFAULT_VOCAB}.")
    return vocab


def _limit(text: str | None, dataset: str | None, problems: list[str]) -> int | None:
    if dataset is None:
        if text is not None:
            problems.append(f"--tokens: goes with --dataset; mini and library are whole (found {text!r}). Leave out.")
        return None
    value = _DEFAULT_TOKENS if text is None else number("--tokens", text, problems, "1e8")
    if value is not None and not 1e4 <= value <= 1e13:
        problems.append(f"--tokens: 1e4 to 1e13 (found {text!r}). Try 1e8.")
        return None
    return None if value is None else int(value)


def _there(folder: Path, name: str, tokenizer: str, vocab: int | None, limit: int | None) -> Corpus | None:
    """The corpus that `folder` holds already, verified; None if there is none."""
    if not (folder / "corpus.json").exists():
        return None
    corpus = open_corpus(folder.absolute())
    corpus.verify()
    asked = {"name": name, "tokenizer": tokenizer, "vocab": vocab, "tokens": limit}
    have = {"name": corpus.name, "tokenizer": corpus.tokenizer, **corpus.about.get("asked", {})}
    other = [f"{key} {have.get(key)}, asked for {value}" for key, value in asked.items() if have.get(key) != value]
    if other:
        raise CorpusError(f"{folder} holds another corpus ({'; '.join(other)}); remove it, or name another with --dir")
    return corpus


def _make(folder: Path, name: str, stream: bool, tokenizer: str, vocab: int | None, limit: int | None) -> Corpus:
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=None)

        def report(text: str) -> None:
            bar.update(task, description=text)

        sources = corpora.streamed(name) if stream else corpora.packaged(name, report)
        report("tokenizing")
        return prepare.prepare(
            folder, name, sources, tokenizer=tokenizer, vocab=vocab, limit=limit,
            share=prepare.share_of(limit) if limit else prepare.VALIDATION_SHARE,
            progress=lambda n: bar.advance(task, n),
        )  # fmt: skip


@data_command.command("pack", cls=Command)
@click.argument("name", metavar="NAME|FOLDER")
@single("--tokens", required=True, metavar="N", help="Training tokens to take, in whole documents.")
@single("--tokenizer", default="byte", metavar="byte|bpe", help="Of the corpus (byte).")
@single("--dir", "folder", metavar="PATH", help="The pack's folder; one in the cache folder without it.")
def pack_command(name: str, tokens: str, tokenizer: str, folder: str | None) -> None:
    """Write a part of a prepared corpus, for a machine without a network.

    Training documents are drawn evenly from all of it; held-out ones are those that every run is measured on. The
    folder is a corpus like any other: `--corpus PATH` of other commands takes it.

    \b
    ceg data pack library --tokens 4e7 --dir corpora/library-40m
    """
    from cegain.training.text import pack

    problems: list[str] = []
    count = number("--tokens", tokens, problems, "4e7")
    if count is not None and not 1e4 <= count <= 1e13:
        problems.append(f"--tokens: 1e4 to 1e13 (found {tokens!r}). Try 4e7.")
    if problems or count is None:
        raise BadInput(problems)
    try:
        whole = open_corpus(name, tokenizer)
        made = pack.name_of(whole.name, int(count))
        target = Path(folder).expanduser() if folder else corpus_folder(made, whole.tokenizer)
        if (target / "corpus.json").is_file():
            corpus = open_corpus(target.absolute())
            corpus.verify()
            if (corpus.name, corpus.about.get("packed_from", {}).get("sha256")) != (made, whole.sha256):
                raise CorpusError(
                    f"{target} holds another corpus ({corpus.name}); remove it, or name another with --dir"
                )
            click.echo(f"{target} is there already; all its files are as they were written")
        else:
            corpus = pack.pack(whole, target, int(count))
            click.echo(f"wrote {target}")
    except CorpusError as error:
        raise BadInput(error.problems) from None
    _print([corpus])


@data_command.command("list", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, and nothing else there.")
def list_command(as_json: bool) -> None:
    """Corpora in the cache folder."""
    folder = cache_folder() / "corpora"
    found: list[Corpus] = []
    harmed: list[str] = []
    for path in sorted(folder.glob("*/corpus.json")):
        try:
            found.append(open_corpus(path.parent.absolute()))
        except CorpusError as error:
            harmed += error.problems
    if as_json:
        print_json([{"folder": str(c.folder), "corpus_sha256": c.sha256, **c.about} for c in found])
    elif found:
        _print(found)
    else:
        click.echo(f"no corpus in {folder} yet; try `ceg data prepare mini`")
    for problem in harmed:
        click.echo(problem, err=True)


def _print(found: Sequence[Corpus]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("corpus")
    for header in ("tokens", "held out", "documents", "vocabulary", "bytes/token", "unigram nats"):
        table.add_column(header, justify="right")
    table.add_column("SHA-256")
    table.add_column("folder", overflow="fold")
    for corpus in found:
        documents = int(corpus.about["train_documents"]) + int(corpus.about["val_documents"])
        table.add_row(
            f"{corpus.name}, {corpus.tokenizer}", f"{corpus.train_tokens:,}", f"{corpus.val_tokens:,}",
            f"{documents:,}", f"{corpus.vocab_size:,}", f"{corpus.bytes_per_token:.3f}",
            f"{corpus.unigram_entropy:.3f}", corpus.sha256[:12], str(corpus.folder),
        )  # fmt: skip
    console().print(table)
