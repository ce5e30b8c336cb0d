"""A hundred thousand rows are read and fitted in less than a gigabyte."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoflop.analysis.laws.dense import CHINCHILLA

ROOT = Path(__file__).parents[3]
ROWS = 100_000
SCRIPT = """
import json, sys
from pathlib import Path
from isoflop.analysis.laws import LAWS
from isoflop.analysis.laws.fit import fit
from isoflop.analysis.laws.table import read_table

law = LAWS[sys.argv[2]]
fitted = fit(law, read_table(sys.argv[1], law).columns)
# Not ru_maxrss: it keeps what the process that started this one had used.
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
used = int(peak.split()[1])
print(json.dumps({"used": used, "status": fitted.status, "params": fitted.params}))
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    N, D = np.exp(rng.uniform(16, 23, ROWS)), np.exp(rng.uniform(20, 27, ROWS))
    runs = CHINCHILLA.simulate(CHINCHILLA.example, {"N": N, "D": D}, 5e-3, rng)
    runs |= {
        "C": 6 * N * D,
        "run": np.arange(ROWS) // 20,
        "lr": np.full(ROWS, 1e-3),
        "note": "done",
    }
    path = tmp_path_factory.mktemp("large") / "runs.csv"
    pd.DataFrame(runs).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("law", ["chinchilla", "chinchilla-envelope", "chinchilla-isoflop"])
def test_a_large_table_fits_in_memory(table, law):
    if not Path("/proc/self/status").exists():
        pytest.skip("reads the peak of memory in /proc")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(table), law],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    result = json.loads(done.stdout)
    assert result["used"] * 1024 < 1e9  # kilobytes
    assert result["status"] == "converged"
    if law == "chinchilla":
        assert result["params"] == pytest.approx(CHINCHILLA.example, rel=0.05)
