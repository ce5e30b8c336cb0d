"""Routing locality against granularity: its table as CSV and Markdown, and its figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from isoflop.analysis.report.figures import files_of, render
from isoflop.analysis.report.format import flops
from isoflop.analysis.report.markdown import table
from isoflop.analysis.report.spec import Axis, Chart, Key, axis, line, number, panel, points
from isoflop.analysis.report.style import MARKERS, PALETTE, STYLE, Look

Row = Mapping[str, Any]

CAPTION = (
    "Share of a token's experts that are in memory, at equal training FLOPs and model size. A "
    "cache of 1x, 2x or 3x the experts that a token uses has the same bytes at every granularity. "
    "Lines: LRU; dashed: the best possible choice of what goes. Means over seeds and layers."
)


def documents(rows: Sequence[Row]) -> dict[str, bytes]:
    """The table and the figure, as file name -> bytes."""
    header = list(rows[0])
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    words = [name.replace("_", " ") for name in header]
    cells = [[_shown(row[name]) for name in header] for row in rows]
    files = {
        "locality.csv": text.getvalue().encode(),
        "locality.md": table(words, cells, left=("variant", "size")).encode(),
    }
    with matplotlib.rc_context(STYLE):
        chart, look = describe(rows)
        return files | files_of("locality", render(chart, look), "routing locality")


def equal_flops(rows: Sequence[Row]) -> list[Row]:
    """The rows of the size and budget with the most granularities, the largest of equals."""
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["budget"], row["size"]), []).append(row)
    return max(
        groups.values(),
        key=lambda group: (len({row["experts_per_token"] for row in group}), group[0]["budget"]),
    )


def describe(rows: Sequence[Row]) -> tuple[Chart, dict[str, Look]]:
    """The figure: reuse, and hit rates by size of the cache, against experts per token."""
    shown = equal_flops(rows)
    xs = sorted({row["experts_per_token"] for row in shown})

    def mean(name: str) -> list[float]:
        return [
            float(np.mean([row[name] for row in shown if row["experts_per_token"] == x]))
            for x in xs
        ]

    times = [name[len("lru_hits_") :] for name in shown[0] if name.startswith("lru_hits_")]
    names = [*times, "next token", "by chance"]
    look = {name: Look(PALETTE[place], MARKERS[place]) for place, name in enumerate(names)}
    hits, again = [], []
    for name in times:
        of_lru, of_best = mean(f"lru_hits_{name}"), mean(f"best_hits_{name}")
        hits += [line(name, xs, of_lru), points(name, xs, of_lru)]
        hits += [line(name, xs, of_best, dashed=True)]
    for name, column in (("next token", "reuse"), ("by chance", "reuse_by_chance")):
        again += [line(name, xs, mean(column)), points(name, xs, mean(column))]
    first = shown[0]
    chart = Chart(
        id="locality",
        title=f"Routing locality, size {first['size']}, {flops(first['budget'])} FLOPs",
        caption=CAPTION,
        x=axis("granularity: experts per token", xs, number, log=True, ticks=xs),
        panels=(
            panel(_share("hit rate"), hits, "Cache"),
            panel(_share("share of experts used again"), again, "Reuse"),
        ),
        keys=tuple(
            Key(f"cache {name}" if name in times else f"reuse, {name}", name) for name in names
        ),
    )
    return chart, look


def _share(title: str) -> Axis:
    ticks = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    return Axis(title, -0.02, 1.02, ticks, tuple(f"{tick:.0%}" for tick in ticks))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) >= 1e6 or abs(value) < 100 else f"{value:,.0f}"
    return str(value)
