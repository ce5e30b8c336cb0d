"""The expert mix and the value sum on a CPU, without a [tokens, pairs, d] tensor.

Two stock operators carry all the work: `F.embedding_bag` sums weighted rows, and
`torch.sparse.sampled_addmm` takes the dot products of the pairs that a CSR pattern names. After one
stable sort of the pairs by expert, an expert is a bag of tokens: so the gradients of the tables are
bag sums too, each row written once, and the dot products read each table row once, in order.

Everything is computed in float32 (float64 for float64 input), under autocast too: the tables are
float32 as they are, so a bfloat16 copy of them would cost more than it saves. Each output element
is summed by one thread in a fixed order: results are bitwise repeatable.
"""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# torch sorts integers by radix, several times faster, from this many elements on, so that it pays
# to fill up to it from a quarter on
RADIX_SORT_FROM = 2**15


def stable_argsort(keys: Tensor, n_keys: int) -> Tensor:
    """The order that sorts `keys`, integers from 0 to n_keys - 1; equal keys keep their order."""
    count = keys.numel()
    if keys.device.type == "cpu":
        keys = keys.to(torch.int16 if n_keys < 2**15 else torch.int32)
        if RADIX_SORT_FROM // 4 < count < RADIX_SORT_FROM:
            keys = F.pad(keys, (0, RADIX_SORT_FROM - count), value=torch.iinfo(keys.dtype).max)
    return keys.sort(stable=True).indices[:count]


class Pairs(NamedTuple):
    """The M * P (token, row) pairs sorted by table row; a row's pairs keep the order of tokens."""

    order: Tensor  # [M * P] int64, the pair at each sorted place
    token: Tensor  # [M * P] int32, its token
    offset: Tensor  # [N + 1] int32, where each row's pairs start


def sort_pairs(index_MP: Tensor, n_rows: int) -> Pairs:
    """Sort pairs by row, stably. `index_MP` is int32, [tokens, pairs per token]."""
    return pairs_in_order(stable_argsort(index_MP.flatten(), n_rows), index_MP, n_rows)


def pairs_in_order(order: Tensor, index_MP: Tensor, n_rows: int) -> Pairs:
    token = order.to(torch.int32).div_(index_MP.shape[1], rounding_mode="floor")
    offset = torch.zeros(n_rows + 1, dtype=torch.int32)
    offset[1:] = torch.bincount(index_MP.flatten(), minlength=n_rows).cumsum(0)
    return Pairs(order, token, offset)


def pair_dots(table_ND: Tensor, x_MD: Tensor, pairs: Pairs) -> Tensor:
    """<table[row], x[token]> of every pair, [M * P] in sorted order."""
    _silence_beta_warning()
    zeros = torch.zeros(pairs.token.shape, dtype=x_MD.dtype)
    size = (table_ND.shape[0], x_MD.shape[0])
    pattern = torch.sparse_csr_tensor(
        pairs.offset, pairs.token, zeros, size, check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, table_ND, x_MD.t(), beta=0.0).values()


@functools.cache
def _silence_beta_warning() -> None:
    """The first CSR tensor of a process warns that CSR is in beta: make one out of sight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [0.0], (1, 1), check_invariants=False)


def value_sum(values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor) -> Tensor:
    """sum_p gate[m, p] * values[index[m, p]], [M, D]."""
    return F.embedding_bag(index_MP, values_ND, per_sample_weights=gate_MP, mode="sum")


def row_sums(pairs: Pairs, x_MD: Tensor, weight: Tensor) -> Tensor:
    """The sum of weight * x[token] over each table row's pairs, [N, D]. `weight` is sorted."""
    return F.embedding_bag(
        pairs.token,
        x_MD,
        pairs.offset,
        per_sample_weights=weight,
        mode="sum",
        include_last_offset=True,
    )


def unsort(values: Tensor, pairs: Pairs, like_MP: Tensor) -> Tensor:
    """Sorted pair values back as [M, P]."""
    return torch.empty_like(values).scatter_(0, pairs.order, values).view(like_MP.shape)


def activate(a: Tensor, activation: str) -> Tensor:
    return F.gelu(a) if activation == "gelu" else F.relu(a)


def activate_backward(grad: Tensor, a: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, a)
    return torch.ops.aten.threshold_backward(grad, a, 0)


def expert_mix(
    x_MD: Tensor, up_ND: Tensor, down_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y [M, D], and for the backward pass the hidden values and the order, both sorted [M * P]."""
    pairs = sort_pairs(index_MP, up_ND.shape[0])
    hidden = pair_dots(up_ND, x_MD, pairs)
    weight_MP = gate_MP * activate(unsort(hidden, pairs, gate_MP), activation)
    return value_sum(down_ND, index_MP, weight_MP), hidden, pairs.order


def expert_mix_backward(
    dy_MD: Tensor,
    x_MD: Tensor,
    up_ND: Tensor,
    down_ND: Tensor,
    index_MP: Tensor,
    gate_MP: Tensor,
    hidden: Tensor,
    order: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, up, down and gate."""
    pairs = pairs_in_order(order, index_MP, up_ND.shape[0])
    gate = gate_MP.flatten().index_select(0, order)
    h = activate(hidden, activation)
    dweight = pair_dots(down_ND, dy_MD, pairs)
    dhidden = activate_backward(dweight * gate, hidden, activation)
    return (
        value_sum(up_ND, index_MP, unsort(dhidden, pairs, gate_MP)),
        row_sums(pairs, x_MD, dhidden),
        row_sums(pairs, dy_MD, gate * h),
        unsort(dweight * h, pairs, gate_MP),
    )


def value_sum_backward(
    dy_MD: Tensor, values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of values and gate."""
    pairs = sort_pairs(index_MP, values_ND.shape[0])
    dgate = pair_dots(values_ND, dy_MD, pairs)
    return (
        row_sums(pairs, dy_MD, gate_MP.flatten().index_select(0, pairs.order)),
        unsort(dgate, pairs, gate_MP),
    )
