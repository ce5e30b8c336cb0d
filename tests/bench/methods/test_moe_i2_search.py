"""The searches of MoE-I^2, against exhaustive search and outputs computed the long way."""

from itertools import combinations, product
from math import comb
from typing import Any

import pytest
import torch

from isoflop.bench.methods.experts import Experts
from isoflop.bench.methods.method import make_method, rebuilt, with_layers
from isoflop.bench.methods.moe_i2 import MoEI2, allocate
from isoflop.bench.methods.moe_i2_search import OutputChange, genetic, together
from isoflop.models import Decoder
from tests.bench.methods.models import layer_of, make_calibration, make_model

SPARSE: dict[str, dict[str, Any]] = {
    "moe": {"granularity": 2, "expansion": 7},
    "moe_shared": {"granularity": 4, "expansion": 4},
}


def experts_of(model: Decoder) -> list[Experts]:
    return [layer for layer in rebuilt(model) if isinstance(layer, Experts)]


def change_of(layer: Experts, x_MD: torch.Tensor, leaving: tuple[int, ...]) -> float:
    """By pruning a layer and running it."""
    (pruned,) = experts_of(with_layers(make_model(), [layer, layer]))[:1]
    pruned.keep([e for e in range(len(layer.up)) if e not in leaving])
    return float((pruned(x_MD[None]) - layer(x_MD[None])).detach().norm())


@pytest.mark.parametrize("layer", SPARSE)
@torch.no_grad()
def test_the_error_of_a_set_is_the_change_of_the_layer_s_output(layer: str) -> None:
    model, calibration = make_model(layer, **SPARSE[layer]), make_calibration()
    whole, x_MD = experts_of(model)[0], calibration.inputs(model)[0]
    error = OutputChange(whole, x_MD)
    assert error(()) == pytest.approx(0, abs=1e-5)
    for leaving in [(0,), (3, 7), (1, 2, 5, 9, 11)]:
        assert error(leaving) == pytest.approx(change_of(whole, x_MD, leaving), rel=1e-4)
    assert error.evaluations == 4
    error((0,))
    assert error.evaluations == 4  # a set is evaluated once


@pytest.mark.parametrize("layer", SPARSE)
@pytest.mark.parametrize("count", [1, 2, 5])
@torch.no_grad()
def test_the_genetic_search_comes_upon_the_best_of_all_sets(layer: str, count: int) -> None:
    model = make_model(layer, **SPARSE[layer])
    whole, x_MD = experts_of(model)[1], make_calibration().inputs(model)[1][:128]
    experts = len(whole.up)
    assert comb(experts, count) <= 10**4
    error, every = OutputChange(whole, x_MD), OutputChange(whole, x_MD)
    best = genetic(error, experts, count, torch.Generator().manual_seed(0), generations=20)
    exhaustive = sorted(combinations(range(experts), count), key=lambda s: (every(s), s))
    assert best[0] == exhaustive[0]
    assert set(best) <= set(exhaustive[:20])
    if count == 5:  # far fewer than all are evaluated
        assert error.evaluations < every.evaluations
        few = {"population": 20, "generations": 0}
        first = genetic(error, experts, count, torch.Generator().manual_seed(0), **few)
        assert first[0] != exhaustive[0]  # a random population alone does not come upon it


def test_without_a_difference_between_sets_it_ends() -> None:
    assert genetic(lambda s: 0.0, 3, 0, torch.Generator(), best=3) == [()]
    assert len(genetic(lambda s: 0.0, 12, 11, torch.Generator(), population=4, best=3)) == 3


@pytest.mark.parametrize("size", [1, 2])
@torch.no_grad()
def test_sets_go_together_that_change_the_last_block_s_output_least(size: int) -> None:
    model, tokens = make_model(), make_calibration().tokens[:4]
    layers = experts_of(model)
    candidates = [[(0, 1), (2, 3), (4, 5)], [(0, 7), (1, 6), (2, 5)]]
    chosen, tried = together(model, layers, candidates, tokens, size)
    assert tried == (9 if size == 2 else 6)

    def after(sets: tuple[tuple[int, ...], ...], blocks: int) -> torch.Tensor:
        other = with_layers(model, experts_of(model))
        for index, leaving in enumerate(sets):
            layer_of(other, index).keep([e for e in range(8) if e not in leaving])
        seen: list[torch.Tensor] = []
        hook = lambda module, inputs, output: seen.append(output)  # noqa: E731
        other.blocks[blocks - 1].register_forward_hook(hook)
        other(tokens)
        return seen[0]

    def error(sets: tuple[tuple[int, ...], ...], blocks: int) -> float:
        return float((after(sets, blocks) - after((), blocks)).norm())

    if size == 2:
        expected = min(product(*candidates), key=lambda sets: error(sets, 2))
    else:
        first = min(candidates[0], key=lambda leaving: error((leaving,), 1))
        expected = (first, min(candidates[1], key=lambda leaving: error((first, leaving), 2)))
    assert tuple(chosen) == expected


def test_the_method_counts_its_evaluations_and_changes_the_output_less_than_importance() -> None:
    model, calibration = make_model(**SPARSE["moe"]), make_calibration()
    errors = {}
    for search in ("genetic", "importance"):
        options = {"drop": 0.5, "search": search, "population": 40, "generations": 10}
        method, _ = make_method(MoEI2, options)
        assert isinstance(method, MoEI2)
        changed = method.apply(model, calibration)
        assert method.searched() >= 28  # a removal of each expert
        assert (method.searched() > 28) == (search == "genetic")
        scores = method.importance(with_layers(model, rebuilt(model)), calibration)
        losing = allocate(14, [sum(score) for score in scores], [12, 12])
        assert [14 - len(layer_of(changed, index).up) for index in range(2)] == losing
        x_MD = calibration.inputs(model)[0]
        with torch.no_grad():
            errors[search] = float(
                (changed.tested[0](x_MD[None]) - model.tested[0](x_MD[None])).norm()
            )
    assert errors["genetic"] < errors["importance"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "population, candidates and group must be at least 1"),
        ({"generations": -1}, "generations 0 or more"),
        ({"candidates": 10, "group": 5}, "make more than 10,000 choices"),
    ],
)
def test_searches_without_an_end_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(MoEI2, options)
