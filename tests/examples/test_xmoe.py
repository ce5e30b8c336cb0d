import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.xmoe import XMoE


def smallest_prefix(p_E: Tensor, threshold: float) -> list[int]:
    """The paper's definition, one token at a time: take experts until their sum suffices."""
    chosen: list[int] = []
    total = 0.0
    for expert in p_E.argsort(descending=True).tolist():
        if total >= threshold:
            break
        chosen.append(expert)
        total += float(p_E[expert])
    return chosen


@pytest.fixture
def layer() -> XMoE:
    torch.manual_seed(0)
    return XMoE(16, granularity=4, expansion=3, cap=12, threshold=0.7).double().eval()


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9, 1.0])
def test_the_chosen_are_the_smallest_prefix_that_reaches_the_threshold(threshold: float) -> None:
    layer = XMoE(16, granularity=4, expansion=3, cap=12, threshold=threshold)
    p_ME = (3 * torch.randn(200, 12, dtype=torch.float64, generator=_generator())).softmax(-1)
    gate_MK, index_MK = layer.select(p_ME)
    sizes = set()
    for p_E, gate_K, index_K in zip(p_ME, gate_MK, index_MK, strict=True):
        expected = smallest_prefix(p_E, threshold)
        assert index_K[gate_K > 0].tolist() == expected
        torch.testing.assert_close(gate_K[gate_K > 0], p_E[expected])
        sizes.add(len(expected))
    assert len(sizes) > 1 or threshold in (0.05, 1.0)  # the number adapts to the token


def test_the_output_is_the_sum_over_the_chosen_experts(layer: XMoE) -> None:
    x_BTD = torch.randn(2, 5, 16, dtype=torch.float64, generator=_generator())
    y_BTD = layer(x_BTD)
    for x_D, y_D in zip(x_BTD.flatten(0, 1), y_BTD.flatten(0, 1), strict=True):
        p_E = (layer.router.weight @ x_D).softmax(-1)
        expected_D = torch.zeros(16, dtype=torch.float64)
        for e in smallest_prefix(p_E, 0.7):
            expected_D += p_E[e] * (F.gelu(x_D @ layer.up_EDF[e]) @ layer.down_EFD[e])
        torch.testing.assert_close(y_D, expected_D)


def test_no_token_takes_more_experts_than_the_cap() -> None:
    layer = XMoE(16, granularity=4, expansion=3, cap=2, threshold=1.0)
    gate_MK, _ = layer.select(torch.full((3, 12), 1 / 12))
    assert gate_MK.shape == (3, 2)
    assert (gate_MK > 0).all()


def test_the_balancing_loss_is_least_when_first_choices_are_even(layer: XMoE) -> None:
    layer.train()(torch.randn(4, 8, 16, dtype=torch.float64, generator=_generator()))
    assert layer.aux_loss is not None
    with torch.no_grad():  # one expert takes all: E * 1 * P with P near 1
        layer.router.weight.zero_()
        layer.router.weight[3] = 50.0
    spread = float(layer.aux_loss)
    layer(torch.ones(4, 8, 16, dtype=torch.float64))
    assert float(layer.aux_loss) == pytest.approx(0.01 * 12)
    assert spread < 0.01 * 4


def test_wrong_options_are_refused() -> None:
    for wrong in ({"threshold": 0.0}, {"threshold": 1.5}, {"cap": 0}, {"cap": 33}):
        with pytest.raises(ValueError, match=r"threshold|cap"):
            XMoE(16, **wrong)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)
