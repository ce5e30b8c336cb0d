"""Triton's kernels compile for a Hopper GPU and fit in its registers: seen without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)

POINTERS = {  # what a pointer's name says of its type; the rest are to bfloat16
    "index": "i32",
    "order": "i64",
    "offset": "i32",
    "task_row": "i64",
    "first_task": "i32",
    "rank": "i32",
    "half_index": "i32",
    **dict.fromkeys(("gate", "hidden", "dhidden", "dgate", "part_up", "part_down", "part"), "fp32"),
    **dict.fromkeys(("query", "key", "score", "half_score"), "fp32"),
}


def compile_for_hopper(kernel: Any, folder: Path, num_warps: int, **constants: int | bool) -> None:
    """Machine code without spilled registers and without atomics."""
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name.endswith("_ptr"):
            signature[name] = "*" + POINTERS.get(name.removesuffix("_ptr"), "bf16")
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr" if name in constants else "i32"
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
    binary = folder / f"{kernel.__name__}.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    spilled = re.findall(r"STACK:(\d+)", usage)
    assert spilled
    assert max(map(int, spilled)) <= 64, usage
    # no atomics, which would add in a different order on every run
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])


@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("d", [256, 768, 1024])
def test_mix_kernels(tmp_path: Path, d: int, mix: bool) -> None:
    from isoflop.models.ops import triton_mix

    launch = triton_mix._launch(d, 128)._asdict()
    sizes = {"P": 128, "D": d, "MIX": mix, "GELU": True, **launch}
    compile_for_hopper(triton_mix._token_major, tmp_path, **sizes)
    compile_for_hopper(triton_mix._expert_major, tmp_path, SPLIT=triton_mix.SPLIT, **sizes)
    compile_for_hopper(triton_mix._add_parts, tmp_path, 4, D=d, BLOCK_D=128)


@pytest.mark.parametrize(("n", "C", "k"), [(1024, 64, 16), (512, 64, 32)])
def test_topk_kernels(tmp_path: Path, n: int, C: int, k: int) -> None:
    from isoflop.models.ops import triton_topk

    compile_for_hopper(
        triton_topk._half_topk,
        tmp_path,
        num_warps=8,
        **{"H": 8, "S": 1, "C": C, "n": n, "k": k},
        **{"BLOCK_M": triton_topk.BLOCK_M, "BLOCK_C": C, "BLOCK_N": triton_topk.TILE, "BLOCK_K": k},
    )
    compile_for_hopper(
        triton_topk._pair_topk,
        tmp_path,
        num_warps=4,
        **{"pairs": 50, "half": k, "k": k, "BLOCK_M": 16, "BLOCK_PAIRS": 64, "BLOCK_K": k},
    )


@pytest.mark.parametrize("width", [256, 4096])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_gated_kernels(tmp_path: Path, activation: str, width: int) -> None:
    from isoflop.models.ops import triton_gated

    constants = {"F": width, **triton_gated._constants(width, activation)}
    compile_for_hopper(triton_gated._forward, tmp_path, 4, **constants)
    compile_for_hopper(triton_gated._backward, tmp_path, 4, **constants)
