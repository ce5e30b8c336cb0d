"""One law of loss for all cells of a variant, L(N, D) = E + A N^-alpha + B D^-beta.

This is approach 3 of Chinchilla (arXiv 2203.15556, section 3.3) by least squares, for every variant
of a suite at once. N is the active parameters, D the tokens that the cell was really trained on.
The noise is pooled over the variants (see `surface_noise`), and every cell is weighted by it. The
floor E is a variant's own, or one for all variants.

A sample of the bootstrap adds resampled, standardised residuals, scaled to the noise, to the fitted
losses; it is fitted like the data. Sample 0 is the data.

The frontier at compute C is the minimum of the law over N, where D = C / f(N): f is the variant's
own training FLOPs per token, so that attention, head and routing count. It is interpolated in log N
between the sizes, and continued up to a factor 2 beyond them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.surface_noise import SurfaceNoise, pooled_noise
from isoflop.analysis.surface_solver import EXPONENTS, TERMS, Group, Solution, solve
from isoflop.results.record import Record

Form = Literal["floor per variant", "shared floor"]
Status = Literal["ok", "no floor", "bound", "flat", "not converged"]
EXPLAIN: dict[Status, str] = {
    "ok": "converged inside all bounds",
    "no floor": "the best floor is 0: the cells do not show an irreducible loss",
    "bound": "an exponent is at the bound of what is searched",
    "flat": "the loss does not fall with parameters, or does not fall with tokens",
    "not converged": "the fit did not converge, or over 1% of its bootstrap samples did not",
}
LEAST_CELLS, LEAST_SIZES, LEAST_BUDGETS = 6, 3, 2  # five parameters, and one cell to check them
BEYOND = 2.0  # the frontier may use sizes up to this factor outside the trained ones
SIZES = 97  # sizes at which the frontier is searched
ROUNDS = 3  # of estimating the noise and fitting with its weights
LEAST_CONVERGED = 0.99


@dataclass(frozen=True)
class Cells:
    """The finished cells of one variant, means over seeds; arrays (cells,) by budget, then size."""

    variant: str
    budget: Array  # FLOPs asked for
    log_n: Array  # natural logarithm of active parameters
    log_d: Array  # natural logarithm of the tokens trained on
    loss: Array  # nats per token
    seeds: Array  # finished runs of the cell
    between_seeds: Array  # sum of squared differences from the cell's mean loss
    log_size: Array  # (sizes,) log_n of every size, increasing
    log_cost: Array  # (sizes,) natural logarithm of training FLOPs per token

    @property
    def why_unfitted(self) -> str:
        """Why there are too few cells for a law; empty if there are enough."""
        for count, least, what in (
            (len(self.loss), LEAST_CELLS, "finished cell"),
            (len(self.log_size), LEAST_SIZES, "size"),
            (len(np.unique(self.budget)), LEAST_BUDGETS, "budget"),
        ):
            if count < least:
                return f"{count} {what}{'s' * (count != 1)}; a surface needs {least}"
        return ""

    def cost(self, log_n: Array) -> Array:
        """Natural logarithm of training FLOPs per token at any sizes, continued as straight
        lines."""
        slope = np.diff(self.log_cost) / np.diff(self.log_size)
        segment = np.searchsorted(self.log_size[1:-1], log_n)
        return self.log_cost[segment] + slope[segment] * (log_n - self.log_size[segment])

    def where(self, chosen: Array) -> Cells:
        """Those cells alone; the costs of all sizes are kept."""
        fields = ("budget", "log_n", "log_d", "loss", "seeds", "between_seeds")
        return replace(self, **{field: getattr(self, field)[chosen] for field in fields})


def gather(records: Sequence[Record]) -> dict[str, Cells]:
    """The cells of every variant that has a finished one."""
    groups: dict[str, dict[tuple[float, int], list[Record]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        if record.status == "finished":
            groups[record.variant][record.budget, record.parameters.active].append(record)
    return {variant: _cells(variant, groups[variant]) for variant in sorted(groups)}


def _cells(variant: str, groups: Mapping[tuple[float, int], Sequence[Record]]) -> Cells:
    keys = sorted(groups)
    losses = [np.array([record.loss for record in groups[key]], dtype=float) for key in keys]
    costs: dict[int, list[float]] = defaultdict(list)
    for _, active in keys:
        costs[active] = []
    for (_, active), members in groups.items():
        costs[active] += [record.flops / record.tokens for record in members]
    sizes = sorted(costs)
    return Cells(
        variant=variant,
        budget=np.array([budget for budget, _ in keys]),
        log_n=np.log([active for _, active in keys]),
        log_d=np.log([np.mean([record.tokens for record in groups[key]]) for key in keys]),
        loss=np.array([loss.mean() for loss in losses]),
        seeds=np.array([len(loss) for loss in losses], dtype=float),
        between_seeds=np.array([((loss - loss.mean()) ** 2).sum() for loss in losses]),
        log_size=np.log(sizes),
        log_cost=np.log([np.mean(costs[size]) for size in sizes]),
    )


@dataclass(frozen=True)
class Surface:
    """The fitted law of one variant; arrays have shape (1 + samples, ...), the data's fit first."""

    cells: Cells
    floor: Array  # E, nats
    terms: Array  # (1 + samples, 2) A N^-alpha and B D^-beta at the middle of the cells, nats
    exponents: Array  # (1 + samples, 2) alpha and beta
    status: Status
    losses: Array  # (1 + samples, cells) that it was fitted to

    @classmethod
    def from_solution(cls, cells: Cells, solution: Solution, index: int, losses: Array) -> Surface:
        """The surface of the variant that is number `index` of a solution's group."""
        terms = np.exp(solution.log_terms[:, index])
        exponents = solution.exponents[:, index]
        low, high = EXPONENTS
        status: Status = "ok"
        if not solution.converged[0] or solution.converged.mean() < LEAST_CONVERGED:
            status = "not converged"
        elif (terms[0] <= TERMS[0] * 1e3).any():
            status = "flat"
        elif exponents[0].min() <= low * 1.01 or exponents[0].max() >= high / 1.01:
            status = "bound"
        elif solution.floor[0] <= 0:
            status = "no floor"
        return cls(cells, solution.floor, terms, exponents, status, losses)

    @property
    def trusted(self) -> bool:
        """Whether the fit may be used without a mark."""
        return self.status in ("ok", "no floor")

    @property
    def coefficients(self) -> Array:
        """A and B, shape (1 + samples, 2)."""
        middle = np.array([self.cells.log_n.mean(), self.cells.log_d.mean()])
        return self.terms * np.exp(self.exponents * middle)

    def predict(self, log_n: Array, log_d: Array) -> Array:
        """Loss at logarithms of parameters and tokens, shape (1 + samples, len(log_n))."""
        n, d = log_n - self.cells.log_n.mean(), log_d - self.cells.log_d.mean()
        powers = np.exp(-self.exponents[:, :1] * n), np.exp(-self.exponents[:, 1:] * d)
        return self.floor[:, None] + self.terms[:, :1] * powers[0] + self.terms[:, 1:] * powers[1]

    def frontier(self, log_compute: Array) -> tuple[Array, Array]:
        """The lowest loss at every compute and the log of the size that has it.

        Args:
            log_compute: natural logarithm of FLOPs, shape (points,).
        Returns:
            Two arrays of shape (1 + samples, points).
        """
        cells = self.cells
        low, high = cells.log_size[0] - np.log(BEYOND), cells.log_size[-1] + np.log(BEYOND)
        log_n = np.linspace(low, high, SIZES)
        alpha, beta = self.exponents[:, :1], self.exponents[:, 1:]
        of_n = self.terms[:, :1] * np.exp(-alpha * (log_n - cells.log_n.mean()))
        per_token = self.terms[:, 1:] * np.exp(beta * (cells.cost(log_n) + cells.log_d.mean()))
        loss, size = np.empty((2, len(self.floor), len(log_compute)))
        every, step = np.arange(len(self.floor)), log_n[1] - log_n[0]
        for point, log_c in enumerate(log_compute):
            curve = of_n + np.exp(-beta * log_c) * per_token
            lowest = curve.argmin(axis=1)
            inside = np.clip(lowest, 1, SIZES - 2)
            left, middle, right = (curve[every, inside + shift] for shift in (-1, 0, 1))
            # a parabola through the lowest size and its neighbours; none at the ends of the range
            bend = np.where(lowest == inside, left - 2 * middle + right, np.inf)
            moved = (left - right) / (2 * bend)
            size[:, point] = log_n[lowest] + step * moved
            loss[:, point] = curve[every, lowest] - (left - right) * moved / 4
        return loss + self.floor[:, None], size


@dataclass(frozen=True)
class Surfaces:
    """The surfaces of all variants of a suite, with one noise."""

    form: Form
    surfaces: dict[str, Surface]  # by variant
    unfitted: dict[str, str]  # why a variant has no surface
    noise: SurfaceNoise | None  # None if no variant has a surface
    samples: int


def fit_surfaces(
    cells: Mapping[str, Cells],
    form: Form = "floor per variant",
    *,
    samples: int = 1000,
    random: int = 0,
    doubtful: Collection[str] = (),
) -> Surfaces:
    """Fit the law to every variant that has cells enough.

    Args:
        cells: by variant, see `gather`.
        form: whether the variants share the floor E.
        samples: bootstrap samples.
        random: the seed of the bootstrap. Both forms, fitted with the same seed, have the same
            errors in sample i.
        doubtful: variants whose residuals say nothing of the others' noise.
    """
    unfitted = {name: part.why_unfitted for name, part in cells.items() if part.why_unfitted}
    fitted = [part for name, part in cells.items() if name not in unfitted]
    if not fitted:
        return Surfaces(form, {}, unfitted, None, 0)
    members = [fitted] if form == "shared floor" else [[part] for part in fitted]
    budget, seeds, between, loss = (
        np.concatenate([getattr(part, field) for part in fitted])
        for field in ("budget", "seeds", "between_seeds", "loss")
    )
    ends = np.cumsum([sum(len(part.loss) for part in group) for group in members])[:-1]
    pooled = np.concatenate([np.full(len(p.loss), p.variant not in doubtful) for p in fitted])
    kept = np.split(pooled, ends)
    deviation = np.ones_like(loss)
    for _ in range(ROUNDS):
        groups = [
            cells_group(group, 1 / part)
            for group, part in zip(members, np.split(deviation, ends), strict=True)
        ]
        solutions = [
            solve(group, part[None])
            for group, part in zip(groups, np.split(loss, ends), strict=True)
        ]
        lawful = np.concatenate([solution.fitted() for solution in solutions])
        hats = [
            solution.hat()[np.ix_(part, part)]
            for solution, part in zip(solutions, kept, strict=True)
            if part.any()
        ]
        noise = pooled_noise(
            (loss - lawful)[pooled], hats, budget[pooled], seeds[pooled], between[pooled]
        )
        deviation = noise.deviation(budget, seeds)
    errors = noise.errors(budget, seeds, samples, np.random.default_rng(random))
    losses = np.vstack([loss, lawful + errors])
    surfaces = {}
    for parts, group, members_losses in zip(
        members, groups, np.split(losses, ends, axis=1), strict=True
    ):
        solution = solve(group, members_losses)
        for index, part in enumerate(parts):
            mine = members_losses[:, group.variant == index]
            surfaces[part.variant] = Surface.from_solution(part, solution, index, mine)
    return Surfaces(form, surfaces, unfitted, noise, samples)


def cells_group(members: Sequence[Cells], weight: Array) -> Group:
    """The cells of variants with one floor, for the solver; weights in the order of the cells."""
    return Group(
        log_n=np.concatenate([part.log_n - part.log_n.mean() for part in members]),
        log_d=np.concatenate([part.log_d - part.log_d.mean() for part in members]),
        variant=np.repeat(np.arange(len(members)), [len(part.loss) for part in members]),
        weight=weight,
    )
