"""The truths that are simulated: laws of loss whose multipliers are known, and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import brentq

from isoflop.analysis.estimate import Array
from isoflop.analysis.simulate import Law, RunNoise, chinchilla, kaplan, scaled
from isoflop.analysis.simulations.layouts import Layout
from isoflop.analysis.surface import Cells, fit_surfaces, gather

MULTIPLIERS = (1.2, 1.9, 1.5, 1.0)  # of the layers, in the order of their names
RANK_LISTS = {  # multipliers with known ties and ratios
    "1.2x and 1.25x, ties": (1.2, 1.5, 1.5, 1.0),
    "1.2x, 1.25x and 1.2x, a tie": (1.2, 1.8, 1.5, 1.0),
    "all equal": (1.0, 1.0, 1.0, 1.0),
}
SIZES = 2001  # at which a true frontier is searched
BEYOND = 4.0  # the factor outside the trained sizes up to which it is

# Near dense in the published records of `quick`, at whose largest budgets the loss is 2.6 to 2.8.
QUICK = (1.98, 130.0, 0.49, 3050.0, 0.66)
QUICK_LAW = chinchilla(*QUICK)
QUICK_MIDDLE = (11.26, 13.91)  # log N and log D where a layer's own exponents leave the loss alone
QUICK_KAPLAN = (18.06, 16.80, 0.139, 0.254)
PAPER_LAW = chinchilla(1.69, 406.4, 0.34, 410.7, 0.28)  # arXiv 2203.15556, approach 3

ALL_NOISE = {"by_budget": 0.7, "by_size": 0.3, "correlation": 0.2}


@dataclass(frozen=True)
class Truth:
    """One law per variant, with the multipliers that follow from it."""

    name: str
    layout: Layout
    laws: Mapping[str, Law]
    noise: RunNoise = field(default_factory=RunNoise)
    multipliers: Sequence[float] = MULTIPLIERS

    @property
    def log_multipliers(self) -> dict[str, float]:
        """The true logarithm of every layer's multiplier at the budget of the ranking."""
        return dict(zip(self.layout.layers, np.log(self.multipliers), strict=False))


def frontier(law: Law, cells: Cells, log_compute: float) -> float:
    """The lowest loss at a compute, over all sizes."""
    ends = cells.log_size[0] - np.log(BEYOND), cells.log_size[-1] + np.log(BEYOND)
    log_n = np.linspace(*ends, SIZES)
    return float(law(log_n, log_compute - cells.cost(log_n)).min())


def calibrated(
    layout: Layout,
    dense: Law,
    make: Callable[[int, Cells, float], Law],
    multipliers: Sequence[float] = MULTIPLIERS,
) -> dict[str, Law]:
    """The laws of all variants, such that every layer's multiplier is exact.

    Args:
        make: from a layer's index, its cells and a scale of N D to its law. The scale is the
            multiplier where the layer has the costs of the baseline and nothing else of its own.
        multipliers: of the layers at the budget of the ranking.
    """
    cells = gather(layout.records)
    log_c, baseline = float(np.log(layout.budget)), cells[layout.baseline]
    laws = {layout.baseline: dense}
    for index, (layer, wanted) in enumerate(zip(layout.layers, multipliers, strict=False)):
        target = frontier(dense, baseline, log_c + float(np.log(wanted)))

        def excess(
            log_scale: float, index: int = index, layer: str = layer, target: float = target
        ) -> float:
            law = make(index, cells[layer], float(np.exp(log_scale)))
            return frontier(law, cells[layer], log_c) - target

        scale = float(np.exp(brentq(excess, -3, 4, xtol=1e-9)))
        laws[layer] = make(index, cells[layer], scale)
    return laws


def scaled_layers(
    layout: Layout,
    law: Callable[[int], Law],
    *,
    growth: float = 0.0,
    shift: float = 1.0,
    floor: float = 0.0,
) -> Callable[[int, Cells, float], Law]:
    """Layers with a law of their own, a multiplier that grows as C^growth, a best size shifted by
    a factor and a floor higher by some nats, the last two up and down in turns."""

    def make(index: int, cells: Cells, scale: float) -> Law:
        sign = 1 if index % 2 == 0 else -1

        def log_multiplier(log_c: Array) -> Array:
            return np.log(scale) + growth * (log_c - np.log(layout.budget))

        base = scaled(law(index), cells.cost, log_multiplier, shift**sign)
        return lambda log_n, log_d: base(log_n, log_d) + sign * floor

    return make


def _own_exponents(index: int) -> Law:
    """The law of `quick` with exponents of a layer's own, and the same loss at the middle."""
    (n, d), (floor, a, alpha, b, beta) = QUICK_MIDDLE, QUICK
    own_alpha = alpha * (1.2, 0.85, 1.2, 0.85)[index]
    own_beta = beta * (0.85, 0.85, 1.2, 1.2)[index]
    own_a, own_b = a * np.exp((own_alpha - alpha) * n), b * np.exp((own_beta - beta) * d)
    return chinchilla(floor, float(own_a), own_alpha, float(own_b), own_beta)


def _own_kaplan(index: int) -> Law:
    """Kaplan's form of `quick` with a layer's own exponent, and the same loss at the middle."""
    log_n_c, log_d_c, alpha_n, alpha_d = QUICK_KAPLAN
    factor = (1.1, 0.9, 0.9, 1.1)[index]
    middle = QUICK_MIDDLE[0]
    return kaplan(middle + (log_n_c - middle) / factor, log_d_c, factor * alpha_n, alpha_d)


def quick_truths(layout: Layout) -> list[Truth]:
    """The truths of the suite `quick`."""
    base, other = QUICK_LAW, kaplan(*QUICK_KAPLAN)

    def truth(
        name: str,
        noise: RunNoise | None = None,
        dense: Law = base,
        law: Callable[[int], Law] | None = None,
        **changes: float,
    ) -> Truth:
        make = scaled_layers(layout, law or (lambda index: dense), **changes)
        return Truth(name, layout, calibrated(layout, dense, make), noise or RunNoise())

    return [
        truth("exact"),
        truth("optimum shifted", shift=1.5),
        truth("growing multiplier", growth=0.2),
        truth("own exponents", law=_own_exponents),
        truth("own floor", floor=0.1),
        truth("Kaplan's form", dense=other),
        truth("noise by size and budget", RunNoise(**ALL_NOISE)),
        truth("cells off the law", RunNoise(off_law=0.015)),
        truth("one bad cell", RunNoise(bad=0.15)),
        truth(
            "all of these",
            RunNoise(off_law=0.015, bad=0.15, **ALL_NOISE),
            dense=other,
            law=_own_kaplan,
            growth=0.2,
            shift=1.5,
            floor=0.1,
        ),
        _stored(layout),
    ]


def _stored(layout: Layout) -> Truth:
    """The surfaces and the noise fitted to the published records."""
    fits = fit_surfaces(gather(layout.records), samples=0)
    laws: dict[str, Law] = {
        variant: chinchilla(
            float(surface.floor[0]),
            float(surface.coefficients[0, 0]),
            float(surface.exponents[0, 0]),
            float(surface.coefficients[0, 1]),
            float(surface.exponents[0, 1]),
        )
        for variant, surface in fits.surfaces.items()
    }
    cells, log_c = gather(layout.records), float(np.log(layout.budget))
    dense = laws[layout.baseline]
    multipliers = []
    for layer in layout.layers:
        loss = frontier(laws[layer], cells[layer], log_c)

        def excess(log_multiplier: float, loss: float = loss) -> float:
            return frontier(dense, cells[layout.baseline], log_c + log_multiplier) - loss

        multipliers.append(float(np.exp(brentq(excess, -3, 3, xtol=1e-9))))
    assert fits.noise
    noise = RunNoise(deviation=fits.noise.fit, by_budget=fits.noise.slope)
    return Truth("fitted to the records", layout, laws, noise, multipliers)


def layout_truths(seeds: Layout, incomplete: Layout) -> list[Truth]:
    """The base truth with several seeds, and with cells that did not finish."""
    make = scaled_layers(seeds, lambda index: QUICK_LAW)
    laws = calibrated(seeds, QUICK_LAW, make)
    off = RunNoise(off_law=0.015)
    return [
        Truth("three seeds, cells off the law", seeds, laws, off),
        Truth("a cell missing in every layer", incomplete, laws, RunNoise()),
    ]


def paper_truths(layout: Layout) -> list[Truth]:
    """The truths of the suite `paper`, whose two budgets do not reach a multiplier of 2.5."""
    multipliers = (2.5, 2.5, 2.5)

    def truth(name: str, floor: float) -> Truth:
        make = scaled_layers(layout, lambda index: PAPER_LAW, floor=floor)
        laws = calibrated(layout, PAPER_LAW, make, multipliers)
        return Truth(name, layout, laws, RunNoise(deviation=0.005), multipliers)

    return [truth("paper, 2.5x", 0.0), truth("paper, 2.5x, own floor", 0.06)]


def rank_truths(layout: Layout) -> list[Truth]:
    """Lists with known ties and ratios, in the layout of `quick`."""
    return [
        Truth(
            name,
            layout,
            calibrated(
                layout, QUICK_LAW, scaled_layers(layout, lambda index: QUICK_LAW), multipliers
            ),
            multipliers=multipliers,
        )
        for name, multipliers in RANK_LISTS.items()
    ]
