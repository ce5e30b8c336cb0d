"""isoFLOP curves: per variant and budget, a parabola of loss in log(parameters), and its minimum.

This is approach 2 of Chinchilla (arXiv 2203.15556, section 3.2), with the uncertainty of every
minimum carried as bootstrap samples, so that whatever is computed from the minima (frontiers,
multipliers, ranks) is computed once per sample and gets its interval from the same samples.

The bootstrap. A curve has typically five sizes and three coefficients, so resampling its cells
would leave degenerate parabolas. Instead the noise is pooled over all curves of a report:

- a curve's residuals, inflated by sqrt(n / (n - 3)) for the degrees of freedom its parabola took;
- the spread between seeds of one cell, where there are several. Seeds are averaged into one point
  per size, and the noise of that point is sigma_fit^2 + sigma_seed^2 / seeds: further seeds shrink
  the second part alone, never the departure of the sizes from a parabola.

A sample adds resampled, standardised residuals, scaled to that noise, to the fitted curves and
fits them again. Each sample's noise is also scaled by sqrt(dof / chi2_dof), which widens the
intervals as Student's t does when few residuals say how large the noise is. Sample 0 is the data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.parabola import Array, Parabola, fit_parabola, projector
from isoflop.results.errors import IsoflopError
from isoflop.results.record import CellKey, Record


class AnalysisError(IsoflopError):
    """Records that cannot be analysed together; one line says which and why."""


@dataclass(frozen=True)
class Points:
    """What was measured of one variant at one budget."""

    variant: str
    budget: float  # FLOPs asked for
    cells: tuple[tuple[Record, ...], ...]  # finished records by size, smallest first, then seed
    log_n: Array  # (sizes,) natural log of parameters
    losses: tuple[Array, ...]  # (seeds,) of each size, nats per token

    @property
    def loss(self) -> Array:
        """Mean over seeds, shape (sizes,)."""
        return np.array([losses.mean() for losses in self.losses])

    @property
    def seeds(self) -> Array:
        """Seeds of each size, shape (sizes,)."""
        return np.array([len(losses) for losses in self.losses], dtype=float)


@dataclass(frozen=True)
class Curve(Points):
    """Points with their parabola."""

    parabola: Parabola

    @property
    def trusted(self) -> bool:
        return self.parabola.status == "ok"

    @property
    def nearest(self) -> int:
        """The index of the size nearest the minimum."""
        return int(np.argmin(np.abs(self.log_n - self.parabola.log_lowest[0])))


@dataclass(frozen=True)
class Noise:
    """What the pooled residuals and seeds say of a run's noise (standard deviations, nats)."""

    fit: float  # departure of a size from its parabola, beyond what seeds explain
    seed: float  # between seeds of one cell; 0 where no cell has two
    degrees: int  # of freedom behind them; 0 means unknown, and there are no samples


def check(records: Sequence[Record]) -> None:
    """Refuse records that must not be compared.

    Raises:
        AnalysisError: none finished, mixed FLOP conventions or validation sets, or a cell twice.
    """
    finished = [record for record in records if record.status == "finished"]
    if not finished:
        raise AnalysisError(f"no finished cell among {len(records)} records")
    for field in ("flop_convention", "validation_hash"):
        by_value = {getattr(record, field): record for record in finished}
        if len(by_value) > 1:
            shown = "; ".join(f"{value!r} in {one.cell}.json" for value, one in by_value.items())
            raise AnalysisError(f"records of different {field} cannot be compared: {shown}")
    cells: dict[CellKey, Record] = {}
    for record in records:
        if record.key in cells:
            raise AnalysisError(
                f"{record.variant} at size {record.size.name}, {record.budget:.3g} FLOPs, "
                f"seed {record.seed} has two records: {cells[record.key].cell}.json and "
                f"{record.cell}.json; remove the one that no longer applies"
            )
        cells[record.key] = record
        if record.status == "finished" and not (record.loss is not None and record.loss > 0):
            raise AnalysisError(f"{record.cell}.json: loss: {record.loss} of a finished cell")


def fit_curves(
    records: Sequence[Record], *, axis: Literal["active", "total"] = "active", samples: int = 1000
) -> tuple[list[Curve], Noise]:
    """Fit every isoFLOP curve of `records` that has a finished cell, by variant, then budget.

    Args:
        axis: which parameter count the parabolas run over.
        samples: bootstrap samples.

    Raises:
        AnalysisError: see `check`.
    """
    check(records)
    groups: dict[tuple[str, float], list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "finished":
            groups[record.variant, record.budget].append(record)
    measured = [_points(*key, groups[key], axis) for key in sorted(groups)]
    noise, pool = _noise(measured)
    generator = np.random.default_rng(0)  # the same records always give the same intervals
    count = samples if noise.degrees else 0
    scale = np.ones((count, 1))
    if count:
        scale = np.sqrt(noise.degrees / generator.chisquare(noise.degrees, (count, 1)))
    curves = []
    for points in measured:
        deviation = np.sqrt(noise.fit**2 + noise.seed**2 / points.seeds)
        errors = scale * generator.choice(pool, (count, len(points.cells))) * deviation
        losses = np.vstack([points.loss, _fitted(points) + errors])
        curves.append(Curve(**vars(points), parabola=fit_parabola(points.log_n, losses)))
    return curves, noise


def _points(variant: str, budget: float, records: Sequence[Record], axis: str) -> Points:
    sizes: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        sizes[record.size.name].append(record)
    cells = [tuple(sorted(cell, key=lambda record: record.seed)) for cell in sizes.values()]
    cells.sort(key=lambda cell: getattr(cell[0].parameters, axis))
    return Points(
        variant=variant,
        budget=budget,
        cells=tuple(cells),
        log_n=np.log([getattr(cell[0].parameters, axis) for cell in cells]),
        losses=tuple(np.array([record.loss for record in cell], dtype=float) for cell in cells),
    )


def _fitted(points: Points) -> Array:
    solve, _ = projector(points.log_n)
    return np.vander(points.log_n - points.log_n.mean(), 3, increasing=True) @ solve @ points.loss


def _noise(measured: Sequence[Points]) -> tuple[Noise, Array]:
    """The pooled noise, and the standardised residuals (mean square 1) that draws are made of."""
    replicates = [losses for points in measured for losses in points.losses if len(losses) > 1]
    seed, seed_degrees = _pooled(
        [losses - losses.mean() for losses in replicates], [len(each) - 1 for each in replicates]
    )
    degrees = [len(points.cells) - projector(points.log_n)[1] for points in measured]
    checked = [(points, free) for points, free in zip(measured, degrees, strict=True) if free > 0]
    residuals = [points.loss - _fitted(points) for points, _ in checked]
    variance, fit_degrees = _pooled(residuals, [free for _, free in checked])
    if not fit_degrees:
        scaled = [
            (losses - losses.mean()) * np.sqrt(len(losses) / (len(losses) - 1))
            for losses in replicates
        ]
        return Noise(0.0, float(np.sqrt(seed)), seed_degrees), _standardised(scaled)
    share = np.concatenate([1 / points.seeds for points, _ in checked]).mean()
    fit = max(0.0, variance - seed * share)
    scaled = [
        residual * np.sqrt(len(residual) / free / np.maximum(fit + seed / points.seeds, 1e-300))
        for residual, (points, free) in zip(residuals, checked, strict=True)
    ]
    return Noise(float(np.sqrt(fit)), float(np.sqrt(seed)), fit_degrees), _standardised(scaled)


def _pooled(residuals: Sequence[Array], degrees: Sequence[int]) -> tuple[float, int]:
    """Pooled variance and its degrees of freedom."""
    total = sum(degrees)
    return float(sum((each**2).sum() for each in residuals)) / total if total else 0.0, total


def _standardised(parts: Sequence[Array]) -> Array:
    pool = np.concatenate(parts) if parts else np.zeros(1)
    return pool / max(float(np.sqrt((pool**2).mean())), 1e-300)
