"""Files of text, compressed or not, as streams of their content."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zstd")


class _Zstd(io.RawIOBase):
    """What a zstd stream holds. pyarrow is imported late: a process that trains needs none."""

    def __init__(self, raw: IO[bytes]) -> None:
        import pyarrow as pa

        self._stream, self._damage = pa.CompressedInputStream(raw, "zstd"), pa.ArrowException

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._stream.read(len(buffer))
        except self._damage as error:
            raise EOFError(str(error)) from None
        buffer[: len(content)] = content
        return len(content)


# By how the content begins: a name may say less than it, or something else.
OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b\x08": gzip.open,
    b"BZh91AY&SY": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda raw: io.BufferedReader(_Zstd(raw), 2**16),
}


@contextmanager
def reading(path: Path, refusal: Callable[[str], Exception]) -> Iterator[IO[bytes]]:
    """The content of a file as a stream of bytes, unpacked if it is compressed.

    Args:
        refusal: makes the error for a line.
    Raises:
        the refusal: the file cannot be read, or is damaged, wherever that shows.
    """
    try:
        with path.open("rb") as raw:
            head = raw.peek(16)
            opener = next((OPENERS[magic] for magic in OPENERS if head.startswith(magic)), None)
            if opener is None:
                yield raw
            else:
                with opener(raw) as stream:
                    yield cast(IO[bytes], stream)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise refusal(f"cannot read {path}: compressed, and damaged or cut ({error})") from None
    except OSError as error:
        raise refusal(f"cannot read {path}: {error.strerror or error}") from None
