"""The file of experts: what is written is what is read, and where it lies."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from isoflop.bench.decoding.expert_file import PAGE, ExpertFile, Slots, write_experts
from isoflop.bench.decoding.routed import routed_blocks
from isoflop.bench.quantisation import BITS, pack, unpack
from isoflop.results.errors import IsoflopError
from tests.models.test_decoder import build

ALL = tuple(BITS)


@pytest.mark.parametrize("layer", ["moe", "moe_shared"])
def test_every_copy_of_every_expert_comes_back(layer: str, tmp_path: Path) -> None:
    blocks = routed_blocks(build(layer))
    layout = write_experts(tmp_path / "experts", blocks, ALL)
    file = ExpertFile(tmp_path / "experts")
    assert file.layout == layout
    read = 0
    for precision in reversed(ALL):
        slots = Slots(2, precision, layout)
        for number, block in enumerate(blocks):
            for expert in range(block.experts):
                read += file.read(number, expert, precision, slots.views[1])
                up, down = file.matrices(precision, slots.bytes[1])
                for got, source in ((up, block.up_EDF), (down, block.down_EFD)):
                    packed = pack(source[expert].detach(), precision)
                    assert torch.equal(got, unpack(packed, precision, *got.shape))
                if precision == "fp32":
                    assert torch.equal(up, block.up_EDF[expert])
                    assert torch.equal(down, block.down_EFD[expert])
        assert not slots.bytes[0].any()  # the other slot is untouched
    assert read == len(blocks) * block.experts * sum(layout.bytes_of(p) for p in ALL)
    file.close()


def test_copies_lie_on_pages_and_do_not_overlap(tmp_path: Path) -> None:
    layout = write_experts(tmp_path / "experts", routed_blocks(build("moe")), ALL)
    assert (tmp_path / "experts").stat().st_size == layout.total
    spans = sorted(
        (layout.offset(layer, expert, p), layout.offset(layer, expert, p) + layout.bytes_of(p))
        for layer in range(2)
        for expert in range(8)
        for p in ALL
    )
    assert all(start % PAGE == 0 for start, _ in spans)
    assert spans[0][0] == PAGE
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(view.nbytes % PAGE == 0 for view in Slots(3, "int2", layout).views)
    assert Slots(3, "int2", layout).bytes.data_ptr() % PAGE == 0


def test_dropped_pages_are_not_in_memory(tmp_path: Path) -> None:
    write_experts(tmp_path / "experts", routed_blocks(build("moe")), ALL)
    file = ExpertFile(tmp_path / "experts")
    if file.resident() is None:
        pytest.skip("this file system does not say")
    for _ in range(100):  # a page that the system is using at the time stays: ask again
        file.drop_pages()
        if file.resident() == 0:
            break
        time.sleep(0.01)
    assert file.resident() in (0, 1)  # a file system in memory does not follow the request
    file.keep_pages()
    assert file.resident() == 1
    file.close()


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80", b'{"format": "isoflop experts 2"}', None])
def test_another_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "experts"
    if content is None:
        write_experts(path, routed_blocks(build("moe")), ("fp32",))
        content = path.read_bytes()[:-PAGE]
    path.write_bytes(content)
    with pytest.raises(IsoflopError, match="experts: not a file of experts"):
        ExpertFile(path)


def test_a_layer_without_such_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="experts of peer cannot be read one by one"):
        routed_blocks(build("peer"))
    with pytest.raises(ValueError, match="experts of moe_latent"):
        routed_blocks(build("moe_latent"))
