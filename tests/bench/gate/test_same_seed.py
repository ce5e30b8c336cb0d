"""Losses of the same seed: rounding passes, a change of the arithmetic does not."""

from pathlib import Path
from typing import Any

import pytest

from isoflop.bench.gate import baseline as gate
from isoflop.bench.gate.baseline import Baseline, write_baseline
from isoflop.bench.gate.same_seed import departures, weight_shifts
from isoflop.bench.plan import plan
from isoflop.bench.suite import load_suite
from tests.bench.cells import make_record

SHIFTS = {"dense": 0.001, "peer": 0.02}
NOISE = 0.1  # between stored seeds


def of_seed(seed: int, variant: str, size: str, shift: float = 0.0) -> Any:
    made = make_record(seed=seed, variant=variant, loss=4.5 + NOISE * (-1) ** seed + shift)
    return made.model_copy(update={"size": made.size.model_copy(update={"name": size})})


def run(seed: int, **shift: float) -> list[Any]:
    return [
        of_seed(seed, variant, size, shift.get(variant, 0.0))
        for variant in SHIFTS
        for size in ("s", "m", "l")
    ]


@pytest.fixture
def stored(tmp_path: Path) -> Baseline:
    records = [record for seed in range(4) for record in run(seed)]
    return write_baseline(tmp_path / "baseline.json", records, SHIFTS, "AVX2")


def test_the_same_losses_pass_and_say_so(stored: Baseline) -> None:
    check = gate.losses(stored, run(0), "AVX2")
    assert check.ok
    assert check.text == "6 losses equal those of the same stored seed, but for rounding"
    assert gate.losses(stored, run(0, dense=0.0005, peer=-0.01), "AVX2").ok


def test_a_shift_under_the_spread_between_seeds_fails(stored: Baseline) -> None:
    shifted = run(0, dense=0.02)
    assert gate.losses(stored, shifted, "AVX512").ok  # another CPU: seeds alone are compared
    check = gate.losses(stored, shifted, "AVX2")
    assert not check.ok
    assert "the arithmetic has changed, and none is beyond the spread" in check.text
    assert [line.split(":")[0] for line in check.details][-1] == "dense"
    assert len(check.details) == 4  # three cells, and their mean
    assert "+0.02000 nats from the same seed, beyond 0.00800" in check.details[0]


def test_a_common_shift_shows_before_that_of_a_cell(stored: Baseline) -> None:
    """0.08 nats are 4 shifts of a cell of peer, and 7 standard errors of the mean of three."""
    (line,) = gate.losses(stored, run(0, peer=0.08), "AVX2").details
    assert line.startswith("peer: +0.08000 nats from the same seed on average, beyond 0.05774")


def test_a_large_shift_is_beyond_both(stored: Baseline) -> None:
    check = gate.losses(stored, run(0, dense=2.0), "AVX2")
    assert "some are beyond the spread between seeds" in check.text
    assert any("dense: worse than stored" in line for line in check.details)


def test_what_cannot_be_compared_is_left_to_the_seeds(stored: Baseline) -> None:
    for records in (run(9, dense=0.02), [of_seed(0, "dense", "s", 0.02)]):
        assert gate.losses(stored, records, "").ok
    assert gate.losses(stored, run(8, dense=0.02), "AVX2").ok  # a seed that is not stored
    assert departures([], SHIFTS) == []


def test_a_tiny_change_of_the_weights_moves_a_loss_a_little() -> None:
    cells = plan(load_suite("ci"), "ci")
    few = [cell for cell in cells if (cell.variant, cell.size.name) == ("dense", "xs")][:1]
    shifts = weight_shifts(few)
    assert list(shifts) == ["dense"]
    assert 1e-5 <= shifts["dense"] < 0.02
