"""Blocks whose layer sends each token to a few experts: what can be offloaded.

Dimensions in names: M tokens, K experts per token, E experts, D model width, F expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.bench.methods.experts import Experts, UnfitError, activated, rebuild
from isoflop.bench.methods.matrices import Whole
from isoflop.models import Decoder
from isoflop.models.decoder import Block


class RoutedBlock:
    """A block whose layer is `moe` or `moe_shared`, or what a method made of one.

    The weights are the layer's own.

    Raises:
        ValueError: its experts are not whole matrices that can be read one by one.
    """

    def __init__(self, index: int, block: Block) -> None:
        name = block.ffn.name or type(block.ffn).__name__
        refused = f"experts of {name} cannot be read one by one: those of moe and moe_shared can"
        try:
            layer = rebuild(block.ffn, shared=True)
        except UnfitError:
            raise ValueError(refused) from None
        if not isinstance(layer, Experts) or layer.constant_CD is not None:
            raise ValueError(refused)
        if not isinstance(layer.up, Whole) or not isinstance(layer.down, Whole):
            raise ValueError(refused)
        self.index, self.block, self.layer = index, block, layer
        self.up_EDF, self.down_EFD = layer.up.weight, layer.down.weight
        self.experts, self.chosen = len(layer.up), layer.chosen

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and indices of the experts that normed vectors choose, [M, K] each."""
        return self.layer.route(x_MD)

    def guess(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """What `route` will give if the blocks in between add nothing to the stream [M, D]."""
        return self.route(self.block.ffn_norm(x_MD))

    def expert(self, x_MD: Tensor, up_DF: Tensor, down_FD: Tensor) -> Tensor:
        """The output of an expert of these matrices, [M, D]."""
        return activated(self.layer.activation, x_MD @ up_DF) @ down_FD

    def add(self, x_MD: Tensor, y_MD: Tensor) -> Tensor:
        """What the block adds to the stream, from normed vectors and the chosen experts' sum."""
        if self.layer.shared is not None:
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


def scores(gate_MK: Tensor) -> Tensor:
    """HOBBIT's score of each chosen expert (arXiv 2411.01433): the share of the gates, normalised
    to sum to 1, that larger ones have. 0 for the largest; [M, K] like the gates, in their order.
    """
    share_MK, order_MK = (gate_MK / gate_MK.sum(-1, keepdim=True)).sort(
        dim=-1, descending=True, stable=True
    )
    before_MK = (share_MK.cumsum(-1) - share_MK).clamp(0, 1)  # rounding may pass 1
    return torch.empty_like(before_MK).scatter_(-1, order_MK, before_MK)
