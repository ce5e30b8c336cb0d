"""One cell trained by several processes, which share the micro-batches of every step.

Whole micro-batches are dealt out, so that BatchNorm, a balance loss and expert choice see what they
see in one process, and need no exchange. Exchanged are the gradients, once a step and by torch's
DistributedDataParallel; BatchNorm's running statistics, applied in the order of the micro-batches;
and what layers count. So the losses are those of one process, but for the order in which gradients
are added up.

Where a GPU cannot hold the cell, PEER's and PKM's tables are split by columns, `models.columns`,
and of every other parameter each process keeps its part, `sharding`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from isoflop.bench.checkpoint import shards_path
from isoflop.bench.cost import predict_bytes
from isoflop.bench.plan import Cell
from isoflop.bench.policy import MEMORY_SHARE
from isoflop.bench.sharding import Uses, apart, clip, gathered, local, shard, whole
from isoflop.bench.shards import load_shards, save_shards
from isoflop.bench.step import Trainer, seed_for
from isoflop.models import Decoder, Layer
from isoflop.models.columns import can_split, split_tables

Warn = Callable[[str], None]


def must_split(cell: Cell, device: torch.device) -> bool:
    """Whether a cell is predicted to need more memory than its GPU has."""
    if device.type != "cuda":
        return False
    memory = torch.cuda.get_device_properties(device).total_memory
    return predict_bytes(cell) > MEMORY_SHARE * memory


class _Loss(nn.Module):
    """A model's loss as a forward pass: DistributedDataParallel follows no other method."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model
        # Where none is unused, it prints a warning that no filter of Python's stops.
        self.unused = nn.Parameter(torch.zeros(1, device=model.head.weight.device))

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.loss(tokens_BT, targets_BT)


def _replicated(model: Decoder) -> DistributedDataParallel:
    """The loss of a model of which each process has a copy; its gradients are sums over processes.

    The first process's parameters and buffers count: another CPU may draw other numbers.
    """
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)
    with warnings.catch_warnings():
        # Torch 2.13 has another name for `broadcast_buffers`, which 2.11 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        shared = DistributedDataParallel(
            _Loss(model),
            broadcast_buffers=False,  # see `_accumulate`
            find_unused_parameters=True,  # an expert may be without tokens in a process, or in all
            gradient_as_bucket_view=True,  # or each gradient would be there twice
        )
    # It takes means, but a step's loss is divided by all its micro-batches.
    shared.register_comm_hook(
        None,
        lambda state, bucket: (
            dist.all_reduce(bucket.buffer(), async_op=True)
            .get_future()
            .then(lambda done: done.value()[0])
        ),
    )
    return shared


class ParallelTrainer(Trainer):
    """A trainer in each process of a group. All call the same methods in the same order.

    Attributes:
        split: parameters of which this process has its columns alone, by name.
    """

    def __init__(
        self,
        cell: Cell,
        device: torch.device,
        compiled: bool = False,
        warn: Warn = lambda line: None,
    ) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.cell, self.device = cell, device
        self.split: dict[str, nn.Parameter] = {}
        self.splits = self.agree(must_split(cell, device))
        super().__init__(cell, device, compiled and not self.splits, warn)
        self._seed(0)
        if self.splits:
            apart(self.optimizer)
        else:
            self.replicated = _replicated(self.model)
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.norms = [norm for norm in norms if norm.track_running_stats]
        running = {id(b) for norm in self.norms for b in (norm.running_mean, norm.running_var)}
        kept = self.model.state_dict(keep_vars=True)
        self.counts = [  # by name
            name
            for name, buffer in self.model.named_buffers()
            if name in kept and id(buffer) not in running
        ]

    def _build(self) -> Decoder:
        if not self.splits:
            return super()._build()
        model = Decoder(self.cell.config)  # on the host: the GPU cannot hold it
        for layer in model.tested:
            if can_split(layer):
                split_tables(layer)
        tables = {table for layer in model.tested if can_split(layer) for table in layer.tables()}
        names = [name for name, parameter in model.named_parameters() if parameter in tables]
        shard(model, init_device_mesh(self.device.type, (self.world,)), tables)
        model.to(self.device)
        self.split = {name: model.get_parameter(name) for name in names}
        self.uses = Uses(model.tested)
        return model

    def _seed(self, step: int) -> None:
        """Each process draws its own dropout; the first what a process alone would draw."""
        if self.rank or step:
            torch.manual_seed(seed_for(f"dropout {step} {self.rank}", self.cell.seed))

    def agree(self, flag: bool) -> bool:
        """See `Trainer.agree`."""
        flags = torch.tensor(int(flag))  # on the host, so that no GPU is waited for
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def _accumulate(self, parts: Sequence[Tensor], count: int) -> Tensor:
        """Gradients and cross-entropy of all micro-batches, of which this process takes its own."""
        counts = [self.model.get_buffer(name) for name in self.counts]
        before = [buffer.clone() for buffer in counts]
        running = [self._running(norm) for norm in self.norms]
        total = torch.zeros((), device=self.device, dtype=self.model.head.weight.dtype)
        seen: list[list[Tensor]] = []
        for part in parts[self.rank :: self.world]:
            for norm in self.norms:
                self._set_running(norm, torch.zeros_like(self._running(norm)))
            last = len(seen) + 1 == len(parts) // self.world
            with nullcontext() if last or self.splits else self.replicated.no_sync():
                total += super()._accumulate([part], count)
            seen.append([self._running(norm) for norm in self.norms])
        for index, norm in enumerate(self.norms):
            self._set_running(norm, self._merged(norm, running[index], [s[index] for s in seen]))
        for buffer, old in zip(counts, before, strict=True):
            added = buffer - old
            dist.all_reduce(added)
            buffer.copy_(old + added)
        if self.splits:
            self.uses.clear()
        dist.all_reduce(total)
        return total

    def _loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        if self.splits:
            return super()._loss(tokens_BT, targets_BT)
        result: tuple[Tensor, Tensor] = self.replicated(tokens_BT, targets_BT)
        return result

    @staticmethod
    def _running(norm: Any) -> Tensor:
        return torch.stack((norm.running_mean, norm.running_var))

    @staticmethod
    def _set_running(norm: Any, value: Tensor) -> None:
        norm.running_mean.copy_(value[0])
        norm.running_var.copy_(value[1])

    def _merged(self, norm: Any, value: Tensor, added: list[Tensor]) -> Tensor:
        """Running statistics after the micro-batches of all, in their order.

        Args:
            added: what each micro-batch of this process adds: statistics times momentum.
        """
        own = torch.stack(added)
        everyone = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(everyone, own)
        for more in torch.stack(everyone, 1).flatten(0, 1):  # i was process i % world's
            value = (1 - norm.momentum) * value + more
        return value

    def _clip(self) -> None:
        """By the norm over all parameters, those of other processes too."""
        if not self.splits:
            return super()._clip()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        squares = nn.utils.get_total_norm(local(gradients)).square()
        dist.all_reduce(squares)
        clip(gradients, squares.sqrt(), self.cell.training.clip)
        return None

    def _after_step(self) -> None:
        if not self.splits:
            return super()._after_step()
        blocks: list[Any] = list(self.model.blocks)
        for block in blocks:
            if type(block.ffn).after_step is not Layer.after_step:
                with gathered(block):
                    block.ffn.after_step()
        return None

    def _routing_gradient(self, layer: Layer) -> float | None:
        """All processes saw the same tokens: what is split has that many times its gradient."""
        if not self.splits or not layer.routing_parameters():
            return super()._routing_gradient(layer)
        routing = {id(p) for p in layer.routing_parameters()}
        sums = torch.zeros(2, 2, dtype=torch.float64, device=self.device)
        for parameter in layer.parameters():
            own = sums[int(id(parameter) in routing)]  # squares of gradients, and their number
            own[1] += local([parameter])[0].numel()
            if parameter.grad is not None:
                own[0] += local([parameter.grad])[0].square().sum()
        dist.all_reduce(sums)
        if not sums[:, 1].all():
            return None
        rest, chosen = (sums[:, 0] / sums[:, 1]).sqrt().tolist()
        return chosen / max(rest, 1e-300)

    def whole_state(self) -> dict[str, Tensor] | None:
        """See `Trainer.whole_state`; what is in parts is put together, tables on the host."""
        state = {name: whole(tensor).cpu() for name, tensor in self.model.state_dict().items()}
        for name in self.split:
            own = state[name].contiguous()
            parts = [torch.empty_like(own) for _ in range(self.world)] if self.rank == 0 else None
            dist.gather(own, parts)
            if parts is not None:
                state[name] = torch.cat(parts, dim=1)
        return state if self.rank == 0 else None

    def save(self, path: Path, progress: dict[str, Any]) -> None:
        """See `Trainer.save`; into a folder, to which each process writes what it alone has."""
        save_shards(shards_path(path), self._state(), progress, self.rank == 0, self.agree)

    def load(self, path: Path) -> dict[str, Any] | None:
        """See `Trainer.load`; saved by as many processes as there were."""
        folder = shards_path(path)
        if not self.agree(folder.exists()):
            return None
        progress = load_shards(folder, self._place)
        self._seed(progress["step"])
        return progress

    def _state(self) -> dict[str, Tensor]:
        """All tensors of model and optimiser by name."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        state = {
            f"model.{name}": self._shared(name, tensor)
            for name, tensor in self.model.state_dict().items()
        }
        for parameter, values in self.optimizer.state.items():
            name = names[id(parameter)]
            for key, tensor in values.items():
                state[f"optimizer.{name}.{key}"] = self._shared(name, tensor)
        return state

    def _place(self, key: str, dtype: torch.dtype) -> Tensor:
        """The tensor to which a saved one is loaded; the optimiser's are made."""
        kind, _, name = key.partition(".")
        if kind == "model":
            return self._shared(name, self.model.state_dict()[name])
        name, _, of = name.rpartition(".")
        parameter = self.model.get_parameter(name)
        if of == "step":
            tensor = torch.zeros((), dtype=dtype, device=parameter.device)
        else:
            tensor = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        self.optimizer.state[parameter][of] = tensor
        return self._shared(name, tensor)

    def _shared(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor like the parameter `name`, as part of the whole if it is split."""
        if name not in self.split or not tensor.dim():
            return tensor
        mesh = init_device_mesh(self.device.type, (self.world,))
        return DTensor.from_local(tensor, mesh, [Shard(1)], run_check=False)
