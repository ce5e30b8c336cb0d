"""A value with its 95% interval, from bootstrap samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CENTRAL_95 = (0.025, 0.975)  # the quantiles at the ends of a central 95% interval


class Estimate(NamedTuple):
    """A value and the ends of its 95% interval (nan where the noise is unknown)."""

    value: float
    low: float
    high: float


def estimate(samples: Array) -> Estimate:
    """The estimate of one quantity.

    Args:
        samples: shape (1 + samples,). The first is the value from the data itself; the others are
            bootstrap samples, and without them there is no interval.
    """
    if len(samples) == 1:
        return Estimate(float(samples[0]), np.nan, np.nan)
    low, high = np.quantile(samples[1:], CENTRAL_95)
    return Estimate(float(samples[0]), float(low), float(high))
