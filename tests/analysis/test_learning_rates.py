"""Learning-rate sweeps and what they do to the ranking."""

import numpy as np
import pytest

from isoflop.analysis.analyse import analyse
from isoflop.analysis.curves import AnalysisError, Noise
from isoflop.analysis.estimate import estimate
from isoflop.analysis.learning_rates import RateSweep, rate_sweeps
from isoflop.analysis.simulate import rate_sweep, simulate
from isoflop.results.record import Record

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
BUDGETS = (1e14, 4e14, 1.6e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)
NOISE = Noise(fit=0.003, seed=0.0, degrees=30)


def sweep_of(
    tune: list[Record], records: tuple[Record, ...] = (), noise: Noise = NOISE
) -> RateSweep:
    (sweep,) = rate_sweeps(tune, records, noise, 500)
    return sweep


def test_the_best_rate_is_found() -> None:
    sweep = sweep_of(rate_sweep("dense", RATES, 1e-3))
    np.testing.assert_array_equal(sweep.rates, RATES)
    assert sweep.rates[sweep.best] == 1e-3
    assert sweep.best_rates[0] <= 1e-3 <= sweep.best_rates[1]
    assert sweep.used == sweep.best  # the suite has no such cell
    assert sweep.tuning_gap[0] == 0
    assert not sweep.at_edge


@pytest.mark.parametrize("best", [1e-4, 1e-2])
def test_a_best_rate_at_the_edge_is_marked(best: float) -> None:
    assert sweep_of(rate_sweep("dense", RATES, best)).at_edge


def test_a_rate_that_diverges_bounds_the_sweep() -> None:
    tune = rate_sweep("dense", RATES, 1e-2)
    assert sweep_of(tune).at_edge
    diverged = tune[-1].model_copy(update={"status": "diverged", "loss": None})
    sweep = sweep_of([*tune[:-1], diverged])
    assert np.isinf(sweep.losses[-1])
    assert sweep.rates[sweep.best] == 2e-3
    assert not sweep.at_edge


def test_failed_runs_say_nothing() -> None:
    tune = rate_sweep("dense", RATES, 1e-3)
    failed = [record.model_copy(update={"status": "failed", "loss": None}) for record in tune]
    assert len(sweep_of([failed[0], *tune[1:]]).rates) == 4
    assert rate_sweeps(failed, (), NOISE, 10) == ()


def test_the_rate_used_is_that_of_the_suite() -> None:
    tune = rate_sweep("dense", RATES, 1e-3, bend=0.02, noise=0)
    used = tune[1].model_copy(update={"learning_rate": 4.9e-4})
    sweep = sweep_of(tune, (used,))
    assert sweep.rates[sweep.used] == 5e-4
    assert sweep.tuning_gap[0] == pytest.approx(0.02 * np.log(2) ** 2)
    assert estimate(sweep.tuning_gap).low > 0


def test_noise_comes_from_seeds_where_there_are_some() -> None:
    tune = rate_sweep("dense", RATES, 1e-3, seeds=20, noise=0.01)
    assert sweep_of(tune).errors[0] == pytest.approx(0.01 / np.sqrt(20), rel=0.2)
    single = rate_sweep("dense", RATES, 1e-3)
    assert sweep_of(single).errors.tolist() == [0.003] * 5
    assert sweep_of(single, noise=Noise(0.003, 0.002, 9)).errors.tolist() == [0.002] * 5


def test_the_interval_of_the_tuning_gap_covers_it() -> None:
    """Over 200 sweeps whose rate is one step from the best."""
    truth = 0.02 * np.log(2) ** 2
    inside = []
    for random in range(200):
        tune = rate_sweep("dense", RATES, 1e-3, noise=0.003, random=random)
        tuning_gap = estimate(sweep_of(tune, (tune[1],)).tuning_gap)
        inside.append(tuning_gap.low <= truth <= tuning_gap.high)
    assert np.mean(inside) >= 0.90


def test_mixed_validation_sets_are_refused() -> None:
    tune = rate_sweep("dense", RATES, 1e-3)
    changed = tune[0].model_copy(update={"validation_hash": "other"})
    with pytest.raises(AnalysisError, match=f"tune/{changed.cell}.json"):
        sweep_of([changed, *tune[1:]])


def test_a_layer_with_a_bad_rate_may_gain_ranks() -> None:
    """The tuning gap of peer is larger than its distance to moe."""
    records = simulate({"dense": 1.0, "moe": 1.3, "peer": 1.2}, BUDGETS, octaves=OCTAVES)
    tune = [
        *rate_sweep("dense", RATES, 1e-3),
        *rate_sweep("moe", RATES, 1e-3),
        *rate_sweep("peer", RATES, 4e-3, bend=0.03),
    ]
    analysis = analyse(records, tune, samples=300)
    sensitivity = analysis.sensitivity
    plain = {standing.variant: standing.rank_interval for standing in analysis.standings}
    assert (plain["moe"], plain["peer"]) == ((1, 1), (2, 2))
    assert sensitivity["peer"].rank_interval[0] == 1
    assert sensitivity["moe"].rank_interval[1] == 2
    assert sensitivity["peer"].multiplier.value > 1.3 > sensitivity["moe"].multiplier.low
    assert sensitivity["dense"].multiplier == (1, 1, 1)


def test_a_baseline_with_a_bad_rate_lowers_every_multiplier_when_tuned() -> None:
    records = simulate({"dense": 1.0, "moe": 1.3}, BUDGETS, octaves=OCTAVES)
    tune = rate_sweep("dense", RATES, 4e-3, bend=0.03)
    sensitivity = analyse(records, tune, samples=300).sensitivity
    assert sensitivity["moe"].multiplier.value < 1.25


def test_without_sweeps_nothing_is_said() -> None:
    analysis = analyse(simulate({"dense": 1.0, "moe": 1.3}, BUDGETS), samples=10)
    assert analysis.rate_sweeps == ()
    assert analysis.sensitivity == {}
