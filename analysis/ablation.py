"""What a choice decides: paired differences between a suite under a choice and as it is.

Cells of one size and budget are compared seed by seed, which takes away the noise that both share.
The standard deviation of a difference is pooled over all choices and variants; intervals are those
of Student's t.

A multiplier is read off the slope of dense's loss in log compute, from its cells at two budgets or
more: exp(-difference / slope). At the best size that is the slope of the frontier (envelope
theorem). The multiplier under a choice is against dense under the same choice, or as it is where
the choice does not concern dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from isoflop.analysis.curves import AnalysisError
from isoflop.analysis.estimate import Estimate
from isoflop.results.record import Record

NOTHING = Estimate(np.nan, np.nan, np.nan)
Losses = Mapping[int, Record]  # finished records of one variant under one choice, by seed


@dataclass(frozen=True)
class Effect:
    """A choice on an axis, for one variant."""

    axis: str
    choice: str
    variant: str
    difference: Estimate  # nats, under the choice minus as it is; nan on another validation set
    multiplier: Estimate  # over dense under the same choice; nan without a slope
    detuned: bool  # the choice is another rate than the tuned one

    @property
    def significant(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True)
class Load:
    """How the validation tokens spread over a layer's experts or slots, means over seeds."""

    axis: str  # empty for the suite as it is
    choice: str
    variant: str
    experts: int
    used: float  # share of them
    kl: float  # KL(load || uniform), nats
    kl_least: float
    kl_largest: float


@dataclass(frozen=True)
class Ablation:
    """An ablation at one size and budget."""

    baseline: str
    size: str
    budget: float  # FLOPs asked for
    seeds: tuple[int, ...]
    slope: float  # nats per factor e of compute that dense's loss falls by; nan if unknown
    deviation: float  # nats, pooled standard deviation of a paired difference
    degrees: int  # of freedom it is known with
    as_it_is: dict[str, Estimate]  # multiplier of each variant of the suite as it is
    effects: tuple[Effect, ...]  # by axis, choice and variant
    reversals: tuple[tuple[str, str, str, str], ...]  # axis, choice, variants now behind, ahead
    loads: tuple[Load, ...]  # of layers that choose experts or slots
    paper: Mapping[tuple[str, str], str] = field(default_factory=dict)  # by axis and choice

    def sensitivity(self, variant: str) -> tuple[float, float]:
        """The least and the largest multiplier of a variant over all choices; nan if unknown.

        Other rates are left out: the suite's are tuned, so that another is a mistake, no choice.
        """
        values = [self.as_it_is.get(variant, NOTHING).value]
        values += [
            e.multiplier.value for e in self.effects if e.variant == variant and not e.detuned
        ]
        values = [value for value in values if np.isfinite(value)]
        return (min(values), max(values)) if values else (np.nan, np.nan)

    @property
    def resolved(self) -> float:
        """The difference in nats that these seeds tell from 0 with 80% power."""
        if not self.degrees:
            return np.nan
        quantiles = stdtrit(self.degrees, 0.975) + stdtrit(self.degrees, 0.8)
        return float(quantiles * self.deviation / np.sqrt(len(self.seeds)))


def ablation(records: Sequence[Record], baseline: str) -> Ablation:
    """Compare the choices in `records` with the suite as it is.

    Args:
        records: of a suite with axes.
        baseline: the dense variant.
    Raises:
        AnalysisError: no record has a choice, or they are of several sizes or budgets.
    """
    finished = sorted(
        (r for r in records if r.status == "finished"),
        key=lambda r: (r.variant != baseline, r.variant),
    )
    changed = [r for r in finished if r.ablation]
    points = {(r.size.name, r.budget) for r in changed}
    if len(points) != 1:
        raise AnalysisError(
            f"an ablation is judged at one size and budget, not at {len(points)}: give the first "
            "budget one size"
        )
    ((size, budget),) = points
    plain: dict[str, dict[int, Record]] = {}
    for record in finished:
        if not record.ablation and (record.size.name, record.budget) == (size, budget):
            plain.setdefault(record.variant, {})[record.seed] = record
    under: dict[tuple[str, str], dict[str, dict[int, Record]]] = {}
    for record in changed:
        assert record.ablation
        key = (record.ablation.axis, record.ablation.choice)
        under.setdefault(key, {}).setdefault(record.ablation.variant, {})[record.seed] = record
    slope = _slope([r for r in finished if r.variant == baseline and r.size.name == size])
    pairs = [
        _differences(runs, plain.get(variant, {}))
        for variants in under.values()
        for variant, runs in variants.items()
    ]
    deviation, degrees = pooled_deviation(pairs)

    def interval(values: Sequence[float]) -> Estimate:
        if not values:
            return NOTHING
        mean = float(np.mean(values))
        half = np.nan
        if degrees:
            half = float(stdtrit(degrees, 0.975)) * deviation / np.sqrt(len(values))
        return Estimate(mean, mean - half, mean + half)

    def multiplier(runs: Losses, dense: Losses) -> Estimate:
        gain = interval(_differences(dense, runs))
        return Estimate(*(float(np.exp(value / slope)) for value in gain))

    effects, reversals = [], []
    for (axis, choice), variants in sorted(under.items()):
        dense = variants.get(baseline, plain.get(baseline, {}))
        for variant, runs in variants.items():
            if variant == baseline:
                against_dense = Estimate(1.0, 1.0, 1.0)
            else:
                against_dense = multiplier(runs, dense)
            difference = interval(_differences(runs, plain.get(variant, {})))
            detuned = _rates(runs) != _rates(plain.get(variant, runs))
            effects.append(Effect(axis, choice, variant, difference, against_dense, detuned))
        for ahead, behind in _reversed(plain, plain | variants):
            reversals.append((axis, choice, behind, ahead))
    return Ablation(
        baseline,
        size,
        budget,
        tuple(sorted({r.seed for r in changed})),
        slope,
        deviation,
        degrees,
        {
            variant: multiplier(runs, plain.get(baseline, {}))
            if variant != baseline
            else Estimate(1.0, 1.0, 1.0)
            for variant, runs in plain.items()
        },
        tuple(effects),
        tuple(reversals),
        tuple(
            load
            for (axis, choice), variants in [(("", ""), plain), *sorted(under.items())]
            for variant, runs in variants.items()
            if (load := _load(axis, choice, variant, runs))
        ),
    )


def _load(axis: str, choice: str, variant: str, runs: Losses) -> Load | None:
    figures = [
        [layer for layer in run.layers if layer.load_kl is not None] for run in runs.values()
    ]
    if not all(figures):
        return None
    kl = [float(np.mean([layer.load_kl for layer in layers])) for layers in figures]
    used = [layer.used or 0.0 for layers in figures for layer in layers]
    experts = figures[0][0].experts or 0
    mean = float(np.mean(kl))
    return Load(axis, choice, variant, experts, float(np.mean(used)), mean, min(kl), max(kl))


def _rates(runs: Losses) -> set[tuple[float, float]]:
    return {(run.learning_rate, run.table_rate) for run in runs.values()}


def _differences(runs: Losses, others: Losses) -> list[float]:
    """Losses of `runs` minus those of the same seeds of `others`, on the same validation set."""
    return [
        float(run.loss) - float(others[seed].loss)  # type: ignore[arg-type]  # both finished
        for seed, run in runs.items()
        if seed in others and run.validation_hash == others[seed].validation_hash
    ]


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within groups, and its degrees of freedom."""
    degrees = sum(len(group) - 1 for group in groups if len(group) > 1)
    squares = sum(((np.array(group) - np.mean(group)) ** 2).sum() for group in groups if group)
    return (float(np.sqrt(squares / degrees)), degrees) if degrees else (np.nan, 0)


def _slope(dense: Sequence[Record]) -> float:
    """By how much dense's loss falls per factor e of compute; nan from one budget."""
    plain = [record for record in dense if not record.ablation]
    budgets = np.array([np.log(record.budget) for record in plain])
    if len(set(budgets)) < 2:
        return np.nan
    losses = np.array([record.loss for record in plain], dtype=float)
    return float(-np.polyfit(budgets, losses, 1)[0])


def _reversed(plain: Mapping[str, Losses], under: Mapping[str, Losses]) -> list[tuple[str, str]]:
    """Pairs of variants whose mean losses change their order: who is ahead now, who is behind."""

    def mean(runs: Losses) -> float:
        return float(np.mean([run.loss for run in runs.values()]))

    order = sorted(plain, key=lambda variant: mean(plain[variant]))
    return [
        (second, first)
        for place, first in enumerate(order)
        for second in order[place + 1 :]
        if mean(under[second]) < mean(under[first])
    ]
