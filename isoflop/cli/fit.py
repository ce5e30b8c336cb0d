"""The verb `fit`: a scaling law for a table of anybody's runs. It needs no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from isoflop.analysis.report.format import flops, listed, si
from isoflop.cli.console import Json, app, readable, show
from isoflop.results.errors import IsoflopError, did_you_mean

if TYPE_CHECKING:
    from isoflop.analysis.estimate import Array
    from isoflop.analysis.laws.approaches import Budget
    from isoflop.analysis.laws.fit import Fit
    from isoflop.analysis.laws.law import Law


@app.command()
def fit(
    runs: Annotated[
        Path, typer.Argument(help="Table with a run in each row: CSV, JSON lines, parquet.")
    ],
    law: Annotated[
        str, typer.Option(help="Name of the law; a wrong name lists them.")
    ] = "chinchilla",
    delta: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Huber delta on log loss; the law's default if not given."),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, max=100_000, help="Bootstrap samples for the intervals.")
    ] = 0,
    column: Annotated[
        list[str] | None,
        typer.Option(help="NAME=HEADER: the table's header for a column of the law."),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Keep the lowest loss of rows of the same setting.")
    ] = False,
    at: Annotated[
        list[float] | None,
        typer.Option(help="What is compute-optimal at these FLOPs too; may be repeated."),
    ] = None,
    holdout: Annotated[
        float | None, typer.Option(help="Fit the rows of fewer FLOPs, and predict the others.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a scaling law to a table of runs."""
    from isoflop.analysis.laws import LAWS
    from isoflop.analysis.laws.approaches import parabolas
    from isoflop.analysis.laws.bias import estimated_bias
    from isoflop.analysis.laws.dense import CHINCHILLA_ISOFLOP
    from isoflop.analysis.laws.fit import fit as fit_law
    from isoflop.analysis.laws.table import read_table

    if law not in LAWS:
        raise IsoflopError(
            f"--law: no law {law!r}{did_you_mean(law, LAWS)}; known: {', '.join(LAWS)}"
        )
    for name, values in (("--at", at or []), ("--holdout", [] if holdout is None else [holdout])):
        for value in values:
            if not 1 <= value < 1e100:
                raise IsoflopError(f"{name}: {value:g} is no number of FLOPs")
    table = read_table(runs, LAWS[law], renamed(column or []), best=best)
    for note in table.notes:
        print(f"note: {note}", file=sys.stderr)
    budgets = parabolas(table.columns) if law == CHINCHILLA_ISOFLOP.name else []
    if budgets and all(budget.why for budget in budgets):
        raise IsoflopError(
            f"{runs}: {law}: none of {len(budgets)} budgets has a minimum: "
            f"{listed(sorted({budget.why for budget in budgets}))}; a budget needs three sizes "
            "around its best one"
        )
    fitted = fit_law(LAWS[law], table.columns, delta=delta, bootstrap=bootstrap)
    result = fitted.to_json()
    bias = estimated_bias(table.columns) if budgets else None
    if bias:
        result["bias"] = asdict(bias)
    if budgets:
        result["budgets"] = [asdict(budget) for budget in budgets]
    optima = {C: fitted.optimum(C) for C in at or []}
    if optima:
        result["at"] = {f"{C:g}": values for C, values in optima.items()}
    if holdout is not None:
        result["holdout"] = held_out(runs, LAWS[law], table.columns, holdout, delta)
    if as_json:
        print(json.dumps(finite(result), indent=1))
        return
    print_fit(fitted, result, budgets)
    for C, quantities in optima.items():
        rows = [
            {"quantity": name, "value": value, "low": low, "high": high}
            for name, (value, low, high) in quantities.items()
        ]
        show(rows, f"Compute-optimal at {flops(C)} FLOPs", False)
    if holdout is not None:
        print(
            f"extrapolation test: fitted to {result['holdout']['fitted']} rows below "
            f"{flops(holdout)} FLOPs, predicted less measured loss of the other "
            f"{result['holdout']['predicted']}: {result['holdout']['mean_error']:+.4f} nats on "
            f"average, {result['holdout']['worst_error']:+.4f} at worst"
        )


def renamed(pairs: list[str]) -> dict[str, str]:
    """The `--column NAME=HEADER` options.

    Raises:
        IsoflopError: one has another form, or names a column twice.
    """
    result: dict[str, str] = {}
    for pair in pairs:
        name, equals, header = pair.partition("=")
        if not equals or not name or not header:
            raise IsoflopError(f"--column: {pair!r} is not NAME=HEADER, such as N=params")
        if name in result:
            raise IsoflopError(f"--column: {name} is given twice")
        result[name] = header
    return result


def held_out(
    runs: Path, law: Law, columns: Mapping[str, Array], holdout: float, delta: float | None
) -> dict[str, float]:
    """How well the rows of fewer FLOPs predict the losses of the others.

    Raises:
        IsoflopError: the law predicts no loss, or there are too few rows on a side.
    """
    from isoflop.analysis.laws.fit import fit as fit_law

    if law.target != "L":
        raise IsoflopError(f"--holdout: {law.name} predicts sizes, not losses")
    below = law.flops(columns) < holdout
    if below.all() or below.sum() <= len(law.names):
        raise IsoflopError(
            f"--holdout: {runs}: {below.sum()} rows of fewer and {(~below).sum()} of more FLOPs "
            f"than {flops(holdout)}: {law.name} needs more than {len(law.names)} and one"
        )
    part = fit_law(law, {name: values[below] for name, values in columns.items()}, delta=delta)
    rest = {name: values[~below] for name, values in columns.items()}
    error = part.predict(rest) - rest["L"]
    return {
        "budget": holdout,
        "fitted": int(below.sum()),
        "predicted": int((~below).sum()),
        "mean_error": float(error.mean()),
        "worst_error": float(error[np.argmax(np.abs(error))]),
    }


def print_fit(fitted: Fit, result: dict[str, Any], budgets: list[Budget]) -> None:
    """Parameters and optima, the budgets of the parabolas, and how the fit ended."""
    rows = [
        {"quantity": name, "value": value, "low": low, "high": high}
        for values, intervals in (("params", "intervals"), ("derived", "derived_intervals"))
        for name, value in result[values].items()
        for low, high in [result[intervals].get(name) or (None, None)]
    ]
    show(rows, f"{fitted.law.name}: {fitted.law.formula}", False)
    if budgets:
        show([in_words(budget) for budget in budgets], "Budgets, by gaps in C", False)
    print(
        f"{result['status']}; {result['n_points']} points, objective "
        f"{readable(result['objective'])}, Huber delta {result['delta']:g} on log loss, 95% "
        "intervals"
    )
    if "bias" in result:
        ratios, exponent = result["bias"]["size_ratio"], result["bias"]["exponent"]
        print(
            "bias of the parabolas, on the chinchilla surface fitted to these runs and without "
            f"noise: optimal sizes {min(ratios):.3f} to {max(ratios):.3f} times the true ones, "
            f"exponent a {exponent:+.4f}"
        )


def in_words(budget: Budget) -> dict[str, Any]:
    """A budget as a row of a table."""
    return {
        "C": budget.C,
        "sizes": budget.sizes,
        "N": f"{si(budget.smallest)} to {si(budget.largest)}",
        "minimum": "-" if budget.N is None else si(budget.N),
        "used": f"no: {budget.why}" if budget.why else "yes",
    }


def finite(value: Any) -> Any:
    """JSON has no nan: a number that is not known is None."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
