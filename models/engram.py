"""Engram, a memory that is looked up by hashed n-grams of token ids, beside a dense FFN."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.dense import Dense, init_linear
from isoflop.models.layer import Layer, ParameterGroup, full_precision, register

KERNEL = 4  # taps of the convolution
MULTIPLIER_BITS = 40  # times an id of the largest vocabulary, 2^22, they stay below 2^63


@register("engram")
class Engram(Layer):
    """y = FFN(x) + a v + SiLU(conv(norm(a v))) (Engram, arXiv 2601.07372, equations 3 to 5).

    Every n-gram that ends at a token, n from 2 to `longest`, is hashed by each of `heads` heads to
    a row of a table of the head's own: the ids times odd multipliers, by XOR, modulo the table's
    size. The rows of all heads and n make e. v = W_V e, k = W_K e, and a = sigmoid(sign(z) |z|^0.5)
    with z = norm(x) . norm(k) / sqrt(d); the root is in the authors' code, not in the paper. conv
    is causal and depthwise, of 4 taps that are `longest` tokens apart, and starts at zero. Tables
    have no weight decay and 5 times the learning rate.

    Where this differs from the paper: there the memory is a module of its own, added to the
    residual before the attention of two blocks; here it is part of the layer under test, beside a
    dense FFN, so it is added after the attention and reads the block's normed input. The paper has
    several residual streams with a gate each, and merges ids of like text (case, accents, spaces)
    before it hashes them; here there is one stream, and ids are hashed as they are. Projections
    have no biases, as in the rest of the backbone. Not stated in the paper: tables start normal
    with variance 1, as in the authors' code, and projections with variance 1 / fan-in.

    With `table_size` 1 the same rows are read whatever the tokens are: what that gains is due to
    the gate, the convolution and the parameters. It is the control of every other size.
    """

    multipliers_K: Tensor
    sizes_NH: Tensor
    offsets_NH: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        table_size: int = 4096  # rows of each head's table, rounded up to primes; 1 is the control
        heads: int = 8  # tables for each n
        longest: int = 3  # tokens of the longest n-gram
        memory_ratio: float = 0.5  # width of an n-gram's rows together, over d_model, in whole rows
        ratio: float = 4.0  # hidden width of the FFN over d_model
        table_rate: float = 5.0  # learning rate of the tables; the suite's multiplies it

        def __post_init__(self) -> None:
            if self.table_size < 1 or self.heads < 1 or not 2 <= self.longest <= 8:
                raise ValueError(
                    "table_size and heads must be at least 1 and longest 2 to 8, not "
                    f"{self.table_size}, {self.heads} and {self.longest}"
                )
            if self.memory_ratio <= 0 or self.table_rate <= 0:
                raise ValueError(
                    "memory_ratio and table_rate must be positive, not "
                    f"{self.memory_ratio} and {self.table_rate}"
                )

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        width = max(1, round(o.memory_ratio * d_model / o.heads))  # of a row
        self.ffn = Dense(d_model, ratio=o.ratio)
        orders = o.longest - 1
        sizes = [1] * (orders * o.heads)
        if o.table_size > 1:  # different ones, so that heads collide on different n-grams
            sizes = list(islice(primes(o.table_size), orders * o.heads))
        self.table_RW = nn.Parameter(
            torch.empty(sum(sizes), width)
        )  # all tables, one after another
        self.d_memory = len(sizes) * width
        self.key = nn.Linear(self.d_memory, d_model, bias=False)
        self.value = nn.Linear(self.d_memory, d_model, bias=False)
        self.query_norm, self.key_norm, self.value_norm = (nn.RMSNorm(d_model) for _ in range(3))
        self.kernel_DK = nn.Parameter(torch.zeros(d_model, KERNEL))  # the latest token's tap first
        nn.init.normal_(self.table_RW)
        init_linear(self.key.weight)
        init_linear(self.value.weight)
        sizes_NH = torch.tensor(sizes).view(orders, o.heads)
        self.register_buffer("multipliers_K", multipliers(o.longest), persistent=False)
        self.register_buffer("sizes_NH", sizes_NH, persistent=False)
        offsets_NH = sizes_NH.flatten().cumsum(0).view_as(sizes_NH) - sizes_NH
        self.register_buffer("offsets_NH", offsets_NH, persistent=False)
        self.rows_BTS: Tensor | None = None  # of the batch whose tokens were seen last

    def see_tokens(self, tokens_BT: Tensor) -> None:
        """Hash the n-grams. Before the start of a sequence stands an id that no token has."""
        T = tokens_BT.shape[1]
        mixed_BT = (tokens_BT + 1) * self.multipliers_K[0]
        rows = []
        for back in range(1, self.options.longest):
            earlier_BT = F.pad(tokens_BT + 1, (back, 0))[:, :T]
            mixed_BT = mixed_BT.bitwise_xor(earlier_BT * self.multipliers_K[back])
            rows.append(mixed_BT[..., None] % self.sizes_NH[back - 1] + self.offsets_NH[back - 1])
        self.rows_BTS = torch.cat(rows, dim=-1)

    def _rows(self, x_BTD: Tensor) -> Tensor:
        if self.rows_BTS is None or self.rows_BTS.shape[:2] != x_BTD.shape[:2]:
            raise ValueError("call see_tokens with the ids of the tokens first")
        return self.rows_BTS

    def forward(self, x_BTD: Tensor) -> Tensor:
        memory_BTE = F.embedding(self._rows(x_BTD), self.table_RW).flatten(2)
        value_BTD = self._gate(x_BTD, self.key(memory_BTE)) * self.value(memory_BTE)
        y_BTD = self.ffn(x_BTD) + value_BTD + F.silu(self._convolve(self.value_norm(value_BTD)))
        return y_BTD.to(x_BTD.dtype)

    def _gate(self, x_BTD: Tensor, key_BTD: Tensor) -> Tensor:
        """[batch, time, 1], between 0 and 1."""
        with full_precision(x_BTD):
            dtype = self.query_norm.weight.dtype
            query_BTD, key_BTD = self.query_norm(x_BTD.to(dtype)), self.key_norm(key_BTD.to(dtype))
            z_BT1 = (query_BTD[..., None, :] @ key_BTD[..., None])[..., 0] * self.d_model**-0.5
            # Below 1e-6 the slope of the root is taken as 0: it has none at 0.
            return torch.sigmoid(z_BT1.sign() * z_BT1.abs().clamp(min=1e-6).sqrt())

    def _convolve(self, x_BTD: Tensor) -> Tensor:
        """As a product of matrices, whose backward pass costs twice the forward pass."""
        T, apart = x_BTD.shape[1], self.options.longest
        taps = [F.pad(x_BTD, (0, 0, apart * tap, 0))[:, :T] for tap in range(KERNEL)]
        return torch.einsum("btdk,dk->btd", torch.stack(taps, dim=-1), self.kernel_DK)

    def flops_per_token(self) -> int:
        """The FFN, keys and values 4 E D, the gate 2 D, and the convolution 2 * 4 D."""
        projections = 4 * self.d_memory * self.d_model
        return self.ffn.flops_per_token() + projections + (2 + 2 * KERNEL) * self.d_model

    def active_parameters(self) -> int:
        """All but the tables, of which one token reads a row each."""
        return super().active_parameters() - self.table_RW.numel() + self.d_memory

    def tables(self) -> list[nn.Parameter]:
        return [self.table_RW]

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.tables(), rate=self.options.table_rate)]

    def load(self, x_BTD: Tensor) -> Tensor:
        """How often each row of the tables is read."""
        return self._rows(x_BTD).flatten().bincount(minlength=len(self.table_RW))


def multipliers(number: int) -> Tensor:
    """Odd multipliers, the same in every model: [number] int64."""
    source = random.Random(0)
    return torch.tensor([source.getrandbits(MULTIPLIER_BITS) | 1 for _ in range(number)])


def primes(start: int) -> Iterator[int]:
    """The primes from `start` on."""
    for number in count(max(start, 2)):
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            yield number
