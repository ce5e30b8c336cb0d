"""Scaling laws: what each says a loss should be, apart from how it is fitted (analysis.fit).

Every law here is a sum of terms, each linear in a non-negative coefficient and exponential in
the rest,

    L̂(x) = sum_k c_k exp(l_k(theta, x)),

so one fitter does them all: given theta the best c is non-negative least squares. A law states
the terms' exponents l_k and their derivative, bounds for theta, and what follows from a fit (the
compute-optimal model of a budget). N is parameters, D tokens, C training FLOPs, L loss in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from analysis.optima import envelope, isoflop

Array = NDArray[np.float64]
Columns = Mapping[str, Array]
Number = float | Array  # one value, or one per bootstrap draw
Params = Mapping[str, float] | Mapping[str, Array]

Exponents = Callable[[Array, Columns], tuple[Array, Array]]
"""theta_SP, columns of n rows -> l_SKn and dl/dtheta, which broadcasts against SKPn."""

Reduction = Callable[[Columns, Array], tuple[Columns, Array, Array]]
"""Columns of n rows, row weights_Sn -> columns of m rows, target_Sm, weights_Sm."""


def direct(columns: Columns, weights_Sn: Array) -> tuple[Columns, Array, Array]:
    """The reduction of a law that is fitted to the table's own losses."""
    return columns, columns["L"][None], weights_Sn


@dataclass(frozen=True)
class Law:
    """One law. Parameters are named: the coefficients `terms`, then `shapes` with their bounds.

    `published` holds the constants of `source`, a plausible truth for simulations. `delta` is
    the source's Huber threshold on log-loss residuals. `optimum(params, C, columns)` is what is
    compute-optimal at C FLOPs.
    """

    name: str
    formula: str
    source: str
    inputs: tuple[str, ...]
    terms: tuple[str, ...]
    shapes: Mapping[str, tuple[float, float]]
    exponents: Exponents = field(repr=False)
    published: Mapping[str, float] = field(repr=False)
    optimum: Callable[[Params, float, Columns], dict[str, Number]] = field(repr=False)
    delta: float = 1e-3
    needs: tuple[str, ...] = ()  # columns of the table; by default the inputs and L
    reduce: Reduction = field(default=direct, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.terms, *self.shapes)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.needs or (*self.inputs, "L")

    def predict(self, params: Params, columns: Columns) -> Array:
        """The law at the columns' rows: (n,), or (S, n) where the parameters are S draws."""
        theta = [np.atleast_1d(np.asarray(params[name], dtype=float)) for name in self.shapes]
        coefficients = [np.atleast_1d(np.asarray(params[name], dtype=float)) for name in self.terms]
        inputs = {k: np.atleast_1d(np.asarray(columns[k], dtype=float)) for k in self.inputs}
        exponents_SKn, _ = self.exponents(np.stack(theta, axis=1), inputs)
        terms_SKn = np.stack(coefficients, axis=1)[..., None] * np.exp(exponents_SKn)
        prediction_Sn = terms_SKn.sum(axis=1)
        return prediction_Sn[0] if np.ndim(params[self.terms[0]]) == 0 else prediction_Sn

    def simulate(
        self, params: Params, columns: Columns, noise: float, rng: np.random.Generator
    ) -> dict[str, Array]:
        """The columns with a loss L: the law times log-normal noise of this sd (relative loss)."""
        mean = self.predict(params, columns)
        return {**columns, "L": mean * np.exp(noise * rng.standard_normal(mean.shape))}


def log_linear(features: Callable[[Columns], list[list[Array]]]) -> Exponents:
    """Exponents linear in theta: l_k = sum_p theta_p f_kp, from a K by P nest of rows f_kp."""

    def exponents(theta_SP: Array, columns: Columns) -> tuple[Array, Array]:
        rows = features(columns)
        shape = np.broadcast_shapes(*(np.shape(f) for term in rows for f in term))
        phi_KPn = np.array([[np.broadcast_to(f, shape) for f in term] for term in rows], float)
        return np.moveaxis(theta_SP @ phi_KPn, 0, 1), phi_KPn[None]

    return exponents


def flops_per_parameter_token(columns: Columns) -> float:
    """C / (N D): the table's own where it has a column C, else the usual 6."""
    if "C" not in columns:
        return 6.0
    return float(np.median(columns["C"] / (columns["N"] * columns["D"])))


# ---------------------------------------------------------------- L(C): the saturating frontier

FRONTIER = Law(
    name="frontier",
    formula="L(C) = E + A C^-alpha",
    source="Kaplan et al. 2020 (2001.08361) eq. 1.3 with an irreducible loss, as Henighan et al. "
    "2020 (2010.14701) eq. 1.1",
    inputs=("C",),
    terms=("E", "A"),
    shapes={"alpha": (0.0, 1.0)},
    exponents=log_linear(lambda x: [[0 * x["C"]], [-np.log(x["C"])]]),
    # Chinchilla's approach 3 along its own optimum: alpha = alpha beta / (alpha + beta).
    published={"E": 1.69, "A": 1070.0, "alpha": 0.154},
    optimum=lambda p, C, columns: {"L_opt": p["E"] + p["A"] * C ** -np.asarray(p["alpha"])},
)

# ------------------------------------------------------------- L(N, D): Chinchilla's approach 3


def optimum_of_two_powers(
    E: Number, A: Number, B: Number, alpha: Number, beta: Number, ND: float
) -> dict[str, Number]:
    """The minimum of E + A/N^alpha + B/D^beta over N D = ND (2203.15556 eq. 4).

    a and b are the exponents of N and D in the budget.
    """
    a, b = beta / (alpha + beta), alpha / (alpha + beta)
    with np.errstate(divide="ignore", invalid="ignore"):  # a coefficient may be at its bound 0
        ratio = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
        N, D = ratio * ND**a, ND**b / ratio
        return {"a": a, "b": b, "N_opt": N, "D_opt": D, "L_opt": E + A / N**alpha + B / D**beta}


def _chinchilla_optimum(p: Params, C: float, columns: Columns) -> dict[str, Number]:
    ND = C / flops_per_parameter_token(columns)
    return optimum_of_two_powers(p["E"], p["A"], p["B"], p["alpha"], p["beta"], ND)


CHINCHILLA = Law(
    name="chinchilla",
    formula="L(N, D) = E + A N^-alpha + B D^-beta",
    source="Hoffmann et al. 2022 (2203.15556) approach 3; constants refitted by Besiroglu et al. "
    "2024 (2404.10102)",
    inputs=("N", "D"),
    terms=("E", "A", "B"),
    shapes={"alpha": (0.0, 1.5), "beta": (0.0, 1.5)},
    exponents=log_linear(
        lambda x: [
            [0 * x["N"], 0 * x["D"]],
            [-np.log(x["N"]), 0 * x["D"]],
            [0 * x["N"], -np.log(x["D"])],
        ]
    ),
    published={"E": 1.81686, "A": 482.01, "B": 2085.43, "alpha": 0.34781, "beta": 0.36585},
    optimum=_chinchilla_optimum,
)

# --------------------------------------------- N*(C): Chinchilla's approaches 1 and 2, one power


def _size_optimum(p: Params, C: float, columns: Columns) -> dict[str, Number]:
    N = p["k"] * C ** np.asarray(p["a"])
    ratio = flops_per_parameter_token(columns) if "D" in columns else 6.0
    return {"b": 1 - np.asarray(p["a"]), "N_opt": N, "D_opt": C / (ratio * N)}


def _size_law(name: str, how: str, reduce: Reduction) -> Law:
    return Law(
        name=name,
        formula=f"N*(C) = k C^a, N* {how}",
        source="Hoffmann et al. 2022 (2203.15556)",
        inputs=("C",),
        terms=("k",),
        shapes={"a": (0.0, 1.0)},
        exponents=log_linear(lambda x: [[np.log(x["C"])]]),
        published={"k": 0.09, "a": 0.5},
        optimum=_size_optimum,
        delta=10.0,  # least squares, as the paper: the optima scatter by far more than 1e-3
        needs=("C", "N", "L"),
        reduce=reduce,
    )


CHINCHILLA_ENVELOPE = _size_law(
    "chinchilla-envelope", "on the lower envelope of the loss over C (approach 1)", envelope
)
CHINCHILLA_ISOFLOP = _size_law(
    "chinchilla-isoflop", "at the minima of isoFLOP parabolas (approach 2)", isoflop
)

LAWS: dict[str, Law] = {
    law.name: law for law in (CHINCHILLA, CHINCHILLA_ENVELOPE, CHINCHILLA_ISOFLOP, FRONTIER)
}
