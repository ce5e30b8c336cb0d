"""Triton's kernels compile for a Hopper GPU, which takes no GPU to see."""

from __future__ import annotations

import os
import re
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


def compile_for_hopper(kernel: Any, **constants: int | bool) -> str:
    """The kernel's PTX; its machine code is made too."""
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name.endswith("_ptr"):
            signature[name] = "*" + POINTERS.get(name.removesuffix("_ptr"), "bf16")
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr" if name in constants else "i32"
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 8})
    assert compiled.asm["cubin"]
    return compiled.asm["ptx"]


@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("d", [256, 768])
def test_mix_kernels(d: int, mix: bool) -> None:
    from models.sparse import triton_mix

    block_d, block_p, _ = triton_mix._launch(d, 128)
    sizes = {"P": 128, "D": d, "BLOCK_P": block_p, "BLOCK_D": block_d}
    forward = compile_for_hopper(triton_mix._token_major, MIX=mix, GELU=True, **sizes)
    backward = compile_for_hopper(
        triton_mix._expert_major, MIX=mix, GELU=True, SPLIT=triton_mix.SPLIT, **sizes
    )
    # no atomics, which would add in a different order on every run
    assert not re.search(r"\b(atom|red)\.", forward + backward)
    compile_for_hopper(triton_mix._add_parts, D=d, BLOCK_D=128)


def test_topk_kernels() -> None:
    from models.sparse import triton_topk

    compile_for_hopper(
        triton_topk._half_topk,
        **{"H": 8, "S": 1, "C": 64, "n": 1024, "k": 16},
        **{"BLOCK_M": 16, "BLOCK_C": 64, "BLOCK_N": triton_topk.TILE, "BLOCK_K": 16},
    )
    compile_for_hopper(
        triton_topk._pair_topk,
        **{"pairs": 50, "k": 16, "BLOCK_M": 16, "BLOCK_PAIRS": 64, "BLOCK_K": 16},
    )
