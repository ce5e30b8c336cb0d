"""Loss after training against what a model costs: a chart per source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoflop.analysis.estimate import Estimate
from isoflop.analysis.post_training import SIBLING_SIZES, SIZES, Row, mean_interval, median_known
from isoflop.analysis.report.charts import noted
from isoflop.analysis.report.format import flops, interval, si
from isoflop.analysis.report.spec import (
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
from isoflop.analysis.report.style import MARKERS, PALETTE, Look
from isoflop.results.record import Record

MOST = 6  # sources that have a chart
TIME = "decode ms per token"
SMALLER = "trained smaller"


def method_charts(
    rows: Sequence[Row], records: Sequence[Record], failed: dict[str, str] | None = None
) -> list[Chart]:
    """A chart for each of the first sources: over the loss a panel per cost, as in `resources`.

    Rows whose source was trained further are left out: their losses are of another text.

    Args:
        failed: takes the charts that cannot be described, and why; if None, they raise.
    """
    rows = [row for row in rows if not row.first.continued]
    sources = list(dict.fromkeys(row.source for row in rows))[:MOST]
    charts = []
    for place, source in enumerate(sources, 1):
        name = f"post_training_{place}"
        with noted(name, failed):
            charts.append(_chart(name, [r for r in rows if r.source == source], records))
    return charts


def method_names(rows: Sequence[Row]) -> list[str]:
    """Each once, in the order of the rows."""
    return list(dict.fromkeys(row.first.method for row in rows))


def method_looks(rows: Sequence[Row]) -> dict[str, Look]:
    """A look per method, by the name that its series have for a variant."""
    return {
        _named(method): Look(PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)])
        for place, method in enumerate(method_names(rows))
    }


def _named(method: str) -> str:
    """Apart from a variant of the same name."""
    return f"method {method}"


def _chart(name: str, rows: Sequence[Row], records: Sequence[Record]) -> Chart:
    variant, size, budget = rows[0].source
    shares = sorted({row.first.recovery.share for row in rows})
    strength = dict(zip(shares, np.linspace(1, 0.4, len(shares))[::-1].tolist(), strict=True))
    panels: dict[str, list[Series]] = {}
    for cost in (*SIZES, TIME):
        series = _trained(rows, records, cost)
        for row in rows:
            place = row.decode_ms if cost == TIME else row.size(cost)
            if place is not None:
                series.append(
                    points(
                        _named(row.first.method), [row.loss], [place], [_text(row, cost, place)],
                        strength=strength[row.first.recovery.share],
                    )
                )  # fmt: skip
        if series:
            panels[cost] = series
    everything = [item for items in panels.values() for item in items]
    keys = [Key(method, _named(method), line=False) for method in method_names(rows)]
    keys.append(Key(SMALLER, marker="diamond"))
    if len(shares) > 1:
        keys += [
            Key(f"recovery {share:.0%}", strength=strength[share], marker="none")
            for share in shares
        ]
    return Chart(
        name, f"After training: {variant} {size}, {flops(budget)} FLOPs",
        "What each method leaves of a model, with 95% intervals of its loss over the seeds of the "
        "source; stronger colour: more recovery training. At one loss, lower is cheaper. Diamonds: "
        "models of the same variant that were trained smaller or larger with as many FLOPs as the "
        "source; of these, decoding was timed for the source alone.",
        axis("validation loss (nats/token)", extent(everything, "x"), number),
        tuple(
            panel(axis(cost, extent(items, "y"), _milliseconds if cost == TIME else si, log=True),
                  items, cost)
            for cost, items in panels.items()
        ),
        tuple(keys),
    )  # fmt: skip


def _milliseconds(value: float) -> str:
    return f"{value:.3g}"


def _text(row: Row, cost: str, place: float) -> list[str]:
    """What the page shows at a point."""
    label = _milliseconds(place) if cost == TIME else si(place)
    return [
        f"{row.first.method} {row.options}".strip(),
        f"recovery {row.first.recovery.share:.0%}",
        f"loss {interval(row.loss, '.3f')}",
        f"{label} {cost}",
        f"beside training smaller: {row.verdict}",
    ]


def _trained(rows: Sequence[Row], records: Sequence[Record], cost: str) -> list[Series]:
    """The trained models of the rows' variant and budget; of the time of a token the source."""
    variant, size_of_source, budget = rows[0].source
    losses: dict[float, list[float]] = {}
    time = median_known(row.source_decode_ms for row in rows)
    for record in records:
        if (record.variant, record.budget) != (variant, budget) or record.ablation:
            continue
        if cost in SIBLING_SIZES:
            place: float | None = SIBLING_SIZES[cost](record)
        else:
            place = time if record.size.name == size_of_source else None
        if place is not None and record.loss is not None:
            losses.setdefault(place, []).append(record.loss)
    if not losses:
        return []
    places = sorted(losses)
    means: list[Estimate] = [mean_interval(losses[place]) for place in places]
    texts = [
        [SMALLER, f"loss {interval(mean, '.3f')}", f"{si(place)} {cost}"]
        for place, mean in zip(places, means, strict=True)
    ]
    return [
        line(None, [mean.value for mean in means], places),
        points(None, means, places, texts, marker="diamond"),
    ]
