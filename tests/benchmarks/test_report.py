"""A report in a process of its own: 100 records in under 10 s, 500 in under 15 s, import included.

    pytest tests/benchmarks/test_report.py --benchmark-json=report.json

`extra_info` holds the records and the processor time of a report, which other work on the machine
does not stretch.
"""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.analysis.simulate import rate_sweep, simulate
from isoflop.results.record import write_record

pytest.importorskip("pytest_benchmark")

OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)
SMALL = {"dense": 1.0, "moe-g1": 1.2, "moe-g4": 1.5, "pkm": 0.8, "peer": 1.7}
LARGE = SMALL | {"moe-g2": 1.3, "moe-g8": 1.4, "moe-g16": 1.3, "moe_ec": 1.6, "peer-relu": 1.7}


def processor_seconds():
    """Of all child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("truth", "budgets", "seeds", "count", "limit"),
    [(SMALL, 4, 1, 100, 10.0), (LARGE, 5, 2, 500, 15.0)],
    ids=["100 records", "500 records"],
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
    root, before = Path(__file__).parents[2], processor_seconds()
    benchmark.pedantic(
        subprocess.run,
        ([sys.executable, "-c", code, str(directory)],),
        {"check": True, "cwd": root},
        rounds=3,
    )
    used = processor_seconds() - before
    benchmark.extra_info |= {
        "records": count,
        "figures": len(list((directory / "figures").glob("*.svg"))),
        "processor_seconds": used / 3,
    }
    assert benchmark.stats.stats.median < limit
