"""Extrapolation tests: a law that holds predicts the held-out budget, one that bends does not."""

import numpy as np
import pytest

from isoflop.analysis.curves import fit_curves
from isoflop.analysis.holdout import HoldOut, hold_out
from isoflop.analysis.simulate import simulate
from isoflop.results.record import Record

BUDGETS = (1e14, 4e14, 1.6e15, 6.4e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def of(records: list[Record]) -> tuple[HoldOut, ...]:
    curves, _ = fit_curves(records, samples=300)
    return hold_out(curves, records)


def test_a_law_that_holds_predicts_the_largest_budget() -> None:
    holdouts = of(simulate({"dense": 1.0}, BUDGETS, octaves=OCTAVES, noise=1e-6))
    assert [holdout.budgets.tolist() for holdout in holdouts] == [
        list(BUDGETS[:2]),
        list(BUDGETS[:3]),
    ]
    assert holdouts[-1].held_out == BUDGETS[-1]
    assert holdouts[-1].error.value == pytest.approx(0, abs=0.01)
    assert holdouts[-1].compute.value == pytest.approx(1, abs=0.05)


def test_it_is_called_a_failure_at_the_nominal_rate() -> None:
    failed = [
        of(simulate({"dense": 1.0}, BUDGETS, octaves=OCTAVES, random=random))[-1].failed
        for random in range(200)
    ]
    assert 0.01 <= np.mean(failed) <= 0.10


@pytest.mark.parametrize("nats", [-0.15, 0.15])
def test_a_bend_at_the_largest_budget_is_a_failure(nats: float) -> None:
    bent = [
        record.model_copy(
            update={"loss": (record.loss or 0) + nats * (record.budget == BUDGETS[-1])}
        )
        for record in simulate({"dense": 1.0}, BUDGETS, octaves=OCTAVES)
    ]
    last = of(bent)[-1]
    assert last.failed
    assert last.error.value == pytest.approx(-nats, abs=0.03)
    # a law that predicts too high a loss needs more compute to reach the measured loss
    assert (last.compute.value > 1) == (nats < 0)


def test_two_budgets_are_not_judged() -> None:
    (only,) = of(simulate({"dense": 1.0}, BUDGETS[:3], octaves=OCTAVES))
    assert len(only.budgets) == 2
    assert not only.judged
    assert only.error.high < 0  # a power law without floor falls too fast
    assert not only.failed


def test_the_price_is_that_of_the_budgets_fitted() -> None:
    records = simulate({"dense": 1.0}, BUDGETS, octaves=OCTAVES)
    cheap, dear = of(records)
    assert cheap.spent == pytest.approx(5 * sum(BUDGETS[:2]), rel=0.01)
    assert dear.spent == sum(record.flops for record in records if record.budget < BUDGETS[-1])


def test_with_two_budgets_nothing_is_held_out() -> None:
    assert of(simulate({"dense": 1.0}, BUDGETS[:2], octaves=OCTAVES)) == ()
