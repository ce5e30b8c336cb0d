"""Compute multipliers and ranks against records whose truth is known."""

import numpy as np
import pytest

from isoflop.analysis.analyse import analyse
from isoflop.analysis.estimate import estimate
from isoflop.analysis.ranking import Standing
from isoflop.analysis.simulate import simulate
from isoflop.results.record import Record

BUDGETS = (1e14, 4e14, 1.6e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def changed(record: Record, **fields: object) -> Record:
    return record.model_copy(update=fields)


def standings(records: list[Record]) -> dict[str, Standing]:
    return {standing.variant: standing for standing in analyse(records, samples=300).standings}


def test_noise_free_multipliers_are_the_truth() -> None:
    truth = {"dense": 1.0, "moe": 1.3, "peer": 2.0, "pkm": 0.6}
    compared = standings(simulate(truth, BUDGETS, octaves=OCTAVES, noise=1e-7))
    for variant, value in truth.items():
        headline = compared[variant].headline
        assert headline
        # parabolas bend less than the surface, a little differently for each variant's valley
        assert headline.value == pytest.approx(value, rel=0.01)
    assert [compared[name].rank for name in ("peer", "moe", "dense", "pkm")] == [1, 2, 3, 4]


def test_intervals_of_multiplier_and_trend_cover_at_their_nominal_rate() -> None:
    """95% intervals counted over 200 simulated suites: 90% to 99% hold the truth."""
    truth = {"dense": 1.0, "peer": 2.0}
    inside, trends = [], []
    for random in range(200):
        records = simulate(truth, BUDGETS, octaves=OCTAVES, trend=0.1, random=random)
        peer = standings(records)["peer"]
        assert peer.headline
        assert peer.multiplier
        inside.append(peer.headline.low <= 2.0 <= peer.headline.high)
        slope = estimate(peer.multiplier.slope)
        trends.append(slope.low <= 0.1 <= slope.high)
    assert 0.90 <= np.mean(inside) <= 0.99
    assert 0.90 <= np.mean(trends) <= 0.99


def test_the_band_follows_the_budgets() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, trend=-0.2)
    multiplier = standings(records)["peer"].multiplier
    assert multiplier
    assert multiplier.trend == "fades"
    assert multiplier.compute[0] == pytest.approx(1e14)
    np.testing.assert_allclose(
        multiplier.band[0, [0, -1]], multiplier.at_budget[0, [0, -1]], rtol=0.01
    )
    np.testing.assert_allclose(multiplier.band[0, 0], 1.5 * 16**0.2, rtol=0.05)
    assert multiplier.extrapolation == pytest.approx(1.5, rel=0.05)
    assert multiplier.dense_largest == BUDGETS[-1]


def test_a_trend_within_the_noise_is_inconclusive() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, noise=0.02, random=3)
    multiplier = standings(records)["peer"].multiplier
    assert multiplier
    assert multiplier.trend == "inconclusive"


def test_overlapping_intervals_share_a_rank() -> None:
    truth = {"dense": 1.0, "a": 2.0, "b": 1.98, "c": 1.5, "d": 1.49, "e": 0.5}
    compared = standings(simulate(truth, BUDGETS, octaves=OCTAVES))
    assert [compared[name].rank for name in "abcde"] == [1, 1, 3, 3, 6]
    assert compared["dense"].rank == 5


@pytest.mark.parametrize("status", ["edge", "concave", "few"])
def test_an_untrusted_optimum_has_no_rank_and_a_reason(status: str) -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES)
    spoilt = []
    for index, record in enumerate(records):
        size = index % len(OCTAVES)
        if record.variant == "peer" and record.budget == BUDGETS[-1]:
            if status == "few" and size > 2:
                continue
            if status == "edge":
                record = changed(record, loss=3.5 - 0.05 * size)
            if status == "concave":
                record = changed(record, loss=3.5 - 0.01 * (size - 2) ** 2)
        spoilt.append(record)
    analysis = analyse(spoilt, samples=50)
    last = analysis.standings[-1]
    assert (last.variant, last.rank, last.headline) == ("peer", None, None)
    assert last.reason
    assert last.top
    assert last.top.parabola.status == status
    assert last.frontier
    assert last.frontier.budgets.tolist() == list(BUDGETS[:2])


def test_a_variant_without_the_largest_budget_has_no_rank() -> None:
    truth = {"dense": 1.0, "moe": 1.2, "peer": 1.5}
    records = simulate(truth, BUDGETS, octaves=OCTAVES)
    kept = [record for record in records if record.variant != "peer" or record.budget < BUDGETS[-1]]
    peer = standings(kept)["peer"]
    assert peer.rank is None
    assert "no finished cell at 1.6e15 FLOPs" in peer.reason


def test_a_baseline_given_more_compute_is_read_and_not_extrapolated() -> None:
    """The ranking stays at the largest budget of the others; dense's own may go beyond it."""
    records = simulate({"dense": 1.0, "peer": 2.0}, BUDGETS, octaves=OCTAVES)
    kept = [
        record for record in records if record.variant == "dense" or record.budget < BUDGETS[-1]
    ]
    analysis = analyse(kept)
    peer = next(standing for standing in analysis.standings if standing.variant == "peer")
    dense = next(standing for standing in analysis.standings if standing.variant == "dense")
    assert analysis.headline == BUDGETS[1]
    assert peer.rank == 1
    assert peer.headline
    assert peer.headline.low < 2.0 < peer.headline.high
    assert peer.multiplier
    assert peer.multiplier.extrapolation < 1
    assert dense.top
    assert dense.top.budget == BUDGETS[1]
    assert dense.headline == (1.0, 1.0, 1.0)


def test_one_budget_gives_no_multiplier_but_curves() -> None:
    compared = standings(simulate({"dense": 1.0, "peer": 1.5}, BUDGETS[:1], octaves=OCTAVES))
    assert compared["peer"].rank is None
    assert "dense has no frontier" in compared["peer"].reason
    assert compared["peer"].top


def test_a_baseline_that_gets_worse_with_compute_gives_no_multiplier() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES)
    rising = [
        changed(record, loss=(record.loss or 0) + 2 * np.log10(record.budget / 1e14))
        if record.variant == "dense"
        else record
        for record in records
    ]
    compared = standings(rising)
    assert compared["peer"].rank is None
    assert "a loss that falls" in compared["peer"].reason
    assert compared["peer"].multiplier is None


def test_frontiers_that_cross_are_noticed() -> None:
    truth = {"dense": 1.0, "peer": 1.4}
    records = simulate(truth, BUDGETS, octaves=OCTAVES, trend=0.3)
    (crossing,) = analyse(records).crossings
    expected = BUDGETS[-1] * 1.4 ** (-1 / 0.3)
    assert (crossing.below, crossing.above, crossing.resolved) == ("dense", "peer", True)
    assert crossing.compute.low <= expected <= crossing.compute.high
    assert crossing.compute.value == pytest.approx(expected, rel=0.1)
    assert not analyse(simulate({"dense": 1.0, "peer": 1.4}, BUDGETS, octaves=OCTAVES)).crossings
