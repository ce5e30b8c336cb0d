import pytest
import torch
import torch.nn.functional as F

from isoflop.models import Dense


def test_gelu_is_two_matrices() -> None:
    layer = Dense(16)
    x_BTD = torch.randn(2, 3, 16)
    expected = F.gelu(x_BTD @ layer.up.weight.T) @ layer.down.weight.T
    torch.testing.assert_close(layer(x_BTD), expected)
    assert layer.d_ff == 64


def test_swiglu_gates_with_silu_and_costs_as_much() -> None:
    layer = Dense(96, activation="swiglu")
    x_BTD = torch.randn(2, 3, 96)
    gate, up = layer.up.weight.chunk(2)
    expected = (F.silu(x_BTD @ gate.T) * (x_BTD @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x_BTD), expected)
    assert layer.flops_per_token() == Dense(96).flops_per_token()
    assert layer.active_parameters() == Dense(96).active_parameters()


def test_relu2_squares_and_starts_at_the_scale_of_gelu() -> None:
    torch.manual_seed(0)
    layer, x_BTD = Dense(64, activation="relu2"), torch.randn(8, 16, 64)
    y_BTD = layer(x_BTD)
    expected = F.relu(x_BTD @ layer.up.weight.T).square() @ layer.down.weight.T
    torch.testing.assert_close(y_BTD, expected)
    assert layer.flops_per_token() == Dense(64).flops_per_token()
    assert 0.8 < float(y_BTD.std() / Dense(64)(x_BTD).std()) < 1.2


def test_a_negative_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match="ratio must be positive, not -1"):
        Dense(16, ratio=-1)
