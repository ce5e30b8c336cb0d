"""Seconds are compared on one device, whatever others trained."""

import numpy as np
import pytest

from isoflop.analysis.analyse import analyse
from isoflop.analysis.simulate import simulate
from isoflop.analysis.time_multiplier import speeds
from isoflop.results.record import Record
from tests.analysis.devices import moved

BUDGETS = (1e14, 4e14, 1.6e15)
OCTAVES = (-1.0, 0.0, 1.0)


def time_multipliers(records: list[Record]) -> dict[str, float | None]:
    standings = analyse(records, samples=50).standings
    return {s.variant: s.time.value if s.time else None for s in standings}


def test_seeds_that_another_device_trained_leave_it_as_it_is() -> None:
    """Pooled, or with the seconds of one variant from here and of another from there, they would
    move it by factors of 2 and 20."""
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, seeds=2)
    factor = {"dense": 0.1, "peer": 2.0}
    first = [record for record in records if record.seed == 0]
    second = [
        moved(record, "another", factor[record.variant])
        for record in records
        if record.seed == 1 and record.budget < BUDGETS[-1]
    ]
    same = [record for record in records if record.seed == 0 or record.budget < BUDGETS[-1]]
    expected = time_multipliers(same)
    assert time_multipliers([*first, *second]) == pytest.approx(expected, rel=1e-6)
    assert time_multipliers([*second, *first]) == pytest.approx(expected, rel=1e-6)


def test_a_layer_is_compared_where_dense_was_trained_too() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, seeds=2)
    dense = [record for record in records if record.variant == "dense"]
    peer = [record for record in records if record.variant == "peer"]
    expected = time_multipliers(records)["peer"]
    assert expected
    elsewhere = [moved(record, "another", 2.0) for record in peer]
    assert time_multipliers([*dense, *elsewhere])["peer"] is None
    both = [moved(record, "another", 1.0) if record.seed else record for record in dense]
    found = time_multipliers([*both, *elsewhere])
    assert found["peer"] == pytest.approx(expected / 2, rel=1e-6)
    assert found["dense"] == 1


def test_the_scatter_is_that_of_runs_of_a_size_on_a_device() -> None:
    """Two devices of different speed, each without scatter, leave none."""
    records = simulate({"dense": 1.0}, BUDGETS, octaves=OCTAVES, seeds=2)
    steady = [
        moved(record, device, factor * record.flops / record.measured.train_seconds)
        for record in records
        for device, factor in (("one", 1e-12), ("another", 3e-12))
    ]
    for speed in speeds(steady, 20)["dense"].values():
        assert np.ptp(speed.log_seconds, axis=0) == pytest.approx(0, abs=1e-9)
