"""Tables split by columns over processes: each has all rows, and its share of every row's columns.

For PEER's and PKM's tables, where a GPU cannot hold them. Rows never travel: ids and weights of the
retrieved rows go to all, each process's tokens go to the columns, partial dot products are summed,
and outputs come back. Gradients of the tables are whole where they are, without an exchange.

All processes call a layer together, each with its own tokens, equally many. W is their number, d is
D / W; M, P, N and D are as in `ops.pairs`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.layer import Layer, full_precision
from isoflop.models.ops import value_sum
from isoflop.models.ops.activations import activate

CHUNK = 2**24  # elements of gathered rows at a time


def can_split(layer: Layer) -> bool:
    """Whether its tables can be split: PEER's and PKM's."""
    return hasattr(layer, "value_sum") or hasattr(layer, "expert_mix")


def split_tables(layer: Layer) -> None:
    """Keep this process's columns of a layer's tables, and let it work with the other processes.

    Raises:
        ValueError: the processes do not divide the width.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    if layer.d_model % world:
        raise ValueError(f"{world} processes cannot share {layer.d_model} columns evenly")
    tables = {id(table) for table in layer.tables()}
    width = layer.d_model // world
    for name, parameter in list(layer.named_parameters()):
        if id(parameter) in tables:
            own = parameter.detach()[:, rank * width : (rank + 1) * width].clone()
            setattr(layer, name, nn.Parameter(own))
    for operator, split in (("value_sum", split_value_sum), ("expert_mix", split_expert_mix)):
        if hasattr(layer, operator):
            setattr(layer, operator, split)


def split_value_sum(values_Nd: Tensor, index_MP: Tensor, gate_MP: Tensor) -> Tensor:
    """`ops.value_sum` of whole rows, [M, D], from this process's columns of the table."""
    index = gathered(index_MP)
    return _to_rows(value_sum(values_Nd, index, _Gather.apply(gate_MP)))


def split_expert_mix(
    x_MD: Tensor,
    up_Nd: Tensor,
    down_Nd: Tensor,
    index_MP: Tensor,
    gate_MP: Tensor,
    activation: str,
) -> Tensor:
    """`ops.expert_mix` of whole rows, [M, D], from this process's columns of both tables."""
    index = gathered(index_MP)
    partial = _RowDots.apply(up_Nd, _to_columns(x_MD.to(up_Nd.dtype)), index)
    weight_MP = gate_MP * activate(_ScatterSum.apply(partial), activation)
    y_Xd = value_sum(down_Nd, index, _Gather.apply(weight_MP))
    return _to_rows(y_Xd).to(x_MD.dtype)


def gathered(x_MP: Tensor) -> Tensor:
    """The rows of all processes, [W * M, ...], in the order of processes."""
    shape = (dist.get_world_size() * x_MP.shape[0], *x_MP.shape[1:])
    result = x_MP.new_empty(shape)
    dist.all_gather(list(result.chunk(dist.get_world_size())), x_MP.contiguous())
    return result


def scattered_sum(x_XP: Tensor) -> Tensor:
    """Of [W * M, ...] the M rows of this process, summed over processes."""
    return _exchanged(x_XP).unflatten(0, (dist.get_world_size(), -1)).sum(0)


def _exchanged(x: Tensor) -> Tensor:
    """The r-th of W equal parts goes to process r; parts come back in the order of processes."""
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(result, x.contiguous())
    return result


def columns_of_all(x_MD: Tensor) -> Tensor:
    """This process's columns of the rows of all: [M, D] -> [W * M, d]."""
    parts = x_MD.unflatten(1, (dist.get_world_size(), -1)).transpose(0, 1)
    return _exchanged(parts).flatten(0, 1)


def rows_of_own(y_Xd: Tensor) -> Tensor:
    """All columns of this process's rows: [W * M, d] -> [M, D]; undoes `columns_of_all`."""
    parts = _exchanged(y_Xd.unflatten(0, (dist.get_world_size(), -1)))
    return parts.transpose(0, 1).flatten(1)


class _Gather(torch.autograd.Function):
    """`gathered`, whose gradient is `scattered_sum`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gathered(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return scattered_sum(dy)


class _ScatterSum(torch.autograd.Function):
    """`scattered_sum`, whose gradient is `gathered`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return scattered_sum(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return gathered(dy)


class _Exchange(torch.autograd.Function):
    """`columns_of_all` or `rows_of_own`: each is the gradient of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_columns: bool) -> Tensor:
        ctx.to_columns = to_columns
        return columns_of_all(x) if to_columns else rows_of_own(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return (rows_of_own(dy) if ctx.to_columns else columns_of_all(dy)), None


def _to_columns(x_MD: Tensor) -> Tensor:
    return _Exchange.apply(x_MD, True)


def _to_rows(y_Xd: Tensor) -> Tensor:
    return _Exchange.apply(y_Xd, False)


class _RowDots(torch.autograd.Function):
    """<table[index[m, p]], x[m]> of every pair, [M, P]; no rows are kept for the gradients."""

    @staticmethod
    def forward(ctx: Any, table_Nd: Tensor, x_Md: Tensor, index_MP: Tensor) -> Tensor:
        ctx.save_for_backward(table_Nd, x_Md, index_MP)
        tokens = max(1, CHUNK // (index_MP.shape[1] * table_Nd.shape[1]))
        with full_precision(x_Md):
            dots = [
                torch.einsum("md,mpd->mp", x, F.embedding(index, table_Nd))
                for x, index in zip(x_Md.split(tokens), index_MP.split(tokens), strict=True)
            ]
        return torch.cat(dots)

    @staticmethod
    def backward(ctx: Any, dots_MP: Tensor) -> tuple[Tensor, Tensor, None]:
        """Both gradients are those of a value sum with the weights `dots_MP`."""
        table_Nd, x_Md, index_MP = ctx.saved_tensors
        leaf = table_Nd.detach().requires_grad_()
        with torch.enable_grad():
            dx_Md = value_sum(leaf, index_MP, dots_MP)
        (dtable_Nd,) = torch.autograd.grad(dx_Md, leaf, x_Md)
        return dtable_Nd, dx_Md.detach(), None
