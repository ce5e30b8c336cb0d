"""Learning-rate sweeps and what they do to the ranking."""

import numpy as np
import pytest

from isoflop.analysis.analyse import analyse
from isoflop.analysis.curves import AnalysisError
from isoflop.analysis.estimate import estimate
from isoflop.analysis.learning_rates import RateSweep, rate_sweeps, tuned_rates
from isoflop.analysis.simulate import rate_sweep, simulate
from isoflop.results.record import Record

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
THREE = (5e-4, 1e-3, 2e-3)
BUDGETS = (1e14, 4e14, 1.6e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def sweep_of(
    tune: list[Record], records: tuple[Record, ...] = (), deviation: float = 0.003
) -> RateSweep:
    (sweep,) = rate_sweeps(tune, records, deviation, 500)
    return sweep


@pytest.mark.parametrize("best", [7e-4, 1e-3, 1.7e-3])
def test_the_best_rate_is_interpolated(best: float) -> None:
    sweep = sweep_of(rate_sweep("dense", RATES, best, noise=0))
    np.testing.assert_array_equal(sweep.rates, RATES)
    assert sweep.best.value == pytest.approx(best)
    assert sweep.best.low < best < sweep.best.high
    assert sweep.tuning_gap[0] == pytest.approx(0.02 * np.log(sweep.used / best) ** 2)
    assert sweep.used == min(RATES, key=lambda rate: abs(np.log(rate / best)))
    assert not sweep.at_edge
    np.testing.assert_allclose(sweep(sweep.rates), sweep.losses)


def test_one_curvature_is_shared_and_each_variant_has_its_own_optimum() -> None:
    """A variant with two finished rates has none of its own: it takes that of the others."""
    tune = [
        *rate_sweep("dense", THREE, 1e-3, noise=0),
        *rate_sweep("moe", THREE, 1.5e-3, noise=0),
        *rate_sweep("peer", THREE[:2], 7e-4, noise=0),
    ]
    sweeps = {sweep.variant: sweep for sweep in rate_sweeps(tune, (), 0.003, 50)}
    best = {variant: sweep.best.value for variant, sweep in sweeps.items()}
    assert best == pytest.approx({"dense": 1e-3, "moe": 1.5e-3, "peer": 7e-4})
    assert len({float(sweep.quadratic[0, 2]) for sweep in sweeps.values()}) == 1


def test_a_size_with_a_sharp_optimum_does_not_bend_the_sweeps_of_another() -> None:
    """As on an H200 at 1e14 FLOPs: at width 256, of few steps, high rates are costly; at 128 the
    losses fall up to the highest rate, and a better one may lie beyond."""
    losses = {
        ("dense", "s"): (3.828, 3.740, 3.656), ("moe", "s"): (3.700, 3.629, 3.652),
        ("dense", "l"): (4.315, 4.102, 4.062), ("moe", "l"): (4.241, 4.158, 4.707),
    }  # fmt: skip
    tune = [
        run.model_copy(
            update={
                "cell": f"{run.cell}{size}",
                "loss": loss,
                "size": run.size.model_copy(update={"name": size}),
            }
        )
        for (variant, size), values in losses.items()
        for run, loss in zip(rate_sweep(variant, THREE, 1e-3, noise=0), values, strict=True)
    ]
    sweeps = {(s.variant, s.size.name): s for s in rate_sweeps(tune, (), 0.02, 50)}
    assert [place for place, sweep in sweeps.items() if sweep.at_edge] == [("dense", "s")]
    assert sweeps["dense", "s"].best.value == pytest.approx(THREE[-1])


def test_the_rate_of_tables_is_swept_apart() -> None:
    """Runs at another rate of tables are no part of the sweep of the learning rate."""
    tune = [*rate_sweep("dense", THREE, 1e-3, noise=0), *rate_sweep("peer", THREE, 1e-3, noise=0)]
    tables = [
        run.model_copy(update={"cell": f"{run.cell}{factor}", "table_rate": factor, "loss": loss})
        for run in tune
        if run.variant == "peer" and run.learning_rate == THREE[1]
        for factor, loss in ((0.5, 9.0), (2.0, 8.0))
    ]
    plain = {s.variant: s.best.value for s in rate_sweeps(tune, (), 0.003, 50)}
    assert {s.variant: s.best.value for s in rate_sweeps(tune + tables, (), 0.003, 50)} == plain
    (sweep,) = rate_sweeps(tune + tables, (), 0.003, 50, of="table_rate")
    assert sweep.variant == "peer"
    assert sweep.rates.tolist() == [0.5, 1.0, 2.0]
    assert sweep.losses[0] == 9.0
    assert rate_sweeps(tune, (), 0.003, 50, of="table_rate") == ()


def test_two_rates_bound_a_sweep_and_bend_nothing() -> None:
    sweep = sweep_of(rate_sweep("dense", THREE[:2], 1.2e-3))
    assert sweep.at_edge
    assert sweep.best.value == pytest.approx(1e-3)
    assert sweep.quadratic[0, 2] == pytest.approx(0, abs=1e-9)


def test_rates_far_from_the_lowest_do_not_bend_it() -> None:
    """At the highest rate the loss is no longer quadratic."""
    tune = rate_sweep("dense", RATES, 1e-3, noise=0)
    wild = tune[-1].model_copy(update={"loss": (tune[-1].loss or 0) + 1})
    assert sweep_of([*tune[:-1], wild]).best.value == pytest.approx(1e-3)


def test_a_cliff_at_the_highest_rate_bounds_a_sweep_and_moves_no_optimum() -> None:
    """As MoE of width 48 in the suite cpu."""
    dense, moe = (rate_sweep(name, THREE, 1e-3, bend=0.16, noise=0) for name in ("dense", "moe"))
    losses = (4.297, 4.313, 4.816)
    cliff = [run.model_copy(update={"loss": loss}) for run, loss in zip(moe, losses, strict=True)]
    sweeps = {s.variant: s for s in rate_sweeps([*dense, *cliff], (), 0.003, 50)}
    assert sweeps["dense"].best.value == pytest.approx(1e-3)
    assert not sweeps["moe"].at_edge
    assert THREE[0] <= sweeps["moe"].best.value < THREE[1]
    assert sweeps["moe"].tuning_gap[0] <= 4.313 - 4.297


@pytest.mark.parametrize("best", [1e-4, 1e-2])
def test_a_best_rate_at_the_edge_is_marked(best: float) -> None:
    sweep = sweep_of(rate_sweep("dense", RATES, best))
    assert sweep.at_edge
    assert RATES[0] * (1 - 1e-9) <= sweep.best.value <= RATES[-1] * (1 + 1e-9)


def test_a_rate_that_diverges_bounds_the_sweep() -> None:
    tune = rate_sweep("dense", RATES, 1e-2)
    assert sweep_of(tune).at_edge
    diverged = tune[-1].model_copy(update={"status": "diverged", "loss": None})
    sweep = sweep_of([*tune[:-1], diverged])
    assert np.isinf(sweep.losses[-1])
    assert sweep.best.value == pytest.approx(2e-3)
    assert not sweep.at_edge


def test_failed_runs_say_nothing() -> None:
    tune = rate_sweep("dense", RATES, 1e-3)
    failed = [record.model_copy(update={"status": "failed", "loss": None}) for record in tune]
    assert len(sweep_of([failed[0], *tune[1:]]).rates) == 4
    assert rate_sweeps(failed, (), 0.003, 10) == ()


def test_the_rate_used_is_that_of_the_suite() -> None:
    tune = rate_sweep("dense", RATES, 1e-3, bend=0.02, noise=0)
    used = tune[1].model_copy(update={"learning_rate": 4.9e-4})
    sweep = sweep_of(tune, (used,))
    assert sweep.used == 4.9e-4
    assert sweep.tuning_gap[0] == pytest.approx(0.02 * np.log(1e-3 / 4.9e-4) ** 2)
    assert estimate(sweep.tuning_gap).low > 0


def test_noise_comes_from_seeds_where_there_are_some() -> None:
    tune = rate_sweep("dense", RATES, 1e-3, seeds=20, noise=0.01)
    assert sweep_of(tune).errors[0] == pytest.approx(0.01 / np.sqrt(20), rel=0.2)
    assert sweep_of(rate_sweep("dense", RATES, 1e-3)).errors.tolist() == [0.003] * 5


def test_intervals_of_rate_and_tuning_gap_cover_the_truth() -> None:
    """Over 200 sweeps whose rate is one step from the best."""
    truth = 0.02 * np.log(2) ** 2
    gaps, rates = [], []
    for random in range(200):
        tune = rate_sweep("dense", RATES, 1e-3, noise=0.003, random=random)
        sweep = sweep_of(tune, (tune[1],))
        tuning_gap = estimate(sweep.tuning_gap)
        gaps.append(tuning_gap.low <= truth <= tuning_gap.high)
        rates.append(sweep.best.low <= 1e-3 <= sweep.best.high)
    assert np.mean(gaps) >= 0.90
    assert np.mean(rates) >= 0.90


def two_sizes(variant: str, bests: tuple[float, float], noise: float, random: int) -> list[Record]:
    """The protocol: three rates at two sizes of one budget, six runs."""
    return [
        record
        for number, (budget, best) in enumerate(zip((1e13, 1.6e14), bests, strict=True))
        for record in (
            part.model_copy(update={"budget": 1e13, "cell": f"{part.cell}-{number}"})
            for part in rate_sweep(
                variant, THREE, best, budget=budget, noise=noise, random=2 * random + number
            )
        )
    ]


def test_six_runs_give_a_rate_and_its_slope_in_width() -> None:
    tune = [
        *two_sizes("dense", (1.4e-3, 7e-4), 0, 0),
        *two_sizes("peer", (1.8e-3, 1.8e-3), 0, 0),
        *rate_sweep("moe", THREE, 1.2e-3, noise=0, budget=1e13),
    ]
    sweeps = rate_sweeps(tune, (), 0.003, 10)
    narrow, wide = sorted(sweep.size.width for sweep in sweeps if sweep.variant == "dense")
    rates = tuned_rates(sweeps, narrow, exponent=1.0)
    assert rates["dense"].rate == pytest.approx(1.4e-3)
    assert rates["dense"].at(wide) == pytest.approx(7e-4)
    assert rates["dense"].slope == pytest.approx(np.log(0.5) / np.log(wide / narrow))
    assert rates["peer"].at(wide) == pytest.approx(1.8e-3)
    assert [rates[name].own_slope for name in ("dense", "peer", "moe")] == [True, True, False]
    assert rates["moe"].at(2 * narrow) == pytest.approx(0.6e-3)  # by the suite's rule
    assert not any(rate.at_edge for rate in rates.values())


def test_a_layer_that_wants_double_the_rate_gets_it() -> None:
    """Thirty pairs of sweeps at a noise of a fifth of the bend: within a fifth of the truth."""
    found = []
    for random in range(30):
        tune = two_sizes("dense", (1e-3, 1e-3), 0.004, 2 * random)
        tune += two_sizes("peer", (2e-3, 2e-3), 0.004, 2 * random + 1)
        sweeps = rate_sweeps(tune, (), 0.004, 10)
        found.append(tuned_rates(sweeps, sweeps[0].size.width, 1.0)["peer"].rate)
    assert np.exp(np.mean(np.log(found))) == pytest.approx(2e-3, rel=0.15)
    assert np.std(np.log(found)) < 0.35


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
