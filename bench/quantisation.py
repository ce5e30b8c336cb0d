"""The one rule by which weights become integers of 8, 4 or 2 bits, and how they lie in bytes.

Sizes: E matrices, I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}  # of each number, scales apart
GROUP = 32  # weights that share a scale
SCALE_BYTES = 2  # a scale is in float16


def quantise(weight_EIO: Tensor, bits: int, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Codes [E, I, O] in int8, and scales [E, G, O] in float16, G = ceil(I / group).

    A group is `group` weights along the inputs of one output. In it w = d c with integers c from
    -2^(b-1) to 2^(b-1) - 1, where d takes the weight of largest magnitude to -2^(b-1), whatever its
    sign: no code is left unused. That is the rule of Q4_0 of ggml, the library of llama.cpp (whose
    groups have 32 weights too), here for every number of bits.
    """
    lowest = -(2 ** (bits - 1))
    value_EGNO = _grouped(weight_EIO.float(), group)
    place_EG1O = value_EGNO.abs().argmax(2, keepdim=True)
    scale_EG1O = (value_EGNO.gather(2, place_EG1O) / lowest).half()
    # The codes are of the scale as it is stored.
    code_EGNO = torch.where(scale_EG1O == 0, 0.0, value_EGNO / scale_EG1O.float())
    code_EGNO = code_EGNO.round().clamp(lowest, -lowest - 1)
    codes = code_EGNO.flatten(1, 2)[:, : weight_EIO.shape[1]].to(torch.int8)
    return codes, scale_EG1O.squeeze(2)


def dequantise(codes_EIO: Tensor, scales_EGO: Tensor, group: int = GROUP) -> Tensor:
    """The values of codes, in float32."""
    value_EGNO = _grouped(codes_EIO.float(), group) * scales_EGO.float()[:, :, None]
    return value_EGNO.flatten(1, 2)[:, : codes_EIO.shape[1]]


def _grouped(value_EIO: Tensor, group: int) -> Tensor:
    """[E, G, group, O]; the last group is filled up with zeros."""
    missing = -value_EIO.shape[1] % group
    return F.pad(value_EIO, (0, 0, 0, missing)).unflatten(1, (-1, group))


def packed_bytes(precision: str, inputs: int, outputs: int, group: int = GROUP) -> int:
    """Bytes of a matrix: whole bytes of codes, and a scale for each group of each output.

    Raises:
        ValueError: an unknown precision, or an empty group.
    """
    if precision not in BITS:
        raise ValueError(f"no precision {precision!r}; known: {', '.join(BITS)}")
    codes = -(-inputs * outputs * BITS[precision] // 8)
    if BITS[precision] >= 16:
        return codes
    if group < 1:
        raise ValueError(f"group must be at least 1, not {group}")
    return codes + SCALE_BYTES * -(-inputs // group) * outputs


def pack(weight_IO: Tensor, precision: str, group: int = GROUP) -> Tensor:
    """A matrix as bytes, uint8: as it is, or scales and then codes of 8, 4 or 2 bits.

    Raises:
        ValueError: see `packed_bytes`.
    """
    inputs, outputs = weight_IO.shape
    packed_bytes(precision, inputs, outputs, group)
    if BITS[precision] >= 16:
        kind = torch.float32 if precision == "fp32" else torch.float16
        return weight_IO.to(kind).flatten().view(torch.uint8)
    bits = BITS[precision]
    codes, scales = quantise(weight_IO[None], bits, group)
    unsigned = codes.to(torch.int16) + 2 ** (bits - 1)
    return torch.cat((scales.flatten().view(torch.uint8), pack_codes(unsigned, bits)))


def unpack(packed: Tensor, precision: str, inputs: int, outputs: int, group: int = GROUP) -> Tensor:
    """The matrix [inputs, outputs] in float32 that `pack` made bytes of."""
    if precision == "fp32":
        return packed.view(torch.float32).view(inputs, outputs)
    if precision == "fp16":
        return packed.view(torch.float16).float().view(inputs, outputs)
    bits, size = BITS[precision], SCALE_BYTES * -(-inputs // group) * outputs
    # Copied, since float16 must begin at an even byte.
    scales = packed[:size].clone().view(torch.float16).view(1, -1, outputs)
    codes = unpack_codes(packed[size:], bits)[: inputs * outputs].float() - 2 ** (bits - 1)
    return dequantise(codes.view(1, inputs, outputs), scales, group)[0]


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
