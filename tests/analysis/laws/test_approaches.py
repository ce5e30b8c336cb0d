"""The optima that Chinchilla's approaches 1 and 2 are fitted to."""

import numpy as np
import pytest

from isoflop.analysis.laws.approaches import (
    best_losses,
    budgets,
    envelope,
    isoflop,
    parabolas,
)
from isoflop.analysis.laws.dense import CHINCHILLA


def test_budgets_are_parted_by_gaps_not_by_exact_values():
    C = np.array([1e19, 1.002e18, 1e18, 0.998e18, 1.01e19])
    index, how = budgets({"C": C})
    assert index.tolist() == [1, 0, 0, 0, 1]
    assert how == "gaps in C"


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
    minima = isoflop({"C": C, "N": N, "L": L})
    np.testing.assert_allclose(minima["C"], [1e18, 1e19])
    np.testing.assert_allclose(minima["N"], [3e8, 5e8])
    np.testing.assert_allclose(minima["L"], 3)


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


TRUTH = {"E": 1.9, "A": 520.0, "B": 1900.0, "alpha": 0.345, "beta": 0.36}


def grid(wiggle, budgets=(1e18, 3e18, 1e19, 3e19, 1e20)):
    """Seven sizes a budget around the optimum; log C moved by wiggle(step, budget)."""
    columns = {"C": [], "N": [], "L": []}
    for number, C in enumerate(budgets):
        best = CHINCHILLA.optimum(TRUTH, C, {})["N_opt"]
        for step in range(-3, 4):
            flops, N = C * np.exp(wiggle(step, number)), best * 7 ** (step / 3)
            loss = CHINCHILLA.predict(TRUTH, {"N": [N], "D": [flops / 6 / N]})[0]
            for name, value in zip("CNL", (flops, N, loss), strict=True):
                columns[name].append(value)
    return {name: np.array(values) for name, values in columns.items()}


def errors(minima):
    """Log of each minimum's size over the true one."""
    best = [CHINCHILLA.optimum(TRUTH, C, {})["N_opt"] for C in minima["C"]]
    return np.log(minima["N"] / best)


@pytest.mark.parametrize(
    "wiggle",
    [
        lambda step, budget: 0.03 * np.sin(7 * step + 3 * budget),  # at random
        lambda step, budget: 0.05 * step,  # larger models are charged more
        lambda step, budget: -0.08 * step,
    ],
)
def test_flops_that_differ_within_a_budget_do_not_move_its_minimum(wiggle):
    columns = grid(wiggle)
    parabola = abs(errors(isoflop(grid(lambda step, budget: 0.0)))).max()
    assert abs(errors(isoflop(columns))).max() < parabola + 0.015
    as_one = columns | {"C": np.repeat([1e18, 3e18, 1e19, 3e19, 1e20], 7)}
    assert abs(errors(isoflop(as_one))).max() > 0.02  # what it would be without


def test_a_column_budget_groups_whatever_the_flops():
    columns = grid(lambda step, budget: 0.2 * step, budgets=(1e18, 2e18, 4e18))
    labels = np.repeat([5.0, 3.0, 4.0], 7)
    index, how = budgets(columns | {"budget": labels})
    assert index.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert how == "the column budget"
    minima = parabolas(columns | {"budget": labels})
    assert [budget.rows for budget in minima] == [7, 7, 7]


def test_flops_without_gaps_are_cut_and_it_is_said():
    rng = np.random.default_rng(0)
    index, how = budgets({"C": np.exp(rng.uniform(40, 46, 300))})
    assert how == "gaps in C, some of them not clear"
    assert 8 < index.max() < 60


def test_scattered_budgets_are_found():
    rng = np.random.default_rng(1)
    true = np.repeat(np.arange(4), 12)
    C = np.geomspace(1e18, 1e20, 4)[true] * np.exp(rng.uniform(-0.12, 0.12, 48))
    index, how = budgets({"C": C})
    assert index.tolist() == true.tolist()
    assert how == "gaps in C"


def test_every_budget_says_why_it_is_not_used():
    slices = [
        slice_of_runs(1e18, 3e8),
        slice_of_runs(1e19, 3e8, curvature=-0.1),
        slice_of_runs(1e20, 5e7),
        slice_of_runs(1e21, 3e9),
        slice_of_runs(1e22, 3e8, sizes=(1e8, 1e9)),
        slice_of_runs(1e23, 3e8, sizes=(1e8,)),
    ]
    C, N, L = (np.concatenate(parts) for parts in zip(*slices, strict=True))
    minima = parabolas({"C": C, "N": N, "L": L})
    assert [budget.why for budget in minima] == [
        "",
        "not convex",
        "minimum below the smallest size",
        "minimum above the largest size",
        "two sizes",
        "one size",
    ]
    assert [budget.sizes for budget in minima] == [5, 5, 5, 5, 2, 1]
    assert minima[-1].N is None


def test_only_sizes_near_the_minimum_have_a_say():
    C, N, L = slice_of_runs(1e18, 3e8, sizes=(1e6, 4e6, 1e8, 2e8, 4e8, 8e8, 1.6e9, 6.4e9, 1e11))
    L[[0, 1, -2, -1]] += [0.5, 0.3, -0.2, 0.4]
    (budget,) = parabolas({"C": C, "N": N, "L": L})
    assert budget.near == 5
    np.testing.assert_allclose(budget.N, 3e8)


def test_a_frontier_of_a_grid_is_its_minima():
    columns = grid(lambda step, budget: 0.0)
    minima = best_losses(columns)
    assert len(minima["L"]) == 5
    truth = [CHINCHILLA.optimum(TRUTH, C, {})["L_opt"] for C in minima["C"]]
    np.testing.assert_allclose(minima["L"], truth, rtol=1e-3)
    alone = {name: values[3::7] for name, values in columns.items()}
    assert best_losses(alone) is alone  # one size a budget: the table is the frontier
