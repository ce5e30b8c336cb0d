"""DeepSeek's mixture of experts: its definition, its bias, its counts."""

import pytest
import torch
import torch.nn.functional as F

from isoflop.models import Dense, SharedMoE


def test_definition() -> None:
    """Sigmoid gates that sum to 1 over the chosen, and a shared FFN, written as loops."""
    torch.manual_seed(0)
    layer = SharedMoE(16, granularity=4, expansion=2).eval()
    layer.bias_E.normal_(std=0.2)
    x_BTD = torch.randn(2, 5, 16)
    y_BTD = layer(x_BTD)
    for x, y in zip(x_BTD.flatten(0, 1), y_BTD.flatten(0, 1), strict=True):
        score = (layer.router.weight @ x).sigmoid()
        chosen = (score + layer.bias_E).topk(3).indices.tolist()
        expected = layer.shared(x)
        for e in chosen:
            gate = score[e] / sum(score[i] for i in chosen)  # the bias is not in the gate
            expected = expected + gate * (F.gelu(x @ layer.up_EDF[e]) @ layer.down_EFD[e])
        torch.testing.assert_close(y, expected)


def test_the_bias_moves_once_a_step_towards_an_even_load() -> None:
    torch.manual_seed(0)
    layer = SharedMoE(16, granularity=2, expansion=2, bias_rate=0.01)
    x_BTD = torch.randn(4, 8, 16)
    load = layer.load(x_BTD)
    for _ in range(2):  # micro-batches
        layer(x_BTD)
    assert layer.counts_E.tolist() == (2 * load).tolist()
    layer.after_step()
    expected = 0.01 * (load.float().mean() - load).sign()
    torch.testing.assert_close(layer.bias_E, expected)
    assert not layer.counts_E.any()


def test_a_collapsed_router_is_spread_by_the_bias_alone() -> None:
    torch.manual_seed(0)
    layer = SharedMoE(16, granularity=2, expansion=4, shared=1, bias_rate=0.01)
    x_BTD = torch.randn(16, 16, 16)
    x_BTD[..., 0] = 1
    with torch.no_grad():
        layer.router.weight[3, 0] += 2  # one expert is preferred, whatever the token
    before = layer.load(x_BTD).float()
    for _ in range(100):
        layer(x_BTD)
        layer.after_step()
    after = layer.load(x_BTD).float()
    assert after.std() < before.std() / 2


def test_evaluation_counts_nothing() -> None:
    layer = SharedMoE(16).eval()
    layer(torch.randn(1, 4, 16))
    assert not layer.counts_E.any()
    assert layer.aux_loss is None


@pytest.mark.parametrize(("granularity", "shared"), [(2, 1), (4, 1), (8, 2), (4, 0)])
def test_active_size_and_flops_are_those_of_dense_and_the_router(
    granularity: int, shared: int
) -> None:
    layer = SharedMoE(64, granularity=granularity, shared=shared)
    router = 64 * (8 * granularity - shared)
    assert layer.flops_per_token() - 2 * router == Dense(64).flops_per_token()
    assert layer.active_parameters() - router == Dense(64).active_parameters()
    total = sum(parameter.numel() for parameter in layer.parameters())
    assert total - router == 8 * Dense(64).active_parameters()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"shared": 4}, "shared must be 0 to granularity - 1 = 3, not 4"),
        ({"granularity": 3}, "granularity 3 must divide the FFN width 64"),
        ({"bias_rate": -1.0}, "bias_rate 0 or more"),
    ],
)
def test_bad_options_are_refused(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        SharedMoE(16, **options)
