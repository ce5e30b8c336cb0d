"""Every test of a Triton kernel, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import isoflop.models.ops
from tests.models.ops.devices import INTERPRETED, TRITON


@pytest.mark.skipif(not TRITON, reason="triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this runs in the interpreter already")
@pytest.mark.timeout(600)
def test_triton_in_the_interpreter() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-k",
            "triton",
            "-rp",
            "--no-header",
            Path(__file__).parent,
        ],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = {
        Path(line.split()[1].split("::")[0]).parent.name
        for line in done.stdout.splitlines()
        if line.startswith("PASSED")
    }
    operators = Path(isoflop.models.ops.__file__).parent
    with_kernels = {path.parent.name for path in operators.glob("*/triton.py")}
    assert with_kernels  # each of them has a test that ran
    assert with_kernels <= passed
