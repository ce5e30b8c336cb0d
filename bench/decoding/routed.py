"""Blocks whose layer sends each token to a few experts: what can be offloaded.

Dimensions in names: M tokens, K experts per token, E experts, D model width, F expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models import Decoder
from isoflop.models.decoder import Block
from isoflop.models.moe import MoE
from isoflop.models.moe_shared import SharedMoE


class RoutedBlock:
    """A block with `moe` or `moe_shared`, taken apart: its router, its experts, and the rest."""

    def __init__(self, index: int, block: Block) -> None:
        layer = block.ffn
        if type(layer) not in (MoE, SharedMoE):
            raise ValueError(
                f"experts of {layer.name} cannot be read one by one: those of moe and moe_shared "
                "can"
            )
        self.index, self.block, self.layer = index, block, layer
        self.router_ED: Tensor = layer.router.weight  # type: ignore[union-attr, assignment]
        self.up_EDF: Tensor = layer.up_EDF  # type: ignore[assignment]
        self.down_EFD: Tensor = layer.down_EFD  # type: ignore[assignment]
        self.experts = len(self.router_ED)
        self.chosen = layer.chosen if isinstance(layer, SharedMoE) else layer.options.granularity

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and indices of the experts that normed vectors choose, [M, K] each."""
        if isinstance(self.layer, SharedMoE):
            return self.layer.route(x_MD)
        gate_MK, index_MK = self.layer.route(x_MD).topk(self.chosen, dim=-1)  # type: ignore[operator]
        return gate_MK, index_MK

    def guess(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """What `route` will give if the blocks in between add nothing to the stream [M, D]."""
        return self.route(self.block.ffn_norm(x_MD))

    def add(self, x_MD: Tensor, y_MD: Tensor) -> Tensor:
        """What the block adds to the stream, from normed vectors and the chosen experts' sum."""
        if isinstance(self.layer, SharedMoE) and self.layer.shared is not None:
            y_MD = y_MD + self.layer.shared(x_MD)
        return self.block.output_norm(y_MD)


def routed_blocks(model: Decoder) -> list[RoutedBlock]:
    """The blocks under test, in order.

    Raises:
        ValueError: their experts cannot be read one by one.
    """
    tested = {id(layer) for layer in model.tested}
    blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
    return [RoutedBlock(i, b) for i, b in enumerate(blocks) if id(b.ffn) in tested]


def expert(x_1D: Tensor, up_DF: Tensor, down_FD: Tensor) -> Tensor:
    """One GELU expert on one token, [1, D]."""
    return F.gelu(x_1D @ up_DF) @ down_FD


def scores(gate_MK: Tensor) -> Tensor:
    """HOBBIT's score of each chosen expert (arXiv 2411.01433): the share of the gates, normalised
    to sum to 1, that larger ones have. 0 for the largest; [M, K] like the gates, in their order.
    """
    share_MK, order_MK = (gate_MK / gate_MK.sum(-1, keepdim=True)).sort(
        dim=-1, descending=True, stable=True
    )
    before_MK = (share_MK.cumsum(-1) - share_MK).clamp(0, 1)  # rounding may pass 1
    return torch.empty_like(before_MK).scatter_(-1, order_MK, before_MK)
