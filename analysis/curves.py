"""isoFLOP curves: for each variant and budget, a parabola of loss in log(parameters).

This is approach 2 of Chinchilla (arXiv 2203.15556, section 3.2). The uncertainty of every minimum
is carried as bootstrap samples. Whatever follows from the minima (frontiers, multipliers, ranks) is
computed for each sample, so that all intervals come from the same samples.

The bootstrap resamples residuals, not cells: a curve typically has five sizes and three
coefficients, and resampled cells would give degenerate parabolas. The noise is pooled over all
curves of a report, from two sources:

- the residuals of each curve, inflated by sqrt(n / (n - 3)) for the parabola's degrees of freedom;
- the differences between seeds of a cell, where there are several. Seeds are averaged into one
  point per size with variance sigma_fit^2 + sigma_seed^2 / seeds. More seeds reduce only the second
  term, not the departure of the sizes from a parabola.

Each bootstrap sample adds resampled, standardised residuals, scaled to that noise, to the fitted
curves and fits them again. The noise of each sample is also scaled by sqrt(dof / chi2_dof), which
widens the intervals as Student's t does when it is estimated from few residuals. Sample 0 is the
data itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.parabola import Parabola, fit_parabola, projector
from isoflop.analysis.report.format import flops
from isoflop.results.errors import IsoflopError
from isoflop.results.record import CellKey, Record


class AnalysisError(IsoflopError):
    """Records that cannot be analysed together. The message is one line: which records, and why."""


@dataclass(frozen=True)
class Points:
    """The measured losses of one variant at one budget."""

    variant: str
    budget: float  # FLOPs asked for
    cells: tuple[tuple[Record, ...], ...]  # finished records by size, smallest first, then seed
    log_n: Array  # (sizes,) natural logarithm of the parameter counts
    losses: tuple[Array, ...]  # for each size (seeds,), nats per token

    @property
    def loss(self) -> Array:
        """Mean loss over seeds, shape (sizes,)."""
        return np.array([losses.mean() for losses in self.losses])

    @property
    def seeds(self) -> Array:
        """The number of seeds of each size, shape (sizes,)."""
        return np.array([len(losses) for losses in self.losses], dtype=float)


@dataclass(frozen=True)
class Curve(Points):
    """The points with the parabola fitted to them."""

    parabola: Parabola

    @property
    def trusted(self) -> bool:
        """Whether the minimum may be used."""
        return self.parabola.status == "ok"

    @property
    def nearest(self) -> int:
        """The index of the size that is nearest to the minimum."""
        return int(np.argmin(np.abs(self.log_n - self.parabola.log_lowest[0])))


@dataclass(frozen=True)
class Noise:
    """The noise of a cell's loss, from pooled residuals and seeds: standard deviations in nats."""

    fit: float  # departure of the sizes from their parabola, beyond the noise of seeds
    seed: float  # between seeds of a cell; 0 if no cell has two seeds
    degrees: int  # degrees of freedom of the estimate; 0 means unknown, and there are no samples


def check(records: Sequence[Record]) -> None:
    """Check that records may be compared.

    Raises:
        AnalysisError: no record has finished, FLOP conventions or validation sets differ, or a
            cell has two records.
    """
    finished = [record for record in records if record.status == "finished"]
    if not finished:
        raise AnalysisError(f"no finished cell among {len(records)} records")
    for field in ("flop_convention", "validation_hash"):
        by_value = {getattr(record, field): record for record in finished}
        if len(by_value) > 1:
            shown = "; ".join(
                f"{value!r} in {record.cell}.json" for value, record in by_value.items()
            )
            raise AnalysisError(f"records of different {field} cannot be compared: {shown}")
    cells: dict[CellKey, Record] = {}
    for record in records:
        if record.key in cells:
            raise AnalysisError(
                f"{record.variant} at size {record.size.name}, {flops(record.budget)} FLOPs, "
                f"seed {record.seed} has two records: {cells[record.key].cell}.json and "
                f"{record.cell}.json; remove the one that no longer applies"
            )
        cells[record.key] = record
        if record.status == "finished" and not (record.loss is not None and record.loss > 0):
            raise AnalysisError(f"{record.cell}.json: loss: {record.loss} of a finished cell")


def fit_curves(
    records: Sequence[Record], *, axis: Literal["active", "total"] = "active", samples: int = 1000
) -> tuple[list[Curve], Noise]:
    """Fit all isoFLOP curves of `records`: those with a finished cell, by variant, then budget.

    Args:
        axis: the parameter count on the horizontal axis.
        samples: number of bootstrap samples.

    Raises:
        AnalysisError: see `check`.
    """
    check(records)
    groups: dict[tuple[str, float], list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "finished":
            groups[record.variant, record.budget].append(record)
    all_points = [_points(*key, groups[key], axis) for key in sorted(groups)]
    noise, pool = _noise(all_points)
    generator = np.random.default_rng(0)  # the same records always give the same intervals
    count = samples if noise.degrees else 0
    scale = np.ones((count, 1))
    if count:
        scale = np.sqrt(noise.degrees / generator.chisquare(noise.degrees, (count, 1)))
    curves = []
    for points in all_points:
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


def _noise(all_points: Sequence[Points]) -> tuple[Noise, Array]:
    """The pooled noise, and the standardised residuals (mean square 1) that are resampled."""
    replicates = [losses for points in all_points for losses in points.losses if len(losses) > 1]
    seed, seed_degrees = _pooled(
        [losses - losses.mean() for losses in replicates],
        [len(losses) - 1 for losses in replicates],
    )
    degrees = [len(points.cells) - projector(points.log_n)[1] for points in all_points]
    checked = [(points, free) for points, free in zip(all_points, degrees, strict=True) if free > 0]
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
    """The pooled variance and its degrees of freedom."""
    total = sum(degrees)
    squares = float(sum((residual**2).sum() for residual in residuals))
    return (squares / total if total else 0.0), total


def _standardised(parts: Sequence[Array]) -> Array:
    pool = np.concatenate(parts) if parts else np.zeros(1)
    return pool / max(float(np.sqrt((pool**2).mean())), 1e-300)
