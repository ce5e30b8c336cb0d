"""A dense FFN cut into experts, against the formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.bench.methods.experts import FeedForward
from isoflop.bench.methods.factorise_dense import labels
from isoflop.models import Decoder, Dense
from tests.bench.methods.models import apply, layer_of, make_calibration, make_model

TOKENS = make_calibration(9).tokens


def act(activation: str, h: Tensor) -> Tensor:
    if activation == "swiglu":
        gate, h = h.chunk(2)
        return F.silu(gate) * h
    return F.relu(h).square() if activation == "relu2" else F.gelu(h)


def dense_of(model: Decoder, index: int = 0) -> Dense:
    layer = model.tested[index]
    assert isinstance(layer, Dense)
    return layer


@pytest.mark.parametrize("activation", ["gelu", "relu2", "swiglu"])
@pytest.mark.parametrize("experts", [1, 2, 4])
def test_all_slices_are_the_dense_layer(activation: str, experts: int) -> None:
    model = make_model("dense", activation=activation)
    changed = apply("factorise-dense", model, experts=experts, chosen=experts)
    assert len(layer_of(changed).up) == experts
    torch.testing.assert_close(changed(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("router", ["taught", "none"])
def test_the_chosen_slices_are_summed_without_gates(activation: str, router: str) -> None:
    model = make_model("dense", activation=activation, ratio=6.0)
    changed = apply("factorise-dense", model, experts=4, chosen=2, router=router)
    layer, x_MD = layer_of(changed), torch.randn(20, 16)
    for x, y in zip(x_MD, layer(x_MD[None])[0], strict=True):
        best = (layer.router.weight @ x).argsort(descending=True)[:2].tolist()
        parts = [act(activation, x @ layer.up.of(e)) @ layer.down.of(e) for e in best]
        torch.testing.assert_close(y, 4 / 2 * (parts[0] + parts[1]))


def test_every_hidden_unit_is_in_one_slice() -> None:
    model = make_model("dense")
    layer = layer_of(apply("factorise-dense", model, experts=4, chosen=2))
    units = torch.cat([layer.up.of(e) for e in range(4)], 1).T.tolist()
    assert sorted(units) == sorted(dense_of(model).up.weight.tolist())


def test_a_fixed_slice_is_the_same_for_every_token() -> None:
    model = make_model("dense")
    changed = apply("factorise-dense", model, experts=4, chosen=1, router="fixed")
    layer, x_MD = layer_of(changed), torch.randn(20, 16)
    assert len(layer.up) == 1
    expected = 4 * F.gelu(x_MD @ layer.up.of(0)) @ layer.down.of(0)
    torch.testing.assert_close(layer(x_MD[None])[0], expected)


def test_labels_are_the_slices_of_the_least_error_and_the_router_learns_them() -> None:
    model, calibration = make_model("dense"), make_calibration()
    x_MD = calibration.inputs(model)[0]
    agreement = {}
    for router in ("taught", "none"):
        changed = apply("factorise-dense", model, calibration, experts=4, chosen=1, router=router)
        layer = layer_of(changed)
        dense = dense_of(model)
        label_MK = labels(layer, FeedForward(dense), x_MD)
        for x, label in zip(x_MD[:20], label_MK[:20], strict=True):
            goal = dense(x) * 1 / 4
            errors = [float((layer.expert(e, x) - goal).square().mean()) for e in range(4)]
            assert int(label[0]) == errors.index(min(errors))
        agreement[router] = float((layer.route(x_MD)[1] == label_MK).float().mean())
    assert agreement["taught"] > max(0.4, agreement["none"] + 0.1)


def test_slices_of_unequal_width_are_refused() -> None:
    with pytest.raises(ValueError, match="experts: 7 must divide the hidden width 64"):
        apply("factorise-dense", make_model("dense"), experts=7)
    with pytest.raises(ValueError, match="chosen: 1 to experts = 4, not 5"):
        apply("factorise-dense", make_model("dense"), chosen=5)
