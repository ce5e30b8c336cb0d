"""Seconds of plans and reports in processes of their own, import included.

pytest tests/benchmarks/test_pipeline.py --benchmark-json=pipeline.json
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.analysis.simulate import rate_sweep, simulate
from isoflop.results.record import write_record

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[2]
WHAT = "seconds of a command, import included"
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)
SMALL = {"dense": 1.0, "moe-g1": 1.2, "moe-g4": 1.5, "pkm": 0.8, "peer": 1.7}
LARGE = SMALL | {"moe-g2": 1.3, "moe-g8": 1.4, "moe-g16": 1.3, "moe_ec": 1.6, "peer-relu": 1.7}


@pytest.mark.parametrize(
    ("truth", "budgets", "seeds", "count", "limit"),
    [(SMALL, 4, 1, 100, 10.0), (LARGE, 5, 2, 500, 15.0), (LARGE, 5, 20, 5000, 40.0)],
    ids=["100 records", "500 records", "5000 records"],
)
def test_report(benchmark, tmp_path, truth, budgets, seeds, count, limit):
    options = {name: {"granularity": int(name[5:])} for name in truth if name.startswith("moe-")}
    records = simulate(
        truth, [1e14 * 4**step for step in range(budgets)],
        octaves=OCTAVES, seeds=seeds, options=options,
    )  # fmt: skip
    assert len(records) == count
    directory = tmp_path / "results"
    for record in records:
        write_record(directory / "records", record)
    for variant in truth:
        for record in rate_sweep(variant, (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3), 1e-3):
            write_record(directory / "tune", record)
    code = (
        "import sys, pathlib; from isoflop.analysis.report.derive import report; "
        "report(pathlib.Path(sys.argv[1]))"
    )
    benchmark.pedantic(
        subprocess.run,
        ([sys.executable, "-c", code, str(directory)],),
        {"check": True, "cwd": ROOT},
        rounds=3,
    )
    seconds = benchmark.stats.stats.median
    benchmark.extra_info |= {"what": WHAT, "ratios": {f"report of {count:,} records": seconds}}
    assert seconds < limit


def test_plan(benchmark):
    """`quick` with 20 seeds has 2,160 cells; a model is built once for each shape."""
    command = [sys.executable, "-m", "isoflop", "plan", "quick", "--seeds", "20", "--json"]
    done = benchmark.pedantic(
        subprocess.run,
        (command,),
        {"check": True, "cwd": ROOT, "capture_output": True},
        rounds=3,
    )
    count = len(json.loads(done.stdout))
    seconds = benchmark.stats.stats.median
    benchmark.extra_info |= {"what": WHAT, "ratios": {f"plan of {count:,} cells": seconds}}
    assert count == 2160
    assert seconds < 30
