"""Laws of mixtures of experts: fine-grained L(N, D, G), joint L(N, D, E) and routed L(N, E)."""

from __future__ import annotations

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.cost import cost_of, optimum_of_two_powers
from isoflop.analysis.laws.law import Columns, Law, Number, Params, log_linear

# ------------------------------------------------------------------------ fine-grained: L(N, D, G)

ASPECT = 64  # d_model / n_blocks of the paper's compute-optimal models
GRANULARITIES: Array = 2.0 ** np.arange(11, dtype=np.float64)


def _flops_per_token(N: Array, E: Array, G: Array) -> tuple[Array, Array]:
    """Training FLOPs per token, (72 d^2 + 14 d E G) n_blocks, and the router's share of them.

    Of a model with N = d^2 (8 E + 4) n_blocks parameters and d = ASPECT n_blocks.
    """
    n = np.cbrt(N / (ASPECT**2 * (8 * E + 4)))
    d = ASPECT * n
    router = 14 * d * E * G
    return (72 * d**2 + router) * n, router / (72 * d**2 + router)


def fine_grained_flops(columns: Columns) -> Array:
    """Training FLOPs of each row as 2402.07871 counts them, router included."""
    return _flops_per_token(columns["N"], columns["E"], columns["G"])[0] * columns["D"]


def _fine_grained_optimum(p: Params, C: float, columns: Columns) -> dict[str, Number]:
    """The best N, D and granularity (a power of two) of C FLOPs at the table's E.

    a and b are the exponents of N and D where the router's FLOPs are negligible.
    """
    E = columns["E"][:1]
    if "C" in columns:  # counted in another way: the median ratio is taken out
        C /= float(np.median(columns["C"] / fine_grained_flops(columns)))
    # S samples by the ladder of G.
    c, g, a, b, alpha, beta, gamma = (
        np.atleast_1d(p[name])[:, None] for name in ("c", "g", "a", "b", "alpha", "beta", "gamma")
    )
    with np.errstate(all="ignore"):  # a coefficient may be at its bound 0
        size = g * GRANULARITIES**-gamma + a
        log_N = np.full(size.shape, np.log(1e9))
        for _ in range(30):
            # Where dL/dlog N = 0 along C, in logs: nearly linear in log N, as FLOPs per token go
            # with N^(1 - share / 3).
            token, share = _flops_per_token(np.exp(log_N), E, GRANULARITIES)
            slope = np.log(alpha * size) - alpha * log_N
            slope -= np.log(beta * b * (1 - share / 3)) + beta * np.log(token / C)
            log_N = log_N + slope / (alpha + beta)
        N, D = np.exp(log_N), C / token
        L = c + size * N**-alpha + b * D**-beta
    best = (np.arange(len(c)), L.argmin(axis=1))
    found = {
        "a": (beta / (alpha + beta))[:, 0],
        "b": (alpha / (alpha + beta))[:, 0],
        "N_opt": N[best],
        "D_opt": D[best],
        "G_opt": GRANULARITIES[best[1]],
        "L_opt": L[best],
    }
    return {name: value if np.ndim(p["c"]) else value[0] for name, value in found.items()}


FINE_GRAINED_MOE = Law(
    name="fine-grained-moe",
    formula="L(N, D, G) = c + (g G^-gamma + a) N^-alpha + b D^-beta, at one E; N non-embedding",
    source="Krajewski et al. 2024 (2402.07871), constants of E = 64",
    columns=("N", "D", "G", "E", "L"),
    inputs=("N", "D", "G"),
    terms=("c", "g", "a", "b"),
    shapes={"alpha": (0.0, 1.5), "beta": (0.0, 1.5), "gamma": (0.0, 3.0)},
    exponents=log_linear(
        lambda x: [
            [0.0, 0.0, 0.0],
            [-np.log(x["N"]), 0.0, -np.log(x["G"])],
            [-np.log(x["N"]), 0.0, 0.0],
            [0.0, -np.log(x["D"]), 0.0],
        ]
    ),
    example={"c": 0.47, "g": 2.1, "a": 18.1, "b": 30.8, "alpha": 0.115, "beta": 0.147}
    | {"gamma": 0.58},
    flops_by_law=fine_grained_flops,
    optimum=_fine_grained_optimum,
)

# ------------------------------------------------------------- joint L(N, D, E), routed L(N, E)


def log_experts(E: Array, start: Array, end: Array) -> tuple[Array, Array, Array]:
    """ln Ê and its derivatives by start and end (Clark et al. 2022, 2202.01169).

    Ê runs from `start` at one expert to saturation at `end`:
    1/Ê = 1/(E - 1 + 1/(1/start - 1/end)) + 1/end.
    """
    offset = 1 / (1 / start - 1 / end)
    shifted = E - 1 + offset
    effective = 1 / (1 / shifted + 1 / end)
    by_offset = effective / shifted**2
    by_start = by_offset * (offset / start) ** 2
    by_end = effective / end**2 - by_offset * (offset / end) ** 2
    return np.log(effective), by_start, by_end


SATURATION = {"E_start": (1.0, 10.0), "E_end": (20.0, 5000.0)}


def _joint_exponents(theta_SP: Array, x: Columns) -> tuple[Array, Array]:
    delta, alpha, gamma, omega, beta, zeta, start, end = theta_SP.T[..., None]
    log_E, by_start, by_end = log_experts(x["E"], start, end)
    log_N, log_D, zero = np.log(x["N"]), np.log(x["D"]), np.zeros_like(log_E)
    size, data = delta + gamma * log_N, omega + zeta * log_D  # slopes in log_E
    l_SKn = np.stack([zero, alpha * log_N + size * log_E, beta * log_D + data * log_E], axis=1)
    by_size = [log_E, zero + log_N, log_E * log_N, zero, zero, zero, size * by_start, size * by_end]
    by_data = [zero, zero, zero, log_E, zero + log_D, log_E * log_D, data * by_start, data * by_end]
    dl_SKPn = np.stack([np.stack(d, axis=1) for d in ([zero] * 8, by_size, by_data)], axis=1)
    return l_SKn, dl_SKPn


def _joint_optimum(p: Params, C: float, columns: Columns) -> dict[str, Number]:
    """Chinchilla's optimum at each E of the table."""
    found: dict[str, Number] = {}
    cost = cost_of(columns)
    for E in np.unique(columns["E"]):
        log_E, _, _ = log_experts(E, np.asarray(p["E_start"]), np.asarray(p["E_end"]))
        optimum = optimum_of_two_powers(
            p["c"],
            p["a"] * np.exp(p["delta"] * log_E),
            p["b"] * np.exp(p["omega"] * log_E),
            -(p["alpha"] + p["gamma"] * log_E),
            -(p["beta"] + p["zeta"] * log_E),
            C,
            cost,
        )
        found |= {f"{name}[E={E:g}]": value for name, value in optimum.items()}
    return found


JOINT_MOE = Law(
    name="joint-moe",
    formula="L(N, D, E) = c + a Ê^delta N^(alpha + gamma ln Ê) + b Ê^omega D^(beta + zeta ln Ê); "
    "N active parameters",
    source="Ludziejewski et al. 2025 (2502.05172)",
    columns=("N", "D", "E", "L"),
    inputs=("N", "D", "E"),
    terms=("c", "a", "b"),
    shapes={"delta": (-1.0, 1.0), "alpha": (-1.0, 0.0), "gamma": (-0.1, 0.1)}
    | {"omega": (-2.0, 2.0), "beta": (-1.0, 0.0), "zeta": (-0.1, 0.1)}
    | SATURATION,
    exponents=_joint_exponents,
    example={"c": 1.3637, "a": 35.91, "b": 35.98, "delta": -0.2285, "alpha": -0.1889}
    | {"gamma": 0.0098, "omega": 0.5529, "beta": -0.1775, "zeta": -0.0259}
    | {"E_start": 2.0732, "E_end": 290.4521},
    optimum=_joint_optimum,
)


def _routed_exponents(theta_SP: Array, x: Columns) -> tuple[Array, Array]:
    delta, alpha, gamma, start, end = theta_SP.T[..., None]
    log_E, by_start, by_end = log_experts(x["E"], start, end)
    log_N, zero = np.log(x["N"]), np.zeros_like(log_E)
    slope = delta + gamma * log_N
    derivative = [log_E, zero + log_N, log_E * log_N, slope * by_start, slope * by_end]
    l_SKn = np.stack([zero, alpha * log_N + slope * log_E], axis=1)
    return l_SKn, np.stack([np.stack(d, axis=1) for d in ([zero] * 5, derivative)], axis=1)


ROUTED = Law(
    name="routed",
    formula="L(N, E) = c + a Ê^delta N^(alpha + gamma ln Ê), all rows at one D; N without experts",
    source="Clark et al. 2022 (2202.01169), with a floor c that it does not have",
    columns=("N", "E", "L"),
    inputs=("N", "E"),
    terms=("c", "a"),
    shapes={"delta": (-1.0, 1.0), "alpha": (-1.0, 0.0), "gamma": (-0.1, 0.1)} | SATURATION,
    exponents=_routed_exponents,
    example={"c": 1.0, "a": 20.0, "delta": -0.15, "alpha": -0.13, "gamma": 0.003}
    | {"E_start": 2.0, "E_end": 310.0},
    flops_by_law=lambda columns: columns["N"],  # D is one and the same: cost goes with N
    optimum=lambda p, C, columns: {},
)
