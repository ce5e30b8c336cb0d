"""What a scaling law is, as the fitter sees it: terms, parameters with bounds, and an optimum.

Every law here is a sum of terms, each linear in a non-negative coefficient and exponential in
the rest,

    prediction(x) = sum_k c_k exp(l_k(theta, x)),

so one fitter (`fit`) serves all of them: given theta, the best c is the solution of non-negative
least squares. A law states its exponents l_k with their derivatives, the bounds of theta, and what
is compute-optimal.
N is parameters, D tokens, C training FLOPs, E experts, G granularity, L loss in nats per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from isoflop.analysis.estimate import Array

Number = float | Array  # a value, or a value for each sample
Columns = Mapping[str, Array]
Params = Mapping[str, float] | Mapping[str, Array]

Exponents = Callable[[Array, Columns], tuple[Array, Array]]
"""Maps theta_SP and columns of n rows to l_SKn and dl/dtheta, which broadcasts to SKPn."""

Optimum = Callable[[Params, float, Columns], dict[str, Number]]
"""Maps parameters, nominal FLOPs and the table to the compute-optimal a, b, N_opt, D_opt, L_opt."""


def six_nd(columns: Columns) -> Array:
    """The usual count of training FLOPs, 6 N D."""
    return 6 * columns["N"] * columns["D"]


@dataclass(frozen=True, eq=False)
class Law:
    """A scaling law. Its parameters are the coefficients `terms`, then `shapes` with their bounds.

    `reduce` turns a table's `columns` into the rows that are fitted, in which `inputs` predict
    `target`. `example` is a plausible truth for simulations: the constants of the source where it
    prints them. `delta` is the Huber threshold on log residuals. `nominal_flops` counts the
    training FLOPs of a row by the convention that `nominal_optimum` uses.
    """

    name: str
    formula: str
    source: str
    columns: tuple[str, ...]
    inputs: tuple[str, ...]
    terms: tuple[str, ...]
    shapes: Mapping[str, tuple[float, float]]
    exponents: Exponents = field(repr=False)
    example: Mapping[str, float] = field(repr=False)
    nominal_optimum: Optimum = field(repr=False)
    nominal_flops: Callable[[Columns], Array] = field(default=six_nd, repr=False)
    reduce: Callable[[Columns], Columns] = field(default=lambda columns: columns, repr=False)
    target: str = "L"
    delta: float = 1e-3

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.terms, *self.shapes)

    def predict(self, params: Params, columns: Columns) -> Array:
        """The prediction for each row: (n,), or (S, n) if the parameters are S samples."""
        inputs = {name: np.atleast_1d(np.asarray(columns[name], float)) for name in self.inputs}
        c_SK, theta_SP = (
            np.stack([np.atleast_1d(np.asarray(params[name], float)) for name in names], axis=1)
            for names in (self.terms, self.shapes)
        )
        l_SKn, _ = self.exponents(theta_SP, inputs)
        prediction_Sn = (c_SK[..., None] * np.exp(l_SKn)).sum(axis=1)
        return prediction_Sn[0] if np.ndim(params[self.terms[0]]) == 0 else prediction_Sn

    def simulate(
        self, params: Params, columns: Columns, noise: float, rng: np.random.Generator
    ) -> dict[str, Array]:
        """The columns with a target: the prediction times log-normal noise of standard deviation
        `noise`."""
        mean = self.predict(params, columns)
        return {**columns, self.target: mean * np.exp(noise * rng.standard_normal(mean.shape))}

    def flops(self, columns: Columns) -> Array:
        """The training FLOPs of each row: the column C if there is one, else the nominal count."""
        return columns["C"] if "C" in columns else self.nominal_flops(columns)

    def optimum(self, params: Params, C: float, columns: Columns) -> dict[str, Number]:
        """What is compute-optimal at C FLOPs, by the FLOP convention of the table `columns`.

        That convention may differ from the nominal one (6 N D ignores attention and the head). C is
        converted by the median ratio of the two.
        """
        ratio = float(np.median(self.flops(columns) / self.nominal_flops(columns)))
        return self.nominal_optimum(params, C / ratio, columns)


def log_linear(features: Callable[[Columns], list[list[Array | float]]]) -> Exponents:
    """Exponents linear in theta: l_k = sum_p theta_p f_kp. `features` gives K lists of P f_kp."""

    def exponents(theta_SP: Array, columns: Columns) -> tuple[Array, Array]:
        rows = np.zeros_like(next(iter(columns.values())))
        phi_KPn = np.array([[rows + f for f in term] for term in features(columns)])
        return np.moveaxis(theta_SP @ phi_KPn, 0, 1), phi_KPn[None]

    return exponents


def optimum_of_two_powers(
    E: Number, A: Number, B: Number, alpha: Number, beta: Number, ND: float
) -> dict[str, Number]:
    """The minimum of E + A/N^alpha + B/D^beta over N D = ND (2203.15556 eq. 4).

    a and b are the exponents of N and D in the budget.
    """
    E, A, B, alpha, beta = map(np.asarray, (E, A, B, alpha, beta))
    with np.errstate(all="ignore"):  # a parameter may be at its bound 0
        a, b = beta / (alpha + beta), alpha / (alpha + beta)
        ratio = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
        N, D = ratio * ND**a, ND**b / ratio
        return {"a": a, "b": b, "N_opt": N, "D_opt": D, "L_opt": E + A / N**alpha + B / D**beta}
