# mypy: allow-untyped-defs, allow-incomplete-defs
"""Activation and gate of MoE experts in one pass, forward and backward, in Triton.

These two steps lie between the grouped products. The kernels move, in passes over [rows, expert
width], 2 forward and 3 backward, where torch's own operators move 4 and 9; with SwiGLU, whose
input is twice as wide, 3 and 5 instead of 7 and 19. Of the bytes that a step moves outside its
products this saves, for 65536 tokens of width 1024 and a hidden width of 4096 in all, in bfloat16:

    granularity      1           8            16
    GELU             4.3 of 7.8  4.3 of 13.4  4.3 of 19.9 GB  (1.4 ms at 3 TB/s; products 5 ms)
    SwiGLU           9.7 of 14.8 9.7 of 20.4  9.7 of 26.8 GB  (3.2 ms at 3 TB/s; products 8 ms)

The choice rests on this arithmetic: it was not measured on a GPU, and torch.compile may fuse as
much by itself. Sums are in float32 and in a fixed order: results are bitwise repeatable.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from isoflop.models.ops.pairs_triton import activate, activate_derivative

TILE = 2048  # hidden values that a program works on at a time


@triton.jit
def _forward_kernel(
    h_ptr,  # [R, F], [R, 2 F] for "swiglu"
    gate_ptr,  # [R]
    y_ptr,  # [R, F]
    R,
    F: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """y = act(h) * gate."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask = (r < R)[:, None] & (f < F)[None, :]
    gate = tl.load(gate_ptr + r, mask=r < R, other=0.0).to(tl.float32)[:, None]
    place = r[:, None] * F + f[None, :]
    if ACTIVATION == "swiglu":
        in_place = place + r[:, None] * F
        a = tl.load(h_ptr + in_place, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(h_ptr + in_place + F, mask=mask, other=0.0).to(tl.float32)
        y = a * tl.sigmoid(a) * value * gate
    else:
        a = tl.load(h_ptr + place, mask=mask, other=0.0).to(tl.float32)
        y = activate(a, ACTIVATION) * gate
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr,  # [R, F]
    h_ptr,  # [R, F], [R, 2 F] for "swiglu"
    gate_ptr,  # [R]
    dh_ptr,  # as h
    dgate_ptr,  # [R]
    R,
    F: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """The gradients of whole rows, so that each gate's is summed by one program."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_r = r < R
    gate = tl.load(gate_ptr + r, mask=in_r, other=0.0).to(tl.float32)[:, None]
    dgate = tl.zeros([BLOCK_R], dtype=tl.float32)
    for start in range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        mask = in_r[:, None] & (f < F)[None, :]
        place = r[:, None] * F + f[None, :]
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
        if ACTIVATION == "swiglu":
            place += r[:, None] * F
            a = tl.load(h_ptr + place, mask=mask, other=0.0).to(tl.float32)
            value = tl.load(h_ptr + place + F, mask=mask, other=0.0).to(tl.float32)
            share = tl.sigmoid(a)
            silu = a * share
            dgate += tl.sum(dy * silu * value, axis=1)
            dvalue = dy * gate * silu
            tl.store(dh_ptr + place + F, dvalue.to(dh_ptr.dtype.element_ty), mask=mask)
            da = dy * gate * value * share * (1.0 + a * (1.0 - share))
        else:
            a = tl.load(h_ptr + place, mask=mask, other=0.0).to(tl.float32)
            dgate += tl.sum(dy * activate(a, ACTIVATION), axis=1)
            da = dy * gate * activate_derivative(a, ACTIVATION)
        tl.store(dh_ptr + place, da.to(dh_ptr.dtype.element_ty), mask=mask)
    tl.store(dgate_ptr + r, dgate.to(dgate_ptr.dtype.element_ty), mask=in_r)


def _constants(width: int, activation: str) -> dict[str, Any]:
    block_f = min(TILE, triton.next_power_of_2(width))
    return {
        "ACTIVATION": activation,
        "BLOCK_R": TILE // block_f,
        "BLOCK_F": block_f,
    }


def forward(h_RF: Tensor, gate_R: Tensor, activation: str) -> Tensor:
    """act(h) * gate, [R, F] in h's dtype."""
    R, width = h_RF.shape[0], h_RF.shape[1] // (2 if activation == "swiglu" else 1)
    y_RF = h_RF.new_empty(R, width)
    constants = _constants(width, activation)
    grid = triton.cdiv(R, constants["BLOCK_R"]), triton.cdiv(width, constants["BLOCK_F"])
    _forward_kernel[grid](h_RF, gate_R, y_RF, R, width, **constants)
    return y_RF


def backward(dy_RF: Tensor, h_RF: Tensor, gate_R: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gradients of h and gate."""
    dh_RF, dgate_R = torch.empty_like(h_RF), torch.empty_like(gate_R)
    constants = _constants(dy_RF.shape[1], activation)
    grid = (triton.cdiv(dy_RF.shape[0], constants["BLOCK_R"]),)
    _backward_kernel[grid](
        dy_RF, h_RF, gate_R, dh_RF, dgate_R, dy_RF.shape[0], dy_RF.shape[1], **constants
    )
    return dh_RF, dgate_R
