"""Whether the comparison is fair: each variant's learning-rate sweeps, the rate that is best, and
what the rate that was used costs.

A learning-rate sweep trains one small cell at several learning rates. Near its optimum the loss is
a quadratic in the logarithm of the rate, whose curvature differs little between layers, while the
optimum does: one curvature is fitted to all sweeps of a size at one budget, and an optimum to each,
from the rates next to the lowest. Three rates in factors of two are enough. The tuning gap is the
fitted loss at the rate that the suite used less that at the optimum; subtracting it from the losses
of every variant shows how much the ranking depends on tuning. A bootstrap sample adds the noise of
the runs to every mean loss. A best rate at or beyond an end of a sweep is held to it and marked.
A rate that diverged, or whose loss is far above the lowest, is not fitted; it bounds the sweep.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.curves import AnalysisError
from isoflop.analysis.estimate import Array, Estimate, estimate
from isoflop.analysis.ranking import Standing
from isoflop.analysis.ratios import compare
from isoflop.analysis.surface_multiplier import SurfaceMultipliers
from isoflop.results.record import Point, Record, Size

NEAR = 2.5  # the factor from the lowest within which rates are fitted
CLIFF = 0.2  # nats above the lowest, from which the loss of a higher rate is no longer quadratic
LEAST_RATES = 3  # that are fitted however far from the lowest, and that a curvature needs

Runs = Mapping[float, Sequence[Record]]  # the records of one sweep by rate
Rate = Literal["learning_rate", "table_rate"]  # a field of a record


@dataclass(frozen=True)
class RateSweep:
    """The learning-rate sweep of one variant at one cell; samples have shape (1 + samples,)."""

    variant: str
    size: Size
    budget: float  # FLOPs asked for
    rates: Array  # (r,) increasing
    losses: Array  # (r,) mean over seeds, nats; inf where a run diverged
    errors: Array  # (r,) standard error of the mean, nats; 0 if the noise is unknown
    used: float  # the rate that the suite uses at this cell; the nearest to the best if it has none
    quadratic: Array  # (1 + samples, 3) of the loss in ln(rate / middle): 1, z, z^2
    middle: float  # of the rates that it is fitted to
    fitted: tuple[float, float]  # the lowest and highest of these
    log_best: Array  # natural logarithm of the best rate within the sweep
    at_edge: bool  # whether the best rate lies at or beyond an end that is not known to diverge
    tuning_gap: Array  # loss at the rate used less that at the best, nats

    @property
    def best(self) -> Estimate:
        """The best rate."""
        return estimate(np.exp(self.log_best))

    def __call__(self, rates: Array) -> Array:
        """The fitted loss at rates."""
        z = np.log(rates / self.middle)
        return np.vander(z, 3, increasing=True) @ self.quadratic[0]


@dataclass(frozen=True)
class TunedRate:
    """The learning rate of a variant, interpolated from its sweeps."""

    variant: str
    width: int  # of the backbone, at which `rate` holds
    rate: float
    slope: float  # of ln(rate) in ln(width)
    own_slope: bool  # from sweeps at two widths or more, not the suite's rule
    at_edge: bool  # a better one may lie beyond one of its sweeps

    def at(self, width: float) -> float:
        """The rate at another width."""
        return float(self.rate * (width / self.width) ** self.slope)


@dataclass(frozen=True)
class Sensitivity:
    """How a ranked variant depends on the tuning of learning rates."""

    multiplier: Estimate  # with the tuning gap of every variant subtracted from its loss
    rank_interval: tuple[int, int]  # what the significant differences then leave open


def rate_sweeps(
    tune: Sequence[Record],
    records: Sequence[Record],
    deviation: float,
    samples: int,
    of: Rate = "learning_rate",
) -> tuple[RateSweep, ...]:
    """The sweeps in `tune`, by variant, then budget and size.

    Two rates are swept, each at the usual value of the other: the learning rate, and that of tables
    over it.

    Args:
        tune: records of the sweeps.
        records: of the suite. The rate used is that of the same variant, size and budget there.
        deviation: of a run's loss in nats, for sweeps with one seed. Where the suite has one seed
            too, this is the departure from its laws, which is larger than the noise of runs.
        samples: number of bootstrap samples.
        of: the rate.

    Raises:
        AnalysisError: the records of a sweep have different validation sets.
    """
    by_point = _grouped([record for record in tune if record.status != "failed"], of)
    deviation = _deviation(by_point.values()) or deviation
    used = {record.key.point: getattr(record, of) for record in records}
    points = [
        point
        for point in sorted(by_point, key=lambda point: (point[0], point[2], point[1]))
        # Without a rate at which every seed finished there is no lowest loss.
        if any(np.isfinite(_mean_loss(seeds)) for seeds in by_point[point].values())
    ]
    if not points:
        return ()
    measured = [_Measured(by_point[point], deviation) for point in points]
    generator = np.random.default_rng(1)
    losses = [
        np.vstack(
            [part.loss, part.loss + part.error * generator.standard_normal((samples, part.count))]
        )
        for part in measured
    ]
    sweeps = {}
    for place in {point[1:] for point in points}:
        alike = [n for n, point in enumerate(points) if point[1:] == place]
        quadratics = _fit([measured[n] for n in alike], [losses[n] for n in alike])
        for n, quadratic in zip(alike, quadratics, strict=True):
            sweeps[n] = measured[n].sweep(quadratic, used.get(points[n]))
    return tuple(sweeps[n] for n in range(len(points)))


def _grouped(tune: Iterable[Record], of: Rate) -> dict[Point, dict[float, list[Record]]]:
    """The records of every sweep by rate, without those at another than the usual other rate."""
    other = "table_rate" if of == "learning_rate" else "learning_rate"
    by_point: dict[Point, list[Record]] = defaultdict(list)
    for record in tune:
        by_point[record.key.point].append(record)
    result: dict[Point, dict[float, list[Record]]] = {}
    for point, runs in by_point.items():
        ((usual, _),) = Counter(getattr(run, other) for run in runs).most_common(1)
        sweep: dict[float, list[Record]] = defaultdict(list)
        for run in runs:
            if getattr(run, other) == usual:
                sweep[getattr(run, of)].append(run)
        if of == "learning_rate" or len(sweep) > 1:
            result[point] = sweep
    return result


class _Measured:
    """The mean losses of one sweep, and those near the lowest, which are fitted."""

    def __init__(self, runs: Runs, deviation: float) -> None:
        self.records = [record for seeds in runs.values() for record in seeds]
        hashes = {
            record.validation_hash: record.cell
            for record in self.records
            if record.status == "finished"
        }
        if len(hashes) > 1:
            files = " and ".join(f"tune/{cell}.json" for cell in hashes.values())
            raise AnalysisError(f"records of different validation_hash cannot be compared: {files}")
        self.rates = np.array(sorted(runs))
        self.losses = np.array([_mean_loss(runs[rate]) for rate in self.rates])
        self.errors = np.array([deviation / np.sqrt(len(runs[rate])) for rate in self.rates])
        log_rates = np.log(self.rates)
        lowest = log_rates[np.argmin(self.losses)]
        cliff = (log_rates > lowest) & (self.losses > self.losses.min() + CLIFF)
        fit = np.isfinite(self.losses) & ~cliff
        away = np.where(fit, np.abs(log_rates - lowest), np.inf)
        near = fit & ((away <= np.log(NEAR)) | (away <= np.sort(away)[:LEAST_RATES][-1]))
        self.loss, self.error, self.count = self.losses[near], self.errors[near], int(near.sum())
        self.middle = float(np.exp(log_rates[near].mean()))
        self.z = log_rates[near] - np.log(self.middle)
        self.ends = log_rates[fit][[0, -1]] - np.log(self.middle)
        self.bounded = bool(~fit[-1])  # a rate above all others diverged, or nearly

    def sweep(self, quadratic: Array, used: float | None) -> RateSweep:
        """What the fitted quadratic, (1 + samples, 3), says of the sweep."""
        _, slope, bend = quadratic.T
        low, high = self.ends
        lower_end = np.where(
            slope * low + bend * low**2 <= slope * high + bend * high**2, low, high
        )
        vertex = np.where(bend > 0, -slope / (2 * np.where(bend > 0, bend, 1)), lower_end)
        best = np.clip(vertex, low, high)
        if used is None:
            used = float(self.rates[np.argmin(np.abs(np.log(self.rates / self.middle) - best[0]))])
        at = np.log(used / self.middle)
        first = self.records[0]
        return RateSweep(
            variant=first.variant,
            size=first.size,
            budget=first.budget,
            rates=self.rates,
            losses=self.losses,
            errors=self.errors,
            used=used,
            quadratic=quadratic,
            middle=self.middle,
            fitted=(
                float(np.exp(self.z[0]) * self.middle),
                float(np.exp(self.z[-1]) * self.middle),
            ),
            log_best=best + np.log(self.middle),
            at_edge=bool(vertex[0] <= low or (vertex[0] >= high and not self.bounded)),
            tuning_gap=np.maximum(slope * (at - best) + bend * (at**2 - best**2), 0),
        )


def _fit(measured: Sequence[_Measured], losses: Sequence[Array]) -> list[Array]:
    """Quadratics with one curvature: of each sweep (1 + samples, 3), by weighted least squares."""
    count = sum(part.count for part in measured)
    design = np.zeros((count, 2 * len(measured) + 1))
    start = 0
    for number, part in enumerate(measured):
        rows = slice(start, start + part.count)
        design[rows, 2 * number], design[rows, 2 * number + 1] = 1, part.z
        if max(part.count for part in measured) >= LEAST_RATES:  # else it is not determined: 0
            design[rows, -1] = part.z**2
        start += part.count
    error = np.concatenate([part.error for part in measured])
    weight = 1 / error if (error > 0).all() else np.ones(count)
    solve = np.linalg.pinv(design * weight[:, None]) * weight
    coefficients = np.concatenate(losses, axis=1) @ solve.T
    bend = coefficients[:, -1:]
    return [
        np.hstack([coefficients[:, 2 * number : 2 * number + 2], bend])
        for number in range(len(measured))
    ]


def tuned_rates(sweeps: Sequence[RateSweep], width: int, exponent: float) -> dict[str, TunedRate]:
    """The interpolated learning rate of every variant.

    The protocol: rates times 0.5, 1 and 2 at two sizes of the smallest budget, six runs a variant.

    Args:
        sweeps: see `rate_sweeps`; those of one variant are at one budget.
        width: at which the rate is wanted.
        exponent: of the suite's rule, rate ~ width^-exponent, for a variant with a single width.
    """
    by_variant: dict[str, list[RateSweep]] = defaultdict(list)
    for sweep in sweeps:
        by_variant[sweep.variant].append(sweep)
    result = {}
    for variant, members in by_variant.items():
        log_w = np.log([sweep.size.width for sweep in members])
        log_best = np.array([sweep.log_best[0] for sweep in members])
        own = bool(np.ptp(log_w) > 0)
        slope = float(np.polyfit(log_w, log_best, 1)[0]) if own else -exponent
        log_rate = float(log_best.mean() + slope * (np.log(width) - log_w.mean()))
        result[variant] = TunedRate(
            variant=variant,
            width=width,
            rate=float(np.exp(log_rate)),
            slope=slope,
            own_slope=own,
            at_edge=any(sweep.at_edge for sweep in members),
        )
    return result


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
