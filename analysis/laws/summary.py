"""A fit as a page of text, laid out as statsmodels lays out its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from isoflop.analysis.laws.fit import Fit

WIDTH = 78
DELTA_FROM = {"given": "given", "law": "the law's", "data": "1.345 sd, first fit"}


def summary(fit: Fit) -> str:
    """How the law was fitted, then its parameters, then what is compute-optimal."""
    if fit.bootstrap:
        intervals = f"{fit.bootstrap} refits"
    else:
        intervals = "sandwich, HC2" if fit.n_runs is None else "sandwich, CR2 by run"
    left = {
        "Rows": f"{fit.n_points}",
        "Parameters": f"{len(fit.constraints.free)} free",
        "Status": fit.status,
        "Starts agreeing": f"{fit.share_of_starts:.0%}",
    }
    right = {
        "Huber delta": f"{fit.delta:.3g} ({DELTA_FROM[fit.delta_from]})",
        "Objective": number(fit.objective),
        "Residual sd": number(_residual_sd(fit)) + f" of log {fit.law.target}",
        "Intervals": f"{intervals}, t({fit.freedom:.3g})",
    }
    if fit.n_runs is not None:
        left["Rows"] += f", of {fit.n_runs} runs"
    lines = [
        f"Scaling law: {fit.law.name}".center(WIDTH).rstrip(),
        fit.law.formula.center(WIDTH).rstrip(),
        "=" * WIDTH,
    ]
    for (a, x), (b, y) in zip(left.items(), right.items(), strict=True):
        lines.append(f"{a + ':':<17}{x:>16}   {b + ':':<13}{y:>29}")
    lines += ["=" * WIDTH, _row("", "value", "std err", "[0.025", "0.975]"), "-" * WIDTH]
    for name, value in fit.params.items():
        remark = _remark(fit, name)
        errors = ("", "", "") if remark else (fit.std_errors[name], *fit.intervals[name])
        lines.append(_row(name, value, *errors) + remark)
    if fit.derived:
        optimum = {
            name: (value, *fit.derived_intervals[name])
            for name, value in fit.derived.items()
            if name != "C"
        }
        lines += ["-" * WIDTH, optimum_at(fit.derived["C"], optimum)]
    return "\n".join([*lines, "=" * WIDTH, *_warnings(fit)])


def optimum_at(C: float, optimum: Mapping[str, tuple[float, float, float]]) -> str:
    """What is compute-optimal at C FLOPs, with intervals."""
    rows = [_row(name, value, "", low, high) for name, (value, low, high) in optimum.items()]
    return "\n".join([f"compute-optimal at C = {C:.6g} FLOPs", *rows])


def _residual_sd(fit: Fit) -> float:
    left = fit.n_points - len(fit.constraints.free)
    return float(np.sqrt((fit.residuals**2).sum() / left)) if left > 0 else np.nan


def _remark(fit: Fit, name: str) -> str:
    if name in fit.constraints.fixed:
        return "  fixed"
    first = next((pair for pair in fit.constraints.ties if name == pair[1]), None)
    return f"  = {first[0]}" if first else ""


def _row(name: str, *values: float | str) -> str:
    return f"{name[:18]:<18}" + "".join(f"{number(value):>15}" for value in values)


def number(value: float | str) -> str:
    """Six digits; a dash for what is not known."""
    if isinstance(value, str):
        return value
    if not np.isfinite(value):
        return "-" if np.isnan(value) else str(value)
    return f"{value:.6g}"


def _warnings(fit: Fit) -> list[str]:
    """What the status means, in a sentence."""
    if fit.status == "bound hit":
        low, high = fit.constraints.lower, fit.constraints.upper
        at = [
            f"{name} = {fit.params[name]:g}"
            for name, a, b in zip(fit.constraints.free, low, high, strict=True)
            if not a < fit.params[name] < b
        ]
        return [f"Bound hit: {', '.join(at)}. The rows do not have what the law describes there."]
    sentences = {
        "not identified": "Not identified: other parameters fit as well; intervals are not known.",
        "too few points": "Too few points: no more rows than parameters, so no noise is seen.",
        "not converged": "Not converged: the minimiser ran out of steps.",
    }
    return [sentences[fit.status]] if fit.status in sentences else []
