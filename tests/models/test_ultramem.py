"""UltraMemV2's memory: its definition, the core's singular values, its start, rates and counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.bench.diagnostics import routing_gradient
from isoflop.models import Dense, UltraMem

SMALL = {"n_slots": 49, "top_k": 3, "d_key": 8, "in_ratio": 1 / 2, "value_ratio": 3 / 4}


def normed(x: Tensor, scale: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * scale


def comparisons(layer: UltraMem, x: Tensor) -> tuple[Tensor, Tensor]:
    """a [n, r] and b [n, r] of one token, one sub-key after the other."""
    rank, half = layer.options.rank, layer.keys.shape[-1]
    sides = []
    for side, query in enumerate((layer.query.weight @ x).split(half)):
        query = normed(query, layer.query_norm.weight)
        rows = [
            [query @ normed(layer.keys[side, r, i], layer.key_norm.weight) for r in range(rank)]
            for i in range(layer.n_sub)
        ]
        sides.append(torch.stack([torch.stack(row) for row in rows]))
    return sides[0], sides[1]


def by_loops(layer: UltraMem, x_MD: Tensor) -> Tensor:
    """The formula, token by token and slot by slot."""
    k, n = layer.options.top_k, layer.n_sub
    u, v = layer.left_RR[:, 0], layer.right_RR[:, 0]
    outputs = []
    for x in x_MD:
        a, b = comparisons(layer, x)
        rows, columns = (a @ u).topk(k).indices.tolist(), (b @ v).topk(k).indices.tolist()
        exact = {(i, j): a[i] @ layer.core_RR @ b[j] for i in rows for j in columns}
        y = torch.zeros(layer.values_NV.shape[1])
        for i, j in sorted(exact, key=lambda pair: -exact[pair].item())[:k]:
            hidden = layer.up_NU[i * n + j] @ (layer.into.weight @ x)
            y = y + exact[i, j] * hidden * layer.values_NV[i * n + j]
        y = layer.out.weight @ y
        if layer.ffn is not None:
            y = y + layer.ffn.down.weight @ F.gelu(layer.ffn.up.weight @ x)
        outputs.append(y)
    return torch.stack(outputs)


@pytest.mark.parametrize("changes", [{}, {"ratio": 0.0}, {"rank": 3}, {"rank": 1}])
def test_definition_and_gradients(changes: dict) -> None:
    torch.manual_seed(0)
    layer = UltraMem(8, **SMALL | changes)
    with torch.no_grad():
        layer.core_RR.normal_()
    layer.after_step()
    x_BTD, dy_BTD = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 4, 8)
    leaves = [x_BTD, *layer.parameters()]
    y_BTD = layer(x_BTD)
    expected = by_loops(layer, x_BTD.flatten(0, 1)).view_as(x_BTD)
    torch.testing.assert_close(y_BTD, expected)
    for actual, wanted in zip(
        torch.autograd.grad(y_BTD, leaves, dy_BTD),
        torch.autograd.grad(expected, leaves, dy_BTD),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


def test_with_every_row_a_candidate_the_search_is_exhaustive() -> None:
    torch.manual_seed(0)
    layer = UltraMem(8, n_slots=25, top_k=5, d_key=8, rank=2)
    x_MD = torch.randn(4, 8)
    for x, score_K, index_K in zip(x_MD, *layer.route(x_MD), strict=True):
        a, b = comparisons(layer, x)
        score, index = (a @ layer.core_RR @ b.T).flatten().topk(5)
        torch.testing.assert_close(score_K, score)
        assert index_K.tolist() == index.tolist()


@pytest.mark.parametrize("rank", [2, 3])
def test_the_penalty_is_on_all_but_the_first_singular_value(rank: int) -> None:
    torch.manual_seed(0)
    layer = UltraMem(8, **SMALL | {"rank": rank, "rank_penalty": 0.5})
    with torch.no_grad():
        layer.core_RR.normal_()
    layer.after_step()
    layer(torch.randn(1, 2, 8))
    sigma = torch.linalg.svdvals(layer.core_RR)
    expected = 0.5 * (sigma[1:] - 0.15).relu().square().mean()
    assert expected > 0.01
    torch.testing.assert_close(layer.singular_values(), sigma)
    torch.testing.assert_close(layer.aux_loss, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, layer.core_RR)[0] for loss in (layer.aux_loss, expected))
    )


def test_there_is_no_penalty_in_evaluation_nor_for_a_core_of_rank_1() -> None:
    layer = UltraMem(8, **SMALL).eval()
    layer(torch.randn(1, 2, 8))
    assert layer.aux_loss is None
    layer = UltraMem(8, **SMALL | {"rank": 1})
    layer(torch.randn(1, 2, 8))
    assert layer.aux_loss is None


def test_the_first_singular_pair_keeps_its_sign() -> None:
    """Both signs are a singular pair, but the other one has the worst rows for candidates."""
    torch.manual_seed(0)
    layer = UltraMem(8, **SMALL)
    assert layer.left_RR[:, 0].sum() + layer.right_RR[:, 0].sum() > 0
    for _ in range(50):
        before = layer.left_RR[:, 0].clone(), layer.right_RR[:, 0].clone()
        with torch.no_grad():
            layer.core_RR.add_(0.1 * torch.randn(2, 2))
        layer.after_step()
        assert before[0] @ layer.left_RR[:, 0] + before[1] @ layer.right_RR[:, 0] > 0
        sigma = layer.left_RR[:, 0] @ layer.core_RR @ layer.right_RR[:, 0]
        torch.testing.assert_close(sigma, torch.linalg.svdvals(layer.core_RR)[0])


def test_what_routes_learns_from_the_loss() -> None:
    torch.manual_seed(0)
    layer = UltraMem(32, n_slots=32**2, top_k=8, d_key=16)
    layer(torch.randn(4, 16, 32)).square().mean().backward()
    assert routing_gradient(layer) > 0.1
    assert all(bool(parameter.grad.any()) for parameter in layer.routing_parameters())


def test_what_it_counts() -> None:
    """The formula of the paper: q query width, c key width, r rank."""
    layer = UltraMem(64, n_slots=32**2, top_k=8, d_key=24)
    d, q, n, c, r, k, d_in, d_value = 64, 24, 32, 12, 2, 8, 8, 24
    dense = Dense(64)
    choice = 2 * d * q + 4 * n * c * r + 2 * k * r**2 + 2 * k**2 * r
    rest = 2 * d * d_in + 2 * k * (d_in + d_value) + 2 * d * d_value
    assert layer.routing_flops_per_token() == choice
    assert layer.flops_per_token() == dense.flops_per_token() + choice + rest
    alone = UltraMem(64, n_slots=32**2, top_k=8, d_key=24, ratio=0.0)
    assert alone.flops_per_token() == choice + rest
    shared = d * q + 2 * r * n * c + 2 * c + r**2 + d * (d_in + d_value)
    assert alone.active_parameters() == shared + k * (d_in + d_value)
    total = sum(parameter.numel() for parameter in alone.parameters())
    assert total == shared + n**2 * (d_in + d_value)


def test_tables_train_at_four_times_the_rate_on_its_schedule_without_decay() -> None:
    layer = UltraMem(16, **SMALL)
    (group,) = layer.parameter_groups()
    assert (group.rate, group.decay, group.constant) == (4.0, 0.0, False)
    assert [id(p) for p in group.parameters] == [id(layer.up_NU), id(layer.values_NV)]


def test_the_load_is_the_choices_of_each_slot() -> None:
    torch.manual_seed(0)
    layer, x_BTD = UltraMem(8, **SMALL), torch.randn(2, 3, 8)
    load = layer.load(x_BTD)
    for index in layer.route(x_BTD.flatten(0, 1))[1].flatten().tolist():
        load[index] -= 1
    assert load.shape == (49,)
    assert not load.any()


def test_it_is_one_graph_to_the_compiler() -> None:
    torch.manual_seed(0)
    layer, x_BTD = UltraMem(8, **SMALL), torch.randn(2, 5, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x_BTD), layer(x_BTD))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"n_slots": 26}, "26 keys are no square"),
        ({"n_slots": 16, "top_k": 5}, "top_k must be at most 4, the rows, not 5"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rate": 0.0}, "rate positive, not 2, 0.125, 0.375 and 0"),
    ],
)
def test_bad_options_are_refused(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        UltraMem(16, **options)
