"""Triton need not be installed."""

from __future__ import annotations

import os
import subprocess
import sys

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it is an error, as if it were not installed
import torch
from isoflop.models.ops import expert_ffn, expert_mix, product_key_topk, value_sum

table, index, gate = torch.randn(9, 4), torch.zeros(3, 2).long(), torch.randn(3, 2)
expert_mix(torch.randn(3, 4), table, table, index, gate, "gelu")
value_sum(table, index, gate)
product_key_topk(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 4, 9), 2)
expert_ffn(torch.randn(3, 4), torch.randn(5, 4, 8), torch.randn(5, 8, 4), index, gate)
try:
    value_sum(table, index, gate, "triton")
except ValueError as error:
    print(error)
"""


def test_the_operators_run_on_a_cpu_without_triton() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "back end 'triton' is impossible here: triton is not installed\n"
