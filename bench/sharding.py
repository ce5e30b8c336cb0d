"""The dense parts of a model over processes, each of which keeps an equal part of every parameter.

By FSDP2, `torch.distributed.fsdp.fully_shard`: a block's parameters are whole in a process only
while it computes that block, and their gradients are summed to where the parts are. Dense parts are
attention, norms, embedding, head and dense feed-forward networks; a layer under test of another
kind stays whole, or has its tables split by columns, since the processes may use different experts.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from isoflop.models import Decoder
from isoflop.models.dense import Dense


def shard_dense(model: Decoder, mesh: DeviceMesh) -> None:
    """Keep this process's part of the dense parts, on the mesh's device.

    The first process's numbers count: another CPU may draw others. The model may be on the host.
    """
    kept = {
        parameter
        for layer in model.tested
        if type(layer) is not Dense
        for parameter in layer.parameters()
    }
    for parameter in model.parameters():
        if parameter not in kept:
            dist.broadcast(parameter.detach(), 0)
    for module in (*model.blocks, model):
        # Evaluation has no backward pass, after which the root would be put away otherwise.
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        sharded.set_gradient_divide_factor(1.0)  # a step's loss is divided by its micro-batches
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
    register_fsdp_forward_method(model, "loss")


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
