import pytest
import torch

from isoflop.models.ops import product_key_topk
from isoflop.models.product_keys import ProductKeys


def search(first: torch.Tensor, second: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Retrieval with the sub-keys' scores [M, n] given: sub-keys are the identity."""
    eye = torch.eye(first.shape[-1]).expand(2, 1, -1, -1)
    scores, index = product_key_topk(torch.stack((first, second))[:, None], eye, k)
    return scores[0], index[0]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 16), (5, 7), (8, 8), (32, 16), (40, 32), (64, 1)])
def test_topk_equals_an_exhaustive_topk(n: int, k: int, tied: bool) -> None:
    generator = torch.Generator().manual_seed(1000 * n + k)
    for _ in range(20):
        if tied:  # few distinct values, so that most sums are shared
            halves = torch.randint(0, 4, (2, 50, n), generator=generator).float()
        else:
            halves = torch.randn(2, 50, n, generator=generator)
        scores, index = search(halves[0], halves[1], k)
        every = (halves[0].unsqueeze(-1) + halves[1].unsqueeze(-2)).flatten(-2)
        assert torch.equal(scores, every.topk(k, dim=-1).values)
        assert torch.equal(every.gather(-1, index), scores)
        assert all(len(set(row.tolist())) == k for row in index)  # no key twice
        if not tied:
            assert torch.equal(index, every.topk(k, dim=-1).indices)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_retrieval_equals_a_search_of_all_keys(shared: bool, norm: str) -> None:
    torch.manual_seed(0)
    M, h, k, d_key = 40, 3, 5, 8
    keys = ProductKeys(
        12, n_keys=81, heads=h, top_k=k, d_key=d_key, shared_keys=shared, query_norm=norm
    )
    x_MD = torch.randn(M, 12)
    gate_MP, index_MP = keys(x_MD)

    query = keys.query(x_MD)
    query = keys.norm(query.view(M, h, d_key) if norm == "layer" else query).view(M, h, d_key)
    sub = keys.keys.expand(2, h, d_key // 2, 9)  # [half, head, d, n]
    # Every key spelled out: the concatenation of its two sub-keys.
    full = torch.cat(
        (
            sub[0].unsqueeze(-1).expand(h, d_key // 2, 9, 9),
            sub[1].unsqueeze(-2).expand(h, d_key // 2, 9, 9),
        ),
        dim=1,
    ).flatten(2)
    scores = torch.einsum("mhd,hdn->mhn", query, full)
    best, index = scores.topk(k, dim=-1)
    assert torch.equal(index_MP.view(M, h, k), index)
    torch.testing.assert_close(gate_MP.view(M, h, k), best.softmax(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_keys": 80}, "no square; 64 and 81 are"),
        ({"top_k": 0}, "top_k must be 1 to 81"),
        ({"top_k": 82}, "top_k must be 1 to 81"),
        ({"d_key": 7}, "d_key must be even"),
    ],
)
def test_impossible_sizes_are_refused(options: dict, message: str) -> None:
    sizes = {"n_keys": 81, "heads": 1, "top_k": 4, "d_key": 8, **options}
    with pytest.raises(ValueError, match=message):
        ProductKeys(12, shared_keys=True, query_norm="none", **sizes)
