"""What the operators on (token, row) pairs share: sorting, and Triton's plan and kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from isoflop.models.ops.pairs import stable_argsort
from tests.models.ops.devices import INTERPRETED, compiles_triton
from tests.models.ops.hopper import compile_for_hopper


@pytest.mark.parametrize("n", [33, 40_000])  # keys sorted as 16 and as 32 bit integers
@pytest.mark.parametrize("m", [4, 1300, 5000])  # under, near and over the size for a radix sort
def test_sorting_is_stable_at_every_size(n: int, m: int) -> None:
    keys = torch.randint(n, (m * 8,), generator=torch.Generator().manual_seed(m))
    expected = keys.sort(stable=True).indices
    assert torch.equal(stable_argsort(keys, n), expected)


@pytest.mark.skipif(not INTERPRETED, reason="run by test_triton_in_the_interpreter")
def test_triton_plans_without_asking_the_device() -> None:
    """Fake tensors have no values: whatever waits for one, or for a size, raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from isoflop.models.ops.pairs_triton import plan_tasks

    with FakeTensorMode():
        plan = plan_tasks(torch.empty(6, 4, dtype=torch.int32), 10)
    assert plan.order.shape == (24,)


@compiles_triton
@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize(("d", "activation"), [(256, "gelu"), (768, "relu"), (1024, "silu")])
def test_kernels_compile_for_hopper(tmp_path: Path, d: int, activation: str, mix: bool) -> None:
    from isoflop.models.ops import pairs_triton

    tiles = pairs_triton.tile_sizes(d, 128)._asdict()
    sizes = {"P": 128, "D": d, "MIX": mix, "ACTIVATION": activation, **tiles}
    compile_for_hopper(pairs_triton.token_major, tmp_path, **sizes)
    compile_for_hopper(pairs_triton.expert_major, tmp_path, SPLIT=pairs_triton.SPLIT, **sizes)
    compile_for_hopper(pairs_triton.add_parts, tmp_path, 4, D=d, BLOCK_D=128)
