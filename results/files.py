"""Files that a kill at any moment leaves as they were or writes whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write to `path` so that a kill at any moment leaves the old file or the new one.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind at `path`.
    """
    with written(path, content) as temporary:
        os.replace(temporary, path)


@contextmanager
def written(path: Path, content: str | bytes) -> Iterator[Path]:
    """A temporary file beside `path` that holds `content`, on disk, with the mode of the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
