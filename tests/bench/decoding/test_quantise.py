"""Weights as bytes and back."""

import pytest
import torch

from isoflop.bench.decoding.quantise import BITS, pack, packed_bytes, unpack

VALUES = torch.randn(1024, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("group", [4, 32, 128])
def test_the_bytes_are_those_stated(precision: str, group: int) -> None:
    assert pack(VALUES, precision, group).numel() == packed_bytes(precision, 1024, group)


def test_bits_per_weight_count_the_scales() -> None:
    assert packed_bytes("int4", 1024, 32) * 8 / 1024 == 4.5
    assert packed_bytes("int4", 1024, 128) * 8 / 1024 == 4.125
    assert packed_bytes("int2", 1024, 32) * 8 / 1024 == 2.5


def test_floats_come_back() -> None:
    assert torch.equal(unpack(pack(VALUES, "fp32"), "fp32", 1024), VALUES)
    assert torch.equal(unpack(pack(VALUES, "fp16"), "fp16", 1024), VALUES.half().float())


@pytest.mark.parametrize("precision", ["int8", "int4", "int2"])
def test_integers_are_the_nearest_codes_of_their_group(precision: str) -> None:
    """Against the definition, number by number."""
    group, most = 32, 2 ** (BITS[precision] - 1)
    back = unpack(pack(VALUES, precision, group), precision, 1024, group).tolist()
    numbers = VALUES.tolist()
    for start in range(0, 1024, group):
        part = numbers[start : start + group]
        extreme = max(part, key=abs)
        scale = float(torch.tensor(extreme / -most).half())
        for value, got in zip(part, back[start : start + group], strict=True):
            nearest = min(range(-most, most), key=lambda code: abs(code * scale - value))
            assert got == pytest.approx(nearest * scale, abs=1e-6)


@pytest.mark.parametrize("precision", ["int8", "int4", "int2"])
def test_what_is_on_the_grid_comes_back_whole(precision: str) -> None:
    most = 2 ** (BITS[precision] - 1)
    codes = torch.arange(32) % (2 * most) - most  # each group has the lowest code
    values = torch.cat((codes * 0.25, codes * -0.5, torch.zeros(32)))
    assert torch.equal(unpack(pack(values, precision), precision, 96), values)


def test_more_bits_err_less() -> None:
    errors = [
        float((unpack(pack(VALUES, p), p, 1024) - VALUES).square().mean()) for p in list(BITS)[1:]
    ]
    assert errors == sorted(errors)
    assert errors[-1] < 0.3  # of a variance of 1, in 2 bits


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="no precision 'int3'; known: fp32"):
        packed_bytes("int3", 32)
    for group in (6, 0, 48):
        with pytest.raises(ValueError, match="divide 1024"):
            pack(VALUES, "int4", group)
