"""Weights as integers and as bytes, and back."""

import pytest
import torch

from isoflop.bench.quantisation import (
    BITS,
    dequantise,
    pack,
    pack_codes,
    packed_bytes,
    quantise,
    unpack,
    unpack_codes,
)

VALUES = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
INTEGERS = ["int8", "int4", "int2"]


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("group", [1, 4, 5, 32, 128])
def test_the_bytes_are_those_stated(precision: str, group: int) -> None:
    assert pack(VALUES, precision, group).numel() == packed_bytes(precision, 64, 16, group)


def test_bits_per_weight_count_the_scales() -> None:
    assert packed_bytes("int4", 64, 16, 32) * 8 / 1024 == 4.5
    assert packed_bytes("int4", 128, 8, 128) * 8 / 1024 == 4.125
    assert packed_bytes("int2", 64, 16, 32) * 8 / 1024 == 2.5
    assert packed_bytes("int2", 3, 3, 2) == 3 + 2 * 2 * 3  # 18 bits of codes, 6 scales


def test_floats_come_back() -> None:
    assert torch.equal(unpack(pack(VALUES, "fp32"), "fp32", 64, 16), VALUES)
    assert torch.equal(unpack(pack(VALUES, "fp16"), "fp16", 64, 16), VALUES.half().float())


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize("group", [4, 5, 32])
def test_integers_are_the_nearest_codes_of_their_group(precision: str, group: int) -> None:
    """Against the definition, number by number; groups run along the inputs of an output."""
    most = 2 ** (BITS[precision] - 1)
    back = unpack(pack(VALUES, precision, group), precision, 64, 16, group)
    for output in range(16):
        numbers, got = VALUES[:, output].tolist(), back[:, output].tolist()
        for start in range(0, 64, group):
            part = numbers[start : start + group]
            scale = float(torch.tensor(max(part, key=abs) / -most).half())
            for value, result in zip(part, got[start : start + group], strict=True):
                nearest = min(range(-most, most), key=lambda code: abs(code * scale - value))
                assert result == pytest.approx(nearest * scale, abs=1e-6)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_what_is_on_the_grid_stays_exactly(bits: int) -> None:
    most = 2 ** (bits - 1)
    codes = (torch.arange(32) % (2 * most) - most)[None, :, None]  # each group has the lowest code
    values = torch.cat((codes * 0.25, codes * -0.5, torch.zeros(1, 32, 1)), 2)
    assert torch.equal(dequantise(*quantise(values, bits)), values)


@pytest.mark.parametrize("precision", INTEGERS)
def test_a_packed_matrix_is_the_quantised_one(precision: str) -> None:
    """What a file holds is what a quantised model computes with, a matrix at an odd byte too."""
    weight = VALUES[:33, :3]
    values = dequantise(*quantise(weight[None], BITS[precision], 7), 7)[0]
    packed = torch.cat((torch.zeros(1, dtype=torch.uint8), pack(weight, precision, 7)))
    assert torch.equal(unpack(packed[1:], precision, 33, 3, 7), values)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("count", [1, 7, 64])
def test_packed_codes_come_back(bits: int, count: int) -> None:
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack_codes(packed, bits)[:count], codes)


def test_more_bits_err_less() -> None:
    errors = [
        float((unpack(pack(VALUES, p), p, 64, 16) - VALUES).square().mean()) for p in list(BITS)[1:]
    ]
    assert errors == sorted(errors)
    assert errors[-1] < 0.3  # of a variance of 1, in 2 bits


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="no precision 'int3'; known: fp32"):
        packed_bytes("int3", 32, 1)
    with pytest.raises(ValueError, match="group must be at least 1, not 0"):
        pack(VALUES, "int4", 0)
