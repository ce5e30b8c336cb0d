"""The parameters of a model over processes, each of which keeps an equal part of every one.

By FSDP2, `torch.distributed.fsdp.fully_shard`: a block's parameters are whole in a process only
while it computes that block, and their gradients are summed to where the parts are. Tables that are
split by columns, `models.columns`, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from isoflop.models import Decoder, Layer


def shard(model: Decoder, mesh: DeviceMesh, kept: set[nn.Parameter]) -> None:
    """Keep this process's part of all parameters but `kept`, on the mesh's device.

    The first process's numbers count: another CPU may draw others. The model may be on the host.
    """
    for tensor in (*(p for p in model.parameters() if p not in kept), *model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    for module in (*model.blocks, model):
        # Evaluation has no backward pass, after which the root would be put away otherwise.
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        sharded.set_gradient_divide_factor(1.0)  # a step's loss is divided by its micro-batches
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
    register_fsdp_forward_method(model, "loss")


class Uses:
    """Which parameters of layers had a gradient since the last step, in any process.

    An expert may be without tokens in one process and not in another, but FSDP2 adds up gradients
    that all have: where a parameter was not used, it gets a gradient of zero. One that no process
    has used has none in the end, as in one process: the optimiser leaves it as it is.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.names = [[name for name, _ in layer.named_parameters()] for layer in layers]
        self.used: set[tuple[int, str]] = set()
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._follow, number))

    def _follow(self, number: int, layer: Layer, inputs: tuple[Tensor]) -> None:
        """Wait for the gradient of a layer's input: then parameters have theirs, and are whole."""
        if inputs[0].requires_grad:
            inputs[0].register_hook(partial(self._complete, number))

    def _complete(self, number: int, gradient: Tensor) -> None:
        for name, parameter in self.layers[number].named_parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                self.used.add((number, name))

    def clear(self) -> None:
        """Remove the gradients of what no process has used, and begin anew."""
        places = [(number, name) for number, names in enumerate(self.names) for name in names]
        used = torch.tensor([place in self.used for place in places], dtype=torch.int32)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        for (number, name), use in zip(places, used.tolist(), strict=True):
            if not use:
                self.layers[number].get_parameter(name).grad = None
        self.used.clear()


@contextmanager
def gathered(block: Any) -> Iterator[None]:
    """Within the context the parameters of a block are whole; what is written to them is kept."""
    parts = {name: p for name, p in block.named_parameters() if isinstance(p, DTensor)}
    block.unshard()
    yield
    written = {
        name: part_of(block.get_parameter(name).detach(), part).clone()
        for name, part in parts.items()
    }
    block.reshard()
    for name, part in parts.items():
        local([part.detach()])[0].copy_(written[name])


def part_of(tensor: Tensor, like: DTensor) -> Tensor:
    """What this process keeps of a tensor that every process has, as it does of `like`."""
    part = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return local([part])[0]


def apart(optimizer: torch.optim.Optimizer) -> None:
    """Split an optimiser's groups: one step cannot take parts and whole parameters together."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        for sharded in (True, False):
            members = [p for p in group["params"] if isinstance(p, DTensor) is sharded]
            if members:
                optimizer.add_param_group({**group, "params": members})


def whole(tensor: Tensor) -> Tensor:
    """A tensor of a state, put together where it is in parts; all processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(gradients: list[Tensor]) -> list[Tensor]:
    """This process's parts of gradients, in whose place they can be changed."""
    return [g.to_local() if isinstance(g, DTensor) else g for g in gradients]


def clip(gradients: list[Tensor], norm: Tensor, most: float) -> None:
    """`nn.utils.clip_grads_with_norm_` of gradients, some of which are in parts."""
    parameters = []
    for gradient in local(gradients):
        parameter = nn.Parameter(gradient, requires_grad=False)
        parameter.grad = gradient
        parameters.append(parameter)
    nn.utils.clip_grads_with_norm_(parameters, most, norm)
