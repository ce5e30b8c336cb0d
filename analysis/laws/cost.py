"""What a run costs in the table's own count of FLOPs, against the usual 6 N D.

Where N leaves out the embedding, or C counts attention, C / (6 N D) falls as models grow. At a
fixed shape the embedding and the head go with N^(1/3) and attention over a fixed context with
N^(2/3), so that the ratio is r0 + r1 N^(-1/3) + r2 N^(-2/3) with no coefficient negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.law import Columns, Number, six_nd

POWERS = np.array([0.0, -1 / 3, -2 / 3])
CONSTANT = 0.02  # relative range of C / (6 N D) within which it is one number
SCATTER = 0.03  # relative distance of a row from the ratio's curve, beyond which N does not set it


@dataclass(frozen=True, eq=False)
class Cost:
    """C / (6 N D) as a function of N: `coefficients` of the powers of N / `scale`."""

    coefficients: Array  # (3,)
    scale: float = 1.0
    note: str = ""

    def ratio(self, N: Number) -> Number:
        return np.tensordot(self.coefficients, self._terms(N), 1)

    def slope(self, N: Number) -> Number:
        """The derivative of log ratio by log N."""
        return np.tensordot(self.coefficients * POWERS, self._terms(N), 1) / self.ratio(N)

    def _terms(self, N: Number) -> Array:
        size = np.asarray(N, dtype=float) / self.scale
        with np.errstate(all="ignore"):  # a sample may put an optimum at 0 or at infinity
            return np.stack([size**power for power in POWERS])


SIX_ND = Cost(np.array([1.0, 0.0, 0.0]))


def cost_of(columns: Columns) -> Cost:
    """The ratio of the table's FLOPs to 6 N D; 1 where the table has not all three of C, N, D."""
    if not {"C", "N", "D"} <= set(columns):
        return SIX_ND
    N, ratio = columns["N"], columns["C"] / six_nd(columns)
    low, high = float(ratio.min()), float(ratio.max())
    median = Cost(np.array([float(np.median(ratio)), 0.0, 0.0]))
    if high / low - 1 <= CONSTANT:
        return median
    scale = float(np.exp(np.log(N).mean()))
    terms = (N[:, None] / scale) ** POWERS / ratio[:, None]
    coefficients, _ = nnls(terms, np.ones(len(N)))
    varies = f"C / (6 N D) runs from {low:.3g} to {high:.3g}"
    if coefficients.any() and np.quantile(np.abs(terms @ coefficients - 1), 0.9) <= SCATTER:
        return Cost(coefficients, scale, f"{varies} as a function of N: optima use that cost")
    return Cost(
        median.coefficients,
        note=f"{varies}, and not as a function of N: optima use its median, "
        f"{median.coefficients[0]:.3g}",
    )


def optimum_of_two_powers(
    E: Number, A: Number, B: Number, alpha: Number, beta: Number, C: float, cost: Cost = SIX_ND
) -> dict[str, Number]:
    """The minimum of E + A/N^alpha + B/D^beta over runs of C FLOPs (2203.15556 eq. 4).

    a and b are the exponents of N and D in the budget, where the cost goes with N D.
    """
    E, A, B, alpha, beta = map(np.asarray, (E, A, B, alpha, beta))
    with np.errstate(all="ignore"):  # a parameter may be at its bound 0
        a, b = beta / (alpha + beta), alpha / (alpha + beta)
        N = np.asarray(np.sqrt(C / 6))
        for _ in range(60 if np.any(cost.coefficients[1:]) else 1):
            # Where dL/dlog N = 0 along C: dlog D / dlog N is -(1 + slope of the ratio).
            balance = alpha * A / (beta * B * (1 + cost.slope(N)))
            N = balance ** (1 / (alpha + beta)) * (C / 6 / cost.ratio(N)) ** a
        D = C / 6 / cost.ratio(N) / N
        return {"a": a, "b": b, "N_opt": N, "D_opt": D, "L_opt": E + A / N**alpha + B / D**beta}
