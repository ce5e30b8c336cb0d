"""LatentMoE: its definition, its counts, and what it shares with `moe_shared`."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models import Dense, LatentMoE, SharedMoE


def defined(layer: LatentMoE, x: Tensor) -> Tensor:
    """The output for one token, written as loops."""
    score = (layer.router.weight @ x).sigmoid()
    chosen = (score + layer.bias_E).topk(layer.chosen).indices.tolist()
    u = layer.compress.weight @ x
    total = torch.zeros_like(u)
    for e in chosen:
        gate = score[e] / sum(score[i] for i in chosen)
        total = total + gate * (F.gelu(u @ layer.up_EDF[e]) @ layer.down_EFD[e])
    if layer.options.latent_norm:
        total = total / (total.square().mean() + torch.finfo(total.dtype).eps).sqrt()
        total = total * layer.norm.weight
    y = layer.expand.weight @ total
    return y if layer.shared is None else y + layer.shared(x)


@pytest.mark.parametrize(
    "options", [{}, {"latent_norm": True}, {"shared": 0, "reduction": 2, "granularity": 2}]
)
def test_definition_and_gradients(options: dict) -> None:
    torch.manual_seed(0)
    layer = LatentMoE(16, expansion=2, **options).double().eval()
    layer.bias_E.normal_(std=0.2)
    x_BTD = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    weight_BTD = torch.randn(2, 5, 16, dtype=torch.float64)
    leaves = [x_BTD, *layer.parameters()]
    y_BTD = layer(x_BTD)
    expected_BTD = torch.stack([defined(layer, x) for x in x_BTD.flatten(0, 1)]).view_as(y_BTD)
    torch.testing.assert_close(y_BTD, expected_BTD)
    gradients, expected = (
        torch.autograd.grad((y * weight_BTD).sum(), leaves) for y in (y_BTD, expected_BTD)
    )
    for gradient, right in zip(gradients, expected, strict=True):
        assert right.any()
        torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("shared", [0, 1])
def test_the_projections_and_the_router_come_on_top_of_dense(reduction: int, shared: int) -> None:
    layer = LatentMoE(64, granularity=4, shared=shared, reduction=reduction)
    plain = SharedMoE(64, granularity=4, shared=shared)
    assert layer.n_experts == reduction * plain.n_experts
    assert layer.chosen == reduction * plain.chosen
    extra = 64 * layer.n_experts + 2 * 64 * 64 // reduction
    assert layer.flops_per_token() - 2 * extra == Dense(64).flops_per_token()
    assert layer.active_parameters() - extra == Dense(64).active_parameters()
    total = sum(parameter.numel() for parameter in layer.parameters())
    assert total - extra == 8 * Dense(64).active_parameters()


def test_every_expert_is_reached_and_the_bias_learns_from_the_load() -> None:
    torch.manual_seed(0)
    layer = LatentMoE(16, granularity=2, expansion=2, bias_rate=0.01)
    x_BTD = torch.randn(4, 64, 16)
    load = layer.load(x_BTD)
    assert len(load) == 4 * 3
    assert load.sum() == 256 * 4
    assert load.all()
    layer(x_BTD)
    layer.after_step()
    torch.testing.assert_close(layer.bias_E, 0.01 * (load.float().mean() - load).sign())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"reduction": 0}, "reduction must be at least 1, not 0"),
        ({"reduction": 3}, "reduction 3 must divide the width 16"),
        ({"shared": 4}, "shared must be 0 to granularity - 1 = 3, not 4"),
    ],
)
def test_bad_options_are_refused(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        LatentMoE(16, **options)
