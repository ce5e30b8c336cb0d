"""The charts of what was swept beside the suite's variants: granularity and learning rate."""

from __future__ import annotations

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.estimate import Estimate
from isoflop.analysis.granularity import GranularitySweep
from isoflop.analysis.learning_rates import RateSweep
from isoflop.analysis.report.format import flops, interval
from isoflop.analysis.report.multiples import baseline_key, per_variant
from isoflop.analysis.report.spec import (
    STEPS,
    Chart,
    Key,
    Series,
    axis,
    extent,
    line,
    number,
    panel,
    points,
)
from isoflop.analysis.report.style import shades


def granularity(analysis: Analysis) -> Chart | None:
    """Loss against granularity above each budget's lowest: panels by layer, shades by budget."""
    sweeps = analysis.granularity_sweeps
    if not sweeps:
        return None
    strength = shades(analysis)
    layers: dict[str, list[Series]] = {sweep.layer: [] for sweep in sweeps}
    for sweep in sweeps:
        layers[sweep.layer] += _sweep_series(sweep, strength[sweep.budget])
    for sweep in sweeps:  # on top of all shades
        for value, curve in zip(sweep.values, sweep.curves, strict=True):
            if curve.variant == analysis.highlight:
                above = curve.parabola.loss.value - sweep.losses.min()
                layers[sweep.layer].append(points(curve.variant, [value], [above]))
    series = [item for items in layers.values() for item in items]
    loss_axis = axis("loss above the lowest (nats/token)", extent(series, "y"), number)
    keys = tuple(_sweep_key(sweep, strength[sweep.budget], len(layers)) for sweep in sweeps)
    return Chart(
        "granularity", "Granularity",
        "Loss of the optimum above the lowest of each budget, against granularity G (stronger "
        "colour: more FLOPs). Diamonds mark the best G where it lies inside what was tried; the "
        "other fits are dashed.",
        axis("granularity G", extent(series, "x"), "{:g}".format, log=True,
             ticks=sorted({float(value) for sweep in sweeps for value in sweep.values})),
        tuple(panel(loss_axis, items, layer) for layer, items in layers.items()),
        keys, "FLOPs: best G",
    )  # fmt: skip


def _sweep_key(sweep: GranularitySweep, strength: float, layers: int) -> Key:
    label, trusted = flops(sweep.budget), sweep.parabola.status == "ok"
    if layers > 1:
        label = f"{sweep.layer}, {label}"
    if trusted:
        label += f": {interval(sweep.parabola.at, '.2g')}"
    return Key(label, strength=strength, hollow=not trusted)


def _sweep_series(sweep: GranularitySweep, strength: float) -> list[Series]:
    """One sweep, which belongs to no variant."""
    fit, lowest, trusted = sweep.parabola, sweep.losses.min(), sweep.parabola.status == "ok"
    name = f"{sweep.layer} at {flops(sweep.budget)} FLOPs"
    grid = np.linspace(fit.log_x[0], fit.log_x[-1], STEPS)
    values = [Estimate(*(end - lowest for end in curve.parabola.loss)) for curve in sweep.curves]
    texts = [
        [name, f"{curve.variant}: loss {interval(curve.parabola.loss, '.3f')}"]
        for curve in sweep.curves
    ]
    series = [
        line(None, np.exp(grid), fit(grid) - lowest, strength=strength, dashed=not trusted),
        points(None, sweep.values, values, texts, strength=strength),
    ]
    if trusted:
        text = [name, f"best G {interval(fit.at, '.3g')}"]
        height = fit.loss.value - lowest
        best = points(None, [fit.at], [height], [text], strength=strength, marker="diamond")
        series.append(best)
    return series


def learning_rate(analysis: Analysis) -> Chart | None:
    """Every learning-rate sweep as loss above its lowest."""
    place = {variant: at for at, variant in enumerate(analysis.variants)}
    sweeps = [sweep for sweep in analysis.rate_sweeps if np.isfinite(sweep.losses).any()]
    sweeps.sort(key=lambda sweep: place.get(sweep.variant, -1))
    if not sweeps:
        return None
    shown: dict[str, list[Series]] = {sweep.variant: [] for sweep in sweeps}
    for sweep in sweeps:
        several = sum(other.variant == sweep.variant for other in sweeps) > 1
        shown[sweep.variant] += _rate_series(sweep, sweep.size.name if several else "")
    series = [item for items in shown.values() for item in items]
    loss_axis = axis("loss above the lowest (nats/token)", extent(series, "y"), number)
    for sweep in sweeps:
        for rate in sweep.rates[~np.isfinite(sweep.losses)]:
            ends = [loss_axis.low, loss_axis.high]
            lost = line(sweep.variant, [rate] * 2, ends, strength=0.5, dashed=True)
            shown[sweep.variant].insert(0, lost)
    rates = sorted({float(rate) for sweep in sweeps for rate in sweep.rates})
    cells = dict.fromkeys(f"{sweep.size.name} at {flops(sweep.budget)} FLOPs" for sweep in sweeps)
    return Chart(
        "learning_rate", "Learning-rate sweeps",
        f"Loss of small cells ({', '.join(cells)}) above the lowest that is fitted, with 95% "
        "intervals, of the baseline pale behind. Lines: "
        "quadratics in the logarithm of the rate, of one curvature a size, fitted near the lowest. "
        "Diamonds mark the best rates; they are hollow at the edge of what was tried. A dashed "
        "vertical line is a rate that diverged.",
        axis("peak learning rate", rates, "{:.2g}".format, log=True, ticks=rates),
        per_variant(loss_axis, shown, analysis.baseline), baseline_key(analysis.baseline, shown),
    )  # fmt: skip


def _rate_series(sweep: RateSweep, label: str) -> list[Series]:
    kept = np.isfinite(sweep.losses)
    rates, losses, errors = sweep.rates[kept], sweep.losses[kept], 1.96 * sweep.errors[kept]
    lowest = float(sweep(np.array([sweep.best.value]))[0])
    above = losses - lowest
    values = [Estimate(y, y - error, y + error) for y, error in zip(above, errors, strict=True)]
    cell = f"{sweep.variant}, {sweep.size.name}, {flops(sweep.budget)} FLOPs"
    texts = [
        [cell, f"learning rate {rate:.2g}", f"loss {loss:.4f}"]
        for rate, loss in zip(rates, losses, strict=True)
    ]
    grid = np.geomspace(*sweep.fitted, STEPS)
    best = [cell, f"best rate {interval(sweep.best, '.2g')}" + ", at the edge" * sweep.at_edge]
    return [
        line(sweep.variant, grid, sweep(grid) - lowest, label=label),
        points(sweep.variant, rates, values, texts),
        points(sweep.variant, [sweep.best], [0.0], [best], marker="diamond", hollow=sweep.at_edge),
    ]
