"""Monet: the mixing against all n^2 experts written out, what a head keeps, its losses, counts."""

import math

import pytest
import torch
from torch import Tensor

from isoflop.bench.diagnostics import routing_gradient
from isoflop.models import Dense, Monet

SMALL = {"n_experts": 25, "heads": 3, "top_k": 2, "ratio": 2.5}  # m = 4 at width 8


def weights(layer: Monet, x_MD: Tensor) -> Tensor:
    """p and q, [M, 2, heads, n], head by head, with the statistics of evaluation."""
    n, heads = layer.n, layer.options.heads
    result = torch.zeros(len(x_MD), 2, heads, n)
    threshold = math.sqrt(2) * torch.erfinv(torch.tensor(2 * (1 - layer.options.top_k / n) - 1))
    for m, x in enumerate(x_MD):
        for channel, rows in enumerate(layer.router.weight.split(n)):
            logits = rows @ x
            if layer.options.logit_norm == "batch":
                mean, var = layer.norm.running_mean[channel], layer.norm.running_var[channel]
            else:
                mean, var = logits.mean(), logits.var(unbiased=False)
            normed = (logits - mean) / (var + 1e-5).sqrt()
            kept = [i for i in range(n) if normed[i] > threshold] or [int(normed.argmax())]
            result[m, channel // heads, channel % heads, kept] = logits[kept].softmax(0)
    return result


def by_loops(layer: Monet, x_MD: Tensor) -> Tensor:
    """The sum over heads and all n^2 experts, each one a two-layer FFN."""
    n, m = layer.n, layer.d_expert
    up_NFD, bias_NF = layer.up.weight.view(n, m, -1), layer.up.bias.view(n, m)
    down_DNF = layer.down.weight.view(-1, n, m)
    outputs = []
    for x, (p_HN, q_HN) in zip(x_MD, weights(layer, x_MD), strict=True):
        y = torch.zeros(layer.d_model)
        for i in range(n):
            for j in range(n):
                hidden = (up_NFD[i] @ x + bias_NF[i]).relu() ** 2
                expert = down_DNF[:, j] @ hidden + layer.bias_ND[j]
                y = y + sum(p[i] * q[j] for p, q in zip(p_HN, q_HN, strict=True)) * expert
        outputs.append(y)
    return torch.stack(outputs)


@pytest.mark.parametrize("logit_norm", ["batch", "layer"])
def test_definition_and_gradients(logit_norm: str) -> None:
    torch.manual_seed(0)
    layer = Monet(8, **SMALL, logit_norm=logit_norm)
    with torch.no_grad():
        layer.up.bias.normal_()
        layer.bias_ND.normal_()
    layer(2 * torch.randn(4, 16, 8) + 1)  # the running statistics move
    layer.eval()
    x_BTD, dy_BTD = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8)
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


def test_in_training_the_choice_is_by_the_statistics_of_the_batch() -> None:
    """One mean and variance for each head and side; the kept weights are of the raw logits."""
    torch.manual_seed(0)
    layer, x_MD = Monet(8, **SMALL), torch.randn(64, 8)
    with torch.no_grad():
        layer.router.weight.mul_(3)
    logit_MSHN = (x_MD @ layer.router.weight.T).view(64, 2, 3, 5)
    mean, var = (f(logit_MSHN, (0, 3)) for f in (torch.mean, lambda a, d: a.var(d, correction=0)))
    normed_MSHN = (logit_MSHN - mean[..., None]) / (var[..., None] + 1e-5).sqrt()
    kept = (normed_MSHN > 0.2533) | (normed_MSHN == normed_MSHN.amax(-1, keepdim=True))
    odds = logit_MSHN.exp() * kept
    torch.testing.assert_close(layer.route(x_MD), odds / odds.sum(-1, keepdim=True))


def test_a_head_keeps_top_k_layers_on_average_and_never_none() -> None:
    torch.manual_seed(0)
    layer = Monet(64, n_experts=128**2, heads=4, top_k=8).eval()
    weight_MSHN = layer.route(torch.randn(512, 64))
    kept_MSH = (weight_MSHN > 0).sum(-1)
    assert float(kept_MSH.float().mean()) == pytest.approx(8, rel=0.1)
    few = Monet(64, n_experts=16**2, heads=4, top_k=1).eval().route(torch.randn(512, 64))
    torch.testing.assert_close(few.sum(-1), torch.ones(512, 2, 4))


def test_both_auxiliary_losses() -> None:
    torch.manual_seed(0)
    layer, x_BTD = Monet(8, **SMALL, balance=0.5), torch.randn(4, 16, 8)
    layer(x_BTD)
    weight_MSHN = layer.route(x_BTD.flatten(0, 1))
    mean = weight_MSHN.mean(0)
    uniformity = sum(-(5 * p).log().mean() for p in mean.flatten(0, 1)) / 6
    ambiguity = sum(1 - p.max() for p in weight_MSHN.flatten(0, 2)) / (64 * 6)
    assert uniformity > 0.001
    torch.testing.assert_close(layer.aux_loss, 0.5 * (uniformity + ambiguity))
    layer.eval()(x_BTD)
    assert layer.aux_loss is None


def test_a_layer_that_no_token_keeps_costs_a_finite_loss_without_gradient() -> None:
    layer = Monet(8, **SMALL)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[0] = 1  # the first layer of the first head
    layer(torch.ones(1, 4, 8))
    assert torch.isfinite(layer.aux_loss)
    layer.aux_loss.backward()
    assert torch.isfinite(layer.router.weight.grad).all()


def test_the_router_learns_from_the_loss() -> None:
    torch.manual_seed(0)
    layer = Monet(32, n_experts=32**2, heads=2, top_k=8)
    layer(torch.randn(4, 16, 32)).square().mean().backward()
    assert routing_gradient(layer) > 0.1


def test_what_it_counts() -> None:
    layer = Monet(64, n_experts=32**2, heads=4, top_k=4)
    d, n, heads, m = 64, 32, 4, 8
    assert layer.d_expert == m
    router, mixing, biases = 4 * d * heads * n, 4 * heads * n * m, 2 * d * n
    assert layer.routing_flops_per_token() == router
    assert layer.flops_per_token() == Dense(64).flops_per_token() + router + mixing + biases
    router, biases = 2 * d * heads * n, n * m + n * d
    assert layer.active_parameters() == Dense(64).active_parameters() + router + biases


def test_the_load_is_the_sum_of_the_weights_of_each_expert() -> None:
    torch.manual_seed(0)
    layer, x_BTD = Monet(8, **SMALL).eval(), torch.randn(2, 3, 8)
    load = torch.zeros(5, 5)
    for p_HN, q_HN in layer.route(x_BTD.flatten(0, 1)):
        for p, q in zip(p_HN, q_HN, strict=True):
            load += p[:, None] * q
    torch.testing.assert_close(layer.load(x_BTD), load.flatten())


def test_biases_are_not_decayed_and_defaults_are_the_authors() -> None:
    layer = Monet(64)
    (group,) = layer.parameter_groups()
    assert (group.rate, group.decay, len(group.parameters)) == (1.0, 0.0, 1)
    assert group.parameters[0] is layer.bias_ND
    assert (layer.n, layer.options.heads, layer.options.top_k) == (512, 8, 32)


def test_it_is_one_graph_to_the_compiler() -> None:
    torch.manual_seed(0)
    layer, x_BTD = Monet(8, **SMALL), torch.randn(2, 5, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x_BTD), layer(x_BTD))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"n_experts": 26, "top_k": 2}, "26 keys are no square"),
        ({"n_experts": 16, "top_k": 4}, "top_k must be less than 4, the layers, not 4"),
        ({"heads": 0}, "heads must be at least 1"),
    ],
)
def test_bad_options_are_refused(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Monet(16, **options)
