"""Back ends of an operator: how they are chosen, and how they are entered in torch's dispatcher.

As operators of the dispatcher (`isoflop::expert_mix` and others) torch.compile takes them whole,
fvcore finds them by name, and FlopCounterMode counts them, forward and backward.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from isoflop.models.ops.verify import note

# searched for once, at import: torch.compile cannot trace the search
HAS_TRITON = importlib.util.find_spec("triton") is not None


@cache
def cpu_has_bfloat16() -> bool:
    """Whether torch multiplies bfloat16 matrices on this CPU by instructions made for it."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return False


_library = torch.library.Library("isoflop", "DEF")


def define(schema: str, function: Callable[..., Any], backend: str = "") -> Any:
    """Define the operator `isoflop::<schema>` for CPU and CUDA tensors, and return it.

    Args:
        schema: name, arguments and results, as `torch.library.Library.define` takes them.
        function: computes it; its first argument is a tensor on the device to run on.
        backend: the back end that it is, if its last argument does not name it.
    """
    name = schema.partition("(")[0]

    def on_cpu(tensor: Tensor, *rest: Any) -> Any:
        note(name.removesuffix("_backward"), backend or rest[-1])
        return function(tensor, *rest)

    def on_gpu(tensor: Tensor, *rest: Any) -> Any:
        with torch.cuda.device(tensor.device):  # Triton launches on the current device
            return on_cpu(tensor, *rest)

    _library.define(schema)
    _library.impl(name, on_cpu, "CPU")
    _library.impl(name, on_gpu, "CUDA")
    return getattr(torch.ops.isoflop, name).default


def check_name(kind: str, name: str, known: Sequence[str]) -> None:
    """Raises ValueError if `name` is not known."""
    if name not in known:
        raise ValueError(f"{kind} {name!r} is unknown: one of {', '.join(known)}")


def choose_backend(
    backend: str,
    known: Sequence[str],
    obstacles: Mapping[str, str],
    agrees: Callable[[str], bool],
) -> str:
    """The back end to use.

    Args:
        backend: a name, or "auto": the first in `obstacles` without any that agrees with the
            definition, else "reference".
        known: all names, "auto" included.
        obstacles: for each fast back end, why it cannot take the operands; empty if it can.
        agrees: whether a back end agrees with the definition, for "auto".
    Raises:
        ValueError: the back end is unknown, or cannot take the operands.
    """
    check_name("back end", backend, known)
    if backend == "auto":
        for fast in obstacles:
            if not obstacles[fast] and agrees(fast):
                return fast
        return "reference"
    if obstacles.get(backend):
        raise ValueError(f"back end {backend!r} is impossible here: {obstacles[backend]}")
    return backend


def cpu_obstacle(tensor: Tensor) -> str:
    """Why stock CPU operators cannot take this tensor; empty if they can."""
    device = tensor.device.type
    return "" if device == "cpu" else f"it runs on a CPU only, not on {device}"


def triton_obstacle(tensor: Tensor) -> str:
    """Why Triton's kernels cannot take this tensor; empty if they can."""
    interpreted = tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if tensor.device.type != "cuda" and not interpreted:
        return f"it runs on CUDA only, not on {tensor.device.type}"
    if tensor.dtype == torch.float64:
        return "it sums in float32, and this is float64"
    return "" if HAS_TRITON else "triton is not installed"
