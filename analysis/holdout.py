"""Extrapolation tests: fit the frontier to the smaller budgets, predict the held-out largest one.

Each test fits the law to the first budgets of a variant and compares its prediction with the loss
measured at the largest, in nats and in compute. The errors of a variant's tests against the FLOPs
of the fitted budgets are a learning curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.curves import Curve
from isoflop.analysis.estimate import Array, Estimate, estimate
from isoflop.analysis.frontier import fit_frontier
from isoflop.results.record import Record


@dataclass(frozen=True)
class HoldOut:
    """A prediction of the loss at the held-out budget, and its error."""

    budgets: Array  # (b,) FLOPs, that the law was fitted to
    held_out: float  # FLOPs, the largest budget
    spent: float  # FLOPs of all cells of the variant at `budgets`
    error: Estimate  # predicted minus measured loss, nats
    compute: (
        Estimate  # compute at which the law reaches the measured loss, over the held-out budget
    )

    @property
    def judged(self) -> bool:
        """Whether the test counts. Two budgets determine only a power law without a floor, whose
        prediction is biased because it has less curvature than the losses."""
        return len(self.budgets) >= 3

    @property
    def failed(self) -> bool:
        """Whether the law fails: the interval of the error excludes zero."""
        return self.judged and (self.error.low > 0 or self.error.high < 0)


def hold_out(curves: Sequence[Curve], records: Sequence[Record]) -> tuple[HoldOut, ...]:
    """The extrapolation tests of one variant, cheapest first.

    There are none with fewer than three budgets whose optimum is trusted.

    Args:
        curves: of the variant, by budget.
        records: of the variant.
    """
    trusted = [curve for curve in curves if curve.trusted]
    holdouts = []
    for count in range(2, len(trusted)):
        budgets = np.array([curve.budget for curve in trusted[:count]])
        law = fit_frontier(
            budgets, np.stack([curve.parabola.lowest for curve in trusted[:count]], axis=1)
        )
        assert law, "two budgets or more"
        largest, measured = trusted[-1].budget, trusted[-1].parabola.lowest
        holdouts.append(
            HoldOut(
                budgets=budgets,
                held_out=largest,
                spent=float(sum(record.flops for record in records if record.budget in budgets)),
                error=estimate(law.predict(np.array([largest]))[:, 0] - measured),
                compute=estimate(law.invert(measured) / largest),
            )
        )
    return tuple(holdouts)
