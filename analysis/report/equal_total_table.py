"""The table of losses at equal total parameters."""

from __future__ import annotations

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.equal_totals import EqualTotals, equal_totals
from isoflop.analysis.report.format import flops, interval, si


def text(analysis: Analysis) -> str:
    """What `rows` shows."""
    return (
        f"Loss at {flops(analysis.headline)} FLOPs of each variant's model with so many parameters "
        "in all, embedding, experts and tables included, with a 95% interval: by the variant's "
        "law, at a size between its trained ones. A dash: it has no sizes around that total."
    )


def header(analysis: Analysis) -> tuple[str, ...]:
    """The titles for `rows`: a column per total."""
    table = _equal_totals(analysis)
    return ("variant", *(f"{si(total)} in all" for total in (table.totals if table else ())))


def rows(analysis: Analysis) -> list[list[str]]:
    """One row per variant with a law; none if no two variants share a total."""
    table = _equal_totals(analysis)
    if not table:
        return []
    return [
        [variant, *(interval(loss, ".3f") if loss else "-" for loss in losses)]
        for variant, losses in table.losses.items()
        if any(losses)
    ]


def _equal_totals(analysis: Analysis) -> EqualTotals | None:
    laws = {s.variant: s.surface for s in analysis.standings if s.surface and s.surface.trusted}
    return equal_totals(laws, analysis.records, analysis.headline)
