"""The Triton kernels of the MoE experts compile for a Hopper GPU: seen without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.ops.devices import compiles_triton
from tests.models.ops.hopper import compile_for_hopper


@compiles_triton
@pytest.mark.parametrize("width", [256, 4096])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_kernels_compile_for_hopper(tmp_path: Path, activation: str, width: int) -> None:
    from isoflop.models.ops.expert_ffn import triton

    constants = {"F": width, **triton._constants(width, activation)}
    compile_for_hopper(triton._forward_kernel, tmp_path, 4, **constants)
    compile_for_hopper(triton._backward_kernel, tmp_path, 4, **constants)
