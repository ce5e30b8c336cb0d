"""The verb `fit`: a scaling law for any table of runs. It needs no torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.console import Json, app, show
from isoflop.results.errors import IsoflopError, did_you_mean

if TYPE_CHECKING:
    from isoflop.analysis.laws.extrapolation import Extrapolation
    from isoflop.analysis.laws.fit import Fit
    from isoflop.analysis.laws.law import Columns, Law

MOST_REFITS = 100_000
DELTAS = (1e-6, 100.0)


@app.command()
def fit(
    runs: Annotated[Path, typer.Argument(help="Table of runs: CSV, JSON or parquet, one a row.")],
    law: Annotated[str, typer.Option(help="Which law; a wrong name lists them.")] = "chinchilla",
    column: Annotated[
        list[str] | None,
        typer.Option(help="NAME=HEADER: where the table calls a column otherwise."),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of runs at one place, keep the lowest loss.")
    ] = False,
    at: Annotated[
        list[str] | None, typer.Option(help="FLOPs at which to print the optimum; repeatable.")
    ] = None,
    holdout: Annotated[
        str | None, typer.Option(help="FLOPs: fit the runs below, print the error above.")
    ] = None,
    fix: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: a parameter that is known.")
    ] = None,
    tie: Annotated[
        list[str] | None, typer.Option(help="NAME=NAME: parameters with one value.")
    ] = None,
    delta: Annotated[
        str | None, typer.Option(help="Huber delta on log loss; from the data if not given.")
    ] = None,
    bootstrap: Annotated[
        str, typer.Option(help="Refits for the intervals, by run if there is a column run.")
    ] = "0",
    as_json: Json = False,
) -> None:
    """Fit a scaling law to any table of runs."""
    from isoflop.analysis.laws import LAWS
    from isoflop.analysis.laws.extrapolation import extrapolate
    from isoflop.analysis.laws.fit import fit as fit_law
    from isoflop.analysis.laws.fit import jsonable
    from isoflop.analysis.laws.table import read_table

    if law not in LAWS:
        raise IsoflopError(
            f"--law: no law {law!r}{did_you_mean(law, LAWS)}; known: {', '.join(LAWS)}"
        )
    rename = _pairs("--column", column, "NAME=HEADER", "N=params")
    fixed = {
        name: _number(f"--fix {name}", value, positive=False)
        for name, value in _pairs("--fix", fix, "NAME=VALUE", "E=1.69").items()
    }
    ties = [_pair("--tie", text, "NAME=NAME", "alpha=beta") for text in tie or []]
    places = [_number("--at", C) for text in at or [] for C in text.split(",")]
    held_out = None if holdout is None else _number("--holdout", holdout)
    options: dict[str, Any] = {
        "delta": None if delta is None else _delta(delta),
        "bootstrap": _refits(bootstrap),
        "fixed": fixed,
        "ties": ties,
    }
    table = read_table(runs, LAWS[law], rename, best=best)
    budgets = _budgets(LAWS[law], table.columns)
    result = fit_law(LAWS[law], table.columns, **options)
    if result.n_points < len(result.constraints.free):
        raise IsoflopError(f"{runs}: {_too_few(result, budgets)}")
    optima = {C: result.optimum(C) for C in places}
    if not all(optima.values()):
        raise IsoflopError(f"--at: {law} does not say what is compute-optimal")
    beyond = extrapolate(LAWS[law], table.columns, held_out, **options) if held_out else None
    if as_json:
        shown = result.to_json() | {"notes": list(table.notes), "budgets": budgets}
        shown["at"] = [{"C": C} | jsonable(optimum) for C, optimum in optima.items()]
        shown["holdout"] = beyond.to_json() if beyond else None
        print(json.dumps(shown, indent=1))
        return
    _print(result, table.notes, budgets, optima, beyond)


def _print(
    result: Fit,
    notes: tuple[str, ...],
    budgets: list[dict[str, Any]],
    optima: dict[float, dict[str, tuple[float, float, float]]],
    beyond: Extrapolation | None,
) -> None:
    from isoflop.analysis.laws.summary import optimum_at

    for note in notes:
        print(f"note: {note}")
    if budgets:
        rows = [
            {
                "C": row["C"],
                "rows": row["rows"],
                "sizes": row["sizes"],
                "smallest": row["smallest"],
                "largest": row["largest"],
                "sizes near the minimum": row["near"],
                "N*": row["N"],
                "L*": row["L"],
                "used": row["why"] or "yes",
            }
            for row in budgets
        ]
        show(rows, f"Budgets by {_grouping(result)}, and the minima of their parabolas", False)
    print(result.summary())
    for C, optimum in optima.items():
        print(optimum_at(C, optimum))
    if beyond:
        values = beyond.to_json()
        print(
            f"holdout: fitted to {values['below']} rows below {beyond.C:.4g} FLOPs "
            f"({values['status']}), {values['above']} predicted: mean error "
            f"{_shown(values['mean_error'])}, rms {_shown(values['rms_error'])}, largest "
            f"{_shown(values['largest_error'])} {values['unit']}"
        )


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"


def _budgets(law: Law, columns: Columns) -> list[dict[str, Any]]:
    """The budgets of approach 2, where that is what the law is fitted to."""
    from isoflop.analysis.laws.approaches import best_losses, is_grid, isoflop, parabolas

    if law.reduce is isoflop or (law.reduce is best_losses and is_grid(columns)):
        return [dataclasses.asdict(b) | {"used": not b.why} for b in parabolas(columns)]
    return []


def _too_few(result: Fit, budgets: list[dict[str, Any]]) -> str:
    needed = len(result.constraints.free)
    if not budgets:
        return (
            f"{result.n_points} rows to fit {result.law.name}, which has {needed} parameters: more "
            "runs, or --fix some"
        )
    if all(row["sizes"] < 3 for row in budgets):
        return (
            f"no budget has three sizes, which a parabola needs ({len(budgets)} budgets by "
            f"{_grouping(result)}); "
            "--law chinchilla needs no budgets"
        )
    reasons = [row["why"] for row in budgets if row["why"]]
    return (
        f"{result.n_points} of {len(budgets)} budgets have a minimum among their sizes, "
        f"{result.law.name} needs {needed} ({'; '.join(dict.fromkeys(reasons))}); --law chinchilla "
        "uses all rows"
    )


def _grouping(result: Fit) -> str:
    from isoflop.analysis.laws.approaches import budgets

    return budgets(result.columns)[1]


def _pair(option: str, text: str, form: str, example: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise IsoflopError(f"{option}: {text!r} is not {form}, such as {example}")
    return name, value


def _pairs(option: str, texts: list[str] | None, form: str, example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or []:
        name, value = _pair(option, text, form, example)
        if name in pairs:
            raise IsoflopError(f"{option}: {name} is given twice")
        pairs[name] = value
    return pairs


def _number(option: str, text: str, positive: bool = True) -> float:
    from isoflop.analysis.laws.numbers import NumberError, to_numbers
    from isoflop.analysis.laws.units import unlikely

    try:
        ((value,), _) = to_numbers([text.strip()], suffixes=True, comma=None)
    except NumberError as error:
        raise IsoflopError(f"{option}: {error.reason.removeprefix('is ')}") from None
    if value != value:
        raise IsoflopError(f"{option}: a number is missing")
    if positive and (reason := unlikely("C", value)):
        raise IsoflopError(f"{option}: {reason.removeprefix('is ')}")
    return float(value)


def _delta(text: str) -> float:
    value = _number("--delta", text, positive=False)
    if not DELTAS[0] <= value <= DELTAS[1]:
        raise IsoflopError(f"--delta: {value:g} is not between {DELTAS[0]:g} and {DELTAS[1]:g}")
    return value


def _refits(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) > MOST_REFITS:
        raise IsoflopError(
            f"--bootstrap: {text[:20]!r} is not a whole number from 0 to {MOST_REFITS}"
        )
    return int(text)
