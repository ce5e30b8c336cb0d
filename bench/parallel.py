"""One cell trained by several processes, which share the micro-batches of every step.

Whole micro-batches are dealt out, so that BatchNorm, a balance loss and expert choice see what they
see in one process, and need no exchange. Exchanged are the gradients, once a step; BatchNorm's
running statistics, applied in the order of the micro-batches; and what layers count. So the losses
are those of one process, but for the order in which gradients are added up.

Where a GPU cannot hold the cell, PEER's and PKM's tables are split by columns, `models.columns`,
and of the dense parts each process keeps its part, `sharding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from isoflop.bench.checkpoint import shards_path
from isoflop.bench.cost import predict_bytes
from isoflop.bench.plan import Cell
from isoflop.bench.policy import MEMORY_SHARE
from isoflop.bench.sharding import apart, clip, local, shard_dense, whole
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
        apart(self.optimizer)
        replicated = [p for _, p in self._replicated()]
        for tensor in (*replicated, *self.model.buffers()):  # another CPU may draw other numbers
            dist.broadcast(tensor.detach(), 0)
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
        shard_dense(model, init_device_mesh(self.device.type, (self.world,)))
        model.to(self.device)
        tables = {id(t) for layer in model.tested if can_split(layer) for t in layer.tables()}
        self.split = {name: p for name, p in model.named_parameters() if id(p) in tables}
        return model

    def _seed(self, step: int) -> None:
        """Each process draws its own dropout; the first what a process alone would draw."""
        if self.rank or step:
            torch.manual_seed(seed_for(f"dropout {step} {self.rank}", self.cell.seed))

    def _replicated(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if name not in self.split and not isinstance(parameter, DTensor)
        ]

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
        seen = []
        for part in parts[self.rank :: self.world]:
            for norm in self.norms:
                self._set_running(norm, torch.zeros_like(self._running(norm)))
            total += super()._accumulate([part], count)
            seen.append([self._running(norm) for norm in self.norms])
        for index, norm in enumerate(self.norms):
            self._set_running(norm, self._merged(norm, running[index], [s[index] for s in seen]))
        for buffer, old in zip(counts, before, strict=True):
            added = buffer - old
            dist.all_reduce(added)
            buffer.copy_(old + added)
        self._sum_gradients()
        dist.all_reduce(total)
        return total

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

    def _sum_gradients(self) -> None:
        """Sum the gradients over processes; split tables and dense parts have theirs."""
        parameters = [p for _, p in self._replicated()]
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        waiting = []
        for parameter, use in zip(parameters, used.tolist(), strict=True):
            if use:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                waiting.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in waiting:
            work.wait()

    def _clip(self) -> None:
        """By the norm over all parameters, those of other processes too."""
        if not self.splits:
            return super()._clip()
        everywhere = [p.grad for _, p in self._replicated() if p.grad is not None]
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        seen = {id(gradient) for gradient in everywhere}
        parts = local([gradient for gradient in gradients if id(gradient) not in seen])
        squares = nn.utils.get_total_norm(parts).square()
        dist.all_reduce(squares)
        norm = (nn.utils.get_total_norm(everywhere).square() + squares).sqrt()
        clip(gradients, norm, self.cell.training.clip)
        return None

    def _routing_gradient(self, layer: Layer) -> float | None:
        """All processes saw the same tokens: a split table has that many times its gradient."""
        if not layer.routing_parameters():
            return None
        split = {id(p) for p in self.split.values()}
        if not any(id(p) in split for p in layer.parameters()):
            return super()._routing_gradient(layer)
        routing = {id(p) for p in layer.routing_parameters()}
        squares, sizes = {True: 0.0, False: 0.0}, {True: 0, False: 0}
        for parameter in layer.parameters():
            size, square = parameter.numel(), torch.zeros((), device=self.device)
            if parameter.grad is not None:
                square = torch.linalg.vector_norm(parameter.grad).square()
            if id(parameter) in split:
                size *= self.world
                square /= self.world**2
                dist.all_reduce(square)
            squares[id(parameter) in routing] += float(square)
            sizes[id(parameter) in routing] += size
        chosen, rest = (math.sqrt(squares[kind] / sizes[kind]) for kind in (True, False))
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
