"""All that a report shows, from records: curves, ranks, holdouts, sweeps, sweeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from isoflop.analysis.curves import AnalysisError, Noise, fit_curves
from isoflop.analysis.granularity import GranularitySweep, granularity_sweeps
from isoflop.analysis.holdout import HoldOut, hold_out
from isoflop.analysis.learning_rates import RateSweep, Sensitivity, rate_sweeps, sensitivity
from isoflop.analysis.ranking import Crossing, Standing, crossings, rank
from isoflop.results.record import Record


@dataclass(frozen=True)
class Analysis:
    """What the records of one suite say."""

    records: tuple[Record, ...]
    variants: tuple[str, ...]  # the baseline, then by name, then the one under comparison
    budgets: tuple[float, ...]  # FLOPs asked for, increasing
    headline: float  # the budget of the ranking: the largest of the highlight, or of any but dense
    baseline: str | None  # the dense variant
    highlight: str | None  # the variant under comparison, which figures and page bring out
    noise: Noise
    samples: int
    standings: tuple[Standing, ...]  # best first; those without a rank last
    crossings: tuple[Crossing, ...]
    holdouts: dict[str, tuple[HoldOut, ...]]  # by variant
    granularity_sweeps: tuple[GranularitySweep, ...]
    rate_sweeps: tuple[RateSweep, ...]
    sensitivity: dict[str, Sensitivity]  # by variant

    @property
    def in_order(self) -> list[Standing]:
        """The standings in the order of `variants`."""
        return sorted(self.standings, key=lambda each: self.variants.index(each.variant))

    @property
    def compared(self) -> tuple[float, ...]:
        """The budgets up to that of the headline; the baseline may have larger ones."""
        return tuple(budget for budget in self.budgets if budget <= self.headline)

    @property
    def finished(self) -> list[Record]:
        return [record for record in self.records if record.status == "finished"]

    def missing(self, variant: str) -> list[Record]:
        """Cells of a variant that diverged or failed."""
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
    """Fit, compare, rank and validate every variant of `records`.

    Args:
        records: of one suite.
        tune: its learning-rate sweep.
        highlight: the variant under comparison, if this is one.
        samples: bootstrap samples.

    Raises:
        AnalysisError: the records must not be compared (see `isoflop.check`), or several dense
            variants leave it open which is the baseline.
    """
    curves, noise = fit_curves(records, samples=samples)
    samples = samples if noise.degrees else 0
    baseline = _baseline(records)
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
    judged = names & {highlight} or names - {baseline} or names
    headline = max(one.budget for one in records if one.variant in judged)
    standings = rank(by_variant, baseline, headline)
    found = rate_sweeps(tune, records, noise, samples)
    found = tuple(sorted(found, key=lambda sweep: sweep.variant == highlight))
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
            variant: hold_out(own, [one for one in records if one.variant == variant])
            for variant, own in by_variant.items()
        },
        granularity_sweeps=granularity_sweeps(curves),
        rate_sweeps=found,
        sensitivity=sensitivity(standings, found, baseline),
    )


def _baseline(records: Iterable[Record]) -> str | None:
    dense = sorted({record.variant for record in records if record.layer == "dense"})
    if len(dense) > 1 and "dense" not in dense:
        raise AnalysisError(f"which of {', '.join(dense)} is the baseline? name one `dense`")
    return None if not dense else "dense" if "dense" in dense else dense[0]


def _natural(name: str) -> list[tuple[str, int]]:
    """A sort key that puts moe-g4 before moe-g16."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
