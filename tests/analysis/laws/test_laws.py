"""Each law says what its paper says: by hand, by brute force, by the paper's own tables."""

import numpy as np
import pytest

from isoflop.analysis.laws import CHINCHILLA, FRONTIER, LAWS
from isoflop.analysis.laws.cost import optimum_of_two_powers
from isoflop.analysis.laws.moe import (
    FINE_GRAINED_MOE,
    JOINT_MOE,
    ROUTED,
    fine_grained_flops,
    log_experts,
)

ROWS = {
    "N": np.array([1e8, 3e8, 2e9]),
    "D": np.array([2e9, 3e10, 1e11]),
    "E": np.array([1.0, 8.0, 64.0]),
    "G": np.array([1.0, 4.0, 16.0]),
    "C": np.array([1e18, 1e19, 1e21]),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_derivative_of_the_exponents_is_theirs(law):
    theta_SP = np.array([[law.example[name] for name in law.shapes]])
    l_SKn, dl_SKPn = law.exponents(theta_SP, ROWS)
    assert l_SKn.shape == (1, len(law.terms), 3)
    dl_SKPn = np.broadcast_to(dl_SKPn, (1, len(law.terms), theta_SP.size, 3))
    for p, value in enumerate(theta_SP[0]):
        step = 1e-6 * max(abs(value), 0.1)
        nudge = np.eye(theta_SP.size)[p] * step
        up, down = (law.exponents(theta_SP + sign * nudge, ROWS)[0] for sign in (1, -1))
        numeric = (up - down) / (2 * step)
        np.testing.assert_allclose(dl_SKPn[:, :, p], numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_example_is_within_the_bounds(law):
    assert set(law.example) == set(law.names)
    for name, (low, high) in law.shapes.items():
        assert low < law.example[name] < high


def test_predictions_are_the_formulas():
    N, D, E, G, C = (ROWS[name] for name in "NDEGC")
    p = CHINCHILLA.example
    expected = p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]
    np.testing.assert_allclose(CHINCHILLA.predict(p, ROWS), expected, rtol=1e-12)
    p = FRONTIER.example
    expected = p["E"] + p["A"] * C ** -p["alpha"]
    np.testing.assert_allclose(FRONTIER.predict(p, ROWS), expected, rtol=1e-12)
    p = FINE_GRAINED_MOE.example
    expected = p["c"] + (p["g"] / G ** p["gamma"] + p["a"]) / N ** p["alpha"]
    expected += p["b"] / D ** p["beta"]
    np.testing.assert_allclose(FINE_GRAINED_MOE.predict(p, ROWS), expected, rtol=1e-12)
    p = JOINT_MOE.example
    hat = 1 / (1 / (E - 1 + 1 / (1 / p["E_start"] - 1 / p["E_end"])) + 1 / p["E_end"])
    expected = p["c"] + p["a"] * hat ** p["delta"] * N ** (p["alpha"] + p["gamma"] * np.log(hat))
    expected += p["b"] * hat ** p["omega"] * D ** (p["beta"] + p["zeta"] * np.log(hat))
    np.testing.assert_allclose(JOINT_MOE.predict(p, ROWS), expected, rtol=1e-12)
    p = ROUTED.example
    hat = 1 / (1 / (E - 1 + 1 / (1 / p["E_start"] - 1 / p["E_end"])) + 1 / p["E_end"])
    expected = p["c"] + p["a"] * hat ** p["delta"] * N ** (p["alpha"] + p["gamma"] * np.log(hat))
    np.testing.assert_allclose(ROUTED.predict(p, ROWS), expected, rtol=1e-12)


def test_draws_are_predicted_one_per_row():
    samples = {name: np.array([value, 1.1 * value]) for name, value in CHINCHILLA.example.items()}
    both = CHINCHILLA.predict(samples, ROWS)
    assert both.shape == (2, 3)
    second = {name: float(values[1]) for name, values in samples.items()}
    np.testing.assert_allclose(both[1], CHINCHILLA.predict(second, ROWS))


def test_effective_experts_run_from_start_to_end():
    log_E, _, _ = log_experts(np.array([1.0, 1e12]), np.array(2.0732), np.array(290.4521))
    np.testing.assert_allclose(np.exp(log_E), [2.0732, 290.4521], rtol=1e-6)


def test_the_dense_optimum_is_the_minimum():
    C = 1e20
    p = CHINCHILLA.example
    best = CHINCHILLA.optimum(p, C, ROWS | {"C": 6 * ROWS["N"] * ROWS["D"]})
    N = np.geomspace(1e8, 1e11, 200_001)
    loss = CHINCHILLA.predict(p, {"N": N, "D": C / (6 * N)})
    assert best["N_opt"] == pytest.approx(N[loss.argmin()], rel=1e-3)
    assert best["L_opt"] == pytest.approx(loss.min(), rel=1e-9)
    assert 6 * best["N_opt"] * best["D_opt"] == pytest.approx(C)
    tenfold = CHINCHILLA.optimum(p, 10 * C, {})
    assert np.log10(tenfold["N_opt"] / best["N_opt"]) == pytest.approx(best["a"])


def test_the_optimum_counts_flops_as_the_table_does():
    # The table's FLOPs are twice 6 N D: its C buys what half of it would nominally.
    p = CHINCHILLA.example
    counted = CHINCHILLA.optimum(p, 2e20, ROWS | {"C": 12 * ROWS["N"] * ROWS["D"]})
    assert counted["N_opt"] == pytest.approx(CHINCHILLA.optimum(p, 1e20, {})["N_opt"])


def test_the_joint_optimum_is_the_minimum_at_each_number_of_experts():
    C = 1e21
    best = JOINT_MOE.optimum(JOINT_MOE.example, C, {name: ROWS[name] for name in "NDE"})
    N = np.geomspace(1e8, 1e11, 20_001)
    for E in (1, 8, 64):
        rows = {"N": N, "D": C / (6 * N), "E": np.full_like(N, E)}
        loss = JOINT_MOE.predict(JOINT_MOE.example, rows)
        assert best[f"L_opt[E={E}]"] == pytest.approx(loss.min(), rel=1e-8)
        assert best[f"N_opt[E={E}]"] == pytest.approx(N[loss.argmin()], rel=1e-2)


# Krajewski et al. 2024 (2402.07871), E = 64: dense-equivalent parameters, tokens,
# granularity, FLOPs, loss of its compute-optimal models.
PUBLISHED_OPTIMA = [
    (100e6, 4.37e9, 8, 2.95e18, 3.133),
    (1e9, 28.94e9, 16, 1.93e20, 2.491),
    (7e9, 137.6e9, 32, 6.46e21, 2.076),
]
EXPERTS = {"E": np.array([64.0])}


@pytest.mark.parametrize(("dense", "D", "G", "C", "L"), PUBLISHED_OPTIMA)
def test_the_published_optima_of_the_fine_grained_law(dense, D, G, C, L):
    total = dense * (8 * 64 + 4) / 12  # 12 d^2 parameters a block, with the experts 8 E + 4
    row = {"N": np.array([total]), "D": np.array([D]), "G": np.array([G])} | EXPERTS
    assert fine_grained_flops(row)[0] == pytest.approx(C, rel=5e-3)
    assert FINE_GRAINED_MOE.predict(FINE_GRAINED_MOE.example, row)[0] == pytest.approx(L, abs=0.025)

    best = FINE_GRAINED_MOE.optimum(FINE_GRAINED_MOE.example, C, EXPERTS)
    assert best["G_opt"] == G
    assert best["N_opt"] == pytest.approx(total, rel=0.03)  # the minimum is flat in N
    assert best["D_opt"] == pytest.approx(D, rel=0.03)
    assert best["L_opt"] == pytest.approx(L, abs=0.025)
    cost = {"N": best["N_opt"], "D": best["D_opt"], "G": best["G_opt"]} | EXPERTS
    assert fine_grained_flops(cost)[0] == pytest.approx(C)


def test_a_compute_optimal_moe_is_worth_twenty_times_a_dense_model():
    """The paper's headline, at 1e20 FLOPs."""
    moe = FINE_GRAINED_MOE.optimum(FINE_GRAINED_MOE.example, 1e20, EXPERTS)["L_opt"]
    dense_C = np.geomspace(1e20, 1e22, 4001)
    dense = np.array(
        [optimum_of_two_powers(0.47, 16.3, 26.7, 0.126, 0.127, C)["L_opt"] for C in dense_C]
    )
    multiplier = np.interp(-moe, -dense, dense_C) / 1e20
    assert multiplier == pytest.approx(20, rel=0.1)
