"""The files that methods after training give: a table, what it says, and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context

from isoflop.analysis.post_training import Row, sentence, too_large
from isoflop.analysis.report.charts import noted
from isoflop.analysis.report.figures import files_of, render
from isoflop.analysis.report.format import flops, interval, listed, si, ten_digits
from isoflop.analysis.report.markdown import escape, table
from isoflop.analysis.report.method_charts import method_charts, method_looks
from isoflop.analysis.report.spec import Chart
from isoflop.analysis.report.style import STYLE
from isoflop.results.record import Record

HEADER = (
    "source", "method", "options", "recovery", "seeds", "loss", "change, nats", "parameters",
    "stored bytes", "bytes kept", "FLOPs per token", "bytes per token", "decode ms",
    "source's decode ms", "minus a smaller model's loss", "verdict",
)  # fmt: skip
LEFT = ("source", "method", "options", "verdict")
COLUMNS = (
    "variant", "size", "budget", "method", "options", "recovery", "recovery_flops", "seeds",
    "calibration_seeds", "calibration_tokens", "search_evaluations", "loss", "loss_low",
    "loss_high", "change", "change_low", "change_high", "parameters", "active_parameters",
    "stored_bytes", "source_stored_bytes", "flops_per_token", "most_flops_per_token",
    "read_bytes", "decode_ms", "source_decode_ms", "against_sibling", "against_low",
    "against_high", "verdict",
)  # fmt: skip

TEXT = (
    "Loss: validation nats per token, mean over the seeds of the source, each the mean over its "
    "calibration seeds, with a 95% interval of the mean (Student's t). The last columns compare "
    "with a model of the same variant and seed that was trained smaller, at equal stored bytes "
    "and equal total FLOPs, recovery included, interpolated between trained sizes and budgets, "
    "else `no sibling`. A verdict takes three seeds of the source and three of calibration, and "
    "is not corrected for the number of comparisons. Bytes: bfloat16, but for quantised weights "
    "with their scales. Bytes per token: of the weights that a token reads in decoding, at "
    "most. Decode ms: the median time of a token at batch 1 on one thread, taken in turn with "
    "the source. Memory falls with experts; the work of a token only with its rank, its number "
    "of experts, or constants. Where the source was trained further on a second text first, "
    "losses are those on its end, which was held out, and there is no sibling."
)


def files(
    rows: Sequence[Row],
    records: Sequence[Record],
    description: str,
    failed: dict[str, str] | None = None,
) -> dict[str, bytes]:
    """File name -> bytes: POST-TRAINING.md, post_training.csv and the figures.

    Args:
        description: goes into the figures' metadata.
        failed: takes the figures that cannot be drawn, and why; if None, they raise.
    """
    figures: dict[str, bytes] = {}
    charts, look = method_charts(rows, records, failed), method_looks(rows)
    with rc_context(STYLE):
        for chart in charts:
            with noted(chart.id, failed):
                figures |= files_of(chart.id, render(chart, look), description)
    return {
        "POST-TRAINING.md": markdown(rows, records, charts).encode(),
        "post_training.csv": as_csv(rows).encode(),
    } | {f"figures/{name}": content for name, content in figures.items()}


def notes(rows: Sequence[Row], records: Sequence[Record]) -> list[str]:
    """What a reader must know of methods and sources."""
    lines = dict.fromkeys(f"{row.first.method}: {row.first.note}" for row in rows if row.first.note)
    large = [f"{name} {size} at {flops(budget)}" for name, size, budget in too_large(rows, records)]
    if large:
        lines[
            f"{listed(large)} FLOPs: larger than the best of the trained sizes, so that a smaller "
            "model is better before any method is applied"
        ] = None
    return [f"{line}." for line in lines]


def markdown(rows: Sequence[Row], records: Sequence[Record], charts: Sequence[Chart]) -> str:
    """POST-TRAINING.md, with the charts' figures."""
    parts = [
        "# After training\n",
        f"{escape(sentence(rows))}\n",
        f"{TEXT}\n",
        table(HEADER, [cells(row) for row in rows], LEFT),
        *(f"- {escape(note)}\n" for note in notes(rows, records)),
    ]
    parts += [f"\n![{escape(chart.title)}](figures/{chart.id}.png)\n" for chart in charts]
    return "\n".join(parts)


def cells(row: Row) -> list[str]:
    """A row of the table under `HEADER`."""
    variant, size, budget = row.source
    share = row.size("stored bytes") / row.first.source_stored_bytes
    sources, calibrations = row.seeds
    return [
        f"{variant} {size}, {flops(budget)}",
        row.first.method,
        row.options or "-",
        f"{row.first.recovery.share:.0%}",
        f"{sources} x {calibrations}",
        interval(row.loss, ".3f"),
        interval(row.change, "+.3f"),
        si(row.size("parameters")),
        si(row.size("stored bytes")),
        f"{share:.0%}",
        si(row.size("FLOPs per token")),
        si(row.size("bytes read per token")),
        *("-" if ms is None else f"{ms:.2f}" for ms in (row.decode_ms, row.source_decode_ms)),
        interval(row.against, "+.3f") if np.isfinite(row.against.value) else "-",
        row.verdict,
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """post_training.csv, to ten digits; empty where there is no value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        first = row.first
        values = [
            *row.source, first.method, row.options, first.recovery.share, first.recovery.flops,
            *row.seeds, first.calibration.tokens, first.search_evaluations, *row.loss, *row.change,
            row.size("parameters"), first.parameters.active, row.size("stored bytes"),
            first.source_stored_bytes, row.size("FLOPs per token"), first.flops_per_token.forward,
            row.size("bytes read per token"), row.decode_ms, row.source_decode_ms, *row.against,
            row.verdict,
        ]  # fmt: skip
        writer.writerow(["" if value is None else _plain(value) for value in values])
    return stream.getvalue()


def _plain(value: object) -> str:
    return ten_digits(value) if isinstance(value, float) else str(value)
