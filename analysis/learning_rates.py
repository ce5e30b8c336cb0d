"""Whether the comparison is fair: each variant's learning-rate sweep and its tuning gap.

A learning-rate sweep trains one small cell at several learning rates. If the best rate lies at the
edge of the sweep, a better one may lie beyond it. Otherwise noise decides which rate looks best: a
bootstrap sample adds the noise of its runs to every mean loss, and the loss at the rate that the
suite used minus the lowest loss of the sample is the tuning gap. Subtracting it from the loss of
every variant at the largest budget shows how much the ranking depends on tuning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.curves import AnalysisError, Noise
from isoflop.analysis.estimate import CENTRAL_95, Array, Estimate, estimate
from isoflop.analysis.ranking import Standing
from isoflop.analysis.ratios import compare
from isoflop.analysis.surface_multiplier import SurfaceMultipliers
from isoflop.results.record import Point, Record, Size

Runs = Mapping[float, Sequence[Record]]  # the records of one sweep by learning rate


@dataclass(frozen=True)
class RateSweep:
    """The learning-rate sweep of one variant at one cell."""

    variant: str
    size: Size
    budget: float  # FLOPs asked for
    rates: Array  # (r,) increasing
    losses: Array  # (r,) mean over seeds, nats; inf where a run diverged
    errors: Array  # (r,) standard error of the mean, nats; 0 if the noise is unknown
    used: int  # index of the rate that the suite uses at this cell; of the best if it has no such
    best: int  # index of the lowest loss
    best_rates: tuple[float, float]  # 95% interval of the best rate
    tuning_gap: Array  # (1 + samples,) loss at the rate used minus the lowest, nats

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest of the sweep."""
        return self.best in (0, len(self.rates) - 1)


@dataclass(frozen=True)
class Sensitivity:
    """How a ranked variant depends on the tuning of learning rates."""

    multiplier: Estimate  # with the tuning gap of every variant subtracted from its loss
    rank_interval: tuple[int, int]  # what the significant differences then leave open


def rate_sweeps(
    tune: Sequence[Record], records: Sequence[Record], noise: Noise, samples: int
) -> tuple[RateSweep, ...]:
    """The sweeps in `tune`, by variant, then budget and size.

    Args:
        tune: records of the sweeps.
        records: of the suite. The rate used is that of the same variant, size and budget there.
        noise: of the suite, for sweeps with one seed. If the suite has one seed too, this is the
            departure from parabolas, which is larger than the noise of runs.
        samples: number of bootstrap samples.

    Raises:
        AnalysisError: the records of a sweep have different validation sets.
    """
    sweeps: dict[Point, dict[float, list[Record]]] = defaultdict(dict)
    for record in tune:
        if record.status != "failed":
            runs = sweeps[record.key.point]
            runs.setdefault(record.learning_rate, []).append(record)
    deviation = _deviation(sweeps.values()) or noise.seed or noise.fit
    generator = np.random.default_rng(1)
    used = {record.key.point: record.learning_rate for record in records}
    result = []
    for point in sorted(sweeps, key=lambda point: (point[0], point[2], point[1])):
        runs = sweeps[point]
        # Without a rate at which every seed finished there is no lowest loss.
        if any(np.isfinite(_mean_loss(seeds)) for seeds in runs.values()):
            result.append(_sweep(runs, used.get(point), deviation, generator, samples))
    return tuple(result)


def _sweep(
    runs: Runs, used: float | None, deviation: float, generator: np.random.Generator, samples: int
) -> RateSweep:
    records = [record for seeds in runs.values() for record in seeds]
    hashes = {
        record.validation_hash: record.cell for record in records if record.status == "finished"
    }
    if len(hashes) > 1:
        files = " and ".join(f"tune/{cell}.json" for cell in hashes.values())
        raise AnalysisError(f"records of different validation_hash cannot be compared: {files}")
    rates = np.array(sorted(runs))
    losses = np.array([_mean_loss(runs[rate]) for rate in rates])
    errors = np.array([deviation / np.sqrt(len(runs[rate])) for rate in rates])
    best = int(np.argmin(losses))
    at = best if used is None else int(np.argmin(np.abs(np.log(rates / used))))
    noisy = losses + errors * generator.standard_normal((samples, len(rates)))
    sampled = np.vstack([losses, noisy])
    low, high = np.quantile(sampled.argmin(axis=1), CENTRAL_95, method="inverted_cdf")
    return RateSweep(
        variant=records[0].variant,
        size=records[0].size,
        budget=records[0].budget,
        rates=rates,
        losses=losses,
        errors=errors,
        used=at,
        best=best,
        best_rates=(float(rates[int(low)]), float(rates[int(high)])),
        tuning_gap=sampled[:, at] - sampled.min(axis=1),
    )


def _mean_loss(runs: Sequence[Record]) -> float:
    if any(record.status == "diverged" for record in runs):
        return np.inf
    return float(np.mean([record.loss for record in runs if record.loss is not None]))


def _deviation(sweeps: Iterable[Runs]) -> float:
    """Pooled standard deviation between seeds at one rate, nats; 0 if no rate has two seeds."""
    squares, degrees = 0.0, 0
    for runs in sweeps:
        for seeds in runs.values():
            losses = np.array([record.loss for record in seeds if record.loss is not None])
            if len(losses) > 1:
                squares += float(((losses - losses.mean()) ** 2).sum())
                degrees += len(losses) - 1
    return float(np.sqrt(squares / degrees)) if degrees else 0.0


def sensitivity(
    standings: Sequence[Standing], fits: SurfaceMultipliers, sweeps: Sequence[RateSweep]
) -> dict[str, Sensitivity]:
    """How the multiplier and the rank of each ranked variant depend on the sweeps.

    The tuning gap at the cell of the sweep is subtracted from all losses of the variant, for all
    variants at once. A variant without a sweep keeps its loss.
    """
    ranked = [
        (standing, standing.shown.log_multiplier)
        for standing in standings
        if standing.shown and standing.variant in fits.forms
    ]
    if not sweeps or not ranked:
        return {}
    gaps = {sweep.variant: sweep.tuning_gap for sweep in sweeps}  # the largest budget comes last
    at = np.array([fits.budget])
    tuned = []
    for standing, log_multiplier in ranked:
        plain, better = (
            fits.reading(standing.variant, at, gain).log_compute[:, 0] for gain in ({}, gaps)
        )
        tuned.append(log_multiplier + better - plain)
    intervals = compare(np.stack(tuned)).rank_intervals
    return {
        standing.variant: Sensitivity(estimate(np.exp(log_multiplier)), interval)
        for (standing, _), log_multiplier, interval in zip(ranked, tuned, intervals, strict=True)
    }
