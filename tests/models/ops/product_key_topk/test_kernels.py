"""The Triton kernels of product-key retrieval compile for a Hopper GPU: seen without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.ops.devices import compiles_triton
from tests.models.ops.hopper import compile_for_hopper


@compiles_triton
@pytest.mark.parametrize(("n", "k"), [(1024, 16), (512, 32), (2048, 16)])
def test_kernels_compile_for_hopper(tmp_path: Path, n: int, k: int) -> None:
    from isoflop.models.ops.product_key_topk import triton

    width = min(n, triton.TILE)
    inner = compile_for_hopper(
        triton._row_topk,
        tmp_path,
        num_warps=1,
        **{"n": n, "k": k, "BLOCK_M": triton.TILE // width, "BLOCK_N": width, "BLOCK_K": k},
    )
    if n <= triton.TILE:
        # Each round looks at every score of a tile once, 32 at a time. Merging sorted lists took
        # 411 instructions a score for k = 16.
        assert 32 * inner[0] / triton.TILE < 7.5
    compile_for_hopper(
        triton._pair_topk,
        tmp_path,
        num_warps=4,
        **{"pairs": 50, "half": k, "k": k, "BLOCK_M": 16, "BLOCK_PAIRS": 64, "BLOCK_K": k},
    )
