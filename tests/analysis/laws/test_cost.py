"""Optima where C / (6 N D) is not one number."""

import numpy as np
import pytest

from isoflop.analysis.laws.cost import SIX_ND, cost_of, optimum_of_two_powers
from isoflop.analysis.laws.dense import CHINCHILLA, CHINCHILLA_ISOFLOP
from isoflop.analysis.laws.fit import fit

TRUTH = {"E": 1.9, "A": 520.0, "B": 1900.0, "alpha": 0.345, "beta": 0.36}
N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 3e9, 6), np.geomspace(1e9, 3e10, 5)))


def with_embedding(N):
    """FLOPs per token of N parameters without the embedding, whose width goes with N^(1/3)."""
    return 6 * (N + 5e4 * N ** (1 / 3))


def test_the_cost_at_the_optimum_is_used_beyond_the_table_too():
    columns = {"N": N, "D": D, "C": with_embedding(N) * D}
    cost = cost_of(columns)
    assert (
        cost.note == "C / (6 N D) runs from 1.02 to 2.08 as a function of N: optima use that cost"
    )
    sizes = np.geomspace(1e6, 1e13, 400_001)
    for C in (1e18, 1e20, 1e23):
        best = CHINCHILLA.optimum(TRUTH, C, columns)
        loss = CHINCHILLA.predict(TRUTH, {"N": sizes, "D": C / with_embedding(sizes)})
        assert best["N_opt"] == pytest.approx(sizes[loss.argmin()], rel=1e-3)
        assert best["L_opt"] == pytest.approx(loss.min(), rel=1e-6)
        assert with_embedding(best["N_opt"]) * best["D_opt"] == pytest.approx(C, rel=1e-4)
        nominal = CHINCHILLA.optimum(TRUTH, C, {})
        assert nominal["N_opt"] != pytest.approx(best["N_opt"], rel=1e-3)


def test_samples_have_their_own_optima():
    columns = {"N": N, "D": D, "C": with_embedding(N) * D}
    samples = {name: value * np.array([1.0, 1.02]) for name, value in TRUTH.items()}
    both = CHINCHILLA.optimum(samples, 1e19, columns)
    second = {name: float(values[1]) for name, values in samples.items()}
    one = CHINCHILLA.optimum(second, 1e19, columns)
    assert both["N_opt"].shape == (2,)
    assert both["N_opt"][1] == pytest.approx(one["N_opt"])


def test_a_ratio_that_n_does_not_set_is_its_median_and_told():
    ratio = np.where(np.arange(30) % 2 == 0, 1.0, 1.4)
    cost = cost_of({"N": N, "D": D, "C": 6 * N * D * ratio})
    assert cost.note.endswith("not as a function of N: optima use its median, 1.2")
    assert cost.ratio(1e9) == pytest.approx(1.2)


def test_a_constant_ratio_is_no_news():
    assert cost_of({"N": N, "D": D}) is SIX_ND
    cost = cost_of({"N": N, "D": D, "C": 12 * N * D * (1 + 1e-3 * np.sin(np.arange(30)))})
    assert cost.note == ""
    assert cost.ratio(1e9) == pytest.approx(2, rel=2e-3)


def test_tokens_of_approach_2_cost_what_the_table_says():
    C = np.repeat(np.geomspace(1e18, 1e20, 4), 7)
    best = np.array([optimum_of_two_powers(*TRUTH.values(), budget)["N_opt"] for budget in C])
    sizes = best * np.tile(np.geomspace(1 / 6, 6, 7), 4)
    tokens = C / with_embedding(sizes)
    runs = {
        "C": C,
        "N": sizes,
        "D": tokens,
        "L": CHINCHILLA.predict(TRUTH, {"N": sizes, "D": tokens}),
    }
    optimum = fit(CHINCHILLA_ISOFLOP, runs).derived
    assert with_embedding(optimum["N_opt"]) * optimum["D_opt"] == pytest.approx(1e20, rel=1e-3)
