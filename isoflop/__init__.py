"""isoflop: at equal compute, is a feed-forward layer better, and does the gain hold?

`from isoflop import Layer` is what a layer's file needs. Nothing is imported until it is asked for,
so that reading and analysing records does not wait for torch, nor need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.models import Layer, ParameterGroup, full_precision, register

__all__ = ["Layer", "ParameterGroup", "full_precision", "register"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("isoflop.models"), name)
    raise AttributeError(f"module 'isoflop' has no attribute {name!r}")
