"""What the operators on (token, table row) pairs share: choice of back end, and work on a CPU.

A token has P pairs, each with the index of a table row and a gate. On a CPU two stock operators
carry all the work, without a [tokens, pairs, d] tensor: `F.embedding_bag` sums weighted rows, and
`torch.sparse.sampled_addmm` takes the dot products of the pairs that a CSR pattern names. After one
stable sort of the pairs by row, a row is a bag of tokens: so the gradients of the tables are bag
sums too, each row written once, and the dot products read each table row once, in order.

Everything is computed in float32 (float64 for float64 input), under autocast too: the tables are
float32 as they are, so a bfloat16 copy of them would cost more than it saves. Each output element
is summed by one thread in a fixed order: results are bitwise repeatable.

Sizes: M tokens, P pairs per token (heads * k), N rows (experts or slots), D model width.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models.ops.backends import choose_backend, cpu_obstacle, triton_obstacle
from isoflop.models.ops.verify import works

BACKENDS = ("auto", "reference", "cpu", "dense", "triton")

# "dense" is the fastest while N is at most this many times P: measured on a CPU; on a GPU an
# estimate from arithmetic, not measured
DENSE_WITHIN = {"cpu": 4, "cuda": 8}

# torch sorts integers by radix, several times faster, from this many elements on, so that it pays
# to fill up to it from a quarter on
RADIX_SORT_FROM = 2**15


def choose_pair_backend(
    operator: str,
    backend: str,
    tensors: Sequence[Tensor],
    index_MP: Tensor,
    gate_MP: Tensor,
    *sizes: str,
) -> str:
    """The back end to use for the expert mix or the value sum.

    Args:
        operator: its name.
        backend: the one asked for.
        tensors: those whose dtypes decide in what it is computed; the last is a table, [N, D].
        sizes: what kernels are built for beside the numbers of pairs and of columns.
    Raises:
        ValueError: it is unknown or impossible, or the shapes of index and gate do not fit.
    """
    if index_MP.shape != gate_MP.shape or index_MP.dim() != 2:
        raise ValueError(
            f"index {tuple(index_MP.shape)} and gate {tuple(gate_MP.shape)} must both be [M, P]"
        )
    table_ND = tensors[-1]
    n_rows, n_pairs = table_ND.shape[0], index_MP.shape[1]
    if backend == "auto" and n_rows <= DENSE_WITHIN.get(table_ND.device.type, 0) * n_pairs:
        backend = "dense"
    cpu = cpu_obstacle(table_ND)
    if not cpu and n_rows < n_pairs:  # a sparse matrix holds no more elements than it has places
        cpu = f"it needs as many rows as pairs per token: {n_pairs}"
    obstacles = {"cpu": cpu, "triton": triton_obstacle(table_ND)}
    case = (n_pairs, table_ND.shape[1], *sizes)

    def agrees(fast: str) -> bool:
        return works(operator, fast, table_ND.device, working_dtype(fast, *tensors), case)

    return choose_backend(backend, BACKENDS, obstacles, agrees)


def working_dtype(backend: str, *tensors: Tensor) -> torch.dtype:
    """What a back end computes in. Autocast applies to stock operators by itself."""
    device = tensors[0].device.type
    if backend == "triton" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    dtypes = [t.dtype for t in tensors] + [torch.float32] * (backend == "cpu")
    return functools.reduce(torch.promote_types, dtypes)


def pair_matrix(weight_MP: Tensor, index_MP: Tensor, n_rows: int) -> Tensor:
    """The [M, N] matrix with each pair's weight in its row's column, repeats added up."""
    zeros = weight_MP.new_zeros(weight_MP.shape[0], n_rows)
    return zeros.scatter_add(1, index_MP, weight_MP)


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
    """`sort_pairs` where the order, [M * P], is known already."""
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
    """The first CSR tensor of a process warns that CSR is in beta: make one with warnings off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [0.0], (1, 1), check_invariants=False)


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
