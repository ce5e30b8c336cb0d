"""The Triton kernels of product-key retrieval compile for a Hopper GPU: seen without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.ops.devices import compiles_triton
from tests.models.ops.hopper import compile_for_hopper


@compiles_triton
@pytest.mark.parametrize(("n", "C", "k"), [(1024, 64, 16), (512, 64, 32)])
def test_kernels_compile_for_hopper(tmp_path: Path, n: int, C: int, k: int) -> None:
    from isoflop.models.ops.product_key_topk import triton

    compile_for_hopper(
        triton._half_topk,
        tmp_path,
        num_warps=8,
        **{"H": 8, "S": 1, "C": C, "n": n, "k": k},
        **{"BLOCK_M": triton.BLOCK_M, "BLOCK_C": C, "BLOCK_N": triton.TILE, "BLOCK_K": k},
    )
    compile_for_hopper(
        triton._pair_topk,
        tmp_path,
        num_warps=4,
        **{"pairs": 50, "half": k, "k": k, "BLOCK_M": 16, "BLOCK_PAIRS": 64, "BLOCK_K": k},
    )
