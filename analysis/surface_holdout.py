"""The held-out budget test of surfaces: fitted without the largest budget, do they predict it?

A law that holds predicts the cells of the largest budget from the others. What these cells add to
the weighted sum of squares, per cell and in units of the pooled noise, follows an F distribution
(Chow's test of prediction, Econometrica 28, 1960); a larger value means that the law does not
continue to the largest budget. F looks for departures of every kind. A common one, all cells above
the prediction or all below, shows more clearly in the mean error, whose interval comes from the
bootstrap. Either is enough to fail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc

from isoflop.analysis.estimate import Array, Estimate
from isoflop.analysis.surface import Cells, Surface, Surfaces, cells_group
from isoflop.analysis.surface_solver import solve

LEAST_BUDGETS = 3  # of a variant whose law is judged
LEAST_P = 0.05
QUANTILES = (0.975, 0.025)  # of the error under the law, subtracted from the error: low, high


@dataclass(frozen=True)
class SurfaceHoldOut:
    """The prediction of one variant's largest budget from its others."""

    variant: str
    budget: float  # FLOPs, held out
    fitted: int  # budgets that the law was fitted to
    cells: Cells  # held out
    predicted: Array  # (1 + samples, cells) their losses, nats
    gaps: Array  # (1 + samples, cells) predicted less measured; of a sample, its own
    error: Estimate  # mean predicted less mean measured loss of the held-out cells, nats
    f: float  # their increase of the sum of squares per cell, in units of the noise
    p: float  # probability of an f at least as large, if the law holds

    def prediction(self, cell: int) -> Estimate:
        """What the law predicts that a held-out cell measures; the interval, like that of `error`,
        has the noise of the cell in it and is corrected for the bias of the samples."""
        value, gaps = float(self.predicted[0, cell]), self.gaps[1:, cell]
        low, high = value - np.quantile(gaps, QUANTILES) if len(gaps) else (np.nan, np.nan)
        return Estimate(value, float(low), float(high))

    @property
    def failed(self) -> bool:
        """Whether the law does not continue to the largest budget."""
        return self.p < LEAST_P or self.error.low > 0 or self.error.high < 0


def hold_out_surface(
    fits: Surfaces, variant: str, samples: int | None = None
) -> SurfaceHoldOut | None:
    """Fit a variant's surface without its largest budget and predict it.

    Args:
        fits: with a floor per variant.
        variant: one with a surface.
        samples: how many of the bootstrap samples of `fits` to use; all if None.
    Returns:
        None if the variant has fewer than three budgets, or too few cells in the others.
    """
    surface = fits.surfaces[variant]
    cells, noise = surface.cells, fits.noise
    assert noise, "there is a surface, so there is noise"
    held = cells.budget == cells.budget.max()
    if len(np.unique(cells.budget)) < LEAST_BUDGETS or cells.where(~held).why_unfitted:
        return None
    deviation = noise.deviation(cells.budget, cells.seeds)
    group = cells_group([cells.where(~held)], 1 / deviation[~held])
    every = surface.losses if samples is None else surface.losses[: 1 + samples]
    losses = every[:, ~held]
    fitted = Surface.from_solution(cells.where(~held), solve(group, losses), 0, losses)
    lawful = surface.predict(cells.log_n, cells.log_d)[0]
    predicted = fitted.predict(cells.log_n, cells.log_d)[0]
    whole = (((cells.loss - lawful) / deviation) ** 2).sum()
    part = (((cells.loss - predicted) / deviation)[~held] ** 2).sum()
    count = int(held.sum())
    f = float(max(whole - part, 0) / count)
    of_held = fitted.predict(cells.log_n[held], cells.log_d[held])
    gaps = of_held - every[:, held]
    gap = gaps.mean(axis=1)
    ends = gap[0] - np.quantile(gap[1:], QUANTILES) if len(gap) > 1 else (np.nan, np.nan)
    return SurfaceHoldOut(
        variant=variant,
        budget=float(cells.budget.max()),
        fitted=len(np.unique(cells.budget)) - 1,
        cells=cells.where(held),
        predicted=of_held,
        gaps=gaps,
        error=Estimate(float(gap[0]), float(ends[0]), float(ends[1])),
        f=f,
        p=float(fdtrc(count, noise.degrees, f)),
    )
