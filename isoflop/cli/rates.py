"""What a learning-rate sweep says, in a line per variant."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.analysis.learning_rates import Rate, rate_sweeps, tuned_rates
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
