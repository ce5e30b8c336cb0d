"""Decoding with experts that are read from a file as tokens choose them.

Dimensions in names: D model width, K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.bench.decoding.decode import Engine
from isoflop.bench.decoding.expert_cache import HIGH, ExpertCache, Policy
from isoflop.bench.decoding.expert_file import ExpertFile, Slots
from isoflop.bench.decoding.links import FileLink
from isoflop.bench.decoding.routed import routed_blocks, scores
from isoflop.models import Decoder


class OffloadedEngine(Engine):
    """A model that decodes with its experts in a file and a cache of some of them in memory.

    The experts of the model itself are not read. Copies stay in the cache as they are stored and
    become float32 when they are used.

    Args:
        high, low: precisions of the two caches, of those in the file.
    Raises:
        ValueError: the model's experts cannot be read one by one, or the caches are too small.
    """

    def __init__(
        self,
        model: Decoder,
        file: ExpertFile,
        policy: Policy,
        link: FileLink,
        high: str = "fp32",
        low: str = "int4",
    ) -> None:
        super().__init__(model, self.from_cache)
        self.routed = routed_blocks(model)
        self.layer_of = {block.index: layer for layer, block in enumerate(self.routed)}
        first = self.routed[0]
        self.cache_of_experts = ExpertCache(policy, len(self.routed), first.experts, first.chosen)
        self.file, self.policy, self.link = file, policy, link
        self.slots = (
            Slots(policy.high, high, file.layout),
            Slots(policy.low, low, file.layout),
        )
        for place in self.cache_of_experts.fill():
            self.link.read(place, self.slots[HIGH])

    def clear(self) -> None:
        super().clear()
        self.cache_of_experts.begin_sequence()

    def step(self, token: int) -> Tensor:
        self.cache_of_experts.begin_token()
        return super().step(token)

    def from_cache(self, index: int, x_11D: Tensor) -> Tensor:
        """What a block adds after attention, with experts from the cache or the file."""
        if index not in self.layer_of:
            return self.own(index, x_11D)
        layer = self.layer_of[index]
        block, x_1D = self.routed[layer], x_11D.flatten(0, 1)
        normed_1D = block.block.ffn_norm(x_1D)
        gate_1K, index_1K = block.route(normed_1D)
        reads, places = self.cache_of_experts.use(
            layer, index_1K[0].tolist(), scores(gate_1K)[0].tolist()
        )
        for read in reads:
            self.link.read(read, self.slots[read.level])
        self.prefetch(layer, x_1D)
        y_1D = torch.zeros_like(x_1D)
        for place, gate in zip(places, gate_1K[0], strict=True):
            if place is not None:
                self.link.wait(place)
                slots = self.slots[place.level]
                up_DF, down_FD = self.file.matrices(slots.precision, slots.bytes[place.slot])
                y_1D = y_1D + gate * block.expert(normed_1D, up_DF, down_FD)
        return block.add(normed_1D, y_1D).view_as(x_11D)

    def prefetch(self, layer: int, x_1D: Tensor) -> None:
        """Begin to read what the next layers are expected to choose from this stream."""
        guesses = []
        for block in self.routed[layer + 1 : layer + 1 + self.policy.depth]:
            gate_1K, index_1K = block.guess(x_1D)
            guesses.append((index_1K[0].tolist(), scores(gate_1K)[0].tolist()))
        for place in self.cache_of_experts.prefetch(layer, guesses):
            self.link.prefetch(place, self.slots[place.level])
