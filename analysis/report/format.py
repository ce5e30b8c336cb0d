"""Numbers as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from isoflop.analysis.estimate import Estimate


def si(value: float) -> str:
    """A count in at most three digits, such as 1.23M."""
    for scale, prefix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale * 0.9995:
            return f"{value / scale:.3g}{prefix}"
    return f"{value:.3g}"


def flops(value: float) -> str:
    """FLOPs in at most three digits, such as 6.4e14."""
    if not np.isfinite(value):
        return str(float(value))
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def ten_digits(value: float) -> str:
    """A number in a file: CPUs differ in digits beyond these. Empty where there is no value."""
    return f"{value:.10g}" if np.isfinite(value) else ""


def interval(value: Estimate, digits: str = ".2f", unit: str = "") -> str:
    """An estimate with its interval, such as 1.23x [1.10, 1.36]."""
    if np.isnan(value.low):
        return f"{value.value:{digits}}{unit}"
    return f"{value.value:{digits}}{unit} [{value.low:{digits}}, {value.high:{digits}}]"


def flops_interval(value: Estimate) -> str:
    """FLOPs with their interval."""
    return _with_ends(value, flops)


def si_interval(value: Estimate) -> str:
    """A count with its interval."""
    return _with_ends(value, si)


def _with_ends(value: Estimate, show: Callable[[float], str]) -> str:
    if np.isnan(value.low):
        return show(value.value)
    return f"{show(value.value)} [{show(value.low)}, {show(value.high)}]"


def decade(slope: Estimate) -> str:
    """A slope of log10(multiplier) per decade of compute, as a factor per decade."""
    return interval(Estimate(*(float(np.power(10.0, end)) for end in slope)), unit="x")


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
