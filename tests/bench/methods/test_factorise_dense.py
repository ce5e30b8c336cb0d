"""A dense FFN cut into experts, against the formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.bench.methods.counts import counts
from isoflop.bench.methods.slices import Slices, coactive
from isoflop.models import Decoder, Dense
from tests.bench.methods.models import apply, make_calibration, make_model

TOKENS = make_calibration(9).tokens
SPLITS = ["random", "neighbours", "clusters"]


def act(activation: str, h: Tensor) -> Tensor:
    if activation == "swiglu":
        gate, h = h.chunk(2)
        return F.silu(gate) * h
    return F.relu(h).square() if activation == "relu2" else F.gelu(h)


def dense_of(model: Decoder, index: int = 0) -> Dense:
    layer = model.tested[index]
    assert isinstance(layer, Dense)
    return layer


def slices_of(model: Decoder, index: int = 0) -> Slices:
    layer = model.tested[index]
    assert isinstance(layer, Slices)
    return layer


@torch.no_grad()
def label_of(layer: Slices, dense: Dense, x: Tensor) -> list[int]:
    """The k slices of least error, from the definition."""
    n, k = len(layer.up), layer.chosen
    goal = dense(x) * k / n
    errors = [float((layer.expert(e, x) - goal).square().mean()) for e in range(n)]
    return sorted(sorted(range(n), key=errors.__getitem__)[:k])


@pytest.mark.parametrize("activation", ["gelu", "relu2", "swiglu"])
@pytest.mark.parametrize("experts", [1, 2, 4])
@pytest.mark.parametrize("mask", ["router", "random", "oracle", "fixed"])
def test_all_slices_are_the_dense_layer(activation: str, experts: int, mask: str) -> None:
    model = make_model("dense", activation=activation)
    changed = apply("factorise-dense", model, experts=experts, chosen=experts, mask=mask)
    assert len(slices_of(changed).up) == experts
    torch.testing.assert_close(changed(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@torch.no_grad()
def test_the_chosen_slices_are_summed_without_gates(activation: str) -> None:
    model = make_model("dense", activation=activation, ratio=6.0)
    layer = slices_of(apply("factorise-dense", model, experts=4, chosen=2))
    x_MD = torch.randn(20, 16)
    for x, y in zip(x_MD, layer(x_MD[None])[0], strict=True):
        best = (layer.router.weight @ x).argsort(descending=True)[:2].tolist()
        parts = [act(activation, x @ layer.up.of(e)) @ layer.down.of(e) for e in best]
        torch.testing.assert_close(y, 4 / 2 * (parts[0] + parts[1]))


@pytest.mark.parametrize("split", SPLITS)
def test_every_hidden_unit_is_in_one_slice(split: str) -> None:
    model = make_model("dense")
    layer = slices_of(apply("factorise-dense", model, split=split))
    units = torch.cat([layer.up.of(e) for e in range(4)], 1).T.tolist()
    assert sorted(units) == sorted(dense_of(model).up.weight.tolist())
    assert (units == dense_of(model).up.weight.tolist()) == (split == "neighbours")


@torch.no_grad()
def test_a_fixed_slice_is_the_same_for_every_token() -> None:
    model = make_model("dense")
    layer = slices_of(apply("factorise-dense", model, chosen=1, mask="fixed"))
    x_MD = torch.randn(20, 16)
    assert len(layer.up) == 1
    expected = 4 * F.gelu(x_MD @ layer.up.of(0)) @ layer.down.of(0)
    torch.testing.assert_close(layer(x_MD[None])[0], expected)


@torch.no_grad()
def test_the_oracle_takes_the_slices_of_the_least_error_and_pays_for_all() -> None:
    model, calibration = make_model("dense"), make_calibration()
    changed = apply("factorise-dense", model, calibration, mask="oracle")
    layer, dense = slices_of(changed), dense_of(model)
    x_MD = calibration.inputs(model)[0][:40]
    for x, y in zip(x_MD, layer(x_MD[None])[0], strict=True):
        parts = [layer.expert(e, x) for e in label_of(layer, dense, x)]
        torch.testing.assert_close(y, 2.0 * (parts[0] + parts[1]), rtol=1e-4, atol=1e-5)
    spent = counts(changed, TOKENS, "factorise-dense")
    whole = counts(model, TOKENS, "none")
    assert (spent.measured, spent.read_bytes) == (whole.measured, whole.read_bytes)


@pytest.mark.parametrize("mask", ["router", "random", "oracle", "fixed"])
@pytest.mark.parametrize("chosen", [1, 2])
def test_counts_are_those_of_the_model(mask: str, chosen: int) -> None:
    changed = apply("factorise-dense", make_model("dense"), mask=mask, chosen=chosen)
    spent = counts(changed, TOKENS, "factorise-dense")
    assert spent.measured == spent.flops.forward
    assert spent.parameters.total == sum(p.numel() for p in changed.parameters())


@torch.no_grad()
def test_a_random_mask_is_even_and_not_the_router_s() -> None:
    """The same vector has the same slices; near vectors have others."""
    model, calibration = make_model("dense"), make_calibration()
    layer = slices_of(apply("factorise-dense", model, calibration, chosen=1, mask="random"))
    x_MD = calibration.inputs(model)[0]
    index = layer.route(x_MD)[1][:, 0]
    assert torch.equal(index, layer.route(x_MD)[1][:, 0])
    share = index.bincount(minlength=4) / len(index)
    assert share.min() > 0.15
    near = layer.route(x_MD * 1.01)[1][:, 0]
    assert 0.1 < float((near == index).float().mean()) < 0.45  # by chance 0.25
    routed = slices_of(apply("factorise-dense", model, calibration, chosen=1))
    near, index = routed.route(x_MD * 1.01)[1], routed.route(x_MD)[1]
    assert torch.equal(near, index)


def test_the_router_s_loss_is_the_paper_s() -> None:
    """KL of label softmax and router softmax, and the mean of mask times softmax, by loops."""
    model, calibration = make_model("dense"), make_calibration()
    layer = slices_of(apply("factorise-dense", model, calibration))
    x_MD = calibration.inputs(model)[0][:30]
    route = balance = 0.0
    for x in x_MD:
        logits = (layer.router.weight @ x).tolist()
        total = sum(map(math.exp, logits))
        p = [math.exp(logit) / total for logit in logits]
        label = label_of(layer, dense_of(model), x)
        goal = [math.exp(e in label) for e in range(4)]
        goal = [value / sum(goal) for value in goal]
        route += sum(q * math.log(q / r) for q, r in zip(goal, p, strict=True))
        balance += sum(sorted(p)[-2:]) / 4
    expected = (0.05 * route + 0.01 * balance) / 30
    loss = layer.teaching_loss(x_MD)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    layer.train()(x_MD[None])
    torch.testing.assert_close(layer.aux_loss, loss)


@pytest.mark.parametrize("train", ["router", "experts"])
def test_training_changes_router_and_experts_alone(train: str) -> None:
    """The cross-entropy gives the router no gradient: the losses of its own do."""
    model = make_model("dense")
    changed = apply("factorise-dense", model, train=train).train()
    loss, auxiliary = changed.loss(TOKENS, TOKENS)
    auxiliary.backward(retain_graph=True)
    layer = slices_of(changed)
    alone = layer.router.weight.grad.clone()
    assert alone.abs().max() > 0
    if train == "experts":
        loss.backward()
        assert torch.equal(layer.router.weight.grad, alone)
        assert layer.up.weight.grad.abs().max() > 0
    else:
        assert not loss.requires_grad
    learned = {
        name.rpartition(".ffn.")[2] for name, p in changed.named_parameters() if p.requires_grad
    }
    experts = {"up.weight", "down.weight"} if train == "experts" else set()
    assert learned == {"router.weight"} | experts


def test_the_router_learns_the_labels() -> None:
    model, calibration = make_model("dense"), make_calibration()
    layer = slices_of(apply("factorise-dense", model, calibration, chosen=1, train="router"))
    x_MD = calibration.inputs(model)[0]
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=1e-2)

    def agreement() -> float:
        return float((layer.route(x_MD)[1] == layer.labels(x_MD)).float().mean())

    before = agreement()
    for _ in range(200):
        optimizer.zero_grad()
        layer.teaching_loss(x_MD).backward()
        optimizer.step()
    assert agreement() > max(0.4, before + 0.1)


def test_labels_are_those_of_the_dense_layer_as_it_was() -> None:
    """Whatever training makes of the slices."""
    model, calibration = make_model("dense"), make_calibration()
    layer = slices_of(apply("factorise-dense", model, calibration, chosen=1))
    x_MD = calibration.inputs(model)[0]
    with torch.no_grad():
        layer.down.weight[1:] = 9.0  # far from anything that the dense layer says
    assert float((layer.labels(x_MD) == 0).float().mean()) > 0.95
    assert layer.teaching_flops_per_token() == 2 * 2 * (2 * 16 * 64)


def test_units_that_are_active_together_are_in_one_slice() -> None:
    generator = torch.Generator().manual_seed(0)
    pattern = (torch.rand(200, 4, generator=generator) > 0.7).float()
    unit = torch.randperm(32, generator=generator) % 4  # to which pattern a unit belongs
    size = torch.rand(32, generator=generator) + 0.5
    h = pattern[:, unit] * size + 0.05 * torch.randn(200, 32, generator=generator)
    parts = coactive(h, 4, torch.Generator().manual_seed(1))
    assert parts.shape == (4, 8)
    assert {len(set(unit[part].tolist())) for part in parts} == {1}
    assert sorted(parts.flatten().tolist()) == list(range(32))


def test_slices_of_unequal_width_are_refused() -> None:
    with pytest.raises(ValueError, match="experts: 7 must divide the hidden width 64"):
        apply("factorise-dense", make_model("dense"), experts=7)
    with pytest.raises(ValueError, match="chosen: 1 to experts = 4, not 5"):
        apply("factorise-dense", make_model("dense"), chosen=5)
