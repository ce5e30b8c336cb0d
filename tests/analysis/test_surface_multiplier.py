"""Multipliers from surfaces: exact where the law holds, and marked where they are in doubt."""

from dataclasses import replace

import numpy as np
import pytest

from isoflop.analysis.estimate import estimate
from isoflop.analysis.simulate import RunNoise, retrain
from isoflop.analysis.simulations.coverage import parabolas
from isoflop.analysis.simulations.layouts import incomplete, paper, quick
from isoflop.analysis.simulations.truths import (
    PAPER_LAW,
    Truth,
    calibrated,
    layout_truths,
    paper_truths,
    quick_truths,
    scaled_layers,
)
from isoflop.analysis.surface import Cells, fit_surfaces, gather
from isoflop.analysis.surface_multiplier import (
    BaselineFrontier,
    SurfaceMultipliers,
    floors_differ,
    surface_multipliers,
)
from isoflop.results.record import Record

LAYOUT = quick()
TRUTHS = {truth.name: truth for truth in quick_truths(LAYOUT)}
EXACT = TRUTHS["exact"]


def cells(truth: Truth = EXACT, noise: float | None = None, random: int = 0) -> dict[str, Cells]:
    return gather(records(truth, noise, random))


def records(truth: Truth = EXACT, noise: float | None = None, random: int = 0) -> list[Record]:
    given = truth.noise if noise is None else RunNoise(deviation=noise)
    return retrain(truth.layout.records, truth.laws, given, np.random.default_rng(random))


def fitted(part: dict[str, Cells], samples: int = 0) -> SurfaceMultipliers:
    return surface_multipliers(part, ("dense",), LAYOUT.budget, samples=samples)


@pytest.mark.parametrize("name", ["exact", "optimum shifted", "own exponents", "own floor"])
def test_multipliers_without_noise_are_the_truth(name: str) -> None:
    fits = fitted(cells(TRUTHS[name], noise=0))
    for layer, true in TRUTHS[name].log_multipliers.items():
        assert fits.headline(layer)[0] == pytest.approx(true, abs=2e-3)
        assert not fits.flags(layer) or name == "optimum shifted"
    assert fits.headline("dense")[0] == 0


def test_a_multiplier_along_compute_grows_as_its_truth_does() -> None:
    truth = TRUTHS["own exponents"]
    fits = fitted(cells(truth, noise=0))
    compute = np.array([2e11, 4.5e11])
    along = fits.log_multiplier("moe-g4", compute)
    assert along.shape == (1, 2)
    baseline = BaselineFrontier(fits.fits["floor per variant"].surfaces["dense"])
    loss, _ = fits.fits["floor per variant"].surfaces["moe-g4"].frontier(np.log(compute))
    np.testing.assert_allclose(along, baseline.invert(loss) - np.log(compute))


def test_inverting_a_frontier_gives_the_compute_back() -> None:
    surface = fitted(cells(), samples=50).fits["floor per variant"].surfaces["dense"]
    log_compute = np.log([2.2e11, 7e11, 3e12])
    loss, _ = surface.frontier(log_compute)
    back = BaselineFrontier(surface).invert(loss)
    np.testing.assert_allclose(back, np.broadcast_to(log_compute, back.shape), atol=2e-4)


def test_a_loss_under_the_floor_is_held_to_the_end_of_the_reach() -> None:
    surface = fitted(cells()).fits["floor per variant"].surfaces["dense"]
    reader = BaselineFrontier(surface)
    ends = reader.invert(np.array([[surface.floor[0] - 0.1, 20.0]]))
    np.testing.assert_allclose(np.exp(ends[0]), [2e14, 1.5e9])


def test_a_layer_that_costs_more_per_token_has_a_smaller_multiplier() -> None:
    """The same losses at the same sizes and tokens, at 1.25 times the FLOPs per token."""
    part = cells(noise=0)
    dear = replace(part["peer"], log_cost=part["peer"].log_cost + np.log(1.25))
    cheap, costly = fitted(part), fitted(part | {"peer": dear})
    at_less = cheap.log_multiplier("peer", np.array([LAYOUT.budget / 1.25]))
    assert costly.headline("peer")[0] == pytest.approx(at_less[0, 0] - np.log(1.25), abs=1e-6)


def test_a_layer_keeps_its_multiplier_without_its_best_cell() -> None:
    """A diverged cell takes the parabola away, not the surface."""
    truth = layout_truths(quick(), incomplete())[1]
    part = cells(truth)
    assert len(part["peer"].loss) == 11
    assert parabolas(records(truth), "dense", LAYOUT.budget, 10) == {}
    diverged = [
        record.model_copy(update={"status": "diverged", "loss": None})
        if (record.variant, record.size.name, record.budget) == ("peer", "s", LAYOUT.budget)
        else record
        for record in records()
    ]
    fits = fitted(gather(diverged), samples=100)
    assert estimate(np.exp(fits.headline("peer"))).low < 1.5
    assert fits.flags("pkm") == ()


def test_a_minimum_at_the_edge_keeps_its_multiplier_and_is_flagged() -> None:
    part = cells(TRUTHS["optimum shifted"], noise=0.002)
    peer = part["peer"].where(part["peer"].log_n < np.log(120_000))
    peer = replace(peer, log_size=peer.log_size[:4], log_cost=peer.log_cost[:4])
    fits = fitted(part | {"peer": peer})
    assert fits.flags("peer") == ("its best size lies outside the trained ones",)
    assert fits.headline("peer")[0] == pytest.approx(np.log(1.5), abs=0.05)


def test_a_loss_beyond_the_baselines_budgets_is_read_with_a_shared_floor_and_says_so() -> None:
    truth = paper_truths(paper())[0]
    part = gather(records(truth, noise=1e-5))
    fits = surface_multipliers(part, ("dense",), truth.layout.budget, samples=0)
    for layer in truth.layout.layers:
        assert fits.forms[layer] == "shared floor"
        assert fits.headline(layer)[0] == pytest.approx(np.log(2.5), abs=5e-3)
        assert "beyond dense's largest budget, 2e19 FLOPs" in fits.flags(layer)[0]
    assert fits.forms["dense"] == "floor per variant"


def test_floors_that_the_cells_tell_apart_are_not_shared() -> None:
    """Floors that are 0.3 nats higher or lower, in the two budgets of `paper`."""
    layout = paper()
    make = scaled_layers(layout, lambda index: PAPER_LAW, floor=0.3)
    laws = calibrated(layout, PAPER_LAW, make, (2.5, 2.5, 2.5))
    generator = np.random.default_rng(0)
    part = gather(retrain(layout.records, laws, RunNoise(deviation=0.0005), generator))
    fits = surface_multipliers(part, ("dense",), layout.budget, samples=50)
    assert set(fits.fits) == {"floor per variant"}
    separate, shared = fit_surfaces(part, samples=0), fit_surfaces(part, "shared floor", samples=0)
    assert floors_differ(separate, shared) < 0.05
    assert fits.flags("pkm")[-1].endswith("2e19 FLOPs: extrapolated")


def test_equal_floors_are_shared_in_all_but_a_twentieth_of_suites() -> None:
    truth = paper_truths(paper())[0]
    values = []
    for random in range(60):
        part = gather(records(truth, random=random))
        separate, shared = (
            fit_surfaces(part, form, samples=0) for form in ("floor per variant", "shared floor")
        )
        values.append(floors_differ(separate, shared))
    assert np.mean(np.array(values) < 0.05) <= 0.15


def test_a_variant_on_no_law_does_not_widen_the_intervals_of_the_others() -> None:
    """The loss of pkm rises again at its largest budget."""
    part = cells()
    pkm = part["pkm"]
    largest = pkm.budget == pkm.budget.max()
    wild = replace(pkm, loss=pkm.loss + 0.5 * largest)
    calm, disturbed = fitted(part, 300), fitted(part | {"pkm": wild}, 300)
    assert not disturbed.trusted("pkm")
    for layer in ("moe-g4", "peer"):
        assert disturbed.trusted(layer)
        spread = disturbed.headline(layer)[1:].std()
        assert spread == pytest.approx(calm.headline(layer)[1:].std(), rel=0.25)


def test_where_no_variant_lies_on_a_law_all_have_noise() -> None:
    """Losses that bend upwards at the largest budget, in all variants alike, and lie beyond dense's
    budgets: both forms are fitted."""
    part = {
        name: replace(group, loss=group.loss + 0.5 * (group.budget == group.budget.max()))
        for name, group in cells(noise=0.002).items()
        if name in ("dense", "peer")
    }
    low = part | {"peer": replace(part["peer"], loss=part["peer"].loss - 0.8)}
    for group in (part, low):
        fits = fitted(group, 20)
        assert fits.fits["floor per variant"].noise
        assert not fits.trusted("peer")


def test_variants_without_a_baseline_or_cells_have_a_reason() -> None:
    part = cells()
    few = part["pkm"].where(np.arange(12) < 4)
    fits = fitted(part | {"pkm": few})
    assert "pkm" not in fits.forms
    assert fits.reasons == {"pkm": "4 finished cells; a surface needs 6"}
    alone = {name: group for name, group in part.items() if name != "dense"}
    assert fitted(alone).reasons["peer"] == "no surface of dense: no finished cell"


def test_the_sides_of_the_variance_add_up() -> None:
    """Noise of the baseline's cells and of the layer's are independent."""
    fits = fitted(cells(), samples=1000)
    for layer in LAYOUT.layers:
        both = fits.headline(layer)[1:].var()
        assert sum(fits.variance_by_side(layer)) == pytest.approx(both, rel=0.2)
    quiet = cells()
    assert all(side > 0 for side in fitted(quiet, samples=200).variance_by_side("peer"))
