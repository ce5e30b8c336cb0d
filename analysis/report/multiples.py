"""Charts of many variants: a small panel for each, the baseline pale behind, the best at first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.report.spec import Axis, Chart, Key, Panel, Series, panel

MOST = 6  # variants drawn at first beside the baseline and the candidate
PALE = 0.45  # strength of the baseline's lines behind another variant's


def left_out(analysis: Analysis) -> tuple[str, ...]:
    """The variants that no figure draws, and the page only when asked: all but the best six by
    rank, the baseline and the candidate."""
    kept = {analysis.baseline, analysis.highlight}
    others = [standing.variant for standing in analysis.standings if standing.variant not in kept]
    return tuple(others[MOST:])


def per_variant(
    y: Axis, shown: Mapping[str, Sequence[Series]], baseline: str | None
) -> tuple[Panel, ...]:
    """A panel per variant of `shown`, with the baseline's lines pale behind those of the others."""
    behind = [
        replace(item, strength=PALE * item.strength, label="")
        for item in shown.get(baseline or "", ())
        if item.kind == "line" and not item.dashed
    ]
    return tuple(
        panel(y, [*(behind if name != baseline else ()), *items], name, name)
        for name, items in shown.items()
    )


def baseline_key(baseline: str | None, shown: Iterable[str]) -> tuple[Key, ...]:
    """The key of the lines behind, if another variant has a panel."""
    if baseline is None or not {*shown} - {baseline}:
        return ()
    return (Key(baseline, baseline, PALE, marker="none"),)


def without(chart: Chart, variants: Sequence[str]) -> Chart:
    """The chart without these variants; its caption says how many it loses."""
    lost = {item.variant for part in chart.panels for item in part.series} & {*variants}
    if not lost:
        return chart
    panels = tuple(
        replace(part, series=tuple(item for item in part.series if item.variant not in lost))
        for part in chart.panels
        if part.variant not in lost
    )
    keys = tuple(key for key in chart.keys if key.variant not in lost)
    more = f"{len(lost)} variant{'s' * (len(lost) > 1)} of lower rank"
    caption = f"{chart.caption} Left out here, not on the page: {more}."
    return replace(chart, panels=panels, keys=keys, caption=caption)
