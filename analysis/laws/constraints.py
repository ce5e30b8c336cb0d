"""Parameters that are given or shared, not fitted each: `--fix E=1.6`, `--tie alpha=beta`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.law import Law
from isoflop.results.errors import IsoflopError


class ConstraintError(IsoflopError):
    """A parameter that a law does not have, or that cannot have the value asked for."""


class Constraints:
    """Which of a law's parameters are free: full = spread @ free + given, terms then shapes.

    `fixed` gives values by name, `ties` pairs of names of one value. A tied group is free once,
    under the name of its first member.
    """

    def __init__(
        self,
        law: Law,
        fixed: Mapping[str, float] | None = None,
        ties: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.fixed, self.ties = dict(fixed or {}), tuple(ties)
        groups = {name: name for name in law.names}  # each parameter's first member
        for name in (*self.fixed, *(name for pair in ties for name in pair)):
            if name not in groups:
                raise ConstraintError(
                    f"{name}: {law.name} has no such parameter; it has {', '.join(law.names)}"
                )
        for first, second in ties:
            if (first in law.terms) != (second in law.terms):
                raise ConstraintError(
                    f"{first}={second}: a coefficient cannot be tied to an exponent; "
                    f"coefficients of {law.name} are {', '.join(law.terms)}"
                )
            old = {groups[first], groups[second]}
            new = next(name for name in law.names if name in old)
            groups = {name: new if group in old else group for name, group in groups.items()}
        values: dict[str, float] = {}
        for name, value in self.fixed.items():
            low, high = law.shapes.get(name, (0.0, np.inf))
            if not (np.isfinite(value) and low <= value <= high):
                raise ConstraintError(f"{name}={value:g}: {name} lies between {low:g} and {high:g}")
            if values.setdefault(groups[name], value) != value:
                raise ConstraintError(
                    f"{name}={value:g}: it is tied to {groups[name]}, fixed at another value"
                )
        self.free = tuple(n for n in law.names if groups[n] == n and n not in values)
        if not self.free:
            raise ConstraintError(f"{law.name}: every parameter is fixed; nothing is left to fit")
        self.terms = sum(name in law.terms for name in self.free)
        self.spread = np.array(
            [[groups[n] == free for free in self.free] for n in law.names], float
        )
        self.given = np.array([values.get(groups[n], 0.0) for n in law.names])
        bounds = np.array([law.shapes.get(name, (0.0, np.inf)) for name in law.names])
        member = self.spread.T > 0
        self.lower: Array = np.where(member, bounds[:, 0], -np.inf).max(axis=1)
        self.upper: Array = np.where(member, bounds[:, 1], np.inf).min(axis=1)
        empty = self.lower >= self.upper
        if empty.any():
            name = self.free[int(np.argmax(empty))]
            raise ConstraintError(f"{name}: what is tied to it has no value in common with it")
