"""The rule that finds the baseline among variants."""

from __future__ import annotations

from collections.abc import Mapping

LAYER = "dense"


def find_baseline(layers: Mapping[str, str]) -> str | None:
    """The variant that all others are compared with, or None if no variant is dense.

    It is the dense variant; of several, the variant that is named `dense`.

    Args:
        layers: the name of each variant's layer.

    Raises:
        ValueError: there are several dense variants and none is named `dense`.
    """
    dense = sorted(variant for variant, layer in layers.items() if layer == LAYER)
    if LAYER in dense:
        return LAYER
    if len(dense) > 1:
        raise ValueError(f"which of {', '.join(dense)} is the baseline? name one `{LAYER}`")
    return dense[0] if dense else None
