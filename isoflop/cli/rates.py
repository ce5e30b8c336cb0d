"""What a learning-rate sweep says, in a line per variant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoflop.analysis.learning_rates import Rate, RateSweep, rate_sweeps, tuned_rates
from isoflop.analysis.report.format import flops
from isoflop.results.record import Record


def best_rates(records: Sequence[Record], width: int, exponent: float) -> list[str]:
    """The interpolated peak learning rate of every variant at the suite's transfer width.

    Args:
        records: of the sweeps.
        width, exponent: of the suite's rule of transfer.
    """
    lines = []
    kinds: tuple[tuple[Rate, str, float], ...] = (
        ("learning_rate", "rate", exponent),
        ("table_rate", "rate of tables over it", 0.0),
    )
    for of, what, rule in kinds:
        sweeps = rate_sweeps(records, (), 0.0, 10, of)
        for variant, tuned in tuned_rates(sweeps, width, rule).items():
            line = f"{variant}: best {what} {tuned.rate:.3g} at width {width}, interpolated"
            if tuned.own_slope:
                line += f"; by width^{tuned.slope:.2g}, from its sweeps at several widths"
            if tuned.at_edge:
                line += "; at the edge of a sweep: a better one may lie beyond"
            lines.append(line)
    return lines


def rate_check(
    records: Sequence[Record], given: float, width: int, exponent: float
) -> dict[str, object]:
    """What three rates at one small cell say of the learning rate that a layer was compared at.

    Args:
        records: of one cell at half the rate, the rate and double the rate.
        given: the rate, at the suite's transfer width.
        width, exponent: of the suite's rule of transfer.
    Returns:
        the rates and losses, the interpolated rate at the transfer width, and a sentence.
    """
    ordered = sorted(records, key=lambda record: record.learning_rate)
    losses = [record.loss for record in ordered]
    values: dict[str, object] = {
        "rates": [record.learning_rate for record in ordered],
        "losses": losses,
        "best": None,
    }
    first = ordered[0]
    cell = f"size {first.size.name}, {flops(first.budget)} FLOPs"
    sweeps = rate_sweeps(records, (), 0.0, 10)
    if not sweeps or losses[1] is None:
        text = f"learning rate {given:g} did not finish at {cell}: it is not checked"
        return values | {"sentence": text}
    (sweep,) = sweeps
    tuned = tuned_rates(sweeps, width, exponent)[first.variant]
    values["best"] = float(f"{tuned.rate:.3g}")
    tried = ", ".join(f"{record.learning_rate:.3g}" for record in ordered)
    if _middle_is_best(sweep, ordered[1].learning_rate):
        text = f"learning rate {given:g} is near the best of three ({tried} at {cell})"
        return values | {"sentence": f"{text}; interpolated: {tuned.rate:.3g}"}
    text = (
        f"learning rate {given:g} is not the best of three ({tried} at {cell}): try "
        f"--learning-rate {tuned.rate:.3g}"
    )
    return values | {"sentence": text + ", beyond which a better one may lie" * sweep.at_edge}


def _middle_is_best(sweep: RateSweep, middle: float) -> bool:
    """Whether the middle rate is the nearest of the three to the best."""
    return bool(not sweep.at_edge and abs(np.log(sweep.best.value / middle)) < np.log(2) / 2)
