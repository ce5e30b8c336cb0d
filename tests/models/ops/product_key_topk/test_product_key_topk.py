"""Product-key retrieval: every back end against an exhaustive search."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models.ops import product_key_topk
from isoflop.models.ops.product_key_topk import cpu, op
from tests.models.ops.cases import with_other_threads
from tests.models.ops.devices import DEVICE, TRITON, runs_triton

BACKENDS = ["reference", "cpu", pytest.param("triton", marks=runs_triton)]

# heads, sets of sub-keys, tokens, width of a half-query, sub-keys, k
CASES = [
    (2, 1, 20, 8, 32, 4),
    (2, 2, 3, 20, 40, 5),
    (1, 1, 2, 64, 34, 16),
    (1, 1, 3, 4, 4, 1),
    (1, 1, 3, 4, 3, 9),  # all of the keys
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if TRITON:
        from isoflop.models.ops.product_key_topk import triton

        monkeypatch.setattr("isoflop.models.ops.pairs_triton.SPLIT", 20)
        monkeypatch.setattr(triton, "TILE", 16)
    monkeypatch.setattr(cpu, "BLOCK", 100)


def operands(
    H: int, S: int, M: int, C: int, n: int, seed: int, kind: str = "normal"
) -> tuple[Tensor, Tensor]:
    """Queries [2, H, M, C] and keys [2, S, C, n]: "normal", "whole" (small whole numbers, so many
    equal scores) or "negative" (every score is)."""
    g = torch.Generator().manual_seed(seed)
    query, keys = torch.randn(2, H, M, C, generator=g), torch.randn(2, S, C, n, generator=g)
    if kind == "negative":
        return query.abs(), -keys.abs()
    return (query.round(), keys.round()) if kind == "whole" else (query, keys)


def all_scores(query: Tensor, keys: Tensor) -> Tensor:
    """[H, M, n * n]"""
    first, second = query @ keys
    return (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(2)


def search(query: Tensor, keys: Tensor, k: int, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        query, keys = query.to(DEVICE), keys.to(DEVICE)
    score, index = product_key_topk(query, keys, k, backend)
    return score.cpu(), index.cpu()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("case", "kind"),
    [*((case, "normal") for case in CASES), (CASES[0], "whole"), (CASES[1], "negative")],
)
def test_equals_an_exhaustive_search(case: tuple[int, ...], kind: str, backend: str) -> None:
    *sizes, k = case
    query, keys = operands(*sizes, seed=0, kind=kind)
    score, index = search(query, keys, k, backend)
    every = all_scores(query.double(), keys.double())
    expected = every.topk(k).values
    torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(every.gather(-1, index), expected, rtol=1e-5, atol=1e-5)
    assert all(len(set(chosen.tolist())) == k for chosen in index.flatten(0, 1))
    assert (score.diff() <= 0).all()


@pytest.mark.parametrize("sparse_from", [0, 10**9])  # CPU gradients of the chosen alone, and of all
@pytest.mark.parametrize("case", CASES[:2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(
    backend: str, case: tuple[int, ...], sparse_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SPARSE_FROM", sparse_from)
    *sizes, k = case
    query, keys = operands(*sizes, seed=1)
    leaves = [t.requires_grad_() for t in (query, keys)]
    score, _ = search(*leaves, k, backend)
    dscore = torch.randn(score.shape, generator=torch.Generator().manual_seed(2))
    actual = torch.autograd.grad(score, leaves, dscore)
    exact = [t.detach().double().requires_grad_() for t in (query, keys)]
    expected = torch.autograd.grad(all_scores(*exact).topk(k).values, exact, dscore.double())
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_expanded_gradient_of_the_scores(backend: str, tokens: int) -> None:
    """A sum's gradient is a single number in memory, whatever its shape."""
    leaves = [t.requires_grad_() for t in operands(1, 1, tokens, 8, 32, seed=4)]
    actual = torch.autograd.grad(search(*leaves, 4, backend)[0].sum(), leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = torch.autograd.grad(all_scores(*exact).topk(4).values.sum(), exact)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse_from", [0, 10**9])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradcheck(backend: str, sparse_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "SPARSE_FROM", sparse_from)
    leaves = [t.double().requires_grad_() for t in operands(2, 1, 3, 4, 5, seed=3)]
    assert torch.autograd.gradcheck(
        lambda query, keys: product_key_topk(query, keys, 3, backend)[0], leaves
    )


@pytest.mark.parametrize("n", [5, 20, 300])
def test_largest_equals_topk(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, n, generator=torch.Generator().manual_seed(n))
    for rows in (0, 3, 7):  # at a time
        monkeypatch.setattr(cpu, "BLOCK", n * rows)
        score, index = cpu.largest(x.__getitem__, 7, n, 4)
        assert torch.equal(score, x.topk(4).values)
        assert torch.equal(index, x.topk(4).indices)


@pytest.mark.parametrize("kind", ["normal", "whole", "close", "zero"])
@pytest.mark.parametrize("n", [60, 256, 257, 512, 700, 1024, 1100])
@pytest.mark.parametrize(
    ("whole", "single"), [(256, (256, 1024)), (64, (0, 0))], ids=["AVX-512", "AVX2"]
)
def test_largest_is_exact_where_scores_are_nearly_equal(
    whole: int, single: tuple[int, int], n: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows packed into float32 are sorted again where the bits that are left do not decide."""
    monkeypatch.setattr(cpu, "BLOCK", 9 * n)
    monkeypatch.setattr(cpu, "SORT_WHOLE", whole)
    monkeypatch.setattr(cpu, "PACK_SINGLE", single)
    x = torch.randn(40, n, generator=torch.Generator().manual_seed(n))
    if kind == "whole":
        x = x.round()
    elif kind == "close":  # neighbours among float32 numbers, of both signs
        x = (x.argsort(1).int() + torch.tensor(1.0).view(torch.int32)).view(torch.float32)
        x[::2] *= -1
    elif kind == "zero":
        x = x.clamp(max=0)
    score, index = cpu.largest(x.__getitem__, 40, n, 16)
    assert torch.equal(score, x.topk(16).values)
    assert torch.equal(x.gather(1, index), score)
    assert all(len(set(row.tolist())) == 16 for row in index)
    if kind in ("normal", "close"):  # no two are equal
        assert torch.equal(index, x.topk(16).indices)


@pytest.mark.parametrize("n", [64, 600])
def test_cpu_is_the_same_on_any_number_of_threads(n: int) -> None:
    query, keys = operands(2, 1, 50, 8, n, seed=5, kind="whole")
    first = list(product_key_topk(query, keys, 6, "cpu"))
    second = with_other_threads(lambda: list(product_key_topk(query, keys, 6, "cpu")))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_flops_are_counted_exactly() -> None:
    H, M, C, n, k = 3, 5, 8, 16, 4
    meta = torch.empty(2, H, M, C, device="meta"), torch.empty(2, 1, C, n, device="meta")
    with FlopCounterMode(display=False) as counter:
        score, index = op.forward(*meta, k, "triton")
    assert counter.get_total_flops() == 2 * (2 * H * M * C * n)
    assert (score.shape, index.shape) == ((H, M, k), (2, H, M, k))
    query, keys = operands(H, 1, M, C, n, seed=0)
    score, _ = product_key_topk(query.requires_grad_(), keys.requires_grad_(), k)
    with FlopCounterMode(display=False) as counter:
        score.sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 2 * H * M * C * k)  # of the chosen alone


def test_meta_takes_the_reference_path() -> None:
    query, keys = torch.empty(2, 3, 5, 8, device="meta"), torch.empty(2, 1, 8, 16, device="meta")
    with FlopCounterMode(display=False) as counter:
        product_key_topk(query, keys, 4)
    assert counter.get_total_flops() == 2 * (2 * 3 * 5 * 8 * 16)


def test_compiles_whole() -> None:
    query, keys = operands(2, 1, 20, 8, 32, seed=0)
    compiled = torch.compile(product_key_topk, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(query, keys, 4), product_key_topk(query, keys, 4), strict=True):
        assert torch.equal(a, b)


def test_operator_keeps_the_rules_of_torch_library() -> None:
    query, keys = (t.requires_grad_() for t in operands(2, 1, 20, 8, 32, seed=0))
    torch.library.opcheck(op.forward, (query, keys, 4, "cpu"))


def test_bad_input_is_refused() -> None:
    query, keys = operands(2, 1, 3, 4, 9, seed=0)
    with pytest.raises(ValueError, match="'cpu' is impossible here: it runs on a CPU only, not on"):
        product_key_topk(query.to("meta"), keys.to("meta"), 2, "cpu")
    with pytest.raises(ValueError, match="'triton' is impossible here: it runs on CUDA only, not"):
        product_key_topk(query.to("meta"), keys.to("meta"), 2, "triton")
    with pytest.raises(ValueError, match="back end 'dense' is unknown: one of auto, reference"):
        product_key_topk(query, keys, 2, "dense")
    with pytest.raises(ValueError, match="and k = 82 do not fit"):
        product_key_topk(query, keys, 82)
