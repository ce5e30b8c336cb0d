"""Training time at equal loss: a layer may need fewer FLOPs than dense and yet more seconds.

The time multiplier is the seconds that dense's compute-optimal model needs over those of the
layer's, at equal loss: the compute multiplier, times the ratio of their seconds per FLOP at their
best sizes. Seconds are those that the records spent in training. They are compared on one device
with one number of threads alone: of those that trained both, the one where the layer has the most
sizes. Their scatter between the runs of a size enters the interval. What disturbed all runs of a
variant alike, such as other load on the machine, does not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.surface_multiplier import SurfaceMultipliers
from isoflop.results.record import Record

Place = tuple[str, int | None]  # device and threads


def place_of(record: Record) -> Place:
    """Where a cell was trained."""
    return record.measured.device, record.measured.threads


def usual_place(records: Sequence[Record]) -> Place | None:
    """Where the most cells were trained; of several, the one of the first record."""
    counts = Counter(place_of(record) for record in records if record.status == "finished")
    return max(counts, key=counts.__getitem__, default=None)


@dataclass(frozen=True)
class Speed:
    """The seconds per FLOP of one variant by size, on one device."""

    runs: int
    log_size: Array  # (sizes,) natural logarithm of active parameters, increasing
    log_seconds: Array  # (1 + samples, sizes) natural logarithm of training seconds per FLOP

    def at(self, log_size: Array) -> Array:
        """At sizes of shape (1 + samples,): straight between the trained ones, level beyond."""
        if len(self.log_size) == 1:
            return self.log_seconds[:, 0]
        inside = np.clip(log_size, self.log_size[0], self.log_size[-1])
        right = np.clip(np.searchsorted(self.log_size, inside), 1, len(self.log_size) - 1)
        left = right - 1
        share = (inside - self.log_size[left]) / (self.log_size[right] - self.log_size[left])
        every = np.arange(len(inside))
        low, high = self.log_seconds[every, left], self.log_seconds[every, right]
        return np.asarray(low + share * (high - low))


def speeds(records: Sequence[Record], samples: int) -> dict[str, dict[Place, Speed]]:
    """The speed of every variant with a finished cell, on every device that trained one.

    Args:
        records: of a suite.
        samples: of the scatter between runs of a size on a device, pooled over both and variants.
    """
    runs: dict[tuple[str, Place], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.status == "finished" and record.measured.train_seconds > 0:
            log_seconds = float(np.log(record.measured.train_seconds / record.flops))
            runs[record.variant, place_of(record)][record.parameters.active].append(log_seconds)
    groups = [np.array(group) for sizes in runs.values() for group in sizes.values()]
    degrees = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    deviation = np.sqrt(squares / degrees) if degrees else 0.0
    generator = np.random.default_rng(2)
    scale = np.ones((samples, 1))
    if degrees:
        scale = np.sqrt(degrees / generator.chisquare(degrees, (samples, 1)))
    result: dict[str, dict[Place, Speed]] = defaultdict(dict)
    for (variant, place), sizes in runs.items():
        ordered = sorted(sizes)
        mean = np.array([np.mean(sizes[size]) for size in ordered])
        error = deviation / np.sqrt([len(sizes[size]) for size in ordered])
        drawn = scale * error * generator.standard_normal((samples, len(ordered)))
        sampled = np.vstack([mean, mean + drawn])
        total = sum(len(group) for group in sizes.values())
        result[variant][place] = Speed(total, np.log(ordered), sampled)
    return result


def log_time_multiplier(
    variant: str,
    log_multiplier: Array,
    fits: SurfaceMultipliers,
    by_variant: dict[str, dict[Place, Speed]],
) -> Array | None:
    """Natural logarithm of the time multiplier, shape (1 + samples,).

    Args:
        log_multiplier: of compute, at the budget of the ranking.
        fits: the best sizes are theirs.
        by_variant: the speeds.
    Returns:
        None where the variant has no surface, or no device trained both it and the baseline.
    """
    layers, baseline = by_variant.get(variant, {}), by_variant.get(fits.baseline, {})
    common = [place for place in layers if place in baseline]
    if variant not in fits.forms or not common:
        return None
    place = max(common, key=lambda place: (len(layers[place].log_size), layers[place].runs))
    layer = layers[place]
    # A dense variant that another device trained counts as fast as the baseline.
    known = [by_variant.get(name, {}).get(place, baseline[place]) for name in fits.baselines]
    compute = np.array([fits.budget])
    _, size = fits.surface(variant).frontier(np.log(compute))
    reading = fits.reading(variant, compute)
    of_dense = np.stack([speed.at(reading.log_size[:, 0]) for speed in known])
    picked = np.take_along_axis(of_dense, reading.which[:, 0][None], axis=0)[0]
    return np.asarray(log_multiplier + picked - layer.at(size[:, 0]))
