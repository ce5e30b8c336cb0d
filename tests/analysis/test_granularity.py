"""Sweeps over granularity."""

import numpy as np
import pytest

from isoflop.analysis.curves import fit_curves
from isoflop.analysis.granularity import GranularitySweep, granularity_sweeps
from isoflop.analysis.simulate import simulate

BUDGETS = (1e14, 4e14)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def swept(
    values: tuple[int, ...], best: float, noise: float = 0.003, random: int = 0
) -> list[GranularitySweep]:
    """A suite whose multiplier is a parabola in log G, highest at `best`."""
    names = {f"moe-g{value}": value for value in values}
    truth = {name: 1.5 * np.exp(-0.1 * np.log(g / best) ** 2) for name, g in names.items()}
    options = {name: {"granularity": g, "expansion": 8} for name, g in names.items()}
    records = simulate(truth, BUDGETS, octaves=OCTAVES, options=options, noise=noise, random=random)
    return list(granularity_sweeps(fit_curves(records, samples=300)[0]))


def test_the_best_granularity_is_found_inside() -> None:
    for sweep, budget in zip(swept((1, 2, 4, 8, 16), 5.0), BUDGETS, strict=True):
        assert (sweep.layer, sweep.budget) == ("moe", budget)
        assert sweep.values.tolist() == [1, 2, 4, 8, 16]
        assert sweep.parabola.status == "ok"
        assert sweep.parabola.at.value == pytest.approx(5.0, rel=0.05)


def test_its_interval_covers_at_its_nominal_rate() -> None:
    inside = [
        sweep.parabola.at.low <= 5.0 <= sweep.parabola.at.high
        for random in range(100)
        for sweep in swept((1, 2, 4, 8, 16), 5.0, noise=0.01, random=random)
    ]
    assert 0.90 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize("best", [0.3, 40.0])
def test_a_best_beyond_what_was_tried_is_at_the_edge(best: float) -> None:
    assert {sweep.parabola.status for sweep in swept((1, 2, 4, 8), best)} == {"edge"}


def test_three_values_are_drawn_but_too_few_to_trust() -> None:
    assert {sweep.parabola.status for sweep in swept((1, 4, 16), 4.0)} == {"few"}
    assert swept((1, 4), 4.0) == []


def test_variants_that_differ_in_more_than_granularity_are_no_sweep() -> None:
    options = {f"moe-g{g}": {"granularity": g, "expansion": 4 * g} for g in (1, 2, 4, 8)}
    records = simulate(dict.fromkeys(options, 1.0), BUDGETS, octaves=OCTAVES, options=options)
    assert granularity_sweeps(fit_curves(records, samples=10)[0]) == ()


def test_untrusted_optima_are_left_out() -> None:
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    records = simulate(dict.fromkeys(options, 1.0), BUDGETS[:1], octaves=OCTAVES, options=options)
    kept = [
        record
        for index, record in enumerate(records)
        if record.variant != "moe-g2" or index % 5 < 3
    ]
    (sweep,) = granularity_sweeps(fit_curves(kept, samples=10)[0])
    assert sweep.values.tolist() == [1, 4, 8]
