"""What is put together from records."""

from isoflop.analysis.analyse import analyse
from isoflop.analysis.simulate import rate_sweep, simulate

BUDGETS = (1e14, 4e14, 1.6e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def test_the_baseline_is_the_best_dense() -> None:
    records = simulate({"dense-gelu": 1.0, "dense-swiglu": 1.1}, BUDGETS, octaves=OCTAVES)
    both = analyse(records, samples=50)
    assert both.baseline == "dense-swiglu"
    assert both.dense_name == "the best dense variant (dense-swiglu)"
    named = simulate({"dense-gelu": 1.2, "dense": 1.0}, BUDGETS, octaves=OCTAVES)
    assert analyse(named, samples=50).variants == ("dense-gelu", "dense")
    one = analyse(simulate({"dense": 1.0}, BUDGETS, octaves=OCTAVES), samples=50)
    assert (one.baseline, one.dense_name) == ("dense", "dense")
    none = analyse(simulate({"moe": 1.0}, BUDGETS, octaves=OCTAVES), samples=50)
    assert none.standings[0].reason == "no dense baseline"


def test_variants_are_ordered_as_people_count() -> None:
    truth = {"moe-g16": 1.0, "moe-g4": 1.0, "dense": 1.0, "moe": 1.0}
    analysis = analyse(simulate(truth, BUDGETS, octaves=OCTAVES), samples=10)
    assert analysis.variants == ("dense", "moe", "moe-g4", "moe-g16")


def test_a_variant_that_never_finished_is_still_shown() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES)
    broken = [
        record.model_copy(update={"status": "failed", "loss": None})
        if record.variant == "peer"
        else record
        for record in records
    ]
    analysis = analyse(broken, samples=10)
    assert [standing.variant for standing in analysis.standings] == ["dense", "peer"]
    assert "no finished cell" in analysis.standings[1].reason
    assert len(analysis.missing("peer")) == len(analysis.finished) == 15


def test_every_part_is_there() -> None:
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    truth = {"dense": 1.0, "moe-g1": 1.2, "moe-g2": 1.5, "moe-g4": 1.6, "moe-g8": 1.4}
    records = simulate(truth, BUDGETS, octaves=OCTAVES, options=options)
    tune = rate_sweep("dense", (5e-4, 1e-3, 2e-3), 1e-3)
    analysis = analyse(records, tune, samples=50)
    assert analysis.budgets == BUDGETS
    assert set(analysis.holdouts) == set(truth)
    assert [sweep.budget for sweep in analysis.granularity_sweeps] == list(BUDGETS)
    assert [sweep.variant for sweep in analysis.rate_sweeps] == ["dense"]
    assert set(analysis.sensitivity) == set(truth)
    assert analysis.samples == 50
