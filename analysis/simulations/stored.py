"""Stored counts of simulations: with their seeds, and with what tells whether they are current.

A count is current if its first simulated suite, analysed again, gives the stored numbers. A hash of
the code is stored as well: with the same code, a truth is not simulated again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isoflop import analysis
from isoflop.analysis.simulations.coverage import Suite, analyse_suite
from isoflop.analysis.simulations.layouts import incomplete, paper, quick
from isoflop.analysis.simulations.truths import (
    Truth,
    layout_truths,
    paper_truths,
    quick_truths,
    rank_truths,
)
from isoflop.results.code import hash_of
from isoflop.results.files import write_whole

STORED = Path("results/simulations/simulations.json")
DECISIVE = (  # the modules that decide the numbers
    "curves",
    "estimate",
    "frontier",
    "parabola",
    "ratios",
    "simulate",
    "simulations/coverage",
    "simulations/layouts",
    "simulations/truths",
    "surface",
    "surface_headline",
    "surface_holdout",
    "surface_misfit",
    "surface_multiplier",
    "surface_noise",
    "surface_solver",
)
CURRENT = 1e-3  # by which the logarithm of a multiplier may differ between machines


def truths() -> Iterator[Truth]:
    """All truths that are simulated."""
    yield from quick_truths(quick())
    yield from layout_truths(quick(seeds=3), incomplete())
    yield from paper_truths(paper())
    yield from rank_truths(quick())


def read(path: Path) -> dict[str, Any]:
    """The stored counts by truth; none if there is no such file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write(path: Path, counts: dict[str, Any]) -> None:
    """Write the counts, in the order of the truths."""
    order = [truth.name for truth in truths()]
    ordered = {name: counts[name] for name in order if name in counts}
    write_whole(path, json.dumps(ordered, indent=1) + "\n")


def first_suite(suite: Suite) -> list[float]:
    """The numbers of a suite that its truth is recognised by."""
    errors = np.nan_to_num(np.stack([suite.parabola, suite.surface]))
    return [round(float(value), 5) for value in errors[..., 0].ravel()]


def is_current(truth: Truth, count: dict[str, Any]) -> bool:
    """Whether the first suite of a stored count is what the code gives now."""
    suite = analyse_suite(truth, (count["seed"], 0), samples=20)
    return bool(np.allclose(first_suite(suite), count["first_suite"], rtol=0, atol=CURRENT))


def code() -> str:
    """A hash of the modules that decide the numbers, less comments and docstrings."""
    folder = Path(analysis.__file__).resolve().parent
    return hash_of(folder / f"{module}.py" for module in DECISIVE)
