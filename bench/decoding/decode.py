"""Decoding: one sequence, one token at a time, with a cache of keys and values.

Dimensions in names: T time, D width, H heads, K width of a head, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from isoflop.bench.decoding.cache import KVCache
from isoflop.models import Decoder, Layer
from isoflop.models.decoder import Attention, Block, rotate

# What a block adds to the residual stream [1, 1, D] after attention: (index of the block, stream).
FeedForward = Callable[[int, Tensor], Tensor]


class Engine:
    """A model in evaluation mode that reads a sequence token by token, in float32 on a CPU.

    Args:
        feed_forward: replaces what the blocks compute after attention, norms included; the
            blocks' own if None.
    Raises:
        ValueError: a layer's output depends on more than one token's vector.
    """

    def __init__(self, model: Decoder, feed_forward: FeedForward | None = None) -> None:
        for layer in model.tested:
            if layer.mixes_batch or type(layer).see_tokens is not Layer.see_tokens:
                raise ValueError(
                    f"{layer.name} cannot decode token by token: its output depends on "
                    f"{'other sequences' if layer.mixes_batch else 'the ids of earlier tokens'}"
                )
        self.model = model.eval()
        self.blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
        self.feed_forward = feed_forward or self.own
        self.cache = KVCache(model.config)

    def own(self, index: int, x_11D: Tensor) -> Tensor:
        """What a block itself computes after attention."""
        block = self.blocks[index]
        return block.output_norm(block.ffn(block.ffn_norm(x_11D)))

    def clear(self) -> None:
        """Begin a new sequence."""
        self.cache.clear()

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        """Logits [V] of what follows this token.

        Raises:
            ValueError: the sequence is longer than the model's context.
        """
        model, cache = self.model, self.cache
        if cache.length == model.config.context:
            raise ValueError(f"the sequence is longer than the context of {cache.length} tokens")
        x_11D = model.embedding.weight[token].view(1, 1, -1)
        for index, block in enumerate(self.blocks):
            x_11D = x_11D + self.attend(index, block.attention, block.attention_norm(x_11D))
            x_11D = x_11D + self.feed_forward(index, x_11D)
        cache.length += 1
        return model.head(model.norm(x_11D)).view(-1)

    def attend(self, index: int, attention: Attention, x_11D: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(K)) v of the current token over all up to it."""
        at, width = self.cache.length, x_11D.shape[-1]
        q_HK, k_HK, v_HK = attention.qkv(x_11D).view(3, attention.heads, -1)
        cos_K, sin_K = self.model.cos_TK[at], self.model.sin_TK[at]
        q_HK, k_HK = rotate(q_HK, cos_K, sin_K), rotate(k_HK, cos_K, sin_K)
        k_HTK, v_HTK = self.cache.extend(index, k_HK, v_HK)
        score_HT1 = k_HTK @ (q_HK * q_HK.shape[-1] ** -0.5)[..., None]
        y_HK = score_HT1.softmax(dim=1).transpose(1, 2) @ v_HTK
        return attention.out(y_HK.reshape(1, 1, width))

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, each given all before it: greedy decoding.

        Raises:
            ValueError: the prompt is empty, or prompt and answer exceed the model's context.
        """
        if not prompt:
            raise ValueError("the prompt is empty: decoding needs a first token")
        self.clear()
        for token in prompt[:-1]:
            self.step(token)
        answer: list[int] = []
        for _ in range(count):
            answer.append(int(self.step(answer[-1] if answer else prompt[-1]).argmax()))
        return answer


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as a single token needs; a second may read ahead."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def milliseconds(models: Sequence[Decoder], tokens: Sequence[int]) -> list[float]:
    """Each model's median time of a token at batch 1 on one thread, after a first pass.

    The models take each token in turn, so that their ratios hold on a busy machine.

    Raises:
        ValueError: one cannot decode, or the tokens are more than its context.
    """
    engines = [Engine(model) for model in models]
    with one_thread():
        for _ in range(2):
            seconds: list[list[float]] = [[] for _ in engines]
            for engine in engines:
                engine.clear()
            for token in tokens:
                for engine, times in zip(engines, seconds, strict=True):
                    start = time.perf_counter()
                    engine.step(token)
                    times.append(time.perf_counter() - start)
    return [1e3 * float(np.median(times)) for times in seconds]
