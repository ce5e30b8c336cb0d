"""Exact FLOPs: fvcore traces the reference path on the meta device, strictly, with our handles.

Convention (`FLOP_CONVENTION` in every record): 1 multiply-add = 2 FLOPs; attention counted in full,
not halved for causality; head counted; embedding lookup 0; norms, activations, softmax and top-k
0; training = 3 x forward; recomputation not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
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
    transposed = len(inputs) > 8 and inputs[6].toIValue()  # `_convolution_mode` is never
    elements = math.prod(get_shape(inputs[0] if transposed else outputs[0]))
    return 2 * elements * math.prod(get_shape(inputs[1])[1:])


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
    "aten::_convolution_mode": _convolution,
    "aten::scaled_dot_product_attention": _attention,
}

# Elementwise, normalising, reducing, selecting and indexing ops, with fvcore's own list of shape
# and copy ops: 0 FLOPs in the convention. An op in neither list is an error.
FREE = {
    f"aten::{name}"
    for name in (
        "abs add add_ addcmul amax amin argmax atan avg_pool1d batch_norm bernoulli bernoulli_ "
        "bitwise_and bitwise_xor "
        "ceil celu clamp_max clamp_min cos cross_entropy_loss cummax cumsum div div_ "
        "elu embedding erf exp expand_as expm1 fill_ flip frac gelu glu group_norm hardsigmoid "
        "hardswish hardtanh index_add index_add_ index_copy index_select layer_norm le leaky_relu "
        "lerp lift_fresh log log1p log_sigmoid log_softmax logical_and logical_not logical_or "
        "logsumexp lt masked_fill_ max_pool1d maximum mean minimum mish movedim mul mul_ "
        "native_layer_norm ne neg new_ones norm numel one_hot ones_like pad pow prelu prod rand "
        "rand_like randn randn_like reciprocal relu6 repeat repeat_interleave reshape_as rms_norm "
        "round rsqrt rsub scatter scatter_ scatter_add scatter_add_ selu sigmoid sigmoid_ sign "
        "silu silu_ sin softmax softplus sort sqrt square square_ std sub sub_ sum sum_to_size "
        "tanh tanh_ topk tril triu trunc unflatten unfold var var_mean view_as where zero_"
    ).split()
}


class _TracedConvolutions(TorchFunctionMode):
    """Convolutions as the one operator that a trace on the meta device can record."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in CONVOLUTIONS:
            return func(*args, **(kwargs or {}))
        return _traced_convolution(func, *args, **(kwargs or {}))


CONVOLUTIONS = {  # transposed or not
    torch.conv1d: False,
    torch.conv2d: False,
    torch.conv3d: False,
    torch.conv_transpose1d: True,
    torch.conv_transpose2d: True,
    torch.conv_transpose3d: True,
}


def _traced_convolution(
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    *rest: Any,
    **named: Any,
) -> Tensor:
    if isinstance(padding, str):
        return func(input, weight, bias, stride, padding, *rest, **named)
    transposed = CONVOLUTIONS[func]
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    named |= dict(zip(names, rest, strict=False))
    lists = [
        [size] * (weight.dim() - 2) if isinstance(size, int) else list(size)
        for size in (stride, padding, named.get("dilation", 1), named.get("output_padding", 0))
    ]
    return torch.ops.aten._convolution(
        input,
        weight,
        bias,
        *lists[:3],
        transposed,
        lists[3],
        named.get("groups", 1),
        False,
        False,
        False,
        False,
    )


class _UntracedShapes(TorchDispatchMode):
    """Finds the shape of a convolution in another thread, which is not tracing.

    In a trace sizes are tensors, which torch's shape function of a convolution refuses.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def run() -> Any:
            with torch.no_grad():
                return func(*args, **(kwargs or {}))

        if "convolution" not in func._schema.name:
            return func(*args, **(kwargs or {}))
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(run).result()


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
    with _TracedConvolutions(), _UntracedShapes():
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
