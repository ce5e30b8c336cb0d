"""Fitting approach 3 to the 240 Chinchilla points, side by side with the packages that do it too.

    pytest tests/benchmarks/test_fit.py --benchmark-json=fit.json

Every round times the rival, then us, in one process; `extra_info` holds both medians, their ratio,
and for each side the parameters and the objective they reach: the summed Huber loss of the log
residuals at delta 1e-3, the one the published fit minimises (0.0010183 at its optimum).
"""

import logging
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from isoflop.analysis.laws.dense import CHINCHILLA
from isoflop.analysis.laws.fit import fit
from isoflop.analysis.laws.table import read_table

pytest.importorskip("pytest_benchmark")

DELTA = 1e-3


@pytest.fixture(scope="module")
def points():
    path = Path(__file__).parents[3] / "shared" / "data" / "runs" / "epoch_chinchilla_points.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the repository")
    names = {"N": "Model Size", "C": "Training FLOP", "L": "loss"}
    columns = read_table(path, CHINCHILLA, names).columns
    keep = np.argsort(columns["L"])[:-5]
    return {name: values[keep] for name, values in columns.items()}


def reached(params, points):
    """The parameters, what they imply, and the objective at them."""
    residual = np.abs(np.log(CHINCHILLA.predict(params, points) / points["L"]))
    inside = np.minimum(residual, DELTA)
    return params | {
        "a": params["beta"] / (params["alpha"] + params["beta"]),
        "objective": float((inside * (residual - inside / 2)).sum()),
    }


def side_by_side(benchmark, points, rival, rounds=5):
    """Benchmark our fit, with the rival (which returns its parameters) timed before each round."""
    seconds, theirs = [], {}

    def time_rival():
        start = time.perf_counter()
        theirs.update(rival())
        seconds.append(time.perf_counter() - start)

    ours = benchmark.pedantic(
        fit, (CHINCHILLA, points), {"delta": DELTA}, setup=time_rival, rounds=rounds
    )
    own = benchmark.stats.stats.median
    benchmark.extra_info |= {
        "ours": reached(ours.params, points),
        "theirs": reached(theirs, points),
        "median_seconds": {"ours": own, "theirs": median(seconds)},
        "ratio": median(seconds) / own,
    }


@pytest.mark.parametrize("per_axis", [2, 3])
def test_against_chinchilla(benchmark, points, tmp_path, monkeypatch, per_axis):
    """`chinchilla`: BFGS from a grid of starts, in a pool of processes, with the paper's loss."""
    chinchilla = pytest.importorskip("chinchilla")
    from chinchilla._metrics import log_huber

    grid = {"E": (1, 2), "a": (1, 10), "b": (1, 10), "alpha": (0.1, 0.7), "beta": (0.1, 0.7)}
    package = chinchilla.Chinchilla(
        str(tmp_path),
        param_grid={name: tuple(np.linspace(*ends, per_axis)) for name, ends in grid.items()},
        loss_fn=lambda truth, prediction: log_huber(truth, prediction, DELTA),
        log_level=logging.CRITICAL,
    )
    monkeypatch.setattr(package.visualizer, "optim", lambda *args, **kwargs: None)  # a plot
    for N, D, L in zip(points["N"], points["D"], points["L"], strict=True):
        package.append(N=N, D=D, loss=L)

    def rival():
        package.fit()
        return package.get_params()

    side_by_side(benchmark, points, rival, rounds=3)


@pytest.mark.parametrize(("method", "resolution"), [("grid", 0.01), ("scipy", 0.01)])
def test_against_vpnls(benchmark, points, method, resolution):
    """`vpnls`: variable projection over a grid of exponents, then L-BFGS-B for "scipy".

    Its Huber loss is of losses, not of their logs: its delta is ours times the median loss.
    """
    api = pytest.importorskip("vpnls.api")
    loss = api.huber(DELTA * float(np.median(points["L"])))
    millions, billions = 1e6, 1e9  # keeps A and B within its bounds

    def rival():
        N, D = points["N"] / millions, points["D"] / billions
        found = api.fit_vpnls(N, D, points["L"], method=method, resolution=resolution, loss=loss)
        return {
            "E": found.E,
            "A": found.A * millions**found.alpha,
            "B": found.B * billions**found.beta,
            "alpha": found.alpha,
            "beta": found.beta,
        }

    side_by_side(benchmark, points, rival)


def test_a_thousand_bootstrap_refits(benchmark, points):
    fitted = benchmark.pedantic(fit, (CHINCHILLA, points), {"bootstrap": 1000}, rounds=5)
    benchmark.extra_info["a"] = [fitted.derived["a"], *fitted.derived_intervals["a"]]
    benchmark.extra_info["samples that converged"] = len(fitted.samples)
