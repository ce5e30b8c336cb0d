"""Quantised matrices and factors, against their definitions."""

import pytest
import torch
from torch import Tensor

from isoflop.bench.methods.counts import read_bytes, stored_bytes
from isoflop.bench.methods.low_rank import factorise
from isoflop.bench.methods.matrices import Factored, Whole, factors
from isoflop.bench.methods.method import rebuilt, with_layers
from isoflop.bench.quantisation import dequantise, pack, quantise
from tests.bench.methods.models import OPTIONS, apply, layer_of, make_calibration, make_model

TOKENS = make_calibration(9).tokens


def test_a_matrix_of_zeros_stays_zero() -> None:
    codes, scales = quantise(torch.zeros(1, 4, 4), 4, 2)
    assert torch.equal(dequantise(codes, scales, 2), torch.zeros(1, 4, 4))


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 32), (2, 8), (4, 5)])
def test_bytes_are_those_of_the_packed_codes_and_the_scales(bits: int, group: int) -> None:
    model = make_model()
    changed = apply("quantise", model, bits=bits, group=group)
    size = 2 * sum(p.numel() for name, p in model.named_parameters() if "_E" not in name)
    for layer in model.tested:
        for weight in (layer.up_EDF, layer.down_EFD):
            size += sum(len(pack(matrix, f"int{bits}", group)) for matrix in weight)
    assert stored_bytes(changed) == size


def test_a_token_reads_the_experts_that_it_chooses_and_all_that_is_not_an_expert() -> None:
    model = make_model()
    experts, rest = 0, -model.embedding.weight.numel()
    for name, parameter in model.named_parameters():
        if "_E" in name:
            experts += parameter.numel()
        else:
            rest += parameter.numel()
    layer = layer_of(apply("prune-random", model, drop=0.0))
    share = layer.chosen / len(layer.up)
    assert read_bytes(model) == 2 * rest + 2 * experts * share
    # 8 bits and a scale of 16 bits for each group of 8
    changed = apply("quantise", model, bits=8, group=8)
    assert read_bytes(changed) == 2 * rest + 1.25 * experts * share
    fewer = apply("fewer-experts", model, fewer=1)
    assert read_bytes(fewer) == read_bytes(model) - 2 * experts / len(layer.up)


def test_int4_in_groups_of_32_has_four_and_a_half_bits() -> None:
    matrices = Whole(torch.randn(1, 64, 16))
    matrices.bits, matrices.group = 4, 32
    assert matrices.bytes_of(0) * 8 == 4.5 * 64 * 16


@torch.no_grad()
def test_more_bits_are_closer() -> None:
    model = make_model("dense")  # a router may choose otherwise after any change, however small
    errors = [
        float((apply("quantise", model, bits=bits)(TOKENS) - model(TOKENS)).norm())
        for bits in (8, 4, 2)
    ]
    assert errors[0] < errors[1] / 5 < errors[2] / 5
    assert errors[0] < 0.02 * float(model(TOKENS).norm())


def test_quantised_weights_stay_in_training() -> None:
    changed = apply("quantise", make_model()).train()
    loss, _ = changed.loss(TOKENS, TOKENS)
    loss.backward()
    layer = layer_of(changed)
    assert layer.up.weight.grad is None
    assert layer.router.weight.grad is not None


@pytest.mark.parametrize("layer", OPTIONS)
@pytest.mark.parametrize("whiten", [True, False])
def test_full_rank_is_the_source(layer: str, whiten: bool) -> None:
    model = make_model(layer)
    layers = rebuilt(model)
    inputs = make_calibration().inputs(model)
    for part, x_MD in zip(layers, inputs, strict=True):
        full = [min(part.up.shape), min(part.down.shape)]
        factorise(part, [full] * len(part.up), x_MD if whiten else None)
    changed = with_layers(model, layers)
    torch.testing.assert_close(changed(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-4)


def error(weight: Tensor, pair: tuple[Tensor, Tensor], x: Tensor | None = None) -> float:
    difference = weight - pair[0] @ pair[1]
    return float((difference if x is None else x @ difference).norm())


def test_plain_factors_are_the_best_of_the_matrix_and_whitened_ones_of_the_output() -> None:
    """By Eckart and Young: the error is what the singular values left out say, and no less."""
    torch.manual_seed(0)
    weight, x = torch.randn(12, 8), torch.randn(200, 12) * torch.linspace(0.1, 3, 12)
    plain, whitened = factors(weight, 3), factors(weight, 3, x.T @ x)
    values = torch.linalg.svdvals(weight)
    assert error(weight, plain) == pytest.approx(float(values[3:].norm()), rel=1e-5)
    outputs = torch.linalg.svdvals(x @ weight)
    assert error(weight, whitened, x) == pytest.approx(float(outputs[3:].norm()), rel=1e-4)
    assert error(weight, whitened, x) < 0.95 * error(weight, plain, x)
    assert error(weight, plain) < error(weight, whitened)


@pytest.mark.parametrize("layer", OPTIONS)
def test_the_rank_keeps_to_its_share(layer: str) -> None:
    model = make_model(layer)
    changed = apply("low-rank", model, keep=0.4)
    for part in changed.tested:
        for matrices in (part.up, part.down):
            inputs, outputs = matrices.shape
            assert isinstance(matrices, Factored)
            for expert in range(len(matrices)):
                rank = matrices.left[expert].shape[1]
                assert rank * (inputs + outputs) <= 0.4 * inputs * outputs
                assert (rank + 1) * (inputs + outputs) > 0.4 * inputs * outputs


def test_whitened_factors_are_closer_on_the_calibration_text() -> None:
    model, calibration = make_model(), make_calibration()
    errors = {}
    for whiten in (True, False):
        changed = apply("low-rank", model, calibration, keep=0.5, whiten=whiten)
        x_MD = calibration.inputs(model)[0]
        difference = changed.tested[0](x_MD[None]) - model.tested[0](x_MD[None])
        errors[whiten] = float(difference.norm())
    assert errors[True] < errors[False]


@pytest.mark.parametrize("keep", [0.0, 1.0, 1.5])
def test_a_rank_that_saves_nothing_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="a rank saves nothing"):
        apply("low-rank", make_model(), keep=keep)


def test_a_share_that_leaves_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves a matrix of 16 x 32 no rank"):
        apply("low-rank", make_model(), keep=0.01)
