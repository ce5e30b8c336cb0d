"""Does a law hold beyond the runs it was fitted to? Fit below a budget, predict what is above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.fit import Fit, fit, jsonable
from isoflop.analysis.laws.law import Columns, Law
from isoflop.results.errors import IsoflopError

SHORT = 0.98  # of the budget named: runs of whole steps end a little before it


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """A fit of the runs below `C`, and its errors at those of C FLOPs and more.

    Errors are prediction minus run in nats per token, or, of a law of sizes, in log N.
    """

    C: float
    fit: Fit
    flops: Array  # (n,) of the rows predicted
    errors: Array  # (n,)

    def to_json(self) -> dict[str, Any]:
        return {
            "C": self.C,
            "below": self.fit.n_points,
            "above": len(self.errors),
            "status": self.fit.status,
            "unit": "nats" if self.fit.law.target == "L" else f"log {self.fit.law.target}",
            "mean_error": jsonable(float(self.errors.mean())),
            "rms_error": jsonable(float(np.sqrt((self.errors**2).mean()))),
            "largest_error": jsonable(float(self.errors[np.argmax(np.abs(self.errors))])),
        }


def extrapolate(law: Law, columns: Columns, C: float, **options: Any) -> Extrapolation:
    """Fit the rows below C FLOPs, with the `options` of `fit`, and predict the others.

    Raises:
        IsoflopError: no row is above, or too few are below.
    """
    flops = law.flops(columns)
    above = flops >= SHORT * C
    if not above.any():
        raise IsoflopError(
            f"--holdout: no run has {C:.4g} FLOPs; the largest has {flops.max():.4g}"
        )
    below: Mapping[str, Array] = {name: values[~above] for name, values in columns.items()}
    held_out = law.reduce({name: values[above] for name, values in columns.items()})
    if above.all() or (fitted := fit(law, below, **options)).status == "too few points":
        raise IsoflopError(
            f"--holdout: {int((~above).sum())} runs have less than {C:.4g} FLOPs, too few to fit "
            f"{law.name}"
        )
    if not len(held_out[law.target]):
        raise IsoflopError(f"--holdout: no budget of {C:.4g} FLOPs or more has a minimum")
    truth, prediction = held_out[law.target], fitted.predict(held_out)
    errors = prediction - truth if law.target == "L" else np.log(prediction / truth)
    return Extrapolation(C, fitted, law.flops(held_out), errors)
