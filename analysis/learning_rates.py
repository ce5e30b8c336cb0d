"""Whether the comparison was fair: the learning-rate sweep of each variant, and its tuning gap.

A sweep is one small cell trained at several learning rates. Where its best value lies at its edge,
a better one may lie beyond. Inside, noise hides which rate is best: each bootstrap sample gives
every mean loss the noise of its runs, and the loss at the rate used less the sample's lowest is the
tuning gap. Subtracting it from every variant's loss at the largest budget shows how far the ranking
depends on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.curves import AnalysisError, Noise
from isoflop.analysis.parabola import Array, Estimate, estimate
from isoflop.analysis.ranking import Standing
from isoflop.results.record import Record, Size

Group = Mapping[float, Sequence[Record]]  # records of one sweep by learning rate


@dataclass(frozen=True)
class RateSweep:
    """One variant's learning rates at one cell."""

    variant: str
    size: Size
    budget: float
    rates: Array  # (r,) increasing
    losses: Array  # (r,) mean over seeds, nats; inf where a run diverged
    errors: Array  # (r,) standard error of that mean; 0 if the noise is not known
    used: (
        int  # index of the rate the suite used at this cell, or of the best if it has no such cell
    )
    best: int  # index of the lowest loss
    best_rates: tuple[float, float]  # the rates that are best in 95% of the samples lie within
    left: Array  # (1 + samples,) loss at the rate used less the lowest, nats

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest tried."""
        return self.best in (0, len(self.rates) - 1)


@dataclass(frozen=True)
class Sensitivity:
    """What sweeps do to one ranked variant."""

    multiplier: Estimate  # with every variant's own `left` taken off its loss
    rank_interval: tuple[
        int, int
    ]  # 95% range of its place among the ranked, from the noise of runs
    rank_interval_tuned: tuple[int, int]  # the same, with the noise of the sweeps added


def rate_sweeps(
    tune: Sequence[Record], records: Sequence[Record], noise: Noise, samples: int
) -> tuple[RateSweep, ...]:
    """The sweeps of `tune`, by variant, then budget and size.

    Args:
        tune: records of the sweep cells.
        records: of the suite: the rate used is that of the same variant, size and budget there.
        noise: of the suite, for sweeps that have no second seed of their own; with one seed
            there too it is the departure from parabolas, which is more than that of runs.
        samples: bootstrap samples.

    Raises:
        AnalysisError: the records of one sweep have different validation sets.
    """
    groups: dict[tuple[str, float, str], dict[float, list[Record]]] = defaultdict(dict)
    for one in tune:
        if one.status != "failed":
            group = groups[one.variant, one.budget, one.size.name]
            group.setdefault(one.learning_rate, []).append(one)
    deviation = _deviation(groups.values()) or noise.seed or noise.fit
    generator = np.random.default_rng(1)
    result = []
    for cell, group in sorted(groups.items()):
        same = [
            one.learning_rate for one in records if (one.variant, one.budget, one.size.name) == cell
        ]
        if any(one.status == "finished" for runs in group.values() for one in runs):
            result.append(_bracket(group, same[0] if same else None, deviation, generator, samples))
    return tuple(result)


def _bracket(
    group: Group, used: float | None, deviation: float, generator: np.random.Generator, samples: int
) -> RateSweep:
    runs = [one for each in group.values() for one in each]
    hashes = {one.validation_hash: one.cell for one in runs if one.status == "finished"}
    if len(hashes) > 1:
        files = " and ".join(f"tune/{cell}.json" for cell in hashes.values())
        raise AnalysisError(f"records of different validation_hash cannot be compared: {files}")
    rates = np.array(sorted(group))
    losses = np.array([_mean_loss(group[rate]) for rate in rates])
    errors = np.array([deviation / np.sqrt(len(group[rate])) for rate in rates])
    best = int(np.argmin(losses))
    at = best if used is None else int(np.argmin(np.abs(np.log(rates / used))))
    noisy = losses + errors * generator.standard_normal((samples, len(rates)))
    every = np.vstack([losses, noisy])
    low, high = np.quantile(every.argmin(axis=1), [0.025, 0.975], method="inverted_cdf")
    return RateSweep(
        variant=runs[0].variant,
        size=runs[0].size,
        budget=runs[0].budget,
        rates=rates,
        losses=losses,
        errors=errors,
        used=at,
        best=best,
        best_rates=(float(rates[int(low)]), float(rates[int(high)])),
        left=every[:, at] - every.min(axis=1),
    )


def _mean_loss(runs: Sequence[Record]) -> float:
    if any(one.status == "diverged" for one in runs):
        return np.inf
    return float(np.mean([one.loss for one in runs if one.loss is not None]))


def _deviation(groups: Iterable[Group]) -> float:
    """Pooled standard deviation between seeds of one rate, nats; 0 if none has two."""
    squares, degrees = 0.0, 0
    for group in groups:
        for runs in group.values():
            losses = np.array([one.loss for one in runs if one.loss is not None])
            if len(losses) > 1:
                squares += float(((losses - losses.mean()) ** 2).sum())
                degrees += len(losses) - 1
    return float(np.sqrt(squares / degrees)) if degrees else 0.0


def sensitivity(
    standings: Sequence[Standing], found: Sequence[RateSweep], baseline: str | None
) -> dict[str, Sensitivity]:
    """How multiplier and place of each ranked variant depend on the sweeps.

    The nats a variant may have left at the sweep's cell are taken off its loss at the largest
    budget, all variants at once, the baseline's off its whole frontier. A variant without a sweep
    keeps its loss.
    """
    ranked = [each for each in standings if each.headline and each.top]
    reference = next((each.frontier for each in ranked if each.variant == baseline), None)
    if not found or reference is None:
        return {}
    left = {sweep.variant: sweep.left for sweep in found}  # the largest budget's comes last
    count = len(reference.alpha)
    nothing = np.zeros(count)
    given = left.get(baseline or "", nothing)
    plain, tuned = [], []
    for each in ranked:
        assert each.top
        lowest, budget = each.top.parabola.lowest, each.top.budget
        if each.variant == baseline:
            plain.append(np.ones(count))
            tuned.append(np.ones(count))
        else:
            plain.append(reference.invert(lowest) / budget)
            tuned.append(
                reference.invert(lowest - left.get(each.variant, nothing) + given) / budget
            )
    places, rank_interval_tuned = _places(np.stack(plain)), _places(np.stack(tuned))
    return {
        each.variant: Sensitivity(estimate(multiplier), before, after)
        for each, multiplier, before, after in zip(
            ranked, tuned, places, rank_interval_tuned, strict=True
        )
    }


def _places(multipliers: Array) -> list[tuple[int, int]]:
    """95% range of each variant's place, from multipliers of shape (variants, 1 + samples)."""
    place = 1 + (-multipliers).argsort(axis=0).argsort(axis=0)
    low, high = np.quantile(place, [0.025, 0.975], axis=1, method="inverted_cdf")
    return [(int(one), int(other)) for one, other in zip(low, high, strict=True)]
