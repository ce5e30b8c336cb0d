import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.bench.diagnostics import routing_gradient
from isoflop.models import Dense, ExpertChoiceMoE, MoE

BOTH = pytest.mark.parametrize("kind", [MoE, ExpertChoiceMoE])


def expert(layer: MoE | ExpertChoiceMoE, e: int, x: Tensor) -> Tensor:
    return F.gelu(x @ layer.up_EDF[e]) @ layer.down_EFD[e]


@BOTH
@pytest.mark.parametrize("granularity", [1, 4])
def test_with_every_expert_chosen_it_is_their_weighted_sum(kind: type, granularity: int) -> None:
    torch.manual_seed(0)
    layer = kind(16, granularity=granularity, expansion=1)
    x_BTD = torch.randn(3, 5, 16)
    p_BTE = (x_BTD @ layer.router.weight.T).softmax(-1)
    y_BTD = sum(p_BTE[..., e : e + 1] * expert(layer, e, x_BTD) for e in range(granularity))
    norm = layer.norm if kind is ExpertChoiceMoE else torch.nn.Identity()
    torch.testing.assert_close(layer(x_BTD), norm(y_BTD))


def test_the_router_of_a_single_expert_learns_from_the_loss() -> None:
    """A norm on the output would cancel its gate: norm(p f) = norm(f)."""
    torch.manual_seed(0)
    layer = MoE(16, granularity=1).eval()
    x_BTD, target_BTD = torch.randn(2, 4, 16), torch.randn(2, 4, 16)
    (layer(x_BTD) * target_BTD).sum().backward()
    assert routing_gradient(layer) > 0.1
    with pytest.raises(TypeError, match="output_norm"):
        MoE(16, output_norm=True)


def test_the_load_counts_choices() -> None:
    torch.manual_seed(0)
    layer = MoE(16, granularity=2, expansion=2)
    x_BTD = torch.randn(3, 5, 16)
    index = layer.route(x_BTD).topk(2).indices.flatten()
    assert layer.load(x_BTD).tolist() == [int((index == e).sum()) for e in range(4)]
    torch.nn.init.zeros_(layer.router.weight)
    with torch.no_grad():
        layer.router.weight[3] = 100 * x_BTD.mean((0, 1))
    assert int(layer.load(x_BTD).sum()) == 30


def test_experts_are_decayed_unless_told() -> None:
    assert MoE(16).parameter_groups() == []
    (group,) = MoE(16, decay=False).parameter_groups()
    assert (len(group.parameters), group.decay, group.rate) == (2, 0.0, 1.0)


def test_token_choice_takes_each_token_s_best_experts() -> None:
    torch.manual_seed(0)
    layer = MoE(16, granularity=2, expansion=3)
    x_BTD = torch.randn(2, 7, 16)
    y_BTD = layer(x_BTD)
    for x, y in zip(x_BTD.flatten(0, 1), y_BTD.flatten(0, 1), strict=True):
        gate, index = (layer.router.weight @ x).softmax(0).topk(2)
        expected = sum(g * expert(layer, int(e), x) for g, e in zip(gate, index, strict=True))
        torch.testing.assert_close(y, expected)


def test_expert_choice_takes_each_expert_s_best_tokens_of_a_position() -> None:
    torch.manual_seed(0)
    layer = ExpertChoiceMoE(16, granularity=2, expansion=3, output_norm=False)
    x_BTD = torch.randn(6, 4, 16)  # each of 6 experts takes 6 / 3 = 2 tokens of a position
    expected = torch.zeros_like(x_BTD)
    for t in range(4):
        p_BE = (x_BTD[:, t] @ layer.router.weight.T).softmax(-1)
        for e in range(6):
            for b in p_BE[:, e].topk(2).indices.tolist():
                expected[b, t] += p_BE[b, e] * expert(layer, e, x_BTD[b, t])
    torch.testing.assert_close(layer(x_BTD), expected)


@BOTH
def test_granularity_keeps_the_experts_active_parameters_and_flops(kind: type) -> None:
    """Exactly: only the router grows, by 2 D E FLOPs and D E parameters per unit of G."""
    D, E = 64, 8
    dense = Dense(D)
    for G in (1, 2, 4, 8, 16):
        options = {"output_norm": False} if kind is ExpertChoiceMoE else {}
        layer = kind(D, granularity=G, expansion=E, **options)
        assert layer.routing_flops_per_token() == 2 * D * E * G
        assert layer.flops_per_token() - 2 * D * E * G == dense.flops_per_token()
        assert layer.active_parameters() - D * E * G == dense.active_parameters()
        experts = layer.up_EDF.numel() + layer.down_EFD.numel()
        assert experts == E * dense.active_parameters()


def test_balance_loss_is_least_when_experts_share_evenly() -> None:
    torch.manual_seed(0)
    layer = MoE(8, granularity=1, expansion=4, balance=1.0)
    x_BTD = torch.randn(4, 64, 8)
    torch.nn.init.zeros_(layer.router.weight)
    layer(x_BTD)
    # Uniform probabilities: sum_e f_e / E, times E, is 1 whatever the ties gave.
    torch.testing.assert_close(layer.aux_loss, torch.tensor(1.0))
    with torch.no_grad():
        layer.router.weight[0] = 10 * x_BTD.mean((0, 1)) + torch.randn(8)
    layer(x_BTD)
    assert layer.aux_loss > 1.05


def test_no_balance_loss_in_evaluation() -> None:
    layer = MoE(8, expansion=2).eval()
    layer(torch.randn(1, 4, 8))
    assert layer.aux_loss is None


@BOTH
def test_a_granularity_that_does_not_divide_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="granularity 3 must divide the FFN width 64"):
        kind(16, granularity=3)


def test_expert_choice_refuses_a_batch_it_cannot_share_out() -> None:
    with pytest.raises(ValueError, match="a batch of 3 sequences must be a multiple of expansion"):
        ExpertChoiceMoE(16, expansion=2)(torch.randn(3, 4, 16))
