"""Exact FLOPs: fvcore traces the reference path on the meta device, strictly, with our handles.

Convention (`FLOP_CONVENTION` in every record): 1 multiply-add = 2 FLOPs; attention counted in full,
not halved for causality; head counted; embedding lookup 0; norms, activations, softmax and top-k
0; training = 3 x forward; recomputation not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models import Config, Decoder
from isoflop.results.errors import IsoflopError


class FlopError(IsoflopError):
    """An op without a count, or a formula that differs from the trace; the message says which."""


def _product(operand: int) -> Callable[[list[Any], list[Any]], int]:
    """A matrix product: 2 x output elements x the last size of the left operand."""

    def handle(inputs: list[Any], outputs: list[Any]) -> int:
        return 2 * math.prod(get_shape(outputs[0])) * get_shape(inputs[operand])[-1]

    return handle


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Two operands: 2 x the product of the sizes of all indices."""
    equation = inputs[0].toIValue().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    shapes = [get_shape(value) for value in inputs[1].node().inputs()]
    if len(terms) != 2 or "." in equation:
        raise FlopError(f"einsum {equation!r}: only two operands without '...' can be counted")
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    return 2 * math.prod(sizes.values())


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Both products in full: 2 x queries x keys x (d_key + d_value), over batch and heads."""
    *batch, queries, d_key = get_shape(inputs[0])
    keys, d_value = get_shape(inputs[2])[-2:]
    return 2 * math.prod(batch) * queries * keys * (d_key + d_value)


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """2 x output elements (input elements if transposed) x what one filter of the weight holds."""
    x, weight, transposed = inputs[0], inputs[1], inputs[6].toIValue()
    return (
        2 * math.prod(get_shape(x if transposed else outputs[0])) * math.prod(get_shape(weight)[1:])
    )


HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    "aten::linear": _product(0),
    "aten::matmul": _product(0),
    "aten::mm": _product(0),
    "aten::bmm": _product(0),
    "aten::addmm": _product(1),
    "aten::baddbmm": _product(1),
    "aten::mv": _product(0),
    "aten::dot": _product(0),
    "aten::vdot": _product(0),
    "aten::addmv": _product(1),
    "aten::einsum": _einsum,
    "aten::_convolution": _convolution,
    "aten::scaled_dot_product_attention": _attention,
}

# Elementwise, normalising, reducing, selecting and indexing ops, with fvcore's own list of shape
# and copy ops: 0 FLOPs in the convention. An op in neither list is an error.
FREE = {
    f"aten::{name}"
    for name in (
        "abs add add_ batch_norm bernoulli bernoulli_ bitwise_and clamp_min cos cross_entropy_loss "
        "cummax cumsum div div_ embedding erf exp expand_as fill_ gelu index_add index_add_ "
        "index_copy index_select layer_norm le leaky_relu lift_fresh log log_softmax logsumexp lt "
        "masked_fill_ maximum mean minimum mish mul mul_ ne neg new_ones norm numel one_hot "
        "ones_like pow prod rand rand_like randn randn_like reciprocal repeat repeat_interleave "
        "rms_norm rsqrt rsub scatter scatter_ scatter_add scatter_add_ sigmoid sign silu sin "
        "softmax softplus sort sqrt square std sub sub_ sum tanh topk tril triu unflatten var "
        "view_as where zero_"
    ).split()
}


class _WithAuxiliary(nn.Module):
    """Returns the auxiliary losses too: a trace drops a branch whose output nobody returns."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(tokens_BT)
        losses = [layer.aux_loss for layer in self.model.tested]
        return (logits, *(loss for loss in losses if loss is not None))


def build_on_meta(config: Config) -> Decoder:
    """The model on the meta device: a million experts cost no memory to build or count."""
    with torch.device("meta"):
        return Decoder(config)


def traced_flops(model: Decoder, batch: int) -> dict[str, int]:
    """Forward FLOPs of one batch of full sequences, by part, as fvcore traces them.

    Args:
        model: a decoder on the meta device, in training mode.
        batch: sequences; expert choice needs a multiple of its expansion.
    Returns:
        attention, ffn (routing included) and head.
    Raises:
        FlopError: an op is neither handled nor free.
    """
    tokens_BT = torch.zeros(batch, model.config.context, dtype=torch.int64, device="meta")
    analysis = FlopCountAnalysis(_WithAuxiliary(model), tokens_BT)
    analysis.clear_op_handles().set_op_handle(**HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    total = analysis.total()
    uncounted = sorted(set(analysis.unsupported_ops()) - FREE)
    if uncounted:
        raise FlopError(
            f"layer {model.config.layer.name!r}: cannot count {', '.join(uncounted)}; write the "
            "reference path with matrix products, or add a handle in bench/flops.py"
        )
    modules = analysis.by_module()
    blocks = [f"model.blocks.{index}" for index in range(model.config.depth)]
    parts = {
        "attention": sum(modules[f"{block}.attention"] for block in blocks),
        "ffn": sum(modules[f"{block}.ffn"] for block in blocks),
        "head": modules["model.head"],
    }
    if sum(parts.values()) != total:
        raise FlopError("the trace counts FLOPs outside attention, FFN and head")
    return {part: int(flops) for part, flops in parts.items()}


def verify_flops(config: Config, batch: int) -> dict[str, int]:
    """Forward FLOPs per token by formula, checked to be what the trace counts.

    Raises:
        FlopError: formula and trace differ, or an op cannot be counted.
        ValueError: the layer refuses its options or the batch.
    """
    model = build_on_meta(config)
    formula = model.flops_per_token()
    traced = traced_flops(model, batch)
    tokens = batch * config.context
    expected = {
        "attention": formula["attention"],
        "ffn": formula["ffn"] + formula["routing"],
        "head": formula["head"],
    }
    for part, per_token in expected.items():
        if per_token * tokens != traced[part]:
            raise FlopError(
                f"layer {config.layer.name!r}, width {config.width}: {part} has {per_token} FLOPs "
                f"per token by formula, {traced[part] / tokens:g} in the trace"
            )
    return formula


def backward_ratio(config: Config, batch: int) -> float:
    """FLOPs of forward and backward over those of forward, as torch's FlopCounterMode counts them.

    The convention says 3. The counted figure is a little lower, since no gradient flows to the
    token ids, and it may differ for a layer whose backward is no transpose of its forward.
    """
    model = build_on_meta(config)
    tokens_BT = torch.zeros(batch, config.context, dtype=torch.int64, device="meta")
    counter = FlopCounterMode(display=False)
    with counter:
        logits = model(tokens_BT)
        forward = counter.get_total_flops()
        logits.sum().backward()
    return counter.get_total_flops() / forward
