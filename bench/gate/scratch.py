"""Temporary folders of `isoflop check`, of which killed calls leave none for long."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch(purpose: str) -> Iterator[str]:
    """A temporary folder, removed after the block; those of processes that are gone are removed.

    Args:
        purpose: part of its name; the process that made it follows.
    """
    prefix = f"isoflop-{purpose}-"
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*-*"):
        owner = folder.name.removeprefix(prefix).partition("-")[0]
        gone = owner.isdecimal() and not _runs(int(owner))
        if gone and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-") as folder_name:
        yield folder_name


def _runs(process: int) -> bool:
    """Whether there is a process of this number."""
    if os.name == "nt":  # a signal would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
