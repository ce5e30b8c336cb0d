"""Simulated suites, analysed: what parabolas and surfaces say of multipliers that are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.analysis.curves import fit_curves
from isoflop.analysis.estimate import CENTRAL_95, Array
from isoflop.analysis.frontier import fit_frontier
from isoflop.analysis.ratios import compare
from isoflop.analysis.simulate import retrain
from isoflop.analysis.simulations.truths import Truth
from isoflop.analysis.surface import gather
from isoflop.analysis.surface_headline import choose, parabola_samples
from isoflop.analysis.surface_holdout import hold_out_surface
from isoflop.analysis.surface_multiplier import surface_multipliers
from isoflop.results.record import Record

HELD_OUT_SAMPLES = 200  # of the bootstrap: enough for one interval, and a third of the time


@dataclass(frozen=True)
class Suite:
    """One simulated suite, analysed; arrays have shape (layers, ...) in the order of the names.

    An error is the logarithm of a multiplier less the true one, with the ends of its interval:
    (layers, 3). It is nan where there is no multiplier.
    """

    parabola: Array
    surface: Array
    headline: Array  # whichever of the two is shown
    switched: NDArray[np.bool_]  # (layers,) the parabola is shown
    shared: NDArray[np.bool_]  # (layers,) read with a shared floor
    trusted: NDArray[np.bool_]  # (layers,) the surfaces are
    better: NDArray[np.bool_]  # (1 + layers, 1 + layers), baseline first
    failed: NDArray[np.bool_]  # (1 + layers,) the held-out budget test


def analyse_suite(truth: Truth, random: Sequence[int], samples: int) -> Suite:
    """Simulate a suite and analyse it.

    Args:
        random: the seed.
        samples: bootstrap samples.
    """
    layout, layers = truth.layout, truth.layout.layers
    records = retrain(layout.records, truth.laws, truth.noise, np.random.default_rng(random))
    cells = gather(records)
    fits = surface_multipliers(
        cells, (layout.baseline,), layout.budget, samples=samples, random=int(random[-1])
    )
    surface = {layer: fits.headline(layer) for layer in layers}
    parabola = parabolas(records, layout.baseline, layout.budget, samples)
    paired = parabola_samples(fits.fits["floor per variant"], (layout.baseline,), layout.budget)
    shown = {
        layer: choose(
            surface[layer], parabola.get(layer), paired.get(layer), trusted=fits.trusted(layer)
        )
        for layer in layers
    }
    nothing = np.full(3, np.nan)

    def errors(values: dict[str, Array]) -> Array:
        true = truth.log_multipliers
        return np.stack(
            [_ends(values[layer]) - true[layer] if layer in values else nothing for layer in layers]
        )

    surfaces = fits.fits["floor per variant"]
    tests = [
        hold_out_surface(surfaces, name, HELD_OUT_SAMPLES) for name in (layout.baseline, *layers)
    ]
    rows = np.stack([np.zeros(samples + 1), *(row.log_multiplier for row in shown.values())])
    return Suite(
        parabola=errors(parabola),
        surface=errors(surface),
        headline=errors({layer: row.log_multiplier for layer, row in shown.items()}),
        switched=np.array([shown[layer].source == "parabola" for layer in layers]),
        shared=np.array([fits.forms[layer] == "shared floor" for layer in layers]),
        trusted=np.array([fits.trusted(layer) for layer in layers]),
        better=compare(rows).better,
        failed=np.array([test is not None and test.failed for test in tests]),
    )


def parabolas(
    records: Sequence[Record], baseline: str, budget: float, samples: int
) -> dict[str, Array]:
    """The logarithm of every layer's multiplier from the parabolas, shape (1 + samples,).

    Layers whose minimum at the budget is not trusted have none.
    """
    curves, _ = fit_curves(records, samples=samples)
    dense = [curve for curve in curves if curve.variant == baseline and curve.trusted]
    frontier = fit_frontier(
        np.array([curve.budget for curve in dense]),
        np.stack([curve.parabola.lowest for curve in dense], axis=1)
        if dense
        else np.empty((1 + samples, 0)),
    )
    if not frontier or not frontier.falls:
        return {}
    return {
        curve.variant: np.log(frontier.invert(curve.parabola.lowest) / budget)
        for curve in curves
        if curve.variant != baseline and curve.budget == budget and curve.trusted
    }


def _ends(samples: Array) -> Array:
    """The value and the ends of its interval."""
    return np.array([samples[0], *np.quantile(samples[1:], CENTRAL_95)])


def count(truth: Truth, suites: Iterable[Suite]) -> dict[str, object]:
    """What the simulated suites of one truth come to, as plain numbers."""
    members = list(suites)
    layers = truth.layout.layers
    result: dict[str, object] = {
        "layout": truth.layout.name,
        "seeds": len({record.seed for record in truth.layout.records}),
        "suites": len(members),
        "multipliers": {
            layer: round(float(np.exp(value)), 4) for layer, value in truth.log_multipliers.items()
        },
    }
    for kind in ("parabola", "surface", "headline"):
        errors = np.stack([getattr(suite, kind) for suite in members])  # (suites, layers, 3)
        there = ~np.isnan(errors[..., 0])
        value, low, high = (np.where(there, part, 0) for part in np.moveaxis(errors, -1, 0))
        inside = there & (low <= 0) & (high >= 0)
        total = max(1, there.sum())
        result[kind] = {
            "missing": _round(1 - there.mean()),
            "rmse": _round(np.sqrt((value**2).sum() / total)),
            "bias": _round(value.sum() / total),
            "half_width": _round((high - low).sum() / total / 2),
            "coverage": _round(inside.sum() / total),
            "covered": {
                layer: [int(inside[:, i].sum()), int(there[:, i].sum())]
                for i, layer in enumerate(layers)
            },
        }
    for kind in ("switched", "shared", "trusted"):
        result[kind] = _round(np.mean([getattr(suite, kind) for suite in members]))
    result["failed"] = _round(np.mean([suite.failed for suite in members]))
    return result | {"pairs": _pairs(truth, members)}


def _pairs(truth: Truth, suites: Sequence[Suite]) -> list[dict[str, object]]:
    """How often every pair of variants is told apart, and rightly."""
    names = (truth.layout.baseline, *truth.layout.layers)
    true = np.array([0.0, *truth.log_multipliers.values()])
    better = np.stack([suite.better for suite in suites])
    result: list[dict[str, object]] = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            first, second = (i, j) if true[i] >= true[j] else (j, i)
            result.append(
                {
                    "first": names[first],
                    "second": names[second],
                    "ratio": round(float(np.exp(true[first] - true[second])), 3),
                    "first_better": int(better[:, first, second].sum()),
                    "second_better": int(better[:, second, first].sum()),
                }
            )
    return result


def _round(value: float | np.floating) -> float:
    return round(float(value), 4)
