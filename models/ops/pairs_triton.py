# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of the operators on (token, table row) pairs, for training on a GPU.

Forward is token-major: a program keeps one token in registers and streams its rows. Backward is
expert-major: after one stable sort of the pairs by table row, a program keeps one expert's two rows
in registers, streams its tokens, and writes its gradient rows once, without atomics; the gradient
of x is a value sum again. The value sum runs the same kernels, without the half that MIX adds.

An expert with more than SPLIT pairs is cut into tasks of at most SPLIT, whose float32 partial rows
a last kernel adds up in order. How many tasks there are is known to the device alone: launches are
of a fixed size and nothing waits for the device, so a CUDA graph can hold a whole step. All sums
are in float32 and in a fixed order: results are bitwise repeatable.

Sizes: M tokens, P pairs per token, N rows, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# the most pairs of one expert that one program sums; also bounds the partial rows' memory
SPLIT = 512

_INV_SQRT_2: tl.constexpr = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI: tl.constexpr = tl.constexpr(0.3989422804014327)


@triton.jit
def activate(a, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        return 0.5 * a * (1.0 + tl.math.erf(a * _INV_SQRT_2))
    elif ACTIVATION == "silu":
        return a * tl.sigmoid(a)
    else:
        return tl.maximum(a, 0.0)


@triton.jit
def activate_derivative(a, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        density = _INV_SQRT_2PI * tl.exp(-0.5 * a * a)
        return 0.5 * (1.0 + tl.math.erf(a * _INV_SQRT_2)) + a * density
    elif ACTIVATION == "silu":
        share = tl.sigmoid(a)
        return share * (1.0 + a * (1.0 - share))
    else:
        return tl.where(a > 0.0, 1.0, 0.0)


@triton.jit
def token_major(
    x_ptr,  # [M, D], read if MIX
    up_ptr,  # [N, D], read if MIX
    down_ptr,  # [N, D]
    index_ptr,  # [M, P]
    gate_ptr,  # [M, P]
    hidden_ptr,  # [M, P] float32, written if MIX
    y_ptr,  # [M, D]
    P: tl.constexpr,
    D: tl.constexpr,
    MIX: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """y[m] = sum_p w[p] down[index[p]]; w is gate * act(<x[m], up[index[p]]>) if MIX, else gate."""
    m = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    if MIX:
        x = tl.load(x_ptr + m * D + d, mask=in_d, other=0.0).to(tl.float32)
    y = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        in_p = p < P
        row = tl.load(index_ptr + m * P + p, mask=in_p, other=0).to(tl.int64)
        place = row[:, None] * D + d[None, :]
        mask = in_p[:, None] & in_d[None, :]
        weight = tl.load(gate_ptr + m * P + p, mask=in_p, other=0.0).to(tl.float32)
        down = tl.load(down_ptr + place, mask=mask, other=0.0).to(tl.float32)
        if MIX:
            up = tl.load(up_ptr + place, mask=mask, other=0.0).to(tl.float32)
            hidden = tl.sum(up * x[None, :], axis=1)
            tl.store(hidden_ptr + m * P + p, hidden, mask=in_p)
            weight *= activate(hidden, ACTIVATION)
        y += tl.sum(weight[:, None] * down, axis=0)
    tl.store(y_ptr + m * D + d, y.to(y_ptr.dtype.element_ty), mask=in_d)


@triton.jit
def expert_major(
    dy_ptr,  # [M, D]
    x_ptr,  # [M, D], read if MIX
    down_ptr,  # [N, D]
    order_ptr,  # [M * P] int64, the pairs sorted by row
    offset_ptr,  # [N + 1] int32, where each row's pairs start in that order
    task_row_ptr,  # [tasks] int64, the row that each task of a split row belongs to; N: no task
    first_task_ptr,  # [N + 1] int32, where each row's tasks start
    gate_ptr,  # [M, P]
    hidden_ptr,  # [M, P], read if MIX
    dup_ptr,  # [N, D], written if MIX
    ddown_ptr,  # [N, D]
    part_up_ptr,  # [tasks, D] float32, written if MIX
    part_down_ptr,  # [tasks, D] float32
    dhidden_ptr,  # [M, P], written if MIX
    dgate_ptr,  # [M, P]
    N,
    tasks,
    P: tl.constexpr,
    D: tl.constexpr,
    MIX: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """All gradients of one row's pairs but x's, for programs 0 to tasks - 1 of one task of a row
    with more than SPLIT pairs, and for program tasks + n of row n if it has no more."""
    program = tl.program_id(0)
    if program < tasks:  # the long ones start first
        n = tl.load(task_row_ptr + program)
        if n == N:
            return
        start = tl.load(offset_ptr + n) + (program - tl.load(first_task_ptr + n)) * SPLIT
        stop = tl.minimum(start + SPLIT, tl.load(offset_ptr + n + 1))
    else:
        n = (program - tasks).to(tl.int64)
        start = tl.load(offset_ptr + n)
        stop = tl.load(offset_ptr + n + 1)
        if stop - start > SPLIT:
            return
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    down = tl.load(down_ptr + n * D + d, mask=in_d, other=0.0).to(tl.float32)
    ddown = tl.zeros([BLOCK_D], dtype=tl.float32)
    dup = tl.zeros([BLOCK_D], dtype=tl.float32)
    for j in range(start, stop, BLOCK_P):
        i = j + tl.arange(0, BLOCK_P)
        in_p = i < stop
        pair = tl.load(order_ptr + i, mask=in_p, other=0).to(tl.int32)
        place = (pair // P).to(tl.int64)[:, None] * D + d[None, :]
        mask = in_p[:, None] & in_d[None, :]
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(gate_ptr + pair, mask=in_p, other=0.0).to(tl.float32)
        dgate = tl.sum(dy * down[None, :], axis=1)  # so far of the whole weight
        if MIX:
            x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
            hidden = tl.load(hidden_ptr + pair, mask=in_p, other=0.0)
            dhidden = dgate * weight * activate_derivative(hidden, ACTIVATION)
            tl.store(dhidden_ptr + pair, dhidden, mask=in_p)
            dup += tl.sum(dhidden[:, None] * x, axis=0)
            h = activate(hidden, ACTIVATION)
            weight *= h
            dgate *= h
        tl.store(dgate_ptr + pair, dgate.to(dgate_ptr.dtype.element_ty), mask=in_p)
        ddown += tl.sum(weight[:, None] * dy, axis=0)
    if program < tasks:
        place = program.to(tl.int64) * D + d
        tl.store(part_down_ptr + place, ddown, mask=in_d)
        if MIX:
            tl.store(part_up_ptr + place, dup, mask=in_d)
    else:
        tl.store(ddown_ptr + n * D + d, ddown.to(ddown_ptr.dtype.element_ty), mask=in_d)
        if MIX:
            tl.store(dup_ptr + n * D + d, dup.to(dup_ptr.dtype.element_ty), mask=in_d)


@triton.jit
def add_parts(
    part_ptr,  # [tasks, D] float32
    row_ptr,  # [N, D], written where a row was split
    task_row_ptr,
    first_task_ptr,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The row whose first task is this program: the sum of its tasks' partial rows."""
    program = tl.program_id(0)
    n = tl.load(task_row_ptr + program)
    if n == N:
        return
    if tl.load(first_task_ptr + n) != program:
        return
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < D
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for task in range(program, tl.load(first_task_ptr + n + 1)):
        total += tl.load(part_ptr + tl.cast(task, tl.int64) * D + d, mask=in_d, other=0.0)
    tl.store(row_ptr + n * D + d, total.to(row_ptr.dtype.element_ty), mask=in_d)


class Tiles(NamedTuple):
    """One warp for a row of up to 1024 elements, and few rows a step.

    So sums over rows stay in a warp, and many programs hide the latency of gathering. On an H200
    the kernels then move 3 to 4.3 TB/s; with 8 warps and 16 rows of 512 elements it was a tenth.
    """

    BLOCK_D: int
    BLOCK_P: int
    num_warps: int


def tile_sizes(D: int, pairs: int) -> Tiles:
    block_d = max(16, triton.next_power_of_2(D))
    block_p = min(16, max(2, 1024 // block_d), triton.next_power_of_2(pairs))
    return Tiles(block_d, block_p, num_warps=max(1, block_d // 1024))


class Tasks(NamedTuple):
    """The pairs sorted by row, and the split of long rows into tasks of at most SPLIT pairs."""

    order: Tensor  # [M * P] int64
    offset: Tensor  # [N + 1] int32
    row: Tensor  # [tasks] int64, N where there is no such task
    first: Tensor  # [N + 1] int32


def plan_tasks(index_MP: Tensor, n_rows: int) -> Tasks:
    """Sort the pairs, and split the long rows, without waiting for the device."""
    device, pairs = index_MP.device, index_MP.numel()
    keys, order = index_MP.flatten().to(torch.int32).sort(stable=True)  # half the passes of int64
    rows = torch.arange(n_rows + 1, device=device, dtype=keys.dtype)
    offset = torch.searchsorted(keys, rows, out_int32=True)
    count = offset.diff()
    tasks = torch.where(count > SPLIT, (count + SPLIT - 1).div(SPLIT, rounding_mode="floor"), 0)
    first = torch.nn.functional.pad(tasks.cumsum(0, dtype=torch.int32), (1, 0))
    # a split row has more than SPLIT pairs, so fewer tasks than 2 * its pairs / SPLIT
    places = torch.arange(max(1, 2 * pairs // SPLIT), device=device, dtype=torch.int32)
    return Tasks(order, offset, torch.searchsorted(first[1:], places, right=True), first)


def row_gradients(
    dy_MD: Tensor,
    x_MD: Tensor | None,
    down_ND: Tensor,
    index_MP: Tensor,
    gate_MP: Tensor,
    hidden: Tensor | None,
    dtype: torch.dtype,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of down, gate, up and the hidden values (the last two empty for a sum).

    Those of the tables are in `dtype`.
    """
    N, D = down_ND.shape
    P = index_MP.shape[1]
    plan = plan_tasks(index_MP, N)
    tasks = plan.row.shape[0]
    mix = x_MD is not None
    ddown_ND, dgate_MP = torch.empty_like(down_ND, dtype=dtype), torch.empty_like(gate_MP)
    dup_ND = torch.empty_like(ddown_ND if mix else ddown_ND[:0])
    dhidden_MP = torch.empty_like(gate_MP if mix else gate_MP[:0])
    parts = down_ND.new_empty((2 if mix else 1, tasks, D), dtype=torch.float32)
    tiles = tile_sizes(D, index_MP.numel())
    expert_major[(tasks + N,)](
        dy_MD,
        x_MD if mix else dy_MD,
        down_ND,
        plan.order,
        plan.offset,
        plan.row,
        plan.first,
        gate_MP,
        hidden if mix else gate_MP,
        dup_ND,
        ddown_ND,
        parts[-1],
        parts[0],
        dhidden_MP,
        dgate_MP,
        N,
        tasks,
        P,
        D,
        MIX=mix,
        ACTIVATION=activation,
        SPLIT=SPLIT,
        **tiles._asdict(),
    )
    block = min(128, tiles.BLOCK_D)
    for part, row_ND in ((parts[0], ddown_ND), (parts[-1], dup_ND))[: parts.shape[0]]:
        add_parts[(tasks, triton.cdiv(D, block))](
            part, row_ND, plan.row, plan.first, N, D, BLOCK_D=block
        )
    return ddown_ND, dgate_MP, dup_ND, dhidden_MP
