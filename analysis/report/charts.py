"""The page's charts as plain data, which `web/page.js` hands to Chart.js.

A chart is a title, two axes and series. A series belongs to a variant, which gives it its colour
and the button that hides it, and is one of

- line: x, y; dashed where it is not to be trusted;
- points: x, y, with a text each for the pointer, and whiskers where low and high are given;
- band: x, low, high.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.curves import Curve
from isoflop.analysis.parabola import Array, Estimate, estimate
from isoflop.analysis.report.format import flops, interval, si, si_interval
from isoflop.analysis.report.style import LogTicks, shades

Series = dict[str, Any]
Chart = dict[str, Any]


def charts(analysis: Analysis) -> list[Chart]:
    """Every chart that has something to show, in the page's order."""
    made = (isoflop, frontier, multiplier_scale, wall_clock, holdout, granularity, learning_rate)
    return [chart for make in made if (chart := make(analysis))["series"]]


def isoflop(analysis: Analysis) -> Chart:
    """Loss against parameters."""
    series: list[Series] = []
    strength = shades(analysis)
    for curve in (curve for each in analysis.in_order for curve in each.curves):
        shared = {"variant": curve.variant, "strength": strength[curve.budget]}
        grid = np.linspace(curve.log_n[0], curve.log_n[-1], 40)
        dashed, hollow = not curve.trusted, not curve.trusted
        series.append(_line(np.exp(grid), curve.parabola(grid), dashed=dashed, **shared))
        series.append(
            _points(np.exp(curve.log_n), curve.loss, _cell_texts(curve), hollow=hollow, **shared)
        )
        size, loss = curve.parabola.at, curve.parabola.loss
        text = [
            f"{curve.variant}, {flops(curve.budget)} FLOPs: optimum",
            f"{si_interval(size)} parameters",
            f"loss {interval(loss, '.3f')}",
        ]
        if not curve.trusted:
            text = [text[0].replace("optimum", "not to be trusted"), curve.parabola.status]
        series.append(
            _points([size.value], [loss.value], [text], hollow=hollow, marker="diamond", **shared)
        )
    return _chart(
        "isoflop", "isoFLOP curves",
        "Loss of every cell against its active parameters, one curve per variant and budget "
        "(stronger colour: more FLOPs). Diamonds mark the fitted optima; dashed and hollow is not "
        "to be trusted.",
        _axis("active parameters", _every(series, "x"), "si", log=True),
        _axis("validation loss (nats/token)", _every(series, "y")),
        series,
    )  # fmt: skip


def _cell_texts(curve: Curve) -> list[list[str]]:
    return [
        [
            f"{curve.variant}, {flops(curve.budget)} FLOPs, {cell[0].size.name}",
            f"{si(cell[0].parameters.active)} active of {si(cell[0].parameters.total)} parameters",
            f"{si(cell[0].tokens)} tokens, {cell[0].steps} steps",
            f"loss {loss.mean():.4f}" + f" (mean of {len(loss)} seeds)" * (len(loss) > 1),
        ]
        for cell, loss in zip(curve.cells, curve.losses, strict=True)
    ]


def frontier(analysis: Analysis) -> Chart:
    """Loss of the optimum against compute."""
    series: list[Series] = []
    for standing in analysis.in_order:
        name, law = standing.variant, standing.frontier
        if law:
            compute = np.geomspace(law.budgets.min(), law.budgets.max(), 40)
            series += _band(compute, law.predict(compute), variant=name)
        for curve in standing.curves:
            loss = curve.parabola.loss
            text = [
                f"{name}, {flops(curve.budget)} FLOPs",
                f"loss {interval(loss, '.3f')}" if curve.trusted else "not to be trusted",
            ]
            series.append(
                _estimates([curve.budget], [loss], [text], hollow=not curve.trusted, variant=name)
            )
    return _chart(
        "frontier", "Frontiers",
        "Loss of the compute-optimal model of each budget, and the law fitted to it with its band.",
        _compute_axis(analysis.budgets),
        _axis("loss at the optimum (nats/token)", _every(series, "y"), log=True),
        series,
    )  # fmt: skip


def multiplier_scale(analysis: Analysis) -> Chart:
    """Compute multiplier against compute."""
    series: list[Series] = []
    for standing in analysis.in_order:
        found = standing.multiplier
        if not found or standing.variant == analysis.baseline:
            continue
        name = standing.variant
        series += _band(found.compute, found.band, variant=name)
        values = [estimate(samples) for samples in found.at_budget.T]
        texts = [
            [f"{name}, {flops(budget)} FLOPs", f"multiplier {interval(value, unit='x')}"]
            for budget, value in zip(found.budgets, values, strict=True)
        ]
        series.append(_estimates(found.budgets, values, texts, variant=name))
    return _chart(
        "multiplier", "Compute multiplier over scale",
        f"FLOPs {analysis.baseline or 'a dense model'} needs over those the layer needs for equal "
        "loss. Points: each budget's optimum. Lines: the fitted frontiers.",
        _compute_axis(analysis.compared),
        _axis("compute multiplier", [1, *_every(series, "y")], "multiple", log=True, rule=1),
        series,
    )  # fmt: skip


def wall_clock(analysis: Analysis) -> Chart:
    """Loss against training time of the cells nearest the optima."""
    series: list[Series] = []
    for standing in analysis.in_order:
        best = [(curve, curve.nearest) for curve in standing.curves if curve.trusted]
        seconds = [
            float(np.mean([one.measured.train_seconds for one in curve.cells[at]]))
            for curve, at in best
        ]
        losses = [float(curve.loss[at]) for curve, at in best]
        texts = [
            [
                f"{standing.variant}, {flops(curve.budget)} FLOPs, {curve.cells[at][0].size.name}",
                f"{second:.3g} s of training",
                f"loss {loss:.3f}",
            ]
            for (curve, at), second, loss in zip(best, seconds, losses, strict=True)
        ]
        if best:
            series.append(_line(seconds, losses, variant=standing.variant))
            series.append(_points(seconds, losses, texts, variant=standing.variant))
    devices = ", ".join(sorted({one.measured.device for one in analysis.finished}))
    return _chart(
        "wall_clock", "Loss against time",
        f"The cell nearest each budget's optimum, by its training time on {devices}: a layer that "
        "wins on FLOPs may lose on time.",
        _axis("training seconds", _every(series, "x"), "si", log=True),
        _axis("validation loss (nats/token)", _every(series, "y"), log=True),
        series,
    )  # fmt: skip


def holdout(analysis: Analysis) -> Chart:
    """Error of predicting the largest budget against what the smaller ones cost."""
    series: list[Series] = []
    for name, holdouts in analysis.holdouts.items():
        spent = [one.spent for one in holdouts]
        if len(spent) > 1:
            series.append(_line(spent, [one.error.value for one in holdouts], variant=name))
        for one in holdouts:
            text = [
                f"{name}, fitted to {len(one.budgets)} budgets",
                f"error {interval(one.error, '+.3f')} nats",
                f"compute {interval(one.compute, unit='x')}",
            ]
            series.append(
                _estimates([one.spent], [one.error], [text], hollow=not one.judged, variant=name)
            )
    return _chart(
        "holdout", "Extrapolation error",
        "Loss predicted for the largest budget less the loss found, against the FLOPs of the "
        "budgets the law was fitted to. Hollow: two budgets, a power law, not judged.",
        _axis("FLOPs spent on the budgets fitted", _every(series, "x"), "flops", log=True),
        _axis("predicted less found (nats/token)", [0, *_every(series, "y")], rule=0),
        series,
    )  # fmt: skip


def granularity(analysis: Analysis) -> Chart:
    """Loss above each sweep's lowest against G. Sweeps belong to no variant."""
    series: list[Series] = []
    for sweep in analysis.granularity_sweeps:
        fit, lowest = sweep.parabola, sweep.losses.min()
        name = f"{sweep.layer} at {flops(sweep.budget)} FLOPs"
        shared = {"variant": None, "strength": shades(analysis)[sweep.budget]}
        grid = np.linspace(fit.log_x[0], fit.log_x[-1], 40)
        series.append(_line(np.exp(grid), fit(grid) - lowest, dashed=fit.status != "ok", **shared))
        values = [
            Estimate(*(end - lowest for end in curve.parabola.loss)) for curve in sweep.curves
        ]
        texts = [
            [name, f"{curve.variant}: loss {interval(curve.parabola.loss, '.3f')}"]
            for curve in sweep.curves
        ]
        series.append(_estimates(sweep.values, values, texts, **shared))
        for at, value, text, curve in zip(sweep.values, values, texts, sweep.curves, strict=True):
            if curve.variant == analysis.highlight:
                series.append(_points([at], [value.value], [text], variant=curve.variant))
        if fit.status == "ok":
            text = [name, f"best G {interval(fit.at, '.3g')}"]
            at = fit.loss.value - lowest
            series.append(_points([fit.at.value], [at], [text], marker="diamond", **shared))
    tried = sorted(
        {float(value) for sweep in analysis.granularity_sweeps for value in sweep.values}
    )
    return _chart(
        "granularity", "Granularity",
        "Loss of the optimum above the lowest of each budget, against granularity G. Diamonds mark "
        "the best G where it lies inside what was tried.",
        _axis("granularity G", _every(series, "x"), log=True) | {"ticks": tried},
        _axis("loss above the lowest (nats/token)", _every(series, "y")),
        series,
    )  # fmt: skip


def learning_rate(analysis: Analysis) -> Chart:
    """Every sweep as loss above its lowest."""
    series: list[Series] = []
    for sweep in analysis.rate_sweeps:
        kept = np.isfinite(sweep.losses)
        above = (sweep.losses - sweep.losses[sweep.best])[kept]
        rates, errors = sweep.rates[kept], 1.96 * sweep.errors[kept]
        values = [Estimate(y, y - e, y + e) for y, e in zip(above, errors, strict=True)]
        cell = f"{sweep.variant}, {sweep.size.name}, {flops(sweep.budget)} FLOPs"
        texts = [
            [cell, f"learning rate {rate:.2g}", f"loss {loss:.4f}"]
            for rate, loss in zip(rates, sweep.losses[kept], strict=True)
        ]
        series.append(_line(rates, above, variant=sweep.variant))
        series.append(_estimates(rates, values, texts, variant=sweep.variant))
        text = [
            cell,
            f"best rate {sweep.rates[sweep.best]:.2g}" + ", at the edge" * sweep.at_edge,
        ]
        series.append(
            _points(
                [sweep.rates[sweep.best]], [0.0], [text], marker="diamond",
                hollow=sweep.at_edge, variant=sweep.variant,
            )
        )  # fmt: skip
    tried = sorted({float(rate) for sweep in analysis.rate_sweeps for rate in sweep.rates})
    return _chart(
        "learning_rate", "Learning-rate sweeps",
        "Loss above the lowest of each variant's sweep at one small cell. A hollow diamond is a "
        "best rate at the edge of what was tried; a rate without a point diverged.",
        _axis("peak learning rate", tried, log=True) | {"ticks": tried},
        _axis("loss above the lowest (nats/token)", _every(series, "y")),
        series,
    )  # fmt: skip


def _chart(name: str, title: str, text: str, x: Chart, y: Chart, series: list[Series]) -> Chart:
    return {"id": name, "title": title, "text": text, "x": x, "y": y, "series": series}


def _axis(
    title: str, values: Iterable[float], form: str = "plain", *, log: bool = False,
    rule: float | None = None,
) -> Chart:  # fmt: skip
    """An axis that does not move when variants are hidden; `rule` draws a line across."""
    known = np.array([value for value in values if value is not None], dtype=float)
    axis: Chart = {"title": title, "form": form, "log": log, "rule": rule}
    if not len(known):
        return axis
    low, high = known.min(), known.max()
    if log:
        margin = max((high / low) ** 0.04, 1.02)
        low, high = low / margin, high * margin
        ticks = np.array(LogTicks().tick_values(low, high))
        if high / low < 3:
            ticks = np.array(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    else:
        margin = 0.04 * (high - low) or 0.1
        low, high = low - margin, high + margin
        ticks = np.array(MaxNLocator(6).tick_values(low, high))
    shown = ticks[(ticks >= low) & (ticks <= high)]
    return axis | {"min": _digits([low])[0], "max": _digits([high])[0], "ticks": _digits(shown)}


def _compute_axis(budgets: Sequence[float]) -> Chart:
    axis = _axis("training FLOPs", budgets, "flops", log=True)
    return axis | {"ticks": list(budgets)}


def _every(series: Sequence[Series], name: str) -> list[float]:
    keys = ("x",) if name == "x" else ("y", "low", "high")
    return [value for one in series for key in keys for value in one.get(key, ())]


def _line(x: Sequence[float] | Array, y: Sequence[float] | Array, **more: Any) -> Series:
    return {"kind": "line", "x": _digits(x), "y": _digits(y), **more}


def _points(
    x: Sequence[float] | Array, y: Sequence[float] | Array, text: Sequence[Sequence[str]],
    **more: Any,
) -> Series:  # fmt: skip
    return {"kind": "points", "x": _digits(x), "y": _digits(y), "text": text, **more}


def _estimates(
    x: Sequence[float] | Array, values: Sequence[Estimate], text: Sequence[Sequence[str]],
    **more: Any,
) -> Series:  # fmt: skip
    """Points with whiskers."""
    series = _points(x, [value.value for value in values], text, **more)
    low, high = [value.low for value in values], [value.high for value in values]
    return series if np.isnan(low).any() else series | {"low": _digits(low), "high": _digits(high)}


def _band(x: Array, samples: Array, **more: Any) -> list[Series]:
    """The line of sample 0 and the central 95% of the others."""
    if not len(x):
        return []
    line = _line(x, samples[0], **more)
    if len(samples) == 1:
        return [line]
    low, high = np.quantile(samples[1:], [0.025, 0.975], axis=0)
    return [
        {"kind": "band", "x": line["x"], "low": _digits(low), "high": _digits(high), **more},
        line,
    ]


def _digits(values: Iterable[float]) -> list[float]:
    """Six digits: the others may differ between machines."""
    return [float(f"{value:.6g}") for value in values]
