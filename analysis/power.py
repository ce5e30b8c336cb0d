"""How precise a multiplier will be before its cells are trained, and what would make it more so.

The variance of the logarithm of the multiplier follows from the layout of the cells, an assumed law
and an assumed noise: the covariance of the least-squares parameters of two surfaces (see
`surface`), carried through the frontiers to first order. Both variants are assumed to follow one
law, so that their multiplier is 1; for multipliers up to 2 the width is about the same.

After training, `seeds_to_settle` says how many more seeds would decide a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import fdtri, ndtr, ndtri, stdtrit

from isoflop.analysis.estimate import Array
from isoflop.analysis.surface import Cells, Surface, fit_surfaces, gather
from isoflop.analysis.surface_multiplier import BaselineFrontier
from isoflop.analysis.surface_noise import SurfaceNoise
from isoflop.results.baseline import LAYER
from isoflop.results.record import Record

LEVEL, POWER = 0.05, 0.80
WANTED = float(ndtri(1 - LEVEL / 2) + ndtri(POWER))  # standard deviations from 1 that resolve
PARAMETERS, STEP = 5, 1e-3  # of a surface; by which their logarithms are moved for derivatives
MOST_SEEDS = 200


@dataclass(frozen=True)
class Assumed:
    """The law and the noise of cells that are not trained yet."""

    fit: float = 0.0  # nats, departure of a cell from its law that no seed removes
    seed: float = 0.024  # nats, standard deviation between seeds
    slope: float = 0.0  # of -log(standard deviation) in log(budget)
    alpha: float = 0.34  # arXiv 2203.15556, approach 3
    beta: float = 0.28
    reducible: float = 1.0  # nats, loss above the floor at the middle size and budget


def assumed_from(records: Sequence[Record]) -> Assumed | None:
    """The law of the dense variant and the noise of finished records; None if they give none."""
    cells = gather(records)
    fits = fit_surfaces(cells, samples=0)
    dense = {record.variant for record in records if record.layer == LAYER} & fits.surfaces.keys()
    if not dense or not fits.noise:
        return None
    surface = fits.surfaces[max(dense, key=lambda name: (len(cells[name].loss), name))]
    if not surface.trusted:
        return None
    alpha, beta = surface.exponents[0]
    budget = np.array([np.median(surface.cells.budget)])
    scale = float(
        fits.noise.deviation(budget, np.ones(1))[0] / np.hypot(fits.noise.fit, fits.noise.seed)
    )
    several = fits.noise.seed > 0  # with one seed per cell, the noise may all be that of seeds
    return Assumed(
        fit=scale * fits.noise.fit if several else 0.0,
        seed=scale * (fits.noise.seed if several else fits.noise.fit),
        slope=fits.noise.slope,
        alpha=float(alpha),
        beta=float(beta),
        reducible=float(surface.terms[0].sum()),
    )


@dataclass(frozen=True)
class Resolution:
    """What a layout resolves."""

    deviation: float  # standard deviation of the logarithm of the multiplier
    degrees: float  # of freedom that the noise will be known with

    @property
    def half_width(self) -> float:
        """Of the 95% interval of the logarithm."""
        return float(stdtrit(self.degrees, 1 - LEVEL / 2) * self.deviation)

    @property
    def smallest_ratio(self) -> float:
        """The smallest multiplier over 1 that will be told from 1 with 80% power."""
        shift = stdtrit(self.degrees, POWER) * self.deviation
        return float(np.exp(self.half_width + shift))


@dataclass(frozen=True)
class Purchase:
    """An addition to a layout."""

    what: str
    flops: float  # that all variants would need for it
    resolution: Resolution


@dataclass(frozen=True)
class Seeds:
    """Further seeds of every cell of the two sides."""

    baseline: int
    variant: int
    flops: float  # of all their runs


def planned_cells(
    variant: str, budget: Array, active: Array, tokens: Array, flops_per_token: Array, seeds: Array
) -> Cells:
    """Cells before their training; one entry per size and budget.

    Args:
        budget: FLOPs.
        active: parameters that a token multiplies.
        tokens: to train on.
        flops_per_token: of training.
        seeds: of each cell.
    """
    order = np.lexsort((active, budget))
    sizes, first = np.unique(active, return_index=True)
    return Cells(
        variant=variant,
        budget=budget[order],
        log_n=np.log(active[order]),
        log_d=np.log(tokens[order]),
        loss=np.zeros(len(order)),
        seeds=seeds[order].astype(float),
        between_seeds=np.zeros(len(order)),
        log_size=np.log(sizes),
        log_cost=np.log(flops_per_token[first]),
    )


def resolution(
    cells: Mapping[str, Cells], baseline: str, variant: str, budget: float, assumed: Assumed
) -> Resolution:
    """The precision of a variant's multiplier.

    Args:
        cells: of all variants, which share the noise.
        baseline: the dense variant.
        variant: another one.
        budget: FLOPs of the ranking.
        assumed: law and noise.
    """
    dense, layer = (
        _assumed_surface(cells[name], cells[baseline], assumed) for name in (baseline, variant)
    )
    log_c = np.log([budget])
    (dense_loss, _), (layer_loss, _) = dense.frontier(log_c), layer.frontier(log_c)
    of_layer = BaselineFrontier(dense).invert(layer_loss, sample=0)[:, 0]
    of_dense = BaselineFrontier(dense).invert(np.repeat(dense_loss[:1], len(dense_loss), 0))[:, 0]
    variance = sum(
        _variance(surface, log_multiplier, assumed)
        for surface, log_multiplier in ((dense, of_dense), (layer, of_layer))
    )
    degrees = sum(len(part.loss) - PARAMETERS for part in cells.values() if not part.why_unfitted)
    if not assumed.fit:
        degrees += sum(int((part.seeds - 1).sum()) for part in cells.values())
    return Resolution(float(np.sqrt(variance)), max(1, degrees))


def purchases(
    cells: Mapping[str, Cells], baseline: str, variant: str, budget: float, assumed: Assumed
) -> list[Purchase]:
    """What one more seed, size or budget of every variant would buy, and at which price."""
    options = {
        "one more seed": {
            name: replace(part, seeds=part.seeds + 1) for name, part in cells.items()
        },
        "one more size": {name: _with_size(part) for name, part in cells.items()},
        "one larger budget": {name: _with_budget(part) for name, part in cells.items()},
    }
    now = sum(float((part.budget * part.seeds).sum()) for part in cells.values())
    return [
        Purchase(
            what,
            sum(float((part.budget * part.seeds).sum()) for part in changed.values()) - now,
            resolution(changed, baseline, variant, budget, assumed),
        )
        for what, changed in options.items()
    ]


def seeds_to_settle(
    log_multiplier: float,
    variances: tuple[float, float],
    seeds: tuple[float, float],
    flops: tuple[float, float],
    lasting: float = 0.0,
    margin: float = 0.0,
) -> Seeds | None:
    """The cheapest further seeds that settle a comparison with 80% power, if the estimate is the
    truth: they tell the multiplier from 1, or show that it lies within the margin.

    Args:
        log_multiplier: natural logarithm of the estimate.
        variances: of that logarithm, by the noise of the baseline's cells and of the variant's;
            see `SurfaceMultipliers.variance_by_side`.
        seeds: of each side now.
        flops: of one seed of all cells of each side.
        lasting: the share of both variances that no seed removes, see `lasting_share`.
        margin: a multiplier within 1 +- margin is equivalent to 1.
    Returns:
        None if no number of seeds up to MOST_SEEDS would do.
    """
    wanted = max((log_multiplier / WANTED) ** 2, _equivalence_variance(log_multiplier, margin))
    more = np.arange(MOST_SEEDS + 1)
    of_baseline, of_variant = (
        variance * (lasting + (1 - lasting) * now / (now + more))
        for variance, now in zip(variances, seeds, strict=True)
    )
    enough = of_baseline[:, None] + of_variant <= wanted
    enough[0, 0] = False  # what is there has not settled it
    if not enough.any():
        return None
    cost = np.where(enough, more[:, None] * flops[0] + more * flops[1], np.inf)
    baseline, variant = np.unravel_index(cost.argmin(), cost.shape)
    return Seeds(int(baseline), int(variant), float(cost.min()))


def _equivalence_variance(log_multiplier: float, margin: float) -> float:
    """The largest variance with which 80% of the intervals lie within the margin; 0 if none."""
    ends = (np.log(1 - margin) - log_multiplier, np.log(1 + margin) - log_multiplier)
    if not ends[0] < 0 < ends[1]:
        return 0.0
    deviation = np.geomspace(1e-4, 1, 400) * min(-ends[0], ends[1])
    half = ndtri(1 - LEVEL / 2)
    power = ndtr(ends[1] / deviation - half) - ndtr(ends[0] / deviation + half)
    return float(deviation[power >= POWER].max(initial=0.0)) ** 2


def lasting_share(noise: SurfaceNoise, seeds: float, between: int) -> float:
    """The share of a cell's variance that no seed removes, at the lower end of its 95% interval.

    It is 0 where no cell has two seeds: then nothing says that the noise is not that of seeds.

    Args:
        noise: of the surfaces.
        seeds: of each cell.
        between: degrees of freedom between seeds, the number of runs less that of cells.
    """
    if not between or not noise.seed:
        return 0.0
    ratio = 1 + seeds * (noise.fit / noise.seed) ** 2
    limit = float(fdtri(noise.degrees, between, 1 - LEVEL))
    return max(0.0, 1 - limit / ratio)


def _assumed_surface(cells: Cells, baseline: Cells, assumed: Assumed) -> Surface:
    """The assumed law at a variant's cells: sample 0, then each parameter moved up and down.

    The middle size of the baseline is best at its middle budget.
    """
    alpha, beta = assumed.alpha, assumed.beta
    middle = float(baseline.log_size.mean())
    cost = baseline.cost(np.array([middle - 0.05, middle, middle + 0.05]))
    slope = (cost[2] - cost[0]) / 0.1
    log_d = float(np.log(np.unique(baseline.budget)).mean() - cost[1])
    share = beta * slope / (alpha + beta * slope)  # of the term in N, where N is best
    log_a = np.log(assumed.reducible * share) - alpha * (cells.log_n.mean() - middle)
    log_b = np.log(assumed.reducible * (1 - share)) - beta * (cells.log_d.mean() - log_d)
    floor = 1.0  # in nats; no effect on any width
    theta = np.array([floor, log_a, log_b, np.log(alpha), np.log(beta)])
    moved = STEP * np.eye(PARAMETERS)
    rows = np.vstack([theta, theta + moved, theta - moved])
    return Surface(
        cells, rows[:, 0], np.exp(rows[:, 1:3]), np.exp(rows[:, 3:]), "ok", np.zeros((0, 0))
    )


def _variance(surface: Surface, log_multiplier: Array, assumed: Assumed) -> float:
    """Variance of a logarithm of the multiplier, given for every row of `_assumed_surface`."""
    cells = surface.cells
    losses = surface.predict(cells.log_n, cells.log_d)
    jacobian = (losses[1 : 1 + PARAMETERS] - losses[1 + PARAMETERS :]) / (2 * STEP)
    gradient = (log_multiplier[1 : 1 + PARAMETERS] - log_multiplier[1 + PARAMETERS :]) / (2 * STEP)
    deviation = np.sqrt(assumed.fit**2 + assumed.seed**2 / cells.seeds)
    deviation = deviation * (cells.budget / np.median(cells.budget)) ** -assumed.slope
    weighted = jacobian / deviation
    return float(gradient @ np.linalg.pinv(weighted @ weighted.T, hermitian=True) @ gradient)


def _with_size(cells: Cells) -> Cells:
    """One size more at every budget, in the middle of the largest gap between sizes."""
    gap = int(np.diff(cells.log_size).argmax())
    size = float(cells.log_size[gap : gap + 2].mean())
    budgets, first = np.unique(cells.budget, return_index=True)
    return _with_cells(cells, budgets, np.full(len(budgets), size), cells.seeds[first])


def _with_budget(cells: Cells) -> Cells:
    """One budget more, with the sizes of the largest, as far above it as the one below is."""
    budgets = np.unique(cells.budget)
    largest = cells.budget == budgets[-1]
    above = budgets[-1] ** 2 / budgets[-2] if len(budgets) > 1 else 2 * budgets[-1]
    sizes = cells.log_n[largest]
    return _with_cells(cells, np.full(len(sizes), above), sizes, cells.seeds[largest])


def _with_cells(cells: Cells, budget: Array, log_n: Array, seeds: Array) -> Cells:
    cost = cells.cost(log_n)
    sizes, first = np.unique([*cells.log_size, *log_n], return_index=True)
    return replace(
        cells,
        budget=np.concatenate([cells.budget, budget]),
        log_n=np.concatenate([cells.log_n, log_n]),
        log_d=np.concatenate([cells.log_d, np.log(budget) - cost]),
        loss=np.zeros(len(cells.loss) + len(budget)),
        seeds=np.concatenate([cells.seeds, seeds]),
        between_seeds=np.zeros(len(cells.loss) + len(budget)),
        log_size=sizes,
        log_cost=np.concatenate([cells.log_cost, cost])[first],
    )
