"""Experts in one file: for each block and expert a record, with a copy in every precision."""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from isoflop.bench import checkpoint
from isoflop.bench.decoding.routed import RoutedBlock
from isoflop.bench.quantisation import BITS, GROUP, pack, packed_bytes, unpack
from isoflop.results.errors import IsoflopError

PAGE = mmap.PAGESIZE
FORMAT = "isoflop experts 2"


@dataclass(frozen=True)
class Layout:
    """Where each copy lies. Every copy begins on a page; the first page holds this, as JSON."""

    layers: int  # blocks with experts
    experts: int  # of each
    d_model: int
    d_expert: int
    precisions: tuple[str, ...] = tuple(BITS)  # in the order of a record's copies
    group: int = GROUP  # numbers that share a scale
    page: int = PAGE

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of an expert's matrices, which follow each other: [D, F] and [F, D]."""
        return (self.d_model, self.d_expert), (self.d_expert, self.d_model)

    def bytes_of(self, precision: str) -> int:
        """Bytes of a copy, scales included, the rest of its last page not."""
        return sum(packed_bytes(precision, *shape, self.group) for shape in self.shapes)

    def pages(self, precision: str) -> int:
        """Bytes of the pages that a copy takes."""
        return -(-self.bytes_of(precision) // self.page) * self.page

    def offset(self, layer: int, expert: int, precision: str) -> int:
        """Where a copy begins, in bytes."""
        before = self.precisions[: self.precisions.index(precision)]
        record = sum(self.pages(p) for p in self.precisions)
        return (
            self.page
            + (layer * self.experts + expert) * record
            + sum(self.pages(p) for p in before)
        )

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return self.offset(self.layers, 0, self.precisions[0])


def write_experts(
    path: Path, blocks: list[RoutedBlock], precisions: tuple[str, ...], group: int = GROUP
) -> Layout:
    """Write the experts of some blocks, whole or not at all, and through to the disk.

    Raises:
        ValueError: a precision is unknown, or a group is empty.
        OSError: the folder is full or not writable.
    """
    first = blocks[0].up_EDF
    layout = Layout(
        layers=len(blocks),
        experts=first.shape[0],
        d_model=first.shape[1],
        d_expert=first.shape[2],
        precisions=precisions,
        group=group,
    )
    header = json.dumps({"format": FORMAT, **asdict(layout)}).encode()
    assert len(header) < layout.page

    def write(to: Path) -> None:
        with to.open("wb") as file:
            file.write(header)
            for layer, block in enumerate(blocks):
                for expert in range(layout.experts):
                    for precision in precisions:
                        file.seek(layout.offset(layer, expert, precision))
                        for matrix in (block.up_EDF[expert], block.down_EFD[expert]):
                            file.write(pack(matrix.detach(), precision, group).numpy().tobytes())
            file.truncate(layout.total)
            file.flush()
            os.fsync(file.fileno())  # a page that is not yet on the disk stays in memory

    checkpoint.save_whole(path, write)
    return layout


class ExpertFile:
    """Such a file, open to be read.

    Raises:
        IsoflopError: it is no such file, or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        try:
            page = os.pread(self.fd, PAGE, 0).rstrip(b"\0")
            fields = json.loads(page)
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            self.layout = Layout(**fields | {"precisions": tuple(fields["precisions"])})
            if os.fstat(self.fd).st_size != self.layout.total:
                raise ValueError(f"not of {self.layout.total} bytes")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            os.close(self.fd)
            raise IsoflopError(f"{path}: not a file of experts ({error}): write it anew") from None
        # Reading ahead would bring in copies that nobody asked for.
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)

    def close(self) -> None:
        """Close the file. It must not be read any more."""
        os.close(self.fd)

    def read(self, layer: int, expert: int, precision: str, slot: memoryview) -> int:
        """Read a copy into a slot. Returns its bytes.

        Raises:
            OSError: the file was cut short meanwhile.
        """
        size = self.layout.bytes_of(precision)
        offset, done = self.layout.offset(layer, expert, precision), 0
        while done < size:
            count = os.preadv(self.fd, [slot[done:size]], offset + done)
            if count == 0:
                raise OSError(f"experts end at byte {offset + done}: the file was cut short")
            done += count
        return size

    def matrices(self, precision: str, raw: Tensor) -> tuple[Tensor, Tensor]:
        """An expert's two matrices in float32, [D, F] and [F, D], from the bytes of a copy."""
        group, (of_up, of_down) = self.layout.group, self.layout.shapes
        middle, end = packed_bytes(precision, *of_up, group), self.layout.bytes_of(precision)
        return (
            unpack(raw[:middle], precision, *of_up, group),
            unpack(raw[middle:end], precision, *of_down, group),
        )

    def drop_pages(self) -> None:
        """Ask the system to forget what it keeps of the file in memory."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def keep_pages(self) -> None:
        """Read all of the file once, so that the system has it in memory where there is room."""
        part = bytearray(2**20)
        for offset in range(0, self.layout.total, len(part)):
            os.preadv(self.fd, [part], offset)

    def resident(self) -> float | None:
        """The share of records whose first page is in memory; None where that cannot be asked."""
        layout, page = self.layout, memoryview(bytearray(self.layout.page))
        count = 0
        for index in range(layout.layers * layout.experts):
            where = layout.offset(*divmod(index, layout.experts), layout.precisions[0])
            try:
                count += os.preadv(self.fd, [page], where, os.RWF_NOWAIT) > 0
            except BlockingIOError:
                pass
            except (OSError, AttributeError):  # not on every system, nor every file system
                return None
        return count / (layout.layers * layout.experts)


class Slots:
    """Fixed places in memory for copies of one precision, each on a page boundary."""

    def __init__(self, count: int, precision: str, layout: Layout) -> None:
        self.precision, size = precision, layout.pages(precision)
        # Not released by close(): the tensor keeps the mapping alive.
        memory = mmap.mmap(-1, max(1, count) * size)
        view = memoryview(memory)
        self.views = [view[i * size : (i + 1) * size] for i in range(count)]
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8).view(-1, size)
