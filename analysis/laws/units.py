"""Numbers that cannot be what their column says: another unit, another quantity."""

from __future__ import annotations

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.law import Columns

MOST_NATS = 15.0  # no untrained model of a million words is worse
LEAST_NATS = 1e-6  # nor is any trained one better: text learned by heart has more
RANGES = {  # of one run's value
    "C": (1.0, 1e36, "training FLOPs"),
    "N": (1.0, 1e18, "parameters"),
    "D": (1.0, 1e20, "tokens"),
    "E": (1.0, 1e9, "experts"),
    "G": (1e-3, 1e6, "granularity"),
}
FEW = 1e5  # parameters or tokens that are few enough to be thousands, millions or billions of them
SAME = 3.0  # factor between C and 6 N D within which all three are in their units
TOKENS_PER_PARAMETER = (1e-3, 1e6)
SLIP = 30.0  # factor of a row's C / (6 N D) from the others' beyond which one of them is a slip


def unlikely(name: str, value: float) -> str:
    """Why one value cannot be; nothing if it can."""
    if not np.isfinite(value):
        return f"is {value:g}; leave out runs without a finite value"
    if value <= 0:
        return f"is {value:g}, where only positive values make sense"
    if name == "L" and value > MOST_NATS:
        return (
            f"is {value:g}, over {MOST_NATS:g} nats per token: it looks like perplexity (take its "
            "logarithm), or a run that diverged (leave it out)"
        )
    if name == "L" and value < LEAST_NATS:
        return f"is {value:g}, under {LEAST_NATS:g} nats per token, which no model reaches"
    if name in RANGES:
        low, high, what = RANGES[name]
        if not low <= value <= high:
            return f"is {value:g}, outside {low:g} to {high:g} {what}"
    return ""


def wrong_unit(columns: Columns) -> tuple[str, str] | None:
    """The column that looks as if it were in another unit, and what to say of it."""
    N, D, C = (columns.get(name) for name in "NDC")
    if N is not None and D is not None and C is not None:
        off = float(np.median(C / (6 * N * D)))
        if 1 / SAME < off < SAME:
            return None  # whatever they are, they agree
    for name, values, what in (("N", N, "parameters"), ("D", D, "tokens")):
        if values is None:
            continue
        middle = float(np.median(values))
        if middle >= FEW or not _implausible(values, N, D, C):
            continue
        unit, letter = _unit(name, values, D, C)
        return name, (
            f"{values.min():.4g} to {values.max():.4g} looks like {unit}: write 1.5{letter}, "
            f"name the column {what} ({letter}), or give {what}"
        )
    if C is not None and float(C.max()) < 1e6:
        return "C", (
            f"{C.min():.4g} to {C.max():.4g} is not FLOPs: write all of them, such as 1e18, or "
            "name the unit in the header, such as C (1e18)"
        )
    return None


def slip(columns: Columns) -> tuple[int, str] | None:
    """The row whose C, N and D cannot all be right, and what to say of it."""
    if not {"C", "N", "D"} <= set(columns):
        return None
    ratio = columns["C"] / (6 * columns["N"] * columns["D"])
    off = np.abs(np.log(ratio / np.median(ratio)))
    worst = int(np.argmax(off))
    if off[worst] <= np.log(SLIP):
        return None
    return worst, (
        f"C is {ratio[worst]:.3g} times 6 N D, elsewhere about {np.median(ratio):.3g}: one of C, N "
        "and D is wrong, or in another unit"
    )


def _ratio(N: Array | None, D: Array | None, C: Array | None) -> float | None:
    """Tokens per parameter, if the table says."""
    if N is None:
        return None if C is None or D is None else float(np.median(6 * D**2 / C))
    if D is None:
        return None if C is None else float(np.median(C / 6 / N**2))
    return float(np.median(D / N))


def _implausible(values: Array, N: Array | None, D: Array | None, C: Array | None) -> bool:
    """Whether few parameters or tokens are in another unit, by what the table has beside them."""
    ratio = _ratio(N, D, C)
    if ratio is not None and not TOKENS_PER_PARAMETER[0] <= ratio <= TOKENS_PER_PARAMETER[1]:
        return True
    if C is not None and N is not None and D is not None:
        return True  # they are few, and C is not 6 N D
    return bool(np.any(values != np.round(values))) and values.max() < FEW


def _unit(name: str, values: Array, D: Array | None, C: Array | None) -> tuple[str, str]:
    """Millions or billions: by what makes tokens per parameter usual, else by the size."""
    millions, billions = ("millions", "M"), ("billions", "B")
    if name == "D":
        return billions
    if C is not None and D is None:
        away = [abs(np.log(np.median(C / 6 / (values * u) ** 2) / 20)) for u in (1e6, 1e9)]
        return millions if away[0] < away[1] else billions
    return millions if np.median(values) >= 10 else billions
