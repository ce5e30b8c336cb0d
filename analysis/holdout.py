"""HoldOut validation: fit the frontier to the smaller budgets, predict the largest.

A law is worth what it predicts. Each holdout fits the first budgets of a variant and is held
against the loss found at the largest one, in nats and in compute, so that the errors of a variant's
holdouts form a learning curve against the FLOPs they cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.curves import Curve
from isoflop.analysis.frontier import fit_frontier
from isoflop.analysis.parabola import Array, Estimate, estimate
from isoflop.results.record import Record


@dataclass(frozen=True)
class HoldOut:
    """One prediction of the largest budget's loss."""

    budgets: Array  # FLOPs, that the law was fitted to
    predicted: float  # FLOPs, the budget it predicts
    spent: float  # FLOPs of all the variant's cells at `budgets`
    error: Estimate  # predicted less found loss, nats
    compute: Estimate  # compute at which the law reaches the loss found, over the compute it took

    @property
    def judged(self) -> bool:
        """Whether the law could have been right: two budgets determine only a power law, which
        bends less than losses do and so predicts too low a loss or too high a one by itself."""
        return len(self.budgets) >= 3

    @property
    def failed(self) -> bool:
        """Whether the interval of the error excludes zero."""
        return self.judged and (self.error.low > 0 or self.error.high < 0)


def hold_out(curves: Sequence[Curve], records: Sequence[Record]) -> tuple[HoldOut, ...]:
    """The holdouts of one variant, cheapest first; none with fewer than three trusted budgets."""
    trusted = [curve for curve in curves if curve.trusted]
    result = []
    for count in range(2, len(trusted)):
        budgets = np.array([curve.budget for curve in trusted[:count]])
        law = fit_frontier(
            budgets, np.stack([curve.parabola.lowest for curve in trusted[:count]], axis=1)
        )
        assert law, "two budgets or more"
        largest, found = trusted[-1].budget, trusted[-1].parabola.lowest
        result.append(
            HoldOut(
                budgets=budgets,
                predicted=largest,
                spent=float(sum(one.flops for one in records if one.budget in budgets)),
                error=estimate(law.predict(np.array([largest]))[:, 0] - found),
                compute=estimate(law.invert(found) / largest),
            )
        )
    return tuple(result)
