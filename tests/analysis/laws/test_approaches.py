"""The optima that Chinchilla's approaches 1 and 2 are fitted to."""

import numpy as np

from isoflop.analysis.laws.approaches import budgets, envelope, isoflop


def test_budgets_are_separated_by_gaps_not_by_exact_values():
    C = np.array([1e19, 1.002e18, 1e18, 0.998e18, 1.01e19])
    assert budgets(C).tolist() == [1, 0, 0, 0, 1]


def test_the_envelope_is_what_no_cheaper_run_beats():
    rng = np.random.default_rng(0)
    C, N, L = rng.uniform(1, 100, 60), rng.uniform(1, 9, 60), rng.uniform(2, 3, 60)
    best = envelope({"C": C, "N": N, "L": L})
    expected = [i for i in range(60) if not np.any(L[C[i] >= C] < L[i])]
    assert sorted(best["N"]) == sorted(N[expected])
    assert np.all(np.diff(best["C"]) > 0)
    assert np.all(np.diff(best["L"]) < 0)


def slice_of_runs(C, vertex, curvature=0.1, sizes=(1e8, 2e8, 4e8, 8e8, 1.6e9)):
    N = np.array(sizes)
    return C * np.ones(len(N)), N, 3 + curvature * np.log(N / vertex) ** 2


def test_parabolas_find_their_minima():
    slices = [slice_of_runs(1e18, 3e8), slice_of_runs(1e19, 5e8)]
    C, N, L = (np.concatenate(parts) for parts in zip(*slices, strict=True))
    optima = isoflop({"C": C, "N": N, "L": L})
    np.testing.assert_allclose(optima["C"], [1e18, 1e19])
    np.testing.assert_allclose(optima["N"], [3e8, 5e8])
    np.testing.assert_allclose(optima["L"], 3)


def test_a_budget_whose_minimum_cannot_be_trusted_is_left_out():
    slices = [
        slice_of_runs(1e18, 3e8),
        slice_of_runs(1e19, 3e8, curvature=-0.1),  # concave
        slice_of_runs(1e20, 5e7),  # minimum below the smallest size
        slice_of_runs(1e21, 3e9),  # minimum above the largest
        slice_of_runs(1e22, 3e8, sizes=(1e8, 1e9)),  # two sizes
    ]
    C, N, L = (np.concatenate(parts) for parts in zip(*slices, strict=True))
    np.testing.assert_allclose(isoflop({"C": C, "N": N, "L": L})["C"], [1e18])
    none = isoflop({"C": C[5:], "N": N[5:], "L": L[5:]})
    assert none["N"].shape == (0,)
