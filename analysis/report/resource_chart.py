"""Loss against what a model costs otherwise than in training FLOPs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.report.format import flops, si
from isoflop.analysis.report.spec import (
    Chart,
    Series,
    axis,
    extent,
    line,
    number,
    panel,
    points,
    shortened,
)
from isoflop.results.record import Record

TIME = "training seconds"
# What a panel shows, and its value for a record.
RESOURCES: dict[str, Callable[[Record], float]] = {
    "total parameters": lambda record: record.parameters.total,
    "bytes read per decoded token": lambda record: 2 * record.parameters.active,  # bfloat16
    "FLOPs per decoded token": lambda record: record.flops_per_token.forward,
    TIME: lambda record: record.measured.train_seconds,
}


def resources(analysis: Analysis) -> Chart | None:
    """The cells nearest each budget's best size: a panel per resource, over the loss."""
    panels: dict[str, list[Series]] = {name: [] for name in RESOURCES}
    for standing in analysis.in_order:
        name = standing.variant
        best = [(curve, curve.nearest) for curve in standing.curves if curve.trusted]
        for resource, value in RESOURCES.items():
            known = [
                (curve, at, runs)
                for curve, at in best
                if (
                    runs := curve.cells[at] if resource != TIME else analysis.timed(curve.cells[at])
                )
            ]
            losses = [float(curve.loss[at]) for curve, at, _ in known]
            values = [float(np.mean([value(run) for run in runs])) for _, _, runs in known]
            texts = [
                [
                    f"{name}, {flops(curve.budget)} FLOPs, {curve.cells[at][0].size.name}",
                    f"loss {loss:.3f}",
                    f"{si(amount)} {resource}",
                ]
                for (curve, at, _), loss, amount in zip(known, losses, values, strict=True)
            ]
            if known:
                panels[resource] += [
                    line(name, losses, values, label=shortened(name)),
                    points(name, losses, values, texts),
                ]
    series = [item for items in panels.values() for item in items]
    if not series:
        return None
    return Chart(
        "resources", "Loss against other costs",
        "The cells nearest each budget's best size, joined. At one loss, lower is cheaper: "
        "parameters to store, bytes (bfloat16) and FLOPs to decode a token, and training time.",
        axis("validation loss (nats/token)", extent(series, "x"), number),
        tuple(
            panel(axis(resource, extent(items, "y"), si, log=True), items, resource)
            for resource, items in panels.items()
        ), (),
    )  # fmt: skip
