"""MoE-I^2, against its definitions."""

from typing import Any

import pytest
import torch

from isoflop.bench.methods.method import make_method, rebuilt, with_layers
from isoflop.bench.methods.moe_i2 import MoEI2, allocate, ranks
from tests.bench.methods.models import apply, layer_of, make_calibration, make_model

FEW: dict[str, Any] = {"population": 8, "generations": 2}


def test_importance_is_the_loss_without_an_expert_less_that_with_it() -> None:
    model, calibration = make_model(), make_calibration()
    method, _ = make_method(MoEI2, {})
    assert isinstance(method, MoEI2)
    scores = method.importance(with_layers(model, rebuilt(model)), calibration)
    assert method.searched() == 16
    for index, expert in ((0, 3), (1, 7)):
        # Without its row a softmax is one over the rest: as if its logit were -inf.
        other = make_model()
        layer = other.tested[index]
        route = layer.route

        def masked(x: torch.Tensor, gone: int = expert) -> torch.Tensor:
            p = route(x)  # noqa: B023
            keep = torch.arange(p.shape[-1]) != gone
            return p * keep / (p * keep).sum(-1, keepdim=True)

        layer.route = masked
        with torch.no_grad():
            before = model.loss(calibration.tokens, calibration.targets)[0]
            after = other.loss(calibration.tokens, calibration.targets)[0]
        assert scores[index][expert] == pytest.approx(float(after - before), abs=1e-5)


def test_without_a_search_the_least_important_leave() -> None:
    model, calibration = make_model(), make_calibration()
    method, _ = make_method(MoEI2, {"drop": 0.25, "search": "importance"})
    assert isinstance(method, MoEI2)
    changed = method.apply(model, calibration)
    scores = method.importance(with_layers(model, rebuilt(model)), calibration)
    losing = [8 - len(layer_of(changed, index).up) for index in range(2)]
    assert losing == allocate(4, [sum(score) for score in scores], [6, 6])
    for index, score in enumerate(scores):
        left = sorted(range(8), key=lambda e: -score[e])[: 8 - losing[index]]
        expected = model.tested[index].up_EDF[sorted(left)]
        assert torch.equal(layer_of(changed, index).up.weight, expected)


@pytest.mark.parametrize(
    ("total", "importance", "most", "expected"),
    [
        (6, [1.0, 2.0], [6, 6], [4, 2]),
        (7, [1.0, 1.0], [6, 6], [4, 3]),
        (8, [1.0, 9.0], [6, 6], [6, 2]),  # 7.2 would not leave enough
        (12, [1.0, 9.0], [6, 6], [6, 6]),
        (5, [-1.0, 1.0], [6, 6], [5, 0]),  # a layer that the loss is better without
        (0, [1.0, 1.0], [6, 6], [0, 0]),
        (3, [1.0, 1.0, 1.0], [0, 6, 6], [0, 2, 1]),
    ],
)
def test_layers_lose_in_proportion_to_the_inverse_of_their_importance(
    total: int, importance: list[float], most: list[int], expected: list[int]
) -> None:
    assert allocate(total, importance, most) == expected


def test_more_than_top_k_leaves_is_refused() -> None:
    with pytest.raises(ValueError, match="drop: 14 experts are to go, and 12 may"):
        apply("moe-i2", make_model(), drop=0.9)


def test_ranks_follow_importance_and_save() -> None:
    layer = layer_of(with_layers(make_model(), rebuilt(make_model())))
    score = [0.0, 1e-3, 1e-3, 1e-2, 1e-1, 1.0, 1e-3, 1e-3]
    result = ranks(layer, score, 0.4)
    weight = [(value + 1e-6) ** 0.15 for value in score]
    average = int(0.4 * 16 * 32 / 48)
    for pair, value in zip(result, weight, strict=True):
        expected = int(value / sum(weight) * average * 8)
        assert pair == [max(1, min(expected, 10))] * 2  # 11 would not save: 11 * 48 > 16 * 32
    assert result[0] < result[4]


def test_low_rank_of_what_is_left_costs_at_most_what_is_stated() -> None:
    model = make_model()
    pruned = apply("moe-i2", model, drop=0.25, **FEW)
    changed = apply("moe-i2", model, drop=0.25, keep=0.5, **FEW)
    for index in range(2):
        assert len(layer_of(changed, index).up) == len(layer_of(pruned, index).up)
        assert (
            layer_of(changed, index).total_parameters() < layer_of(pruned, index).total_parameters()
        )
    assert torch.isfinite(changed(make_calibration().tokens)).all()
