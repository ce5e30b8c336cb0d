"""Learning-rate sweeps and what they do to the ranking."""

import numpy as np
import pytest

from isoflop.analysis.analyse import analyse
from isoflop.analysis.curves import AnalysisError, Noise
from isoflop.analysis.learning_rates import RateSweep, rate_sweeps
from isoflop.analysis.parabola import estimate
from isoflop.analysis.simulate import rate_sweep, simulate
from isoflop.results.record import Record

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
BUDGETS = (1e14, 4e14, 1.6e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)
NOISE = Noise(fit=0.003, seed=0.0, degrees=30)


def one(tune: list[Record], records: tuple[Record, ...] = (), noise: Noise = NOISE) -> RateSweep:
    (found,) = rate_sweeps(tune, records, noise, 500)
    return found


def test_the_best_rate_is_found() -> None:
    found = one(rate_sweep("dense", RATES, 1e-3))
    np.testing.assert_array_equal(found.rates, RATES)
    assert found.rates[found.best] == 1e-3
    assert found.best_rates[0] <= 1e-3 <= found.best_rates[1]
    assert found.used == found.best  # the suite has no such cell
    assert found.left[0] == 0
    assert not found.at_edge


@pytest.mark.parametrize("best", [1e-4, 1e-2])
def test_a_best_rate_at_the_edge_is_marked(best: float) -> None:
    assert one(rate_sweep("dense", RATES, best)).at_edge


def test_a_rate_that_diverges_bounds_the_bracket() -> None:
    tune = rate_sweep("dense", RATES, 1e-2)
    assert one(tune).at_edge
    diverged = tune[-1].model_copy(update={"status": "diverged", "loss": None})
    found = one([*tune[:-1], diverged])
    assert np.isinf(found.losses[-1])
    assert found.rates[found.best] == 2e-3
    assert not found.at_edge


def test_failed_runs_say_nothing() -> None:
    tune = rate_sweep("dense", RATES, 1e-3)
    failed = [each.model_copy(update={"status": "failed", "loss": None}) for each in tune]
    assert len(one([failed[0], *tune[1:]]).rates) == 4
    assert rate_sweeps(failed, (), NOISE, 10) == ()


def test_the_rate_used_is_that_of_the_suite() -> None:
    tune = rate_sweep("dense", RATES, 1e-3, bend=0.02, noise=0)
    used = tune[1].model_copy(update={"learning_rate": 4.9e-4})
    found = one(tune, (used,))
    assert found.rates[found.used] == 5e-4
    assert found.left[0] == pytest.approx(0.02 * np.log(2) ** 2)
    assert estimate(found.left).low > 0


def test_noise_comes_from_seeds_where_there_are_some() -> None:
    tune = rate_sweep("dense", RATES, 1e-3, seeds=20, noise=0.01)
    assert one(tune).errors[0] == pytest.approx(0.01 / np.sqrt(20), rel=0.2)
    single = rate_sweep("dense", RATES, 1e-3)
    assert one(single).errors.tolist() == [0.003] * 5
    assert one(single, noise=Noise(0.003, 0.002, 9)).errors.tolist() == [0.002] * 5


def test_what_is_left_covers_what_was_left() -> None:
    """The 95% interval of the loss left, where the rate used is one step off, over 200 samples."""
    truth = 0.02 * np.log(2) ** 2
    inside = []
    for random in range(200):
        tune = rate_sweep("dense", RATES, 1e-3, noise=0.003, random=random)
        left = estimate(one(tune, (tune[1],)).left)
        inside.append(left.low <= truth <= left.high)
    assert np.mean(inside) >= 0.90


def test_mixed_validation_sets_are_refused() -> None:
    tune = rate_sweep("dense", RATES, 1e-3)
    other = tune[0].model_copy(update={"validation_hash": "other"})
    with pytest.raises(AnalysisError, match=f"tune/{other.cell}.json"):
        one([other, *tune[1:]])


def test_a_layer_held_back_by_its_rate_may_gain_places() -> None:
    """A variant used a rate that costs what lets another past it."""
    records = simulate({"dense": 1.0, "moe": 1.3, "peer": 1.2}, BUDGETS, octaves=OCTAVES)
    tune = [
        *rate_sweep("dense", RATES, 1e-3),
        *rate_sweep("moe", RATES, 1e-3),
        *rate_sweep("peer", RATES, 4e-3, bend=0.03),
    ]
    found = analyse(records, tune, samples=300).sensitivity
    assert found["peer"].rank_interval == (2, 2)
    assert found["peer"].rank_interval_tuned[0] == 1
    assert found["moe"].rank_interval_tuned[1] == 2
    assert found["peer"].multiplier.value > 1.3 > found["moe"].multiplier.low
    assert found["dense"].multiplier == (1, 1, 1)


def test_a_baseline_held_back_takes_from_every_multiplier() -> None:
    records = simulate({"dense": 1.0, "moe": 1.3}, BUDGETS, octaves=OCTAVES)
    tune = rate_sweep("dense", RATES, 4e-3, bend=0.03)
    found = analyse(records, tune, samples=300).sensitivity
    assert found["moe"].multiplier.value < 1.25


def test_without_brackets_nothing_is_said() -> None:
    analysis = analyse(simulate({"dense": 1.0, "moe": 1.3}, BUDGETS), samples=10)
    assert analysis.rate_sweeps == ()
    assert analysis.sensitivity == {}
