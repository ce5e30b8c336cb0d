"""ReMoE: its definition, how its coefficient finds the sparsity, and what it is charged."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models import Dense, ReMoE, measures_flops


def defined(layer: ReMoE, x: Tensor) -> Tensor:
    """The output for one token, written as loops."""
    y = torch.zeros_like(x)
    for e in range(layer.n_experts):
        gate = (layer.router.weight[e] @ x).relu()
        if gate > 0:
            y = y + gate * (F.gelu(x @ layer.up_EDF[e]) @ layer.down_EFD[e])
    return y


def penalty(layer: ReMoE, x_MD: Tensor) -> Tensor:
    """E / k * sum over experts of the share of tokens that use it times its mean gate."""
    total = torch.zeros((), dtype=x_MD.dtype)
    for e in range(layer.n_experts):
        gates = [(layer.router.weight[e] @ x).relu() for x in x_MD]
        share = sum(float(gate > 0) for gate in gates) / len(gates)
        total = total + share * sum(gates) / len(gates)
    return total * layer.n_experts / layer.options.granularity


@pytest.mark.parametrize("options", [{}, {"granularity": 2, "expansion": 4}])
def test_definition_and_gradients(options: dict) -> None:
    torch.manual_seed(0)
    layer = ReMoE(16, coefficient_start=0.5, **options).double()
    x_BTD = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    weight_BTD = torch.randn(2, 5, 16, dtype=torch.float64)
    leaves = [x_BTD, *layer.parameters()]
    y_BTD = layer(x_BTD)
    tokens = x_BTD.flatten(0, 1)
    expected_BTD = torch.stack([defined(layer, x) for x in tokens]).view_as(y_BTD)
    torch.testing.assert_close(y_BTD, expected_BTD)
    expected_loss = 0.5 * penalty(layer, tokens)
    assert layer.aux_loss is not None
    torch.testing.assert_close(layer.aux_loss, expected_loss)
    gradients, expected = (
        torch.autograd.grad((y * weight_BTD).sum() + loss, leaves)
        for y, loss in ((y_BTD, layer.aux_loss), (expected_BTD, expected_loss))
    )
    for gradient, right in zip(gradients, expected, strict=True):
        assert right.any()
        torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize(
    ("logit", "before", "after"),
    [(1.0, 0.1, 0.15), (-1.0, 0.3, 0.2), (0.0, 0.3, 0.2), (1.0, 90.0, 100.0), (-1.0, 0.12, 0.1)],
)
def test_the_coefficient_grows_while_too_many_experts_run(
    logit: float, before: float, after: float
) -> None:
    layer = ReMoE(16, granularity=2, expansion=4, coefficient_start=0.1, coefficient_step=1.5)
    layer.coefficient.fill_(before)
    x_BTD = torch.ones(2, 4, 16)
    with torch.no_grad():
        layer.router.weight.fill_(logit)
    for _ in range(2):  # micro-batches
        layer(x_BTD)
    layer.after_step()
    assert float(layer.coefficient) == pytest.approx(after)


def test_the_coefficient_rests_where_k_experts_run() -> None:
    layer = ReMoE(16, granularity=2, expansion=4)
    with torch.no_grad():
        layer.router.weight.fill_(-1.0)
        layer.router.weight[[1, 5]] = 1.0
    layer(torch.ones(2, 4, 16))
    layer.after_step()
    assert float(layer.coefficient) == pytest.approx(1e-8)
    assert layer.measured_flops_per_token() == layer.flops_per_token()


def test_training_finds_k_experts_per_token() -> None:
    torch.manual_seed(0)
    layer = ReMoE(16, granularity=2, expansion=4, coefficient_start=1e-3)
    x_BTD, y_BTD = torch.randn(2, 4, 16, 16).unbind()
    x_BTD[..., 0] = 1  # on inputs as frequent as their opposites half of the experts always run
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    assert float(layer.load(x_BTD).sum()) / 64 == pytest.approx(4, rel=0.2)  # half of the experts
    means = []
    for _ in range(150):
        loss = (layer(x_BTD) - y_BTD).square().mean() + layer.aux_loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        layer.after_step()
        means.append(float(layer.load(x_BTD).sum()) / 64)
    assert sum(means[-50:]) / 50 == pytest.approx(2, rel=0.1)


def test_what_it_measures_is_the_mean_over_the_tokens_of_training() -> None:
    torch.manual_seed(0)
    layer = ReMoE(16, granularity=2, expansion=4)
    assert measures_flops(layer)
    assert not measures_flops(Dense)
    x_BTD, other_BTD = torch.randn(4, 8, 16), torch.randn(2, 8, 16)
    uses = int(layer.load(x_BTD).sum() + layer.load(other_BTD).sum())
    layer(x_BTD)
    layer.after_step()
    layer(other_BTD)
    layer.eval()(x_BTD)  # is not training
    expected = 2 * 16 * 8 + uses / 48 * 4 * 16 * 32
    assert layer.measured_flops_per_token() == pytest.approx(expected)
    again = ReMoE(16, granularity=2, expansion=4)
    again.load_state_dict(copy.deepcopy(layer.state_dict()))  # as from a checkpoint
    assert again.measured_flops_per_token() == layer.measured_flops_per_token()
    assert torch.equal(again.coefficient, layer.coefficient)


def test_evaluation_changes_nothing() -> None:
    layer = ReMoE(16).eval()
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(1, 4, 16))
    assert layer.aux_loss is None
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_tokens_without_an_expert_get_zero() -> None:
    layer = ReMoE(16)
    with torch.no_grad():
        layer.router.weight.fill_(1.0)
    x_BTD = torch.ones(1, 2, 16) * torch.tensor([[[1.0], [-1.0]]])
    y_BTD = layer(x_BTD)
    assert y_BTD[0, 0].any()
    assert not y_BTD[0, 1].any()
    assert not layer(-x_BTD[:, :1]).any()  # no expert for any token
    (layer(-x_BTD[:, :1]).sum() + layer.aux_loss).backward()


def test_at_its_target_it_has_the_size_and_flops_of_dense_and_the_router() -> None:
    layer = ReMoE(64, granularity=4)
    assert layer.flops_per_token() - 2 * 64 * 32 == Dense(64).flops_per_token()
    assert layer.active_parameters() - 64 * 32 == Dense(64).active_parameters()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"coefficient_start": 0.0}, "coefficient_start must be positive"),
        ({"coefficient_step": 0.5}, "coefficient_step at least 1"),
        ({"granularity": 3}, "granularity 3 must divide the FFN width 64"),
    ],
)
def test_bad_options_are_refused(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        ReMoE(16, **options)


def test_compiled_it_keeps_its_numbers_and_compiles_once() -> None:
    """However many experts the tokens use."""
    torch.manual_seed(0)
    layer = ReMoE(16, granularity=2, expansion=4).eval()
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(layer, backend=count)
    made = []
    for _ in range(4):
        x = torch.randn(2, 8, 16)
        assert torch.equal(compiled(x), layer(x))
        made.append(graphs)
    torch.compiler.reset()
    assert made[0] == made[-1]
