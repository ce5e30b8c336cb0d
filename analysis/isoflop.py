"""isoFLOP curves: per variant and budget, a parabola of loss in log(parameters), and its minimum.

This is approach 2 of Chinchilla (arXiv 2203.15556, section 3.2), with the uncertainty of every
minimum carried as bootstrap draws, so that whatever is computed from the minima (frontiers,
multipliers, ranks) is computed once per draw and gets its interval from the same draws.

The bootstrap. A curve has typically five sizes and three coefficients, so resampling its cells
would leave degenerate parabolas. Instead the noise is pooled over all curves of a report:

- a curve's residuals, inflated by sqrt(n / (n - 3)) for the degrees of freedom its parabola took;
- the spread between seeds of one cell, where there are several. Seeds are averaged into one point
  per size, and the noise of that point is sigma_fit^2 + sigma_seed^2 / seeds: further seeds shrink
  the second part alone, never the departure of the sizes from a parabola.

A draw adds resampled, standardised residuals, scaled to that noise, to the fitted curves and fits
them again. Each draw's noise is also scaled by sqrt(dof / chi2_dof), which widens the intervals as
Student's t does when few residuals say how large the noise is. Draw 0 is the data as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.record import Record

Array = NDArray[np.float64]
Status = Literal["ok", "concave", "edge", "few"]
EXPLAIN: dict[Status, str] = {
    "ok": "convex, with its minimum inside the grid of sizes",
    "concave": "the parabola is not convex: no minimum",
    "edge": "the minimum lies at the edge of the grid of sizes or beyond it",
    "few": "fewer than 4 sizes: a parabola through them has nothing left to be checked with",
}
LEAST_SIZES = 4


class AnalysisError(Exception):
    """Records that cannot be analysed together; one line says which and why."""


class Estimate(NamedTuple):
    """A value and the ends of its 95% interval (nan where the noise is not known)."""

    value: float
    low: float
    high: float


def estimate(draws: Array) -> Estimate:
    """The estimate of draws of one quantity, shape (1 + draws,): draw 0 is the data's own."""
    if len(draws) == 1:
        return Estimate(float(draws[0]), np.nan, np.nan)
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return Estimate(float(draws[0]), float(low), float(high))


@dataclass(frozen=True)
class Curve:
    """One variant at one budget. Draws are indexed first: shape (1 + draws, ...)."""

    variant: str
    budget: float  # FLOPs asked for
    cells: tuple[tuple[Record, ...], ...]  # finished records by size, smallest first, then seed
    missing: tuple[Record, ...]  # diverged and failed
    log_n: Array  # (sizes,) natural log of parameters
    loss: Array  # (sizes,) mean over seeds, nats per token
    coefficients: Array  # (1 + draws, 3) of 1, z, z^2 with z = log_n - mean(log_n)
    status: Status
    log_optimum: Array  # (1 + draws,) where the parabola is lowest within the grid
    best_loss: Array  # (1 + draws,) its value there

    @property
    def optimum(self) -> Estimate:
        """Parameters at the minimum, held to the grid of sizes."""
        return estimate(np.exp(self.log_optimum))

    @property
    def optimum_loss(self) -> Estimate:
        """Loss at the minimum, nats per token."""
        return estimate(self.best_loss)

    @property
    def unsettled(self) -> bool:
        """Whether the interval of the minimum reaches the edge of the grid."""
        low, high = np.log(self.optimum[1:])
        return bool(low <= self.log_n[0] or high >= self.log_n[-1])

    @property
    def nearest(self) -> int:
        """The index of the size nearest the minimum."""
        return int(np.argmin(np.abs(self.log_n - self.log_optimum[0])))

    def parabola(self, log_n: Array) -> Array:
        """Fitted loss at `log_n`, from the data as they are."""
        z = log_n - self.log_n.mean()
        return np.vander(z, 3, increasing=True) @ self.coefficients[0]


@dataclass(frozen=True)
class Noise:
    """What the pooled residuals and seeds say of a run's noise (standard deviations, nats)."""

    fit: float  # departure of a size from its parabola, beyond what seeds explain
    seed: float  # between seeds of one cell; 0 where no cell has two
    degrees: int  # of freedom behind them; 0 means unknown, and there are no draws


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
    cells: dict[tuple[str, str, float, int], Record] = {}
    for record in records:
        key = (record.variant, record.size.name, record.budget, record.seed)
        if key in cells:
            raise AnalysisError(
                f"{record.variant} at size {record.size.name}, {record.budget:.3g} FLOPs, "
                f"seed {record.seed} has two records: {cells[key].cell}.json and "
                f"{record.cell}.json; remove the one that no longer applies"
            )
        cells[key] = record
        if record.status == "finished" and not (record.loss is not None and record.loss > 0):
            raise AnalysisError(f"{record.cell}.json: loss: {record.loss} of a finished cell")


def fit_curves(
    records: Sequence[Record], *, axis: Literal["active", "total"] = "active", draws: int = 1000
) -> tuple[list[Curve], Noise]:
    """Fit every isoFLOP curve of `records`, by variant, then budget.

    Args:
        axis: which parameter count the parabolas run over.
        draws: bootstrap draws.

    Raises:
        AnalysisError: see `check`.
    """
    check(records)
    groups: dict[tuple[str, float], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.variant, record.budget].append(record)
    drafts = [
        _Draft(variant, budget, groups[variant, budget], axis) for variant, budget in sorted(groups)
    ]
    drafts = [draft for draft in drafts if draft.cells]
    noise, pool = _noise(drafts)
    generator = np.random.default_rng(0)  # the same records always give the same intervals
    count = draws if noise.degrees else 0
    scale = np.ones((count, 1))
    if count:
        scale = np.sqrt(noise.degrees / generator.chisquare(noise.degrees, (count, 1)))
    curves = [
        draft.fit(noise, scale * generator.choice(pool, (count, len(draft.cells))))
        for draft in drafts
    ]
    return curves, noise


class _Draft:
    """A curve's points and design, before the pooled noise is known."""

    def __init__(self, variant: str, budget: float, records: list[Record], axis: str) -> None:
        self.variant, self.budget = variant, budget
        sizes: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            if record.status == "finished":
                sizes[record.size.name].append(record)
        cells = [tuple(sorted(cell, key=lambda record: record.seed)) for cell in sizes.values()]
        self.cells = sorted(cells, key=lambda cell: getattr(cell[0].parameters, axis))
        self.missing = tuple(record for record in records if record.status != "finished")
        if not self.cells:
            return
        self.log_n = np.log([getattr(cell[0].parameters, axis) for cell in self.cells])
        self.losses = [np.array([record.loss for record in cell]) for cell in self.cells]
        self.seeds = np.array([len(cell) for cell in self.cells])
        self.loss = np.array([losses.mean() for losses in self.losses])
        self.distinct = len(np.unique(self.log_n))
        self.terms = min(3, self.distinct)
        self.design = np.vander(self.log_n - self.log_n.mean(), 3, increasing=True)
        self.solve = np.linalg.pinv(self.design[:, : self.terms])
        self.fitted = self.design[:, : self.terms] @ (self.solve @ self.loss)

    @property
    def degrees(self) -> int:
        return len(self.cells) - self.terms

    def fit(self, noise: Noise, standard: Array) -> Curve:
        """The curve, given standardised noise of shape (draws, sizes)."""
        deviation = np.sqrt(noise.fit**2 + noise.seed**2 / self.seeds)
        losses = np.vstack([self.loss, self.fitted + standard * deviation])
        coefficients = np.zeros((len(losses), 3))
        coefficients[:, : self.terms] = losses @ self.solve.T
        middle = self.log_n.mean()
        low, high = self.log_n[0] - middle, self.log_n[-1] - middle
        _, b, c = coefficients.T
        convex = c > 0
        vertex = -b / np.where(convex, 2 * c, 1)
        lower_end = np.where(b * low + c * low**2 <= b * high + c * high**2, low, high)
        z = np.where(convex, np.clip(vertex, low, high), lower_end)
        status: Status = "ok"
        if self.distinct < LEAST_SIZES:
            status = "few"
        elif not convex[0]:
            status = "concave"
        elif not low < vertex[0] < high:
            status = "edge"
        return Curve(
            variant=self.variant,
            budget=self.budget,
            cells=tuple(self.cells),
            missing=self.missing,
            log_n=self.log_n,
            loss=self.loss,
            coefficients=coefficients,
            status=status,
            log_optimum=z + middle,
            best_loss=np.einsum("dk,kd->d", coefficients, np.stack([z**0, z, z**2])),
        )


def _noise(drafts: list[_Draft]) -> tuple[Noise, Array]:
    """The pooled noise, and the standardised residuals (mean square 1) that draws are made of."""
    checked = [draft for draft in drafts if draft.degrees > 0]
    degrees = sum(draft.degrees for draft in checked)
    replicated = [losses for draft in drafts for losses in draft.losses if len(losses) > 1]
    seed_degrees = sum(len(losses) - 1 for losses in replicated)
    seed = sum(((losses - losses.mean()) ** 2).sum() for losses in replicated)
    seed = seed / seed_degrees if seed_degrees else 0.0
    if not degrees:
        scaled = [
            (losses - losses.mean()) * np.sqrt(len(losses) / (len(losses) - 1))
            for losses in replicated
        ]
        return Noise(0.0, float(np.sqrt(seed)), seed_degrees), _standard(scaled)
    residuals = [draft.loss - draft.fitted for draft in checked]
    variance = sum((residual**2).sum() for residual in residuals) / degrees
    share = np.concatenate([1 / draft.seeds for draft in checked]).mean()
    fit = max(0.0, variance - seed * share)
    scaled = [
        residual * np.sqrt(len(residual) / draft.degrees) / np.sqrt(fit + seed / draft.seeds)
        for residual, draft in zip(residuals, checked, strict=True)
    ]
    return Noise(float(np.sqrt(fit)), float(np.sqrt(seed)), degrees), _standard(scaled)


def _standard(parts: list[Array]) -> Array:
    pool = np.concatenate(parts) if parts else np.zeros(1)
    scale = np.sqrt((pool**2).mean())
    return pool / scale if scale > 0 else pool
