"""Laws of dense models: the frontier L(C), and Chinchilla's three approaches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isoflop.analysis.laws.approaches import best_losses, envelope, isoflop
from isoflop.analysis.laws.cost import cost_of, optimum_of_two_powers
from isoflop.analysis.laws.law import Columns, Law, Number, Params, log_linear

FRONTIER = Law(
    name="frontier",
    formula="L(C) = E + A C^-alpha, one row per budget: the best loss it buys",
    source="Henighan et al. 2020 (2010.14701)",
    columns=("C", "L"),
    optional=("N", "D"),
    inputs=("C",),
    terms=("E", "A"),
    shapes={"alpha": (0.0, 1.0)},
    exponents=log_linear(lambda x: [[0.0], [-np.log(x["C"])]]),
    # Chinchilla's surface, followed along its optimum.
    example={"E": 1.82, "A": 2300.0, "alpha": 0.178},
    optimum=lambda p, C, columns: {"L_opt": p["E"] + p["A"] * C ** -np.asarray(p["alpha"])},
    reduce=best_losses,
)


def _chinchilla_optimum(p: Params, C: float, columns: Columns) -> dict[str, Number]:
    return optimum_of_two_powers(p["E"], p["A"], p["B"], p["alpha"], p["beta"], C, cost_of(columns))


CHINCHILLA = Law(
    name="chinchilla",
    formula="L(N, D) = E + A N^-alpha + B D^-beta",
    source="Hoffmann et al. 2022 (2203.15556) approach 3, constants as refitted by Besiroglu et "
    "al. 2024 (2404.10102)",
    columns=("N", "D", "L"),
    inputs=("N", "D"),
    terms=("E", "A", "B"),
    shapes={"alpha": (0.0, 1.5), "beta": (0.0, 1.5)},
    exponents=log_linear(lambda x: [[0.0, 0.0], [-np.log(x["N"]), 0.0], [0.0, -np.log(x["D"])]]),
    example={"E": 1.81686, "A": 482.01, "B": 2085.43, "alpha": 0.34781, "beta": 0.36585},
    optimum=_chinchilla_optimum,
)


def _size_optimum(p: Params, C: float, columns: Columns) -> dict[str, Number]:
    a = np.asarray(p["a"])
    N = p["k"] * C**a
    with np.errstate(divide="ignore"):  # a sample of k may be at its bound 0
        return {"b": 1 - a, "N_opt": N, "D_opt": C / (6 * cost_of(columns).ratio(N) * N)}


def _size_law(name: str, formula: str, reduce: Callable[[Columns], Columns]) -> Law:
    return Law(
        name=name,
        formula=formula,
        source="Hoffmann et al. 2022 (2203.15556)",
        columns=("C", "N", "L"),
        optional=("D",),
        inputs=("C",),
        terms=("k",),
        shapes={"a": (0.0, 1.0)},
        exponents=log_linear(lambda x: [[np.log(x["C"])]]),
        example={"k": 0.09, "a": 0.5},
        optimum=_size_optimum,
        reduce=reduce,
        target="N",
        delta=10.0,  # least squares, as the paper: the optima scatter by far more than 1e-3
    )


CHINCHILLA_ENVELOPE = _size_law(
    "chinchilla-envelope", "N*(C) = k C^a through the runs no cheaper run beats (1)", envelope
)
CHINCHILLA_ISOFLOP = _size_law(
    "chinchilla-isoflop", "N*(C) = k C^a through the minima of isoFLOP parabolas (2)", isoflop
)
