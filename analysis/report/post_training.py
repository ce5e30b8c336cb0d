"""The files that methods after training give: a table, what it says, and two figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoflop.analysis.post_training import (
    SIBLING_SIZES,
    SIZES,
    Row,
    mean_interval,
    post_training,
    sentence,
    too_large,
)
from isoflop.analysis.report.figures import files_of, set_axis
from isoflop.analysis.report.format import flops, interval, listed, si
from isoflop.analysis.report.markdown import escape, table
from isoflop.analysis.report.spec import axis as axis_of
from isoflop.analysis.report.style import BASELINE, MARKERS, PALETTE, STYLE
from isoflop.results.compressed import Compressed
from isoflop.results.errors import printable
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
FIGURES = {  # name -> its panels
    "post_training": ("parameters", "stored bytes", "FLOPs per token"),
    "post_training_decoding": ("bytes read per token", "decode ms"),
}
ROWS = 6  # sources in the figure at most
LINES = ("-", "--", ":")  # by recovery


def files(
    records: Sequence[Record], items: Sequence[Compressed], description: str
) -> dict[str, bytes]:
    """File name -> bytes: POST-TRAINING.md, post_training.csv and the figures.

    Args:
        description: goes into the figure's metadata.
    Raises:
        AnalysisError: losses on different text.
    """
    rows = post_training(records, items)
    figures: dict[str, bytes] = {}
    if not all(row.first.continued for row in rows):
        with rc_context(STYLE):
            for name, axes in FIGURES.items():
                figures |= files_of(name, figure(rows, records, axes), description)
    return {
        "POST-TRAINING.md": markdown(rows, records).encode(),
        "post_training.csv": as_csv(rows).encode(),
    } | {f"figures/{name}": content for name, content in figures.items()}


def markdown(rows: Sequence[Row], records: Sequence[Record]) -> str:
    """POST-TRAINING.md."""
    notes = dict.fromkeys(f"{row.first.method}: {row.first.note}" for row in rows if row.first.note)
    large = [f"{name} {size} at {flops(budget)}" for name, size, budget in too_large(rows, records)]
    if large:
        notes[
            f"{listed(large)} FLOPs: larger than the best of the trained sizes, so that a smaller "
            "model is better before any method is applied"
        ] = None
    parts = [
        "# After training\n",
        f"{escape(sentence(rows))}\n",
        "Loss: validation nats per token, mean over the seeds of the source, each the mean over "
        "its calibration seeds, with a 95% interval of the mean (Student's t). The last columns "
        "compare with a model of the same variant and seed that was trained smaller, at equal "
        "stored bytes and equal total FLOPs, recovery included, interpolated between trained "
        "sizes and budgets, else `no sibling`. A verdict takes three seeds of the source and "
        "three of calibration, and is not corrected for the number of comparisons. Bytes: "
        "bfloat16, but for quantised weights with their scales. Bytes per token: of the weights "
        "that a token reads in decoding, at most. Decode ms: the median time of a token at batch "
        "1 on one thread, taken in turn with the source. Memory falls with experts; the work of "
        "a token only with its rank, its number of experts, or constants. Where the source was "
        "trained further on a second text first, losses are those on its end, which was held "
        "out, and there is no sibling.\n",
        table(HEADER, [_cells(row) for row in rows], LEFT),
        *(f"- {escape(note)}.\n" for note in notes),
    ]
    if not all(row.first.continued for row in rows):
        parts.append("\n![Loss after training](figures/post_training.png)\n")
        parts.append("\n![Loss against decoding](figures/post_training_decoding.png)\n")
    return "\n".join(parts)


def _cells(row: Row) -> list[str]:
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
    """post_training.csv, with every digit; empty where there is no value."""
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
    if isinstance(value, float):
        return repr(value) if np.isfinite(value) else ""
    return str(value)


def figure(rows: Sequence[Row], records: Sequence[Record], axes: Sequence[str]) -> Figure:
    """Loss against each axis, a row of panels per source; the siblings of its budget in black."""
    rows = [row for row in rows if not row.first.continued]  # their losses are of another text
    sources = list(dict.fromkeys(row.source for row in rows))[:ROWS]
    methods = list(dict.fromkeys(row.first.method for row in rows))
    shares = sorted({row.first.recovery.share for row in rows})
    result = Figure(figsize=(2.9 * len(axes) + 0.8, max(0.6 + 2.6 * len(sources), 3.6)))
    grid = result.subplots(len(sources), len(axes), squeeze=False)
    for source, line in zip(sources, grid, strict=True):
        mine = [row for row in rows if row.source == source]
        for axis, panel in zip(axes, line, strict=True):
            sizes = _trained(panel, records, mine, axis)
            for row_method in methods:
                for place, share in enumerate(shares):
                    _points(
                        panel,
                        [r for r in mine if r.first.method == row_method
                         and r.first.recovery.share == share],
                        axis,
                        methods.index(row_method),
                        LINES[place % len(LINES)],
                    )  # fmt: skip
            sizes += [_place(row, axis) for row in mine]
            set_axis(panel, "x", axis_of(axis, sizes, si, log=True))
        line[0].set_ylabel("validation loss (nats/token)")
        line[0].set_title(printable(f"{source[0]} {source[1]}, {flops(source[2])} FLOPs"))
    keys = [
        grid[0, 0].plot([], [], _style(place), color=_colour(place), label=printable(name))[0]
        for place, name in enumerate(methods)
    ]
    keys += grid[0, 0].plot([], [], "D-", color=BASELINE, label="trained smaller")
    if len(shares) > 1:
        keys += [
            grid[0, 0].plot([], [], ls=LINES[place % len(LINES)], color="0.5",
                            label=f"recovery {share:.0%}")[0]
            for place, share in enumerate(shares)
        ]  # fmt: skip
    result.legend(handles=keys, loc="outside right upper")
    return result


def _colour(place: int) -> str:
    return PALETTE[place % len(PALETTE)]


def _style(place: int) -> str:
    return MARKERS[place % len(MARKERS)]


def _points(panel: Axes, rows: Sequence[Row], axis: str, place: int, line: str) -> None:
    for row in rows:
        if np.isfinite(row.loss.low):
            at = _place(row, axis)
            panel.vlines(at, row.loss.low, row.loss.high, color=_colour(place), lw=0.8)
    x, y = [_place(row, axis) for row in rows], [row.loss.value for row in rows]
    # Points of equal size differ in another option than size: a line through them would mislead.
    line = line if len(x) > 1 and len(set(x)) == len(x) else "none"
    panel.plot(x, y, _style(place), color=_colour(place), ls=line, lw=0.7)


def _place(row: Row, axis: str) -> float:
    """Where a row stands on an axis; nan if its time was not measured."""
    if axis in SIZES:
        return row.size(axis)
    return np.nan if row.decode_ms is None else row.decode_ms


def _trained(panel: Axes, records: Sequence[Record], rows: Sequence[Row], axis: str) -> list[float]:
    """Draw the trained models of the rows' variant and budget; their places.

    On the axis of decoding time the source alone, since no other model was timed.
    """
    variant, size_of_source, budget = rows[0].source
    by_size: dict[float, list[float]] = {}
    for record in records:
        if (record.variant, record.budget) != (variant, budget) or record.ablation:
            continue
        if axis in SIBLING_SIZES:
            at: float | None = SIBLING_SIZES[axis](record)
        else:
            times = [row.source_decode_ms for row in rows if row.source_decode_ms is not None]
            at = float(np.median(times)) if times and record.size.name == size_of_source else None
        if at is not None and record.loss is not None:
            by_size.setdefault(at, []).append(record.loss)
    sizes = sorted(by_size)
    losses = [mean_interval(by_size[size]) for size in sizes]
    panel.plot(sizes, [loss.value for loss in losses], "D-", color=BASELINE)
    for size, loss in zip(sizes, losses, strict=True):
        if np.isfinite(loss.low):
            panel.vlines(size, loss.low, loss.high, color=BASELINE, lw=0.8)
    return sizes
