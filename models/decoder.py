"""The backbone: a pre-norm decoder, the same for every layer under test.

Dimensions in names: B batch, T time, D width, H heads, K width of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.dense import Dense, init_linear
from isoflop.models.layer import Layer
from isoflop.models.ops.backends import cpu_has_bfloat16

ROTARY_BASE = 10_000.0
EMBEDDING_MEAN = 0.25  # of the initialisation "positional"
CPU_HAS_BFLOAT16 = cpu_has_bfloat16()  # asked at import: torch.compile cannot trace the question


@dataclass(frozen=True)
class Config:
    """A model: the layer under test and the backbone around it.

    Raises:
        ValueError: the width is not divisible by the heads, a head's width is odd, or the
            placement is outside the model.
    """

    layer: type[Layer]
    options: dict[str, Any] = field(default_factory=dict)
    placement: str | Sequence[int] = "middle"  # "middle", "all", or the indices of the blocks
    width: int = 256
    depth: int = 4
    heads: int = 4
    vocabulary: int = 8192
    context: int = 512  # tokens per sequence: sets the rotary table and the attention FLOPs
    output_norm: bool = False  # an RMSNorm on the output of every layer under test
    initialisation: Literal["random", "positional"] = "random"  # see `Decoder`

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width {self.width} must be an even multiple of heads {self.heads}: "
                "rotary attention turns pairs of features"
            )
        blocks_with_layer(self.placement, self.depth)


def blocks_with_layer(placement: str | Sequence[int], depth: int) -> frozenset[int]:
    """The indices of the blocks that hold the layer under test.

    `middle` is block depth // 2, counted from 0: the upper of the two middle blocks if the depth is
    even.

    Raises:
        ValueError: the placement is unknown, empty or outside the model.
    """
    if placement == "middle":
        return frozenset({depth // 2})
    if placement == "all":
        return frozenset(range(depth))
    if isinstance(placement, str):
        raise ValueError(f"placement must be middle, all or block indices, not {placement!r}")
    outside = [index for index in placement if not 0 <= index < depth]
    if outside or not placement:
        raise ValueError(f"placement {list(placement)} must name blocks 0 to {depth - 1}")
    return frozenset(placement)


def rotary_table(context: int, d_head: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, each [context, d_head] (RoPE, arXiv 2104.09864)."""
    frequency = ROTARY_BASE ** (-torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)
    angle = torch.arange(context, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_XTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotate each pair (i, i + K / 2) of features by the angle of its position."""
    return x_XTK * cos_TK + x_XTK.roll(x_XTK.shape[-1] // 2, dims=-1) * sin_TK


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K), over the past) v, [B, H, T, K] like each operand.

    On a CPU that multiplies bfloat16, at short contexts, the scores are computed explicitly: the
    backward pass of torch's fused attention is 2 to 3 times slower there. On a CPU that does not,
    in float32, the fused one is faster, up to twice (tests/benchmarks/test_step.py).
    """
    T, K = q_BHTK.shape[-2:]
    if q_BHTK.device.type != "cpu" or T > 512 or not CPU_HAS_BFLOAT16:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    q_NTK, k_NTK, v_NTK = (x.reshape(-1, T, K) for x in (q_BHTK, k_BHTK, v_BHTK))
    future_TT = torch.full((T, T), -torch.inf, dtype=q_BHTK.dtype).triu(1)
    scores_NTT = torch.baddbmm(future_TT, q_NTK, k_NTK.transpose(1, 2), alpha=K**-0.5)
    return (scores_NTT.softmax(dim=-1) @ v_NTK).view_as(q_BHTK)


class Attention(nn.Module):
    """Causal multi-head attention with rotary position embeddings."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        init_linear(self.qkv.weight)
        init_linear(self.out.weight)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        qk, v_BHTK = qkv[:2], qkv[2]
        q_BHTK, k_BHTK = rotate(qk, cos_TK.to(qk.dtype), sin_TK.to(qk.dtype)).unbind(0)
        y_BHTK = causal_attention(q_BHTK, k_BHTK, v_BHTK)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))

    def flops_per_token(self, context: int) -> int:
        """Projections: 8 D^2. Scores and their product with v, not halved for causality: 4 T D."""
        width = self.out.in_features
        return 8 * width**2 + 4 * context * width


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)), or x + norm(ffn(norm(x)))."""

    def __init__(self, width: int, heads: int, ffn: Layer, output_norm: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.ffn_norm = nn.RMSNorm(width)
        self.ffn = ffn
        self.output_norm = nn.RMSNorm(width) if output_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TK, sin_TK)
        return x_BTD + self.output_norm(self.ffn(self.ffn_norm(x_BTD)))


class Decoder(nn.Module):
    """Token embedding, blocks, final norm, untied head. No biases, no dropout.

    `tested` lists the layers under test, in the order of their blocks.

    Initialisation: linear maps with variance 1 / fan-in, embeddings with variance 1, the head zero.
    With embeddings of mean zero and no biases, scores of the first block cannot depend on position
    alone. In models of 3 blocks its attention then learns to average the past and no more, and it
    depends on the seed whether the second block attends to the previous token: at widths 32 and 48
    that decides up to 0.15 nats. The initialisation "positional" has embeddings of mean 0.25, and
    attention whose output starts at zero (docs/analysis-plan.md).
    """

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        tested = blocks_with_layer(config.placement, config.depth)
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.layer(width, **config.options), config.output_norm)
            if index in tested
            else Block(width, config.heads, Dense(width))
            for index in range(config.depth)
        )
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, config.vocabulary, bias=False)
        # At the scale of the blocks' outputs: where it is smaller, they drown the tokens. With a
        # standard deviation of width^-0.5 the quick suite's dense loss is 0.3 nats higher.
        positional = config.initialisation == "positional"
        nn.init.normal_(self.embedding.weight, mean=EMBEDDING_MEAN if positional else 0.0)
        nn.init.zeros_(self.head.weight)  # the first loss is log V, whatever the width
        if positional:
            for block in self.blocks:
                nn.init.zeros_(block.attention.out.weight)  # type: ignore[union-attr,arg-type]
        cos_TK, sin_TK = rotary_table(config.context, width // config.heads)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)
        self.tested: list[Layer] = [self.blocks[i].ffn for i in sorted(tested)]  # type: ignore[misc]

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Token ids [batch, time] -> logits [batch, time, vocabulary]; time <= config.context."""
        return self.head(self.features(tokens_BT))

    def features(self, tokens_BT: Tensor) -> Tensor:
        """Token ids [batch, time] -> what the head reads, [batch, time, width]."""
        T = tokens_BT.shape[1]
        x_BTD = self.embedding(tokens_BT)
        for layer in self.tested:
            layer.see_tokens(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos_TK[:T], self.sin_TK[:T])
        return self.norm(x_BTD)

    def loss(
        self, tokens_BT: Tensor, targets_BT: Tensor, part: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats per token, and the sum of the layers' auxiliary losses.

        Args:
            part: tokens whose logits exist at a time; all if None.
        """
        targets = targets_BT.flatten()
        x_MD = self.features(tokens_BT).flatten(0, 1)
        if part is None:
            cross_entropy = self.cross_entropy(x_MD, targets)
        else:
            sums = [
                len(y_part) * self.cross_entropy(x_part, y_part)
                for x_part, y_part in zip(x_MD.split(part), targets.split(part), strict=True)
            ]
            cross_entropy = torch.stack(sums).sum() / len(targets)
        auxiliary = [layer.aux_loss for layer in self.tested if layer.aux_loss is not None]
        return cross_entropy, sum(auxiliary, start=cross_entropy.new_zeros(()))

    def cross_entropy(self, x_MD: Tensor, targets_M: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, in float32."""
        return F.cross_entropy(self.head(x_MD).float(), targets_M)

    def flops_per_token(self) -> dict[str, int]:
        """Forward FLOPs per token by part, at sequences of `config.context` tokens."""
        blocks: list[Any] = list(self.blocks)
        routing = sum(layer.routing_flops_per_token() for layer in self.tested)
        return {
            "attention": sum(b.attention.flops_per_token(self.config.context) for b in blocks),
            "ffn": sum(b.ffn.flops_per_token() for b in blocks) - routing,
            "routing": routing,
            "head": 2 * self.config.width * self.config.vocabulary,
        }

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part; `layer_*` is the layer under test, over all blocks that hold it."""

        def count(module: nn.Module) -> int:
            return sum(parameter.numel() for parameter in module.parameters())

        embedding, head = count(self.embedding), count(self.head)
        layer_total = sum(count(layer) for layer in self.tested)
        return {
            "embedding": embedding,
            "head": head,
            "backbone": count(self) - embedding - head - layer_total,
            "layer_active": sum(layer.active_parameters() for layer in self.tested),
            "layer_total": layer_total,
        }
