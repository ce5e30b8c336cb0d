"""Where the tests of Triton's kernels run: on a GPU or, without one, in Triton's interpreter.

`test_interpreter.py` runs the tests with "triton" in their names again with TRITON_INTERPRET=1,
where the kernels take CPU tensors.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = importlib.util.find_spec("triton") is not None
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")

runs_triton = pytest.mark.skipif(
    not TRITON or (DEVICE.type == "cpu" and not INTERPRETED),
    reason="no GPU here, or triton is not installed",
)
compiles_triton = pytest.mark.skipif(
    not TRITON or INTERPRETED, reason="triton is not installed, or it interprets"
)
needs_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="no GPU here")
