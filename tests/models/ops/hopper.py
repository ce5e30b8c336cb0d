"""Compiles Triton's kernels for a Hopper GPU, without a GPU, and looks at the machine code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

POINTERS = {  # what a pointer's name says of its type; the rest are to bfloat16
    "index": "i32",
    "order": "i64",
    "offset": "i32",
    "task_row": "i64",
    "first_task": "i32",
    "rank": "i32",
    "half_index": "i32",
    **dict.fromkeys(("gate", "hidden", "dhidden", "dgate", "part_up", "part_down", "part"), "fp32"),
    **dict.fromkeys(("score", "best", "half_score"), "fp32"),
    **dict.fromkeys(("dup", "ddown", "row"), "fp32"),  # gradients of tables in float32
}


def compile_for_hopper(
    kernel: Any, folder: Path, num_warps: int, **constants: int | bool
) -> list[int]:
    """Asserts that the code spills no registers and has no atomics.

    Returns:
        the instructions in each loop of the machine code, inner loops first.
    """
    import triton

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
    usage = _dump(binary, "--dump-resource-usage")
    spilled = re.findall(r"STACK:(\d+)", usage)
    assert spilled
    assert max(map(int, spilled)) <= 64, usage
    # no atomics, which would add in a different order on every run
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])
    return _loops(binary)


def _loops(binary: Path) -> list[int]:
    """Every branch back is the end of a loop; an instruction has 16 bytes."""
    code = _dump(binary, "-sass")
    branches = re.findall(r"/\*([0-9a-f]+)\*/[^;/]*\bBRA\b[^;]*?0x([0-9a-f]+)", code)
    spans = [int(source, 16) - int(target, 16) for source, target in branches]
    return [span // 16 + 1 for span in spans if span > 0]


def _dump(binary: Path, what: str) -> str:
    """What cuobjdump says of a binary."""
    import triton

    command = [triton.knobs.nvidia.cuobjdump.path, what, binary]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
