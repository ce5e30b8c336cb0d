"""Whether the law fits at all: the residuals of surfaces against those of parabolas.

Parabolas, one at every budget, follow the cells of any smooth law. Where a surface leaves more than
they do, per degree of freedom and beyond chance (F-test of lack of fit), the cells do not lie on a
law E + A N^-alpha + B D^-beta: noise that is estimated from its residuals hides that.
"""

from __future__ import annotations

import numpy as np
from scipy.special import fdtrc

from isoflop.analysis.parabola import projector
from isoflop.analysis.surface import Cells, Surfaces
from isoflop.analysis.surface_noise import SurfaceNoise

PARAMETERS = 5  # of a surface
LEAST_P = 0.01  # of a law that is trusted


def misfits(fits: Surfaces) -> dict[str, float]:
    """For every variant the probability of residuals as large, if its law holds.

    The noise is that of the parabolas of all variants. The result is nan where nothing is left to
    test: no budget has four sizes, or a variant's parabolas have as many parameters as its surface.
    """
    noise = fits.noise
    if noise is None:
        return {}
    parabolas = {name: _parabolas(fit.cells, noise) for name, fit in fits.surfaces.items()}
    degrees = sum(freedom for _, freedom in parabolas.values())
    if not degrees:
        return dict.fromkeys(parabolas, np.nan)
    variance = max(sum(squares for squares, _ in parabolas.values()) / degrees, 1e-300)
    result = {}
    for variant, (squares, freedom) in parabolas.items():
        surface = fits.surfaces[variant]
        cells = surface.cells
        residual = cells.loss - surface.predict(cells.log_n, cells.log_d)[0]
        more = ((residual / noise.deviation(cells.budget, cells.seeds)) ** 2).sum() - squares
        extra = len(cells.loss) - PARAMETERS - freedom
        p = fdtrc(max(extra, 1), degrees, max(more, 0.0) / max(extra, 1) / variance)
        result[variant] = float(p) if extra > 0 else np.nan
    return result


def _parabolas(cells: Cells, noise: SurfaceNoise) -> tuple[float, int]:
    """The weighted sum of squares that a variant's parabolas leave, and its degrees of freedom."""
    deviation = noise.deviation(cells.budget, cells.seeds)
    squares, freedom = 0.0, 0
    for budget in np.unique(cells.budget):
        mine = cells.budget == budget
        solve, terms = projector(cells.log_n[mine])
        z = cells.log_n[mine] - cells.log_n[mine].mean()
        fitted = np.vander(z, 3, increasing=True) @ solve @ cells.loss[mine]
        squares += float((((cells.loss[mine] - fitted) / deviation[mine]) ** 2).sum())
        freedom += int(mine.sum()) - terms
    return squares, freedom
