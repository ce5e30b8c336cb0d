"""Small random operands on which a back end is held against the definition: see `verify`.

A case yields (what it is, the back end's, the definition's), in float64 for the definition. Sizes
that kernels are built for are those of the real call; the numbers of tokens and rows are small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from isoflop.models.ops.activations import activate
from isoflop.models.ops.expert_ffn import expert_ffn
from isoflop.models.ops.expert_ffn.gated_activation import gated_activation
from isoflop.models.ops.expert_mix import expert_mix
from isoflop.models.ops.product_key_topk import product_key_topk
from isoflop.models.ops.value_sum import value_sum

Case = Iterator[tuple[str, Tensor, Tensor]]
PAIRS = 1200  # half of them of one row, more than Triton's kernels sum in one program


def _normal(generator: torch.Generator, *shapes: tuple[int, ...]) -> list[Tensor]:
    """In float32 on the CPU, each with rows of norm 1 or so."""
    return [torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes]


def _results(
    function: Callable[..., Tensor], operands: Sequence[Tensor], seed: int = 0
) -> list[Tensor]:
    """The output and the gradient of every operand."""
    leaves = [t.detach().requires_grad_() for t in operands]
    y = function(*leaves)
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn(y.shape, generator=generator).to(y.device, y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def _compare(
    names: str, fast: Callable[..., Tensor], exact: Callable[..., Tensor], operands: list[Tensor]
) -> Case:
    actual = _results(fast, operands)
    expected = _results(exact, [t.double() for t in operands])
    yield from zip(names.split(), actual, expected, strict=True)


def _gate(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype, *shape: int
) -> Tensor:
    """In float32, as routers compute, unless the work is in float64: gradients that are rounded to
    float32 agree only so far."""
    wide = torch.promote_types(torch.float32, dtype)
    return torch.rand(shape, generator=generator).to(device, wide)


def _pairs(
    generator: torch.Generator, P: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, int, Tensor, Tensor]:
    """Tokens, rows, index and gate. Half of the pairs have row 0; the last rows have none."""
    M, N = -(-PAIRS // P), max(2 * P, 32)
    index = torch.randint(N - 3, (M, P), generator=generator)
    index[:, : (P + 1) // 2] = 0
    return M, N, index.to(device), _gate(generator, device, dtype, M, P)


def _expert_mix(backend: str, device: torch.device, dtype: torch.dtype, sizes: Any) -> Case:
    P, D, activation = sizes
    g = torch.Generator().manual_seed(0)
    M, N, index, gate = _pairs(g, P, device, dtype)
    tensors = [t.to(device, dtype) for t in _normal(g, (M, D), (N, D), (N, D))]

    def mix(name: str) -> Callable[..., Tensor]:
        return lambda x, up, down, gate: expert_mix(x, up, down, index, gate, activation, name)

    return _compare("y dx dup ddown dgate", mix(backend), mix("reference"), [*tensors, gate])


def _value_sum(backend: str, device: torch.device, dtype: torch.dtype, sizes: Any) -> Case:
    P, D = sizes
    g = torch.Generator().manual_seed(0)
    _, N, index, gate = _pairs(g, P, device, dtype)
    values = _normal(g, (N, D))[0].to(device, dtype)

    def read(name: str) -> Callable[..., Tensor]:
        return lambda values, gate: value_sum(values, index, gate, name)

    return _compare("y dvalues dgate", read(backend), read("reference"), [values, gate])


def _product_key_topk(backend: str, device: torch.device, dtype: torch.dtype, sizes: Any) -> Case:
    """Scores against an exhaustive search, gradients against those of the keys chosen: where two
    scores are nearly equal, either may be chosen."""
    H, S, C, n, k = sizes
    g = torch.Generator().manual_seed(0)
    query, keys = (t.to(device, dtype) for t in _normal(g, (2, H, 40, C), (2, S, C, n)))
    exact, _ = product_key_topk(query.double(), keys.double(), k, "reference")
    chosen = product_key_topk(query, keys, k, backend)[1]
    yield "score", product_key_topk(query, keys, k, backend)[0], exact
    apart = chosen.sort().values.diff().bool().all() if k > 1 else torch.tensor(True)
    yield "every key once", apart.double(), torch.ones_like(apart, dtype=torch.float64)

    def of_chosen(query: Tensor, keys: Tensor) -> Tensor:
        score = (query @ keys).expand(2, H, 40, n)
        return score[0].gather(-1, chosen // n) + score[1].gather(-1, chosen % n)

    def search(query: Tensor, keys: Tensor) -> Tensor:
        return product_key_topk(query, keys, k, backend)[0]

    yield from _compare("score dquery dkeys", search, of_chosen, [query, keys])


def _expert_ffn(backend: str, device: torch.device, dtype: torch.dtype, sizes: Any) -> Case:
    """With few experts and tokens, since the definition gathers every token's matrices; the last
    expert has no token."""
    D, F, activation = sizes
    g = torch.Generator().manual_seed(0)
    width = F * (2 if activation == "swiglu" else 1)
    tensors = [t.to(device, dtype) for t in _normal(g, (6, D), (5, D, width), (5, F, D))]
    index = torch.tensor([[0, 1], [2, 0], [0, 3], [3, 1], [1, 2], [0, 2]]).to(device)
    gate = _gate(g, device, dtype, 6, 2)

    def experts(name: str) -> Callable[..., Tensor]:
        return lambda x, w_in, w_out, gate: expert_ffn(
            x, w_in, w_out, index, gate, activation, name
        )

    names = "y dx dw_in dw_out dgate"
    return _compare(names, experts(backend), experts("reference"), [*tensors, gate])


def _gated_activation(backend: str, device: torch.device, dtype: torch.dtype, sizes: Any) -> Case:
    F, activation = sizes
    g = torch.Generator().manual_seed(0)
    h = torch.randn(37, F * (2 if activation == "swiglu" else 1), generator=g).to(device, dtype)
    gate = _gate(g, device, dtype, 37)
    return _compare(
        "y dh dgate",
        lambda h, gate: gated_activation(h, gate, activation),
        lambda h, gate: activate(h, activation) * gate.unsqueeze(1),
        [h, gate],
    )


CASES: dict[str, Callable[[str, torch.device, torch.dtype, Any], Case]] = {
    "expert_mix": _expert_mix,
    "value_sum": _value_sum,
    "product_key_topk": _product_key_topk,
    "expert_ffn": _expert_ffn,
    "gated_activation": _gated_activation,
}
