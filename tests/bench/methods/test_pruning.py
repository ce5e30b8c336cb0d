"""Pruning, smaller k and constants, against their definitions written as loops."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models import Decoder, MoE, SharedMoE
from tests.bench.methods.models import (
    OPTIONS,
    apply,
    initial_of,
    layer_of,
    make_calibration,
    make_model,
)

PRUNING = ["prune-random", "prune-frequency", "prune-reap", "prune-router-norm"]
SPARSE = ["moe", "moe_shared"]


def gates(layer: object, x_D: Tensor, allowed: list[int], k: int) -> dict[int, float]:
    """Experts of one token and their gates, by the formulas of the layers' papers."""
    if isinstance(layer, MoE):
        logits = [float(layer.router.weight[e] @ x_D) for e in allowed]
        total = sum(map(math.exp, logits))
        p = {e: math.exp(logit) / total for e, logit in zip(allowed, logits, strict=True)}
        return {e: p[e] for e in sorted(p, key=p.__getitem__, reverse=True)[:k]}
    assert isinstance(layer, SharedMoE)
    s = {e: float((layer.router.weight[e] @ x_D).sigmoid()) for e in allowed}
    best = sorted(s, key=lambda e: s[e] + float(layer.bias_E[e]), reverse=True)[:k]
    return {e: s[e] / sum(s[i] for i in best) for e in best}


def expert(layer: MoE | SharedMoE, e: int, x_D: Tensor) -> Tensor:
    return F.gelu(x_D @ layer.up_EDF[e]) @ layer.down_EFD[e]


def output(layer: object, x_D: Tensor, gate: dict[int, float]) -> Tensor:
    assert isinstance(layer, MoE | SharedMoE)
    y_D = torch.zeros_like(x_D)
    for e, g in gate.items():
        y_D = y_D + g * expert(layer, e, x_D)
    if isinstance(layer, SharedMoE) and layer.shared is not None:
        y_D = y_D + layer.shared(x_D)
    return y_D


def kept(model: Decoder, changed: Decoder, index: int) -> list[int]:
    """Which experts of the source are left, by their weights."""
    source, left = model.tested[index].up_EDF, layer_of(changed, index).up.weight
    return [
        next(e for e in range(len(source)) if torch.equal(source[e], matrix)) for matrix in left
    ]


def chosen_of(model: Decoder) -> int:
    layer = model.tested[0]
    return layer.chosen if isinstance(layer, SharedMoE) else layer.options.granularity


@pytest.mark.parametrize("layer", SPARSE)
@pytest.mark.parametrize("method", PRUNING)
def test_the_output_is_that_of_the_experts_left(method: str, layer: str) -> None:
    model = make_model(layer)
    changed = apply(method, model, drop=0.25)
    x_MD = torch.randn(20, 16)
    for index, source in enumerate(model.tested):
        left = kept(model, changed, index)
        assert len(left) == round(0.75 * source.n_experts)
        assert left == sorted(left)
        expected = [output(source, x, gates(source, x, left, chosen_of(model))) for x in x_MD]
        torch.testing.assert_close(changed.tested[index](x_MD[None])[0], torch.stack(expected))


def scores_by(
    value: Callable[[float, Tensor], float], model: Decoder, index: int
) -> list[list[float]]:
    """A value for every token that chose an expert, by expert."""
    source = model.tested[index]
    experts = list(range(source.n_experts))
    values: list[list[float]] = [[] for _ in experts]
    for x in make_calibration().inputs(model)[index]:
        for e, gate in gates(source, x, experts, chosen_of(model)).items():
            values[e].append(value(gate, expert(source, e, x)))
    return values


def best(scores: list[float], share: float) -> list[int]:
    order = sorted(range(len(scores)), key=lambda e: -scores[e])
    return sorted(order[: round(share * len(scores))])


@pytest.mark.parametrize("layer", SPARSE)
def test_frequency_keeps_what_most_tokens_choose(layer: str) -> None:
    model = make_model(layer)
    changed = apply("prune-frequency", model, drop=0.25)
    for index in range(2):
        counts = [len(values) for values in scores_by(lambda gate, y: 1.0, model, index)]
        left = kept(model, changed, index)
        gone = [count for e, count in enumerate(counts) if e not in left]
        assert min(counts[e] for e in left) >= max(gone)


@pytest.mark.parametrize("layer", SPARSE)
@pytest.mark.parametrize("gate", [True, False])
def test_reap_keeps_the_largest_mean_of_gate_times_norm(layer: str, gate: bool) -> None:
    model = make_model(layer)
    changed = apply("prune-reap", model, drop=0.25, gate=gate)
    for index in range(2):
        values = scores_by(lambda g, y: (g if gate else 1.0) * float(y.norm()), model, index)
        means = [sum(v) / len(v) if v else 0.0 for v in values]
        assert kept(model, changed, index) == best(means, 0.75)


@pytest.mark.parametrize("dropped", ["smallest", "largest"])
def test_the_signed_change_of_the_norm_decides(dropped: str) -> None:
    model = make_model()
    initial = initial_of(model)
    changed = apply("prune-router-norm", model, dropped=dropped)
    sign = 1 if dropped == "smallest" else -1
    for index in range(2):
        pairs = zip(model.tested[index].router.weight, initial.tested[index].router.weight)  # noqa: B905
        change = [sign * (math.hypot(*after) - math.hypot(*before)) for after, before in pairs]
        assert kept(model, changed, index) == best(change, 0.5)


def test_the_router_s_norm_needs_the_weights_before_training() -> None:
    with pytest.raises(ValueError, match="needs the weights before training"):
        apply("prune-router-norm", make_model(), make_calibration())


def test_random_pruning_follows_the_seed_and_differs_by_layer() -> None:
    model = make_model()
    by_seed = [
        [kept(model, apply("prune-random", model, make_calibration(seed)), i) for i in range(2)]
        for seed in range(8)
    ]
    assert len({str(experts) for experts in by_seed}) > 4
    assert any(first != second for first, second in by_seed)


@pytest.mark.parametrize("method", PRUNING)
def test_more_than_top_k_leaves_is_refused(method: str) -> None:
    model = make_model("moe")
    apply(method, model, drop=0.75)  # 2 of 8 are left, as many as a token uses
    with pytest.raises(ValueError, match=r"drop: 0.9 leaves 1 of 8 experts, .* uses 2"):
        apply(method, model, drop=0.9)


@pytest.mark.parametrize("layer", SPARSE)
def test_fewer_experts_keep_their_gates(layer: str) -> None:
    model = make_model(layer)
    changed = apply("fewer-experts", model, fewer=1)
    x_MD = torch.randn(20, 16)
    source, k = model.tested[0], chosen_of(model)
    for x, y in zip(x_MD, changed.tested[0](x_MD[None])[0], strict=True):
        gate = gates(source, x, list(range(source.n_experts)), k)
        order = sorted(
            gate,
            key=lambda e: gate[e] if layer == "moe" else _biased(source, x, e),
            reverse=True,
        )
        torch.testing.assert_close(y, output(source, x, {e: gate[e] for e in order[: k - 1]}))


def _biased(layer: object, x_D: Tensor, e: int) -> float:
    assert isinstance(layer, SharedMoE)
    return float((layer.router.weight[e] @ x_D).sigmoid() + layer.bias_E[e])


@pytest.mark.parametrize("layer", SPARSE)
def test_no_expert_at_all_is_refused(layer: str) -> None:
    model = make_model(layer)
    with pytest.raises(ValueError, match=r"fewer: .* leaves a token no expert"):
        apply("fewer-experts", model, fewer=chosen_of(model))


@pytest.mark.parametrize("layer", SPARSE)
def test_constants_are_the_mean_output_of_the_tokens_routed_there(layer: str) -> None:
    model = make_model(layer)
    changed = apply("mean-output", model, drop=0.5)
    left = kept(model, changed, 0)
    source = model.tested[0]
    experts = list(range(source.n_experts))
    outputs: dict[int, list[Tensor]] = {e: [] for e in experts}
    for x in make_calibration().inputs(model)[0]:
        for e in gates(source, x, experts, chosen_of(model)):
            outputs[e].append(expert(source, e, x))
    gone = [e for e in experts if e not in left]
    assert max(len(outputs[e]) for e in gone) <= min(len(outputs[e]) for e in left)
    x_MD = torch.randn(20, 16)
    for x, y in zip(x_MD, changed.tested[0](x_MD[None])[0], strict=True):
        expected = torch.zeros(16)
        for e, gate in gates(source, x, experts, chosen_of(model)).items():
            constant = torch.stack(outputs[e]).mean(0)
            expected = expected + gate * (expert(source, e, x) if e in left else constant)
        if source is not None and layer == "moe_shared":
            expected = expected + source.shared(x)
        torch.testing.assert_close(y, expected)


def test_constants_have_gradients_and_a_count() -> None:
    changed = apply("mean-output", make_model(), drop=0.5).train()
    loss, auxiliary = changed.loss(make_calibration().tokens, make_calibration().targets)
    (loss + auxiliary).backward()
    layer = layer_of(changed)
    assert layer.constant_CD is not None
    assert layer.constant_CD.grad is not None
    assert float(layer.constant_CD.grad.abs().sum()) > 0
    assert layer.total_parameters() == 8 * 16 + 4 * 16 + 4 * 2 * 16 * 32
    assert OPTIONS["moe"]["granularity"] * OPTIONS["moe"]["expansion"] == layer.rows == 8
