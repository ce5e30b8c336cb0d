"""Keys and values of the tokens that a decoder has seen.

Dimensions in names: T time, H heads, K width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.models import Config


class KVCache:
    """Keys, already rotated, and values of every block, for one sequence of at most `context`."""

    def __init__(self, config: Config) -> None:
        heads, d_head = config.heads, config.width // config.heads
        self.kv = torch.zeros(config.depth, 2, heads, config.context, d_head)
        self.length = 0  # tokens seen

    def clear(self) -> None:
        """Begin a new sequence."""
        self.length = 0

    def extend(self, block: int, k_HK: Tensor, v_HK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the current token's, and return those of all tokens up to it, [H, T, K] each."""
        self.kv[block, 0, :, self.length] = k_HK
        self.kv[block, 1, :, self.length] = v_HK
        k_HTK, v_HTK = self.kv[block, :, :, : self.length + 1]
        return k_HTK, v_HTK
