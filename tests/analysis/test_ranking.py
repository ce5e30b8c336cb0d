"""Compute multipliers and ranks against records whose truth is known."""

import re

import numpy as np
import pytest

from isoflop.analysis.analyse import analyse
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


def test_both_estimators_are_there_and_the_surface_is_shown() -> None:
    peer = standings(simulate({"dense": 1.0, "peer": 2.0}, BUDGETS, octaves=OCTAVES))["peer"]
    assert peer.shown
    assert peer.shown.source == "surface"
    assert peer.headline
    assert peer.parabola
    assert peer.headline.low < 2.0 < peer.headline.high
    assert peer.parabola.low < 2.0 < peer.parabola.high
    assert peer.headline.high - peer.headline.low < peer.parabola.high - peer.parabola.low
    assert sorted(peer.parabolas) == list(BUDGETS)


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
    assert multiplier.dense_largest == BUDGETS[-1]


def test_a_trend_within_the_noise_is_inconclusive() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, noise=0.02, random=3)
    multiplier = standings(records)["peer"].multiplier
    assert multiplier
    assert multiplier.trend == "inconclusive"


@pytest.mark.parametrize(("largest", "stated"), [(9e14, False), (1e15, True)])
def test_a_trend_is_stated_from_a_decade_of_budgets(largest: float, stated: bool) -> None:
    budgets = (1e14, 4e14, largest)
    records = simulate({"dense": 1.0, "peer": 1.5}, budgets, octaves=OCTAVES, trend=0.2)
    multiplier = standings(records)["peer"].multiplier
    assert multiplier
    assert multiplier.trend == ("grows" if stated else "not stated")


def test_ranks_come_from_ratios() -> None:
    truth = {"dense": 1.0, "a": 2.0, "b": 2.0, "c": 1.5, "d": 1.5, "e": 0.5}
    compared = standings(simulate(truth, BUDGETS, octaves=OCTAVES))
    assert [compared[name].rank for name in "abcde"] == [1, 1, 3, 3, 6]
    assert [compared[name].rank_interval for name in "ace"] == [(1, 2), (3, 4), (6, 6)]
    assert [compared[name].differs for name in "ace"] == ["better", "better", "worse"]
    dense = compared["dense"]
    assert (dense.rank, dense.rank_interval, dense.differs) == (5, (5, 5), "")


def test_one_planned_comparison_needs_no_correction() -> None:
    """An interval that just excludes 1: alone it is significant, among nine layers it is not."""
    truth = {"dense": 1.0, "peer": 1.012} | {f"layer-{number}": 1.0 for number in range(8)}
    records = simulate(truth, BUDGETS, octaves=OCTAVES, random=1)
    among = standings(records)["peer"]
    assert among.headline
    assert among.headline.low > 1
    assert among.differs == ""
    planned = analyse(records, highlight="peer", samples=300).standings
    assert next(s for s in planned if s.variant == "peer").differs == "better"


@pytest.mark.parametrize("status", ["edge", "concave", "few"])
def test_an_untrusted_optimum_costs_a_parabola_and_no_rank(status: str) -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, noise=0.02)
    spoilt = []
    for index, record in enumerate(records):
        size = index % len(OCTAVES)
        if record.variant == "peer" and record.budget == BUDGETS[-1]:
            if status == "few" and size > 2:
                continue
            if status == "edge":
                record = changed(record, loss=(record.loss or 0) - 0.15 * size)
            if status == "concave":
                record = changed(record, loss=3.3 - 0.01 * (size - 2) ** 2)
        spoilt.append(record)
    peer = standings(spoilt)["peer"]
    assert peer.top
    assert peer.top.parabola.status == status
    assert peer.parabola is None
    assert peer.rank == 1
    assert peer.shown
    assert peer.shown.source == "surface"


def test_a_variant_without_the_largest_budget_is_not_ranked_by_extrapolation() -> None:
    truth = {"dense": 1.0, "moe": 1.2, "peer": 1.5}
    records = simulate(truth, BUDGETS, octaves=OCTAVES)
    failed = [
        changed(record, status="failed", loss=None)
        if (record.variant, record.budget) == ("peer", BUDGETS[-1])
        else record
        for record in records
    ]
    peer = standings(failed)["peer"]
    assert peer.rank is None
    assert peer.headline is None
    found = re.fullmatch(
        r"no finished cell at 1\.6e15 FLOPs; \S+x \[(\S+), (\S+)\] at 4e14", peer.reason
    )
    assert found, peer.reason
    assert float(found[1]) - 0.005 < 1.5 < float(found[2]) + 0.005
    assert standings(failed)["moe"].rank == 1
    assert peer.loss(BUDGETS[-1]) is None
    assert peer.nearest == ()


def test_the_best_dense_is_picked_anew_in_every_sample() -> None:
    """Two dense variants within the noise: a layer is compared with the better of each sample."""
    truth = {"dense": 1.0, "dense-swiglu": 1.01, "peer": 1.5}
    records = simulate(truth, BUDGETS, octaves=OCTAVES, random=1)
    analysis = analyse(records, samples=300)
    compared = {standing.variant: standing for standing in analysis.standings}
    assert analysis.dense == ("dense", "dense-swiglu")
    rows = [compared[name].shown for name in analysis.dense]
    logs = np.stack([row.log_multiplier for row in rows if row])
    np.testing.assert_allclose(logs.max(axis=0), 0, atol=1e-12)  # one of them is the best
    assert 0 < np.mean(logs[0] == 0) < 1  # and not always the same
    peer = compared["peer"].shown
    assert peer
    for name in analysis.dense:
        others = [r for r in records if r.variant == "peer" or r.variant == name]
        alone = analyse(others, samples=10).standings[0].shown
        assert alone
        assert peer.log_multiplier[0] <= alone.log_multiplier[0] + 1e-3
    assert compared["dense"].differs == compared["dense-swiglu"].differs == ""


def test_the_best_dense_is_the_baseline() -> None:
    truth = {"dense": 1.0, "dense-swiglu": 1.3, "peer": 1.2}
    compared = standings(simulate(truth, BUDGETS, octaves=OCTAVES))
    assert [compared[name].rank for name in ("dense-swiglu", "peer", "dense")] == [1, 2, 3]
    assert compared["peer"].differs == "worse"
    assert compared["peer"].headline
    assert compared["peer"].headline.value == pytest.approx(1.2 / 1.3, rel=0.02)


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
    assert not any("beyond" in flag for flag in peer.flags)
    assert dense.top
    assert dense.top.budget == BUDGETS[1]
    assert dense.headline == (1.0, 1.0, 1.0)


def test_one_budget_gives_no_multiplier_but_curves() -> None:
    compared = standings(simulate({"dense": 1.0, "peer": 1.5}, BUDGETS[:1], octaves=OCTAVES))
    assert compared["peer"].rank is None
    assert compared["peer"].reason == "5 finished cells; a surface needs 6"
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
    assert compared["peer"].reason.startswith("no surface of ")


def test_frontiers_that_cross_are_noticed() -> None:
    truth = {"dense": 1.0, "peer": 1.4}
    records = simulate(truth, BUDGETS, octaves=OCTAVES, trend=0.3)
    (crossing,) = analyse(records).crossings
    expected = BUDGETS[-1] * 1.4 ** (-1 / 0.3)
    assert (crossing.below, crossing.above, crossing.resolved) == ("dense", "peer", True)
    assert crossing.compute.low <= expected <= crossing.compute.high
    assert crossing.compute.value == pytest.approx(expected, rel=0.1)
    assert not analyse(simulate({"dense": 1.0, "peer": 1.4}, BUDGETS, octaves=OCTAVES)).crossings
