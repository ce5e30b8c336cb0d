"""The noise of a cell's loss about fitted surfaces, pooled over variants.

The variance of the mean loss of n seeds at compute C is

    (fit^2 + seed^2 / n) (C / C0)^(-2 slope):

runs of a larger budget differ less, and further seeds shrink the second part alone, never the
departure of a cell from its surface. With one seed the parts cannot be separated, and all is
`fit`. C0 is the middle of the budgets. The parts and the slope maximise the restricted likelihood
of residuals and seeds. The slope is shrunk towards 0, with a standard deviation of SLOPE_PRIOR: a
few quiet cells at the largest budgets would otherwise take over the fit and call its result
certain.

Residuals are standardised by their leverage, so that a cell that a law passes through closely does
not make the noise look small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.estimate import Array

SLOPE_PRIOR = 0.5
SLOPES = np.linspace(-1.0, 1.5, 51)
LEAST_DEVIATION = 1e-9  # nats, where the law passes through all cells
LEAST_FREE = 0.02  # of a cell's residual; below it the law passes through the cell


@dataclass(frozen=True)
class SurfaceNoise:
    """Standard deviations in nats, at the budget C0."""

    fit: float  # departure of a cell from its surface, beyond the noise of seeds
    seed: float  # between seeds of a cell; 0 if no cell has two
    slope: float  # of -log(standard deviation) in log(budget)
    slope_error: float  # its standard error
    log_middle: float  # natural logarithm of C0, FLOPs
    degrees: float  # of freedom, of residuals and seeds, less what the slope takes
    pool: Array  # standardised residuals, mean 0 and mean square 1

    def deviation(self, budget: Array, seeds: Array) -> Array:
        """Standard deviation of the mean loss of cells, shape (cells,)."""
        part = np.sqrt(self.fit**2 + self.seed**2 / seeds)
        return part * np.exp(-self.slope * (np.log(budget) - self.log_middle))

    def errors(
        self, budget: Array, seeds: Array, samples: int, generator: np.random.Generator
    ) -> Array:
        """Errors of cells for the bootstrap, shape (samples, cells).

        The noise itself is uncertain: every sample's is scaled by sqrt(degrees / chi2_degrees),
        which widens intervals as Student's t does, and its slope is drawn around the estimate.
        """
        scale = np.sqrt(self.degrees / generator.chisquare(self.degrees, (samples, 1)))
        tilt = self.slope_error * generator.standard_normal((samples, 1))
        scale = scale * np.exp(-tilt * (np.log(budget) - self.log_middle))
        drawn = generator.choice(self.pool, (samples, len(budget)))
        return scale * drawn * self.deviation(budget, seeds)


def pooled_noise(
    residual: Array, hats: Sequence[Array], budget: Array, seeds: Array, between: Array
) -> SurfaceNoise:
    """Estimate the noise from weighted fits.

    Args:
        residual: mean loss less the fitted one, shape (cells,).
        hats: the hat matrix of each fit, in the order of the cells.
        budget: FLOPs, shape (cells,).
        seeds: runs of each cell.
        between: sum of squared differences of a cell's runs from their mean.
    """
    free = 1 - np.concatenate([np.diag(hat) for hat in hats])  # share of a residual that is noise
    log_c = np.log(budget)
    middle = float((free * log_c).sum() / free.sum())
    log_c = log_c - middle
    slopes, information = SLOPES, 0.0
    start = 0
    for hat in hats:
        mine = log_c[start : start + len(hat)]
        information += 2 * float(mine @ (np.eye(len(hat)) - hat) ** 2 @ mine)
        start += len(hat)
    information += 2 * float(((seeds - 1) * log_c**2).sum())
    if np.ptp(log_c) < 1e-9:
        slopes = np.zeros(1)
        information = 0.0
    fits = [_at_slope(slope, residual, free, log_c, seeds, between) for slope in slopes]
    best = int(np.argmax([fit[0] for fit in fits]))
    _, fit, seed, degrees = fits[best]
    slope = float(slopes[best])
    left = max(degrees - information / (information + SLOPE_PRIOR**-2), 1.0)  # less the slope's
    fit, seed = fit * degrees / left, seed * degrees / left
    deviation = np.sqrt((fit + seed / seeds) * np.exp(-2 * slope * log_c))
    deviation = np.maximum(deviation, LEAST_DEVIATION)
    checked = free > LEAST_FREE
    pool = (residual / (deviation * np.sqrt(np.maximum(free, LEAST_FREE))))[checked]
    pool = pool - pool.mean()
    return SurfaceNoise(
        fit=float(np.sqrt(max(fit, LEAST_DEVIATION**2))) if fit or not seed else 0.0,
        seed=float(np.sqrt(seed)),
        slope=slope,
        slope_error=float((information + SLOPE_PRIOR**-2) ** -0.5) if len(slopes) > 1 else 0.0,
        log_middle=middle,
        degrees=left,
        pool=pool / max(float(np.sqrt((pool**2).mean())), 1e-300),
    )


def _at_slope(
    slope: float, residual: Array, free: Array, log_c: Array, seeds: Array, between: Array
) -> tuple[float, float, float, float]:
    """Restricted log likelihood (and the prior's) of a slope, with the variances of fit and seeds
    that go with it and their degrees of freedom."""
    squared, between = (part * np.exp(2 * slope * log_c) for part in (residual**2, between))
    of_cells, of_seeds = free.sum(), (seeds - 1).sum()
    fit, seed, degrees = squared.sum() / of_cells, 0.0, of_cells
    if of_seeds:
        seed = between.sum() / of_seeds
        fit -= seed * (free / seeds).sum() / of_cells
    if fit <= 0:  # no departure from the law beyond that of seeds: one variance explains both
        fit, degrees = 0.0, of_cells + of_seeds
        seed = ((squared * seeds).sum() + between.sum()) / degrees
    variance = np.maximum(fit + seed / seeds, 1e-300)
    likelihood = -0.5 * (free * np.log(variance) + squared / variance).sum()
    likelihood += slope * (free * log_c).sum()
    if of_seeds:
        seed_variance = max(seed, 1e-300)
        likelihood -= 0.5 * (of_seeds * np.log(seed_variance) + between.sum() / seed_variance)
        likelihood += slope * ((seeds - 1) * log_c).sum()
    return likelihood - 0.5 * (slope / SLOPE_PRIOR) ** 2, fit, seed, degrees
