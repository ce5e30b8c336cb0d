"""Group-wise quantisation of weights to 8, 4 or 2 bits, and weights as bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}  # of each number, scales apart
GROUP = 32  # numbers that share a scale
SCALE_BYTES = 2  # a scale is in float16


def packed_bytes(precision: str, numbers: int, group: int = GROUP) -> int:
    """Bytes that `pack` gives for so many numbers: their codes, and a scale for each group.

    Raises:
        ValueError: an unknown precision, or the groups do not divide the numbers.
    """
    if precision not in BITS:
        raise ValueError(f"no precision {precision!r}; known: {', '.join(BITS)}")
    if BITS[precision] >= 16:
        return numbers * BITS[precision] // 8
    if group % 4 or group < 4 or numbers % group:
        raise ValueError(f"groups of {group} must be of a multiple of 4 and divide {numbers}")
    return numbers * BITS[precision] // 8 + numbers // group * SCALE_BYTES


def pack(values_N: Tensor, precision: str, group: int = GROUP) -> Tensor:
    """Numbers as bytes, uint8: as they are, or scales and then codes of 8, 4 or 2 bits.

    In a group w = d c with integers c in [-2^(b-1), 2^(b-1)), where d takes the number of largest
    magnitude to -2^(b-1), whatever its sign, as in llama.cpp's Q4_0: no code is left unused.

    Raises:
        ValueError: see `packed_bytes`.
    """
    packed_bytes(precision, values_N.numel(), group)
    if precision == "fp32":
        return values_N.float().contiguous().view(torch.uint8)
    if precision == "fp16":
        return values_N.half().contiguous().view(torch.uint8)
    bits = BITS[precision]
    lowest = -(2 ** (bits - 1))
    value_GN = values_N.float().view(-1, group)
    extreme_G1 = value_GN.gather(1, value_GN.abs().argmax(1, keepdim=True))
    scale_G1 = (extreme_G1 / lowest).half()  # the codes are of the scale as it is stored
    code_GN = torch.where(scale_G1 == 0, 0.0, value_GN / scale_G1.float())
    code_GN = code_GN.round().clamp(lowest, -lowest - 1) - lowest
    return torch.cat((scale_G1.view(-1).view(torch.uint8), pack_codes(code_GN, bits)))


def unpack(packed: Tensor, precision: str, numbers: int, group: int = GROUP) -> Tensor:
    """The numbers [numbers] in float32 that `pack` made bytes of."""
    if precision == "fp32":
        return packed.view(torch.float32)
    if precision == "fp16":
        return packed.view(torch.float16).float()
    bits = BITS[precision]
    scales = numbers // group * SCALE_BYTES
    scale_G = packed[:scales].view(torch.float16).float()
    code_GN = unpack_codes(packed[scales:], bits).reshape(-1, group).float() - 2 ** (bits - 1)
    return (code_GN * scale_G[:, None]).view(-1)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes from 0 to 2^bits - 1 as bytes, 8 / bits of them in each, the first in the lowest bits;
    the last is padded with zeros."""
    per_byte = 8 // bits
    flat = codes.flatten().to(torch.uint8)
    flat = F.pad(flat, (0, -len(flat) % per_byte)).view(-1, per_byte)
    shift = torch.arange(per_byte, dtype=torch.uint8) * bits
    return (flat << shift).sum(1, dtype=torch.uint8)


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """The codes in these bytes, the padding of `pack_codes` among them."""
    if bits == 8:
        return packed
    shift = torch.arange(8 // bits, dtype=torch.uint8) * bits
    return ((packed[:, None] >> shift) & (2**bits - 1)).flatten()
