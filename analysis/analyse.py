"""Everything that a report shows, from records: curves, ranks, extrapolation tests and sweeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.analysis.curves import AnalysisError, Noise, fit_curves
from isoflop.analysis.granularity import GranularitySweep, granularity_sweeps
from isoflop.analysis.holdout import HoldOut, hold_out
from isoflop.analysis.learning_rates import RateSweep, Sensitivity, rate_sweeps, sensitivity
from isoflop.analysis.ranking import Crossing, Standing, crossings, rank
from isoflop.results.baseline import find_baseline
from isoflop.results.record import Record


@dataclass(frozen=True)
class Analysis:
    """The results of one suite."""

    records: tuple[Record, ...]
    variants: tuple[str, ...]  # the baseline first, then by name, the candidate last
    budgets: tuple[float, ...]  # FLOPs asked for, increasing
    headline: float  # FLOPs, the budget of the ranking: the largest of any variant but the baseline
    baseline: str | None  # the dense variant
    highlight: str | None  # the candidate of a comparison; then its largest budget is the headline
    noise: Noise
    samples: int  # bootstrap samples
    standings: tuple[Standing, ...]  # best first; those without a rank last
    crossings: tuple[Crossing, ...]
    holdouts: dict[str, tuple[HoldOut, ...]]  # by variant
    granularity_sweeps: tuple[GranularitySweep, ...]
    rate_sweeps: tuple[RateSweep, ...]
    sensitivity: dict[str, Sensitivity]  # by variant

    @property
    def in_order(self) -> list[Standing]:
        """The standings in the order of `variants`."""
        return sorted(self.standings, key=lambda standing: self.variants.index(standing.variant))

    @property
    def compared(self) -> tuple[float, ...]:
        """The budgets up to that of the ranking; the baseline may have larger ones."""
        return tuple(budget for budget in self.budgets if budget <= self.headline)

    @property
    def finished(self) -> list[Record]:
        """The records of finished cells."""
        return [record for record in self.records if record.status == "finished"]

    def missing(self, variant: str) -> list[Record]:
        """The records of a variant's cells that diverged or failed."""
        return [
            record
            for record in self.records
            if record.variant == variant and record.status != "finished"
        ]


def analyse(
    records: Sequence[Record],
    tune: Sequence[Record] = (),
    *,
    highlight: str | None = None,
    samples: int = 1000,
) -> Analysis:
    """Fit, compare, rank and test every variant of `records`.

    Args:
        records: of one suite.
        tune: records of its learning-rate sweeps.
        highlight: the candidate, if this is a comparison.
        samples: number of bootstrap samples.

    Raises:
        AnalysisError: the records may not be compared (see `curves.check`), or it is ambiguous
            which of several dense variants is the baseline.
    """
    curves, noise = fit_curves(records, samples=samples)
    samples = samples if noise.degrees else 0
    try:
        baseline = find_baseline({record.variant: record.layer for record in records})
    except ValueError as error:
        raise AnalysisError(str(error)) from None
    variants = sorted(
        {record.variant for record in records},
        key=lambda name: (name != baseline, name == highlight, _natural(name)),
    )
    budgets = tuple(sorted({record.budget for record in records}))
    by_variant = {
        variant: [curve for curve in curves if curve.variant == variant] for variant in variants
    }
    # The baseline may have been given more, so that its frontier reaches the others' losses.
    names = set(variants)
    ranked = names & {highlight} or names - {baseline} or names
    headline = max(record.budget for record in records if record.variant in ranked)
    standings = rank(by_variant, baseline, headline)
    sweeps = rate_sweeps(tune, records, noise, samples)
    sweeps = tuple(sorted(sweeps, key=lambda sweep: sweep.variant == highlight))
    return Analysis(
        records=tuple(records),
        variants=tuple(variants),
        budgets=budgets,
        headline=headline,
        baseline=baseline,
        highlight=highlight,
        noise=noise,
        samples=samples,
        standings=standings,
        crossings=crossings(standings),
        holdouts={
            variant: hold_out(
                variant_curves, [record for record in records if record.variant == variant]
            )
            for variant, variant_curves in by_variant.items()
        },
        granularity_sweeps=granularity_sweeps(curves),
        rate_sweeps=sweeps,
        sensitivity=sensitivity(standings, sweeps, baseline),
    )


def _natural(name: str) -> list[tuple[str, int]]:
    """A sort key that puts moe-g4 before moe-g16."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
