"""Everything that a report shows, from records: curves, ranks, extrapolation tests and sweeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.analysis.ablation import Ablation
from isoflop.analysis.curves import Noise, fit_curves
from isoflop.analysis.granularity import GranularitySweep, granularity_sweeps
from isoflop.analysis.learning_rates import RateSweep, Sensitivity, rate_sweeps, sensitivity
from isoflop.analysis.ranking import Crossing, Standing, crossings, rank
from isoflop.analysis.surface import gather
from isoflop.analysis.surface_holdout import SurfaceHoldOut, hold_out_surface
from isoflop.analysis.surface_multiplier import SurfaceMultipliers, surface_multipliers
from isoflop.analysis.time_multiplier import Place, place_of, speeds, usual_place
from isoflop.results.baseline import LAYER
from isoflop.results.record import Record

MARGIN = 0.1  # a multiplier within 1 +- MARGIN is equivalent to dense


@dataclass(frozen=True)
class Analysis:
    """The results of one suite."""

    records: tuple[Record, ...]
    variants: tuple[str, ...]  # the baseline first, then by name, the candidate last
    budgets: tuple[float, ...]  # FLOPs asked for, increasing
    headline: float  # FLOPs, the budget of the ranking: the largest of any variant but dense ones
    dense: tuple[str, ...]  # all dense variants; the best of them is what others are compared with
    baseline: str | None  # the dense variant that the data say is the best
    highlight: str | None  # the candidate of a comparison; then its largest budget is the headline
    margin: float  # within which a multiplier counts as equivalent to 1
    parabola_noise: Noise
    samples: int  # bootstrap samples
    fits: SurfaceMultipliers
    standings: tuple[Standing, ...]  # best first; those without a rank last
    crossings: tuple[Crossing, ...]
    holdouts: dict[str, SurfaceHoldOut]  # by variant, those with three budgets or more
    granularity_sweeps: tuple[GranularitySweep, ...]
    rate_sweeps: tuple[RateSweep, ...]
    table_sweeps: tuple[RateSweep, ...]  # of the rate of tables over the learning rate
    sensitivity: dict[str, Sensitivity]  # by variant
    place: Place | None  # that trained the most cells: times shown are of this one alone
    choices: Ablation | None  # what one other choice at a time does to the multipliers

    @property
    def dense_name(self) -> str:
        """What the variants are compared with, in words."""
        if len(self.dense) < 2:
            return self.baseline or "a dense model"
        return f"the best dense variant ({self.baseline})"

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

    def timed(self, runs: Sequence[Record]) -> list[Record]:
        """Those of the runs whose times are shown."""
        return [record for record in runs if place_of(record) == self.place]

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
    margin: float = MARGIN,
    samples: int = 1000,
    choices: Ablation | None = None,
) -> Analysis:
    """Fit, compare, rank and test every variant of `records`.

    Args:
        records: of one suite.
        tune: records of its learning-rate sweeps.
        highlight: the candidate, if this is a comparison.
        margin: see `Analysis`.
        samples: number of bootstrap samples.
        choices: an ablation on the same text.

    Raises:
        AnalysisError: the records may not be compared (see `curves.check`).
    """
    curves, noise = fit_curves(records, samples=samples)
    dense = sorted({record.variant for record in records if record.layer == LAYER}, key=_natural)
    # Dense may have been given more, so that its frontier reaches the others' losses.
    names = {record.variant for record in records}
    ranked = names & {highlight} or names - set(dense) or names
    headline = max(record.budget for record in records if record.variant in ranked)
    cells = gather(records)
    fits = surface_multipliers(cells, dense, headline, samples=samples)
    baseline = fits.baseline if fits.baselines else next(iter(dense), None)
    variants = sorted(names, key=lambda name: (name != baseline, name == highlight, _natural(name)))
    by_variant = {
        variant: [curve for curve in curves if curve.variant == variant] for variant in variants
    }
    standings = rank(by_variant, fits, dense, speeds(records, samples), highlight)
    surfaces = fits.fits["floor per variant"]
    holdouts = {
        variant: holdout
        for variant in variants
        if variant in surfaces.surfaces and (holdout := hold_out_surface(surfaces, variant))
    }
    of_laws = surfaces.noise or noise
    sweeps = rate_sweeps(tune, records, of_laws.seed or of_laws.fit, samples)
    sweeps = tuple(sorted(sweeps, key=lambda sweep: sweep.variant == highlight))
    return Analysis(
        records=tuple(records),
        variants=tuple(variants),
        budgets=tuple(sorted({record.budget for record in records})),
        headline=headline,
        dense=tuple(dense),
        baseline=baseline,
        highlight=highlight,
        margin=margin,
        parabola_noise=noise,
        samples=samples if surfaces.noise or noise.degrees else 0,
        fits=fits,
        standings=standings,
        crossings=crossings(standings),
        holdouts=holdouts,
        granularity_sweeps=granularity_sweeps(curves),
        rate_sweeps=sweeps,
        table_sweeps=rate_sweeps(
            tune, records, of_laws.seed or of_laws.fit, samples, of="table_rate"
        ),
        sensitivity=sensitivity(standings, fits, sweeps),
        place=usual_place(records),
        choices=choices,
    )


def _natural(name: str) -> list[tuple[str, int]]:
    """A sort key that puts moe-g4 before moe-g16."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
