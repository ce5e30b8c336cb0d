"""What a scaling law is, for the fitter: a prediction, names, bounds and a linear part.

Every law here is a sum of terms, each linear in a non-negative coefficient and exponential in
the rest,

    prediction(x) = sum_k c_k exp(l_k(theta, x)),

so one fitter (`fit`) does them all: given theta, the best c is non-negative least squares.
A law states its exponents l_k with their derivative, bounds for theta, and what is compute-optimal.
N is parameters, D tokens, C training FLOPs, E experts, G granularity, L loss in nats per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isoflop.analysis.estimate import Array

Index = NDArray[np.integer]
Number = float | Array  # one value, or one per bootstrap sample
Columns = Mapping[str, Array]
Params = Mapping[str, float] | Mapping[str, Array]

Exponents = Callable[[Array, Columns], tuple[Array, Array]]
"""theta_SP, columns of n rows -> l_SKn and dl/dtheta, which broadcasts against SKPn."""

Optimum = Callable[[Params, float, Columns], dict[str, Number]]
"""Parameters, FLOPs as the table counts them, the table -> a, b, N_opt, D_opt, L_opt."""


def six_nd(columns: Columns) -> Array:
    """The usual count of training FLOPs, 6 N D."""
    return 6 * columns["N"] * columns["D"]


@dataclass(frozen=True, eq=False)
class Law:
    """One law. Parameters are named: the coefficients `terms`, then `shapes` with their bounds.

    A table's `columns`, and the `optional` ones it may have, are turned by `reduce` into the rows
    the law speaks of, of which `inputs` predict `target`. `example` is a plausible truth for
    simulations: the source's own constants where it prints them. `delta` is the Huber threshold on
    log residuals, None if it is to come from the data. `flops_by_law` is what a row costs where
    the table does not say; where it is 6 N D, one of C, N and D follows from the two others.
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
    optimum: Optimum = field(repr=False)
    optional: tuple[str, ...] = ()
    flops_by_law: Callable[[Columns], Array] = field(default=six_nd, repr=False)
    reduce: Callable[[Columns], Columns] = field(default=lambda columns: columns, repr=False)
    target: str = "L"
    delta: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.terms, *self.shapes)

    def predict(self, params: Params, columns: Columns) -> Array:
        """The law at the columns' rows: (n,), or (S, n) where the parameters are S samples."""
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
        """The columns and a target: the law times log-normal noise of that sd."""
        mean = self.predict(params, columns)
        return {**columns, self.target: mean * np.exp(noise * rng.standard_normal(mean.shape))}

    def flops(self, columns: Columns) -> Array:
        """Training FLOPs of each row: the table's column C, or the law's count."""
        return columns["C"] if "C" in columns else self.flops_by_law(columns)


def log_linear(features: Callable[[Columns], list[list[Array | float]]]) -> Exponents:
    """Exponents linear in theta: l_k = sum_p theta_p f_kp, of a K by P nest of f_kp."""

    def exponents(theta_SP: Array, columns: Columns) -> tuple[Array, Array]:
        rows = np.zeros_like(next(iter(columns.values())))
        phi_KPn = np.array([[rows + f for f in term] for term in features(columns)])
        return np.moveaxis(theta_SP @ phi_KPn, 0, 1), phi_KPn[None]

    return exponents
