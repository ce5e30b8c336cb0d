"""Paired differences of an ablation, on records whose truth is known."""

from collections.abc import Sequence

import numpy as np
import pytest

from isoflop.analysis.ablation import Ablation, ablation
from isoflop.analysis.curves import AnalysisError
from isoflop.results import record as schema
from isoflop.results.record import Record
from tests.bench.cells import make_record

SLOPE, BUDGET = 0.2, 1e12
TRUE = {"dense": 3.0, "peer": 2.9, "moe": 2.89}
EFFECT = {("dense", "small"): -0.01, ("peer", "small"): 0.05, ("moe", "small"): -0.01}


def run(variant: str, seed: int, loss: float, budget: float = BUDGET, choice: str = "") -> Record:
    name = f"{variant} batch={choice}" if choice else variant
    label = schema.Ablation(variant=variant, axis="batch", choice=choice) if choice else None
    return make_record(
        cell=f"{name} {budget:g} {seed}".encode().hex()[:40],
        variant=name,
        layer="dense" if variant == "dense" else variant,
        ablation=label,
        seed=seed,
        loss=loss,
        budget=budget,
    )


def simulated(random: int, seeds: int = 3, noise: float = 0.01) -> list[Record]:
    """A seed's deviation is shared by all cells; the rest is each cell's own."""
    generator = np.random.default_rng(random)
    records = []
    for seed in range(seeds):
        shared = generator.normal(0, 0.1)
        for variant, loss in TRUE.items():
            for choice in ("", "small"):
                truth = loss + shared + EFFECT.get((variant, choice), 0)
                records.append(
                    run(variant, seed, truth + generator.normal(0, noise), choice=choice)
                )
        larger = TRUE["dense"] - SLOPE * np.log(2) + shared
        records.append(run("dense", seed, larger + generator.normal(0, 1e-4), 2 * BUDGET))
    return records


def effects(result: Ablation) -> dict[str, tuple[float, float, float]]:
    return {effect.variant: effect.difference for effect in result.effects}


def test_without_noise_it_gives_the_truth_and_what_the_choice_reverses() -> None:
    result = ablation(simulated(0, noise=1e-6), "dense")
    for variant, difference in effects(result).items():
        assert difference[0] == pytest.approx(EFFECT[variant, "small"], abs=1e-4)
    multipliers = {e.variant: e.multiplier.value for e in result.effects}
    assert multipliers["peer"] == pytest.approx(np.exp((0.1 - 0.06) / SLOPE), rel=0.01)
    assert multipliers["moe"] == pytest.approx(np.exp(0.11 / SLOPE), rel=0.01)
    assert result.as_it_is["peer"].value == pytest.approx(np.exp(0.1 / SLOPE), rel=0.01)
    least, largest = result.sensitivity("peer")
    assert (least, largest) == pytest.approx((np.exp(0.04 / SLOPE), np.exp(0.1 / SLOPE)), rel=0.01)
    assert result.reversals == ()
    swapped = [
        r.model_copy(update={"loss": r.loss + 0.2}) if r.variant == "moe batch=small" else r
        for r in simulated(0, noise=1e-6)
    ]
    assert ablation(swapped, "dense").reversals == (
        ("batch", "small", "moe", "peer"),
        ("batch", "small", "moe", "dense"),
    )


def test_intervals_cover_the_truth_in_95_of_100() -> None:
    """Shared noise of 0.1 nats, ten times the cells' own, must not widen them."""
    inside, widths = [], []
    for random in range(200):
        result = ablation(simulated(random), "dense")
        for variant, (value, low, high) in effects(result).items():
            inside.append(low <= EFFECT[variant, "small"] <= high)
            widths.append(high - value)
    # 600 intervals, of which three share a standard deviation each.
    assert 0.92 < np.mean(inside) < 0.98
    assert np.mean(widths) < 0.03


def test_the_stated_difference_is_found_with_80_percent_power() -> None:
    result = ablation(simulated(1), "dense")
    assert 0.01 < result.resolved < 0.05
    one_seed = ablation(simulated(1, seeds=1), "dense")
    assert np.isnan(one_seed.resolved)
    assert not any(effect.significant for effect in one_seed.effects)


def test_other_text_gives_a_multiplier_but_no_difference() -> None:
    def other(records: Sequence[Record]) -> list[Record]:
        return [
            r.model_copy(update={"validation_hash": "other"}) if r.ablation else r for r in records
        ]

    result = ablation(other(simulated(0)), "dense")
    assert all(np.isnan(effect.difference.value) for effect in result.effects)
    assert all(np.isfinite(effect.multiplier.value) for effect in result.effects)


def test_several_budgets_are_refused() -> None:
    records = [*simulated(0), run("peer", 0, 2.0, 3e12, "small")]
    with pytest.raises(AnalysisError, match="at one size and budget, not at 2"):
        ablation(records, "dense")
