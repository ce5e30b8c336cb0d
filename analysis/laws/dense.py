"""Laws of dense models: the frontier L(C), and Chinchilla's three approaches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isoflop.analysis.laws.approaches import envelope, isoflop
from isoflop.analysis.laws.law import (
    Columns,
    Law,
    Number,
    Params,
    log_linear,
    optimum_of_two_powers,
)

FRONTIER = Law(
    name="frontier",
    formula="L(C) = E + A C^-alpha, one row per budget: the lowest loss at C",
    source="Henighan et al. 2020 (2010.14701)",
    columns=("C", "L"),
    inputs=("C",),
    terms=("E", "A"),
    shapes={"alpha": (0.0, 1.0)},
    exponents=log_linear(lambda x: [[0.0], [-np.log(x["C"])]]),
    # along the optimum of Chinchilla's surface
    example={"E": 1.82, "A": 2300.0, "alpha": 0.178},
    nominal_flops=lambda columns: columns["C"],
    nominal_optimum=lambda p, C, columns: {"L_opt": p["E"] + p["A"] * C ** -np.asarray(p["alpha"])},
)


def _chinchilla_optimum(p: Params, C: float, columns: Columns) -> dict[str, Number]:
    return optimum_of_two_powers(p["E"], p["A"], p["B"], p["alpha"], p["beta"], C / 6)


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
    nominal_optimum=_chinchilla_optimum,
)


def _size_optimum(p: Params, C: float, columns: Columns) -> dict[str, Number]:
    a = np.asarray(p["a"])
    N = p["k"] * C**a
    ratio = np.median(columns["C"] / columns["N"] / columns["D"]) if "D" in columns else 6.0
    with np.errstate(divide="ignore"):  # a sample of k may be at its bound 0
        return {"b": 1 - a, "N_opt": N, "D_opt": C / (ratio * N)}


def _size_law(name: str, formula: str, reduce: Callable[[Columns], Columns]) -> Law:
    return Law(
        name=name,
        formula=formula,
        source="Hoffmann et al. 2022 (2203.15556)",
        columns=("C", "N", "L"),
        inputs=("C",),
        terms=("k",),
        shapes={"a": (0.0, 1.0)},
        exponents=log_linear(lambda x: [[np.log(x["C"])]]),
        example={"k": 0.09, "a": 0.5},
        nominal_flops=lambda columns: columns["C"],
        nominal_optimum=_size_optimum,
        reduce=reduce,
        target="N",
        delta=10.0,  # least squares, as in the paper: the optima scatter by far more than 1e-3
    )


CHINCHILLA_ENVELOPE = _size_law(
    "chinchilla-envelope",
    "N*(C) = k C^a through the runs with the lowest loss so far (approach 1)",
    envelope,
)
CHINCHILLA_ISOFLOP = _size_law(
    "chinchilla-isoflop",
    "N*(C) = k C^a through the minima of isoFLOP parabolas (approach 2)",
    isoflop,
)
