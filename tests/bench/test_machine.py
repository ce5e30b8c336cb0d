import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isoflop.bench import machine

ROOT = Path(__file__).parents[2]


def test_peak_memory_is_the_process_s_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    peak = machine.peak_memory(device)
    assert peak is not None
    assert 10**7 < peak < 10**12
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert machine.peak_memory(device) is None


def test_a_plan_needs_nothing_that_windows_lacks() -> None:
    """Importing a module that is None in `sys.modules` fails as that of a missing one does."""
    code = """
import multiprocessing.context, sys
for name in ("resource", "pwd", "grp", "termios", "syslog"):
    sys.modules[name] = None
del multiprocessing.context.ForkServerContext
from isoflop.cli.main import main
sys.argv = ["isoflop", "plan", "ci"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "63 cells, " in done.stdout
