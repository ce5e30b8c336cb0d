"""The files of a tokenised corpus: written whole, verified when opened, and made once at a time."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from isoflop.results.files import write_whole
from isoflop.results.record import Frozen

SCRATCH = ".tokenising-"  # how a folder of files in the making begins
METADATA = "meta.json"
LOCK = ".lock"
BLOCK = 2**26  # bytes that are hashed at a time

Count = Annotated[int, Field(gt=0)]
Say = Callable[[str], None]


class Metadata(Frozen):
    """What the files of a folder must be."""

    dtype: Literal["uint16", "uint32"]
    train: Count
    """Tokens."""
    validation: Count
    bytes_of_token: list[int]
    sha256: dict[str, str]
    """Of every file, as `content_hash` gives it."""
    checksum: str = ""
    """Of all above."""

    def sealed(self) -> Metadata:
        return self.model_copy(update={"checksum": self._sum()})

    def is_whole(self) -> bool:
        return self.checksum == self._sum()

    def _sum(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"checksum"}).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """A hash of a file's content, on all cores: the hash of the hashes of its blocks."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return hashlib.sha256().hexdigest()
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            memoryview(content) as view,
            ThreadPoolExecutor() as pool,
        ):

            def digest(start: int) -> bytes:
                with view[start : start + BLOCK] as block:
                    return hashlib.sha256(block).digest()

            digests = list(pool.map(digest, range(0, len(view), BLOCK)))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def store(scratch: Path, folder: Path, metadata: Metadata) -> None:
    """Move the files of `scratch` to their folder, and then say in its metadata what they are.

    Raises:
        OSError: the disk is full or not writable; what was there is as it was, or is not used.
    """
    (folder / METADATA).unlink(missing_ok=True)
    for path in sorted(scratch.iterdir()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(path, folder / path.name)
    with suppress(OSError):  # a system where a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    write_whole(folder / METADATA, metadata.sealed().model_dump_json())


_verified: dict[Path, list[tuple[int, int, int]]] = {}  # by folder: the files as they were then


def verified(folder: Path, dtype: str, say: Say) -> bool:
    """Whether the tokens in a folder are all there, and what they were when they were stored.

    Files that this process has verified and that are as they were then are not hashed again.

    Args:
        dtype: what the vocabulary demands.
        say: is told once what is damaged. Tokens from before there were hashes are not used either,
            without a word.
    """
    if not (folder / METADATA).exists():
        return False
    try:
        metadata = read_metadata(folder)
        if metadata is None:
            return False
        names = [METADATA, *metadata.sha256]
        states = [
            (s.st_size, s.st_mtime_ns, s.st_ino) for s in (os.stat(folder / n) for n in names)
        ]
        if _verified.get(folder) == states:
            return True
        problem = _damage(folder, metadata, dtype)
    except FileNotFoundError as error:
        problem = f"{Path(error.filename).name} is missing"
    except ValueError as error:
        problem = f"{METADATA} {error}"
    if problem:
        say(f"the tokens in {folder} are not used: {problem}")
        return False
    _verified[folder] = states
    return True


def _damage(folder: Path, metadata: Metadata, dtype: str) -> str:
    if metadata.dtype != dtype:
        return f"they are {metadata.dtype}, not {dtype}"
    size = {"uint16": 2, "uint32": 4}[dtype]
    for split, count in (("train", metadata.train), ("validation", metadata.validation)):
        path = folder / f"{split}.bin"
        if path.stat().st_size != count * size:
            return f"{path.name} has {path.stat().st_size:,} bytes instead of {count * size:,}"
    for name, stored in metadata.sha256.items():
        if content_hash(folder / name) != stored:
            return f"{name} is not what was written"
    return ""


def read_metadata(folder: Path) -> Metadata | None:
    """The metadata of a folder; None if they are from before there were hashes.

    Raises:
        OSError: there are none that can be read.
        ValueError: they are damaged.
    """
    try:
        text = (folder / METADATA).read_text(encoding="utf-8")
        table = json.loads(text)
        if isinstance(table, dict) and "bytes_of_token" in table and "sha256" not in table:
            return None
        metadata = Metadata.model_validate_json(text, strict=True)
    except (RecursionError, ValueError):  # pydantic's is a ValueError, as that of the encoding
        raise ValueError("cannot be read") from None
    if not metadata.is_whole():
        raise ValueError("is not what was written")
    return metadata


@contextmanager
def locked(folder: Path, say: Say) -> Iterator[None]:
    """Make the tokens of a folder alone; wait for a process that does, and say so."""
    with (folder / LOCK).open("a") as file:
        if _lock(file.fileno(), wait=False) is False:
            say("another process tokenises this text; waiting for it")
            _lock(file.fileno(), wait=True)
        yield


def remove_leftovers(cache: Path) -> None:
    """Remove what killed processes have left in the folders of a cache; not what is in the making.

    Where files cannot be locked nobody can tell the two apart, and nothing is removed.
    """
    for name in (f"{SCRATCH}*", "tmp????????"):  # the latter by versions before this one
        for path in cache.glob(f"{'[0-9a-f]' * 16}/{name}"):
            with suppress(OSError), (path.parent / LOCK).open("a") as file:
                if _lock(file.fileno(), wait=False):
                    shutil.rmtree(path, ignore_errors=True)


def _lock(handle: int, wait: bool) -> bool | None:
    """Lock a file: False if another process has, None where the system cannot.

    Without locks two processes may do the same work; files are still written whole.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True
