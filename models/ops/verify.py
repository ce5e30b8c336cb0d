"""Verify or fall back: a fast back end is used once it has agreed with the definition.

Before "auto" takes a back end for the first time in a process, on a device and for the sizes that
its kernels are built for, it runs on small random operands, forward and backward. One that does not
build, raises or disagrees is replaced by stock operators, and a line says so. A back end asked for
by name is not checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of a result's norm
TOLERANCE_HALF = 3e-2  # bfloat16 and float16

_problems: dict[tuple[object, ...], str] = {}  # by what was checked; empty: it agreed
_replaced: dict[str, str] = {}
_used: dict[str, set[str]] = {}


class BackendWarning(RuntimeWarning):
    """A back end was replaced by stock operators."""


class DisagreementError(Exception):
    """A back end's result is not that of the definition."""


def works(
    operator: str, backend: str, device: torch.device, dtype: torch.dtype, sizes: tuple[object, ...]
) -> bool:
    """Whether a back end agrees with the definition. Warns, once, if it does not.

    Args:
        operator: its name in `verify_cases.CASES`.
        dtype: what the back end is to compute in.
        sizes: those that its kernels are built for, as the operator's case takes them.
    """
    if device.type == "cuda" and not torch.cuda.is_available():  # tensors without data
        return True
    key = (operator, backend, device, dtype, sizes)
    if key not in _problems:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return True  # nothing can be compared inside a CUDA graph
        _problems[key] = problem = _problem(operator, backend, device, dtype, sizes)
        if problem and operator not in _replaced:
            _replaced[operator] = problem
            warnings.warn(
                f"{operator}: the back end {backend!r} on {device} is replaced by stock operators, "
                f"which are slower: {problem}",
                BackendWarning,
                stacklevel=2,
            )
    return not _problems[key]


# torch.compile runs it when it traces, and takes the answer for a constant. This is all that
# `torch.compiler.assume_constant_result` does, but for importing the compiler, a second or two.
works._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _problem(
    operator: str, backend: str, device: torch.device, dtype: torch.dtype, sizes: tuple[object, ...]
) -> str:
    from isoflop.models.ops.verify_cases import CASES  # which imports all operators

    try:
        with _undisturbed(device):
            for name, actual, expected in CASES[operator](backend, device, dtype, sizes):
                check_near(name, actual, expected, TOLERANCE.get(dtype, TOLERANCE_HALF))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler raises anything
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"[:200]
    return ""


def check_near(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raises DisagreementError if they differ by more than `tolerance` of the expected norm."""
    error = float((actual.double() - expected.double()).norm() / expected.double().norm())
    if actual.shape != expected.shape or not error <= tolerance:  # NaN is not near anything
        raise DisagreementError(f"{name} differs from the definition by {error:.1e} of its norm")


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Plain eager execution with gradients, whatever surrounds the call: autocast, counting of
    FLOPs, a trace, no_grad."""
    with (
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def note(operator: str, backend: str) -> None:
    """Remember that a back end was used."""
    _used.setdefault(operator, set()).add(backend)


def backends_in_use() -> dict[str, str]:
    """The back ends that this process has used since `forget_use`, by operator.

    Several for one operator are joined by "+". Those that stand for stock operators are called
    "reference", "dense" and "loop".
    """
    return {operator: "+".join(sorted(_used[operator])) for operator in sorted(_used)}


def replaced_backends() -> dict[str, str]:
    """Why a back end was replaced by stock operators in this process, by operator."""
    return dict(_replaced)


def forget_use() -> None:
    """Let `backends_in_use` start anew, where a process trains several models.

    What was compiled before tells of its kernels when they run, but not of stock operators.
    """
    _used.clear()
