"""FLOPs of what a layer executes on real tensors, operator by operator.

A trace has tensors without data, and a layer can tell them apart. torch's FlopCounterMode passes
operators that it does not know in silence: on a CPU it counts 0 for fused attention, recurrent
layers and products with vectors. Here an operator is counted or free, or it is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from isoflop.bench.flops import FlopError


def _product(operand: int) -> Callable[..., int]:
    """2 x output elements x the last size of the left operand."""

    def count(output: Tensor, *args: Any) -> int:
        return 2 * output.numel() * args[operand].shape[-1]

    return count


def _summed_product(output: Tensor, *args: Any) -> int:
    """addbmm: a sum over the batch of matrix products."""
    batch, rows, inner = args[1].shape
    return 2 * batch * rows * inner * args[2].shape[-1]


def _convolution(output: Tensor, x: Tensor, weight: Tensor, *args: Any) -> int:
    """Every output element, or input element if transposed, meets one filter of the weight."""
    transposed = args[4]
    return 2 * (x if transposed else output).numel() * math.prod(weight.shape[1:])


def _attention(output: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> int:
    """Both products in full, masked or not."""
    return 2 * q.numel() * k.shape[-2] + 2 * math.prod(q.shape[:-1]) * math.prod(v.shape[-2:])


def _grouped(output: Tensor, a: Tensor, b: Tensor, *args: Any) -> int:
    """Each group of a's rows times its own matrix of b, but for what only fills up 16 bytes."""
    return 2 * a.shape[0] * (b.shape[1] - _padding(b, 1)) * (b.shape[2] - _padding(b, 2))


def _padding(b: Tensor, dim: int) -> int:
    """How many zeros end a dimension of all matrices, that alignment may ask for."""
    used = (b != 0).movedim(dim, 0).flatten(1).any(dim=1).nonzero()
    unused = b.shape[dim] - (int(used[-1]) + 1 if len(used) else 0)
    return unused if unused < 16 // b.itemsize else 0


def _bag(output: Any, weight: Tensor, indices: Tensor, *args: Any) -> int:
    """Rows weighted and summed are a product; rows that are only summed are free."""
    weights = args[4] if len(args) > 4 else None
    return 0 if weights is None else 2 * indices.numel() * weight.shape[-1]


COUNTED: dict[str, Callable[..., int]] = {
    "mm": _product(0),
    "bmm": _product(0),
    "mv": _product(0),
    "dot": _product(0),
    "vdot": _product(0),
    "addmm": _product(1),
    "_addmm_activation": _product(1),
    "addmv": _product(1),
    "baddbmm": _product(1),
    "addbmm": _summed_product,
    "convolution": _convolution,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_grouped_mm": _grouped,
    "_embedding_bag": _bag,
    "_embedding_bag_forward_only": _bag,
}

# Beside operators that torch tags as pointwise, as reductions or as views. Factories, copies,
# norms, sorts, selections, random numbers.
FREE = frozenset(
    "_fused_dropout _fused_rms_norm _local_scalar_dense _log_softmax _native_batch_norm_legit "
    "_native_batch_norm_legit_functional _native_batch_norm_legit_no_training _pad_circular "
    "_reshape_alias _safe_softmax _softmax _to_copy _unique2 _unsafe_index _unsafe_index_put "
    "_unsafe_view adaptive_avg_pool1d aminmax any all arange argmax argmin argsort as_strided "
    "avg_pool1d avg_pool2d bernoulli bincount bucketize cat clone constant_pad_nd copy cummax "
    "cummin cumsum diagonal_copy dropout embedding empty empty_like empty_strided equal eye fill "
    "flip full full_like gather histc index index_add index_copy index_fill index_put index_select "
    "is_pinned isin kthvalue linspace logcumsumexp logsumexp masked_fill masked_scatter "
    "masked_select max max_pool2d_with_indices median min multinomial native_batch_norm "
    "native_dropout native_group_norm native_layer_norm new_empty new_empty_strided new_full "
    "new_ones new_zeros nonzero norm normal one_hot ones ones_like permute_copy put rand rand_like "
    "randint randint_like randn randn_like random randperm reflection_pad1d renorm repeat "
    "repeat_interleave replication_pad1d resize resize_as roll rot90 scalar_tensor scatter "
    "scatter_add scatter_reduce searchsorted set_ select_scatter slice_scatter diagonal_scatter "
    "softmax sort split_with_sizes_copy stack std std_mean sum topk triu tril tril_indices "
    "triu_indices unfold_copy uniform unsafe_split unsafe_split_with_sizes var var_mean vander "
    "where zero zeros zeros_like transpose_ t_ squeeze_ unsqueeze_ exponential geometric cauchy "
    "log_normal _foreach_add _foreach_mul lift lift_fresh lift_fresh_copy detach_".split()
)
FREE_TAGS = frozenset((torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.inplace_view))


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.uncounted: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.has_kernel_for_dispatch_key(torch.DispatchKey.CompositeImplicitAutograd):
            with self:  # in inference mode these arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        self._count(func, args, kwargs, output)
        return output

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        plain = name if name in FREE else name.removesuffix("_")
        if plain in COUNTED:
            self.flops += COUNTED[plain](output, *args)
        elif func._overloadpacket in flop_registry:
            formula = flop_registry[func._overloadpacket]
            self.flops += int(formula(*args, **kwargs, out_val=output))
        elif not (plain in FREE or func.is_view or FREE_TAGS.intersection(func.tags)):
            self.uncounted.add(func._schema.name)


def executed_flops(run: Callable[[], Any], name: str) -> int:
    """FLOPs of the operators that `run` executes.

    Args:
        name: of the layer, for messages.
    Raises:
        FlopError: an operator is neither counted nor free.
    """
    counter = _Counter()
    with counter:
        run()
    if counter.uncounted:
        raise FlopError(
            f"layer {name!r}: cannot count {', '.join(sorted(counter.uncounted))} on real tensors: "
            "write it with matrix products, or give a custom operator its formula by "
            "torch.utils.flop_counter.register_flop_formula"
        )
    return counter.flops
