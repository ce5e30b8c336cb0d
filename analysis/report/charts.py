"""The charts of a report, each described once for its figure and for the page (see `spec`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.curves import Curve
from isoflop.analysis.estimate import Estimate, estimate
from isoflop.analysis.report.format import decade, flops, interval, si, si_interval
from isoflop.analysis.report.multiples import baseline_key, per_variant
from isoflop.analysis.report.resource_chart import resources
from isoflop.analysis.report.spec import (
    STEPS,
    Axis,
    Chart,
    Key,
    Series,
    axis,
    band,
    extent,
    line,
    multiple,
    number,
    panel,
    points,
    shortened,
)
from isoflop.analysis.report.style import shades
from isoflop.analysis.report.sweep_charts import granularity, learning_rate
from isoflop.results.record import Record


def charts(analysis: Analysis, failed: dict[str, str] | None = None) -> list[Chart]:
    """Every chart that has something to show, in the page's order.

    Args:
        failed: takes the charts that cannot be described, and why; if None, they raise.
    """
    described = []
    for name, make in CHARTS.items():
        with noted(name, failed):
            chart = make(analysis)
            if chart:
                described.append(chart)
    return described


@contextmanager
def noted(name: str, failed: dict[str, str] | None) -> Iterator[None]:
    """One chart that cannot be drawn must not cost the reader all others: its error is noted."""
    try:
        yield
    except Exception as error:
        if failed is None:
            raise
        failed.setdefault(name, f"{type(error).__name__}: {error}")


def isoflop(analysis: Analysis) -> Chart | None:
    """Loss against parameters: a panel per variant, a shade per budget, optima marked."""
    strength = shades(analysis)
    shown = {
        standing.variant: [
            series
            for curve in standing.curves
            for series in _curve_series(curve, strength[curve.budget])
        ]
        for standing in analysis.in_order
        if standing.curves
    }
    series = _all(shown)
    loss = axis("validation loss (nats/token)", extent(series, "y"), number)
    keys = [Key(flops(budget), strength=strength[budget]) for budget in analysis.budgets]
    keys.append(Key("optimum", line=False, marker="diamond"))
    if any(item.hollow for item in series):
        keys.append(Key("not trusted", marker="diamond", hollow=True))
    return Chart(
        "isoflop", "isoFLOP curves",
        "Loss of every cell against its active parameters, one curve per variant and budget "
        "(stronger colour: more FLOPs), those of the baseline pale behind. Diamonds mark the "
        "fitted optima with their 95% intervals. A curve that is not to be trusted is dashed and "
        "hollow.",
        axis("active parameters", extent(series, "x"), si, log=True),
        per_variant(loss, shown, analysis.baseline), tuple(keys), "FLOPs",
    )  # fmt: skip


def _curve_series(curve: Curve, strength: float) -> list[Series]:
    name, trusted = curve.variant, curve.trusted
    grid = np.linspace(curve.log_n[0], curve.log_n[-1], STEPS)
    sizes = np.exp(curve.log_n)
    texts = [_cell_text(cell, loss) for cell, loss in zip(curve.cells, curve.losses, strict=True)]
    series = [
        line(name, np.exp(grid), curve.parabola(grid), strength=strength, dashed=not trusted),
        points(name, sizes, curve.loss, texts, strength=strength, hollow=not trusted),
    ]
    for size, losses in zip(sizes, curve.losses, strict=True):
        if len(losses) > 1:
            seeds = points(name, [size] * len(losses), losses, strength=strength, marker="dash")
            series.append(seeds)
    size, loss = curve.parabola.at, curve.parabola.loss
    where = f"{name}, {flops(curve.budget)} FLOPs"
    text = [f"{where}: not to be trusted", curve.parabola.status]
    if trusted:
        text = [
            f"{where}: optimum", f"{si_interval(size)} parameters", f"loss {interval(loss, '.3f')}",
        ]  # fmt: skip
    optimum = points(
        name, [_known(size, trusted)], [_known(loss, trusted)], [text], strength=strength,
        hollow=not trusted, marker="diamond",
    )  # fmt: skip
    return [*series, optimum]


def _cell_text(cell: Sequence[Record], losses: Iterable[float]) -> list[str]:
    first, mean = cell[0], np.mean(list(losses))
    return [
        f"{first.variant}, {flops(first.budget)} FLOPs, {first.size.name}",
        f"{si(first.parameters.active)} active of {si(first.parameters.total)} parameters",
        f"{si(first.tokens)} tokens, {first.steps} steps",
        f"loss {mean:.4f}" + f" (mean of {len(cell)} seeds)" * (len(cell) > 1),
    ]


def frontier(analysis: Analysis) -> Chart | None:
    """Lowest loss against compute: by the law of all cells, and by each budget's parabola."""
    shown: dict[str, list[Series]] = {}
    for standing in analysis.in_order:
        name, law = standing.variant, standing.surface
        series: list[Series] = []
        if law:
            budgets = law.cells.budget
            compute = np.geomspace(budgets.min(), budgets.max(), STEPS)
            series += band(name, compute, law.frontier(np.log(compute))[0])
        for curve in standing.curves:
            loss = curve.parabola.loss
            text = [
                f"{name}, {flops(curve.budget)} FLOPs",
                f"loss {interval(loss, '.3f')}" if curve.trusted else "not to be trusted",
            ]
            value = _known(loss, curve.trusted)
            series.append(points(name, [curve.budget], [value], [text], hollow=not curve.trusted))
        if series:
            shown[name] = series
    ends = extent(_all(shown), "y")
    loss_axis = axis("loss of the best size (nats/token)", ends, number, log=True)
    return Chart(
        "frontier", "Frontiers",
        "Loss of the compute-optimal model. Lines: by the law of all cells of a variant, with its "
        "95% band; pale: that of the baseline. Points: by the parabola of each budget alone; "
        "hollow where it is not to be trusted.",
        _compute_axis(analysis.budgets), per_variant(loss_axis, shown, analysis.baseline),
        baseline_key(analysis.baseline, shown),
    )  # fmt: skip


def multiplier_scale(analysis: Analysis) -> Chart | None:
    """Compute multiplier against compute, of all together and of each; dashed where the dense
    frontier is extrapolated."""
    shown: dict[str, list[Series]] = {}
    together: list[Series] = []
    keys = []
    for standing in analysis.in_order:
        name, gain = standing.variant, standing.multiplier
        series: list[Series] = []
        if name == analysis.baseline:
            continue
        if gain:
            *area, centre = band(name, gain.compute, gain.band)
            inside = gain.compute * gain.band[0] <= gain.dense_largest
            curves = [line(name, centre.x, centre.y, dashed=not inside.all())]
            if inside.any() and not inside.all():
                curves.append(line(name, gain.compute[inside], gain.band[0][inside]))
            series += [*area, *curves]
            together += [replace(curves[0], label=shortened(name)), *curves[1:]]
            if gain.trend != "not stated":
                keys.append(Key(f"{name}: {decade(estimate(gain.slope))} per decade", name))
        if standing.parabolas:
            budgets = list(standing.parabolas)
            values = [estimate(np.exp(logs)) for logs in standing.parabolas.values()]
            texts = [
                [f"{name}, {flops(budget)} FLOPs", f"by its parabola {interval(value, unit='x')}"]
                for budget, value in zip(budgets, values, strict=True)
            ]
            series.append(points(name, budgets, values, texts))
        if series:
            shown[name] = series
    if not shown:
        return None
    ends = extent(_all(shown), "y")
    gains = axis("compute multiplier", [1, *ends], multiple, log=True, rule=1)
    panels = per_variant(gains, shown, None)
    if len({item.variant for item in together}) > 1:
        panels = (panel(gains, together, "all, by the laws"), *panels)
    return Chart(
        "multiplier_scale", "Compute multiplier over scale",
        f"FLOPs {analysis.dense_name} needs over those the layer needs for equal loss. Lines: by "
        "the laws, with their 95% bands; dashed where the dense law is extrapolated. Points: by "
        "the parabola of each budget alone.",
        _compute_axis(analysis.compared), panels, tuple(keys),
    )  # fmt: skip


def wall_clock(analysis: Analysis) -> Chart | None:
    """Loss against training seconds: every cell, and the cells nearest each budget's optimum."""
    shown: dict[str, list[Series]] = {}
    for standing in analysis.in_order:
        name = standing.variant
        series: list[Series] = []
        for curve in standing.curves:
            timed = [at for at, cell in enumerate(curve.cells) if analysis.timed(cell)]
            seconds = [_seconds(analysis, curve.cells[at]) for at in timed]
            texts = [
                [*_cell_text(curve.cells[at], curve.losses[at]), f"{second:.3g} s of training"]
                for at, second in zip(timed, seconds, strict=True)
            ]
            if timed:
                each = curve.loss[timed]
                series.append(points(name, seconds, each, texts, strength=0.45, marker="dot"))
        best = [
            (curve, curve.nearest)
            for curve in standing.curves
            if curve.trusted and analysis.timed(curve.cells[curve.nearest])
        ]
        if best:
            seconds = [_seconds(analysis, curve.cells[at]) for curve, at in best]
            losses = [float(curve.loss[at]) for curve, at in best]
            texts = [
                [f"{name}, {flops(curve.budget)} FLOPs, {curve.cells[at][0].size.name}: nearest "
                 "the optimum", f"{second:.3g} s of training", f"loss {loss:.3f}"]
                for (curve, at), second, loss in zip(best, seconds, losses, strict=True)
            ]  # fmt: skip
            series += [line(name, seconds, losses), points(name, seconds, losses, texts)]
        if series:
            shown[name] = series
    every = _all(shown)
    device = analysis.place[0] if analysis.place else ""
    loss_axis = axis("validation loss (nats/token)", extent(every, "y"), number, log=True)
    return Chart(
        "wall_clock", "Loss against time",
        f"Every cell by its training time on {device}; the cells nearest each "
        "budget's optimum are joined, those of the baseline pale behind. A layer that wins on "
        "FLOPs may lose on time.",
        axis("training seconds", extent(every, "x"), si, log=True),
        per_variant(loss_axis, shown, analysis.baseline), baseline_key(analysis.baseline, shown),
    )  # fmt: skip


def holdout(analysis: Analysis) -> Chart | None:
    """The cells of the largest budget, and what a law fitted without them predicts."""
    shown: dict[str, list[Series]] = {}
    for name, holdout in analysis.holdouts.items():
        cells = holdout.cells
        order = np.argsort(cells.log_n)
        sizes = np.exp(cells.log_n[order])
        texts = [
            [f"{name}, {flops(holdout.budget)} FLOPs, held out", f"{si(size)} active parameters",
             f"loss {loss:.3f}, predicted {predicted:.3f}"]
            for size, loss, predicted in zip(
                sizes, cells.loss[order], holdout.predicted[0, order], strict=True
            )
        ]  # fmt: skip
        shown[name] = [
            *band(name, sizes, holdout.predicted[:, order]),
            points(name, sizes, cells.loss[order], texts, hollow=holdout.failed),
        ]
    if not shown:
        return None
    series = _all(shown)
    loss_axis = axis("validation loss (nats/token)", extent(series, "y"), number)
    return Chart(
        "holdout", "Held-out budget",
        "Points: the cells of each variant's largest budget. Lines: what its law predicts for them "
        "when it is fitted to the smaller budgets alone, with its 95% band. Hollow: the prediction "
        "fails.",
        axis("active parameters", extent(series, "x"), si, log=True),
        per_variant(loss_axis, shown, None), (),
    )  # fmt: skip


def _all(shown: Mapping[str, Sequence[Series]]) -> list[Series]:
    return [item for items in shown.values() for item in items]


def _compute_axis(budgets: Sequence[float]) -> Axis:
    return axis("training FLOPs", budgets, flops, log=True, ticks=budgets)


def _known(value: Estimate, trusted: bool) -> Estimate:
    """Without its interval, if it is not to be trusted."""
    return value if trusted else Estimate(value.value, np.nan, np.nan)


def _seconds(analysis: Analysis, cell: Sequence[Record]) -> float:
    return float(np.mean([run.measured.train_seconds for run in analysis.timed(cell)]))


CHARTS: dict[str, Callable[[Analysis], Chart | None]] = {
    "isoflop": isoflop,
    "frontier": frontier,
    "multiplier_scale": multiplier_scale,
    "wall_clock": wall_clock,
    "resources": resources,
    "holdout": holdout,
    "granularity": granularity,
    "learning_rate": learning_rate,
}
