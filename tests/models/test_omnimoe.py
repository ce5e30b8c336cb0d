"""OmniMoE: its definition, what its norm sees, its counts, one graph."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.bench.diagnostics import routing_gradient
from isoflop.models import Dense, OmniMoE


def by_loops(layer: OmniMoE, x_MD: Tensor, logit_norm: str) -> Tensor:
    """The formula, in evaluation, over all experts of every token."""
    n, router = layer.n_sub, layer.router.weight
    outputs = []
    for x in x_MD:
        logits = [router[:n] @ x, router[n:] @ x]
        if logit_norm == "batch":
            means, variances = layer.norm.running_mean.split(n), layer.norm.running_var.split(n)
            logits = [(logits[s] - means[s]) / (variances[s] + 1e-5).sqrt() for s in (0, 1)]
        elif logit_norm == "layer":
            logits = [(a - a.mean()) / (a.var(unbiased=False) + 1e-5).sqrt() for a in logits]
        p, q = (logit.softmax(0) for logit in logits)
        scores = {(i, j): p[i] * q[j] for i in range(n) for j in range(n)}
        chosen = sorted(scores, key=lambda pair: -scores[pair].item())[: layer.options.top_k]
        gate, value = (layer.shared.up.weight @ x).chunk(2)
        y = layer.shared.down.weight @ (F.silu(gate) * value)
        for i, j in chosen:
            up, down = layer.up_ND[i * n + j], layer.down_ND[i * n + j]
            y = y + scores[i, j] * F.silu(up @ x) * down
        outputs.append(y)
    return torch.stack(outputs)


@pytest.mark.parametrize("logit_norm", ["batch", "layer", "none"])
def test_definition_and_gradients(logit_norm: str) -> None:
    torch.manual_seed(0)
    layer = OmniMoE(8, n_experts=25, top_k=4, logit_norm=logit_norm)
    layer(3 * torch.randn(4, 16, 8) + 1)  # the running statistics move
    layer.eval()
    with torch.no_grad():
        layer.router.weight.mul_(3)
        layer.down_ND.mul_(30)  # else the dense FFN would hide the experts
    x_BTD, dy_BTD = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 8)
    leaves = [x_BTD, *layer.parameters()]
    y_BTD = layer(x_BTD)
    expected = by_loops(layer, x_BTD.flatten(0, 1), logit_norm).view_as(x_BTD)
    torch.testing.assert_close(y_BTD, expected)
    for actual, wanted in zip(
        torch.autograd.grad(y_BTD, leaves, dy_BTD),
        torch.autograd.grad(expected, leaves, dy_BTD),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


def test_in_training_the_logits_have_the_statistics_of_the_batch() -> None:
    torch.manual_seed(0)
    layer, x_MD = OmniMoE(8, n_experts=25, top_k=25), torch.randn(64, 8)
    gate_MK, index_MK = layer.route(x_MD)
    logit_MN = x_MD @ layer.router.weight.T
    normed_MN = (logit_MN - logit_MN.mean(0)) / (logit_MN.var(0, unbiased=False) + 1e-5).sqrt()
    p_MN, q_MN = (half.softmax(-1) for half in normed_MN.chunk(2, dim=-1))
    expected = (p_MN.unsqueeze(2) * q_MN.unsqueeze(1)).flatten(1)
    torch.testing.assert_close(torch.zeros(64, 25).scatter(1, index_MK, gate_MK), expected)


def test_the_router_learns_from_the_loss() -> None:
    torch.manual_seed(0)
    layer = OmniMoE(32)
    layer(torch.randn(4, 16, 32)).square().mean().backward()
    assert routing_gradient(layer) > 0.01


def test_what_it_counts() -> None:
    layer = OmniMoE(64, n_experts=32**2, top_k=10)
    dense = Dense(64, activation="swiglu")
    router, experts = 64 * 2 * 32, 10 * 2 * 64
    assert layer.flops_per_token() == dense.flops_per_token() + 2 * router + 2 * experts
    assert layer.routing_flops_per_token() == 2 * router
    assert layer.active_parameters() == dense.active_parameters() + router + experts
    total = sum(parameter.numel() for parameter in layer.parameters())
    assert total == dense.active_parameters() + router + 32**2 * 2 * 64


def test_the_load_is_the_sum_of_the_gates_of_each_expert() -> None:
    torch.manual_seed(0)
    layer, x_BTD = OmniMoE(8, n_experts=25, top_k=3).eval(), torch.randn(2, 3, 8)
    load = torch.zeros(25, dtype=torch.float64)
    gate_MK, index_MK = layer.route(x_BTD.flatten(0, 1))
    for gate, index in zip(gate_MK.flatten(), index_MK.flatten(), strict=True):
        load[index] += gate
    torch.testing.assert_close(layer.load(x_BTD), load)


def test_tables_follow_the_schedule_without_decay() -> None:
    (group,) = OmniMoE(8).parameter_groups()
    assert (group.rate, group.decay, group.constant) == (1.0, 0.0, False)
    assert [tuple(parameter.shape) for parameter in group.parameters] == [(4096, 8)] * 2


def test_it_is_one_graph_to_the_compiler() -> None:
    torch.manual_seed(0)
    layer, x_BTD = OmniMoE(8, n_experts=25, top_k=4), torch.randn(2, 5, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x_BTD), layer(x_BTD))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"n_experts": 26}, "26 keys are no square"),
        ({"n_experts": 16, "top_k": 17}, "top_k must be 1 to 16"),
        ({"ratio": -1.0}, "ratio must be positive, not -1"),
    ],
)
def test_bad_options_are_refused(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        OmniMoE(16, **options)
