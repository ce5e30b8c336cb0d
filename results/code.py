"""A hash of code, stored with numbers that take long to compute."""

from __future__ import annotations

import hashlib
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path

LAID_OUT = (  # what changes with the layout of a source alone
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
)


def hash_of(paths: Iterable[Path]) -> str:
    """A hash of Python files in their order, less comments, docstrings and layout."""
    digest = hashlib.sha256()
    for path in paths:
        source = path.read_text(encoding="utf-8")
        starts = True  # of a statement
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in LAID_OUT:
                starts = starts or token.type != tokenize.COMMENT
            else:
                if not (starts and token.type == tokenize.STRING):
                    digest.update(token.string.encode())
                starts = False
    return digest.hexdigest()[:16]
