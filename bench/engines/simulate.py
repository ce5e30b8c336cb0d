"""Suites on a simulated cluster: the order of cells, and what lost and slow nodes cost.

    python -m isoflop.bench.engines.simulate     # all scenarios, stored; two to three minutes
    python -m isoflop.analysis.simulations --document docs/run-on-a-cluster.md    # their tables

Every cell takes its predicted seconds times a factor of its own. `simulated_run` plays one run.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from isoflop import bench
from isoflop.bench.cost import DEVICES
from isoflop.bench.engines.simulated_run import Cluster, Outcome, Run
from isoflop.bench.plan import Cell, plan
from isoflop.bench.policy import longest_first, need
from isoflop.bench.seeds import first_seeds, with_seeds
from isoflop.bench.shard import share
from isoflop.bench.suite import load_suite
from isoflop.bench.train import CHECKPOINT_SECONDS
from isoflop.results.code import hash_of
from isoflop.results.files import write_whole

STORED = Path("results/simulations/cluster.json")
DECISIVE = (  # the modules that decide the numbers
    "cost",
    "engines/simulate",
    "engines/simulated_run",
    "policy",
    "shard",
)
DEVICE = DEVICES["h100"]
SPREAD = 0.35  # of the logarithm of true over predicted seconds
POLICIES = ("longest first", "suite order", "fixed shards")
LAYOUTS = (  # suite, seeds of each cell, nodes
    ("h100", 1, 16),
    ("h100", 1, 64),
    ("h100", 4, 64),
    ("paper", 1, 16),
    ("paper", 1, 64),
)
RATES = (0.001, 0.01, 0.05)  # losses of a node in an hour
# SLURM counts a node as lost after its default of 300 s, and states are on the shared disk. Ray
# notices within half a minute, and a cell starts anew, or a copy of it runs already.
ENGINES: dict[str, dict[str, Any]] = {
    "slurm": {"checkpoint": CHECKPOINT_SECONDS, "noticed": 300.0},
    "ray without backups": {"checkpoint": math.inf, "noticed": 30.0},
    "ray": {"checkpoint": math.inf, "noticed": 30.0, "backups": True},
}


def scenarios() -> Iterator[dict[str, Any]]:
    """What is simulated and stored: every layout at every rate of losses and on every engine."""
    for suite, seeds, nodes in LAYOUTS:
        for rate, engine in product((0.0, *RATES), ENGINES):
            yield {
                "suite": suite,
                "seeds": seeds,
                "nodes": nodes,
                "losses_per_hour": rate,
                "engine": engine,
            }


def cells_of(suite: str, seeds: int) -> list[Cell]:
    """The plan of a shipped suite, with so many seeds of each cell."""
    described = load_suite(suite)
    seeded = with_seeds(described, first_seeds(described.seeds, seeds))
    return plan(seeded, suite)


def queues_of(policy: str, cells: list[Cell], nodes: int) -> list[list[int]]:
    """Queues as `Run` takes them, of one of `POLICIES`."""
    number = {cell.id: index for index, cell in enumerate(cells)}
    if policy == "suite order":
        return [list(range(len(cells)))]
    if policy == "longest first":
        return [[number[cell.id] for cell in longest_first(cells, DEVICE)]]
    shares = min(nodes, len(cells))
    parts = [share(cells, f"{k}/{shares}") for k in range(1, shares + 1)]
    queues = [[number[cell.id] for cell in longest_first(part, DEVICE)] for part in parts]
    return queues + [[] for _ in range(nodes - shares)]


def true_seconds(cells: list[Cell], seed: str) -> list[float]:
    """What the cells take: their predictions, each off by a factor."""
    chance = random.Random(f"{seed} seconds")
    return [need(cell, DEVICE).seconds * chance.lognormvariate(0.0, SPREAD) for cell in cells]


def cluster_of(scenario: dict[str, Any]) -> Cluster:
    """The nodes of a scenario."""
    engine = ENGINES[scenario["engine"]]
    return Cluster(scenario["nodes"], scenario["losses_per_hour"], **engine)


def policies_of(engine: str) -> tuple[str, ...]:
    """The orders that are simulated; on Ray its own alone."""
    return POLICIES if engine == "slurm" else POLICIES[:1]


def outcomes(
    cells: list[Cell], policy: str, cluster: Cluster, seed: int, samples: int
) -> list[Outcome]:
    """Runs in one order of the cells. Nodes are lost alike in every order."""
    queues = queues_of(policy, cells, cluster.nodes)
    names = [f"{seed} {sample}" for sample in range(samples)]
    return [Run(true_seconds(cells, name), queues, cluster, name).play() for name in names]


def summary(runs: list[Outcome]) -> dict[str, float]:
    """Means over runs, the 95th percentile of makespan over bound, and the first makespan."""
    ratios = [run.makespan / run.bound for run in runs]
    numbers = {
        "first_makespan": runs[0].makespan,
        "ratio": fmean(ratios),
        "ratio_95": quantiles(ratios, n=20, method="inclusive")[-1],
        "makespan_hours": fmean(run.makespan for run in runs) / 3600,
        "lost_work_hours": fmean(run.lost_work for run in runs) / 3600,
        "losses": fmean(run.losses for run in runs),
        "begun_again": fmean(run.begun_again for run in runs),
        "refused": fmean(run.refused for run in runs),
    }
    return {name: round(number, 4) for name, number in numbers.items()}


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Suites on a simulated cluster.")
    parser.add_argument("--samples", type=int, default=200, help="runs of each scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=STORED)
    options = parser.parse_args()
    folder = Path(bench.__file__).resolve().parent
    result: dict[str, Any] = {
        "code": hash_of(folder / f"{module}.py" for module in DECISIVE),
        "seed": options.seed,
        "samples": options.samples,
        "assumed": {"spread": SPREAD, "checkpoint": CHECKPOINT_SECONDS}
        | {name: getattr(Cluster, name) for name in ("away", "unseen", "slow", "slowdown")},
        "scenarios": [],
    }
    for scenario in scenarios():
        cells = cells_of(scenario["suite"], scenario["seeds"])
        cluster = cluster_of(scenario)
        policies = {
            policy: summary(outcomes(cells, policy, cluster, options.seed, options.samples))
            for policy in policies_of(scenario["engine"])
        }
        work = sum(need(cell, DEVICE).seconds for cell in cells) / 3600
        known = {"cells": len(cells), "predicted_hours": round(work, 4), "policies": policies}
        result["scenarios"].append(scenario | known)
        print(
            *scenario.values(),
            *(f"{policy}: {result['ratio']}" for policy, result in policies.items()),
            flush=True,
        )
    write_whole(options.store, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
