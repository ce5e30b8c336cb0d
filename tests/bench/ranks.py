"""Body of the processes of test_parallel: the same steps of every cell, by 4, by 2 and by 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from isoflop.bench import compiling, parallel
from isoflop.bench.plan import Cell
from isoflop.bench.step import Trainer, make_trainer
from tests.bench.cells import TINY, tiny_cells

SMALL = {"granularity": 2, "expansion": 2}
KEYS = {"heads": 2, "top_k": 4, "d_key": 8}
LAYERS: dict[str, dict[str, Any]] = {
    "dense": {},
    "moe": SMALL,
    "moe_ec": {"expansion": 2},
    "moe_shared": SMALL | {"bias_rate": 0.1},
    "remoe": SMALL | {"coefficient_start": 1e-2},
    "pkm": {"n_slots": 64, **KEYS},
    "peer": {"n_experts": 64, **KEYS},
    "ultramem": {"n_slots": 64, "top_k": 4, "d_key": 8},
    "choosy": {},
}
# In float32 without autocast; bfloat16 is what training does, where rounding may turn a bit of what
# the next step reads, so the first step alone is compared.
STEPS = {torch.float64: 4, torch.float32: 4, torch.bfloat16: 1}
ROUNDED = ("dense", "moe", "moe_ec", "pkm", "peer")  # trained in every type, others in float64
KINDS = list(product(LAYERS, (False, True)))  # by name, and whether parameters are split
Results = dict[tuple[Any, ...], dict[str, Any]]


def cells(**training: Any) -> dict[str, Cell]:
    """A cell of each layer, of four micro-batches a step."""
    variants = {
        name: {"layer": name, "learning_rate": 0.5, "options": options}
        for name, options in LAYERS.items()
    }
    file = Path(__file__).with_name("own_layers.py")
    variants["choosy"]["layer"] = f"{file}:Choosy"
    variants["ungrouped"] = variants["peer"] | {"layer": f"{file}:Ungrouped"}
    training = {**TINY["training"], "batch": 8, "micro_batch": 2, "warmup": 0, **training}
    planned = tiny_cells(variants=variants, training=training, budgets=[{"flops": 5e9}])
    return {cell.variant: cell for cell in planned}


def windows(first: int, count: int) -> np.ndarray:
    return np.random.default_rng(first).integers(300, size=(count, 17))


def make(cell: Cell, dtype: torch.dtype, split: bool, sgd: bool) -> Trainer:
    """A trainer whose first gradients are large: the head does not start at zero."""
    with torch.no_grad(), splitting(split):
        trainer = make_trainer(cell, torch.device("cpu"), False, print)
        head = trainer.model.head.weight
        value = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
        assert isinstance(head, DTensor) is split
        if isinstance(head, DTensor):
            value = distribute_tensor(value, head.device_mesh, head.placements)
        head.copy_(value)
    if dtype == torch.float64:
        model = trainer.model

        def cross_entropy(x_MD: Tensor, targets_M: Tensor) -> Tensor:  # not in float32
            return F.cross_entropy(model.head(x_MD), targets_M)

        model.cross_entropy = cross_entropy  # type: ignore[method-assign]
    if sgd:  # Adam turns the rounding of tiny gradients into large steps
        groups = [{**group, "fused": False} for group in trainer.optimizer.param_groups]
        trainer.optimizer = torch.optim.SGD(groups, lr=1.0)  # type: ignore[assignment]
    return trainer


@contextmanager
def splitting(split: bool) -> Iterator[None]:
    """Within the block parameters are split, or not, whatever is predicted."""
    before, parallel.must_split = parallel.must_split, lambda cell, device: split
    try:
        yield
    finally:
        parallel.must_split = before


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Within the block models are built, and computed, in a type."""
    kind = parallel.ParallelTrainer if dist.is_initialized() else Trainer
    build, autocast = kind._build, torch.autocast
    if dtype != torch.bfloat16:
        kind._build = lambda self: build(self).to(dtype)  # type: ignore[assignment, method-assign]
        torch.autocast = lambda *args, **kwargs: nullcontext()  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        kind._build, torch.autocast = build, autocast  # type: ignore[method-assign, misc]


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """All gradients, those that are in parts put together."""
    result = {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone()
        for name, p in trainer.model.named_parameters()
        if p.grad is not None
    }
    for name in getattr(trainer, "split", {}):
        parts = [torch.empty_like(result[name]) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, result[name])
        result[name] = torch.cat(parts, dim=1)
    return result


def train(cell: Cell, dtype: torch.dtype, split: bool) -> dict[str, Any]:
    """Losses of some steps and of an evaluation, the first step's gradients, and what is left."""
    with computing_in(dtype):
        return _train(make(cell, dtype, split, sgd=True), STEPS[dtype])


def _train(trainer: Trainer, steps: int) -> dict[str, Any]:
    first: list[dict[str, Tensor]] = []
    clip = trainer._clip

    def keep_gradients() -> None:
        if not first:
            first.append(gradients(trainer))
        clip()

    trainer._clip = keep_gradients  # type: ignore[method-assign]
    losses = [float(trainer.step(step, windows(step % 2, 8))) for step in range(steps)]
    losses.append(trainer.evaluate(windows(0, 10)))
    return {
        "losses": losses,
        "gradients": first[0],
        "state": trainer.whole_state(),
        "routing_gradients": trainer.routing_gradients(windows(0, 2)),
        "flops": trainer.flops(),
        "output_rms": trainer.output_rms(windows(0, 8)),
    }


def types(name: str) -> list[torch.dtype]:
    """In which a cell is trained."""
    return list(STEPS) if name in ROUNDED else [torch.float64]


def train_all() -> Results:
    """Every kind of cell, in the group that this process is in."""
    alone = not dist.is_initialized()
    return {
        (name, split, dtype): train(cell, dtype, split)
        for name, cell in cells().items()
        if name in LAYERS
        for split in (False, True)[: 2 - alone]
        for dtype in types(name)
    }


def steps(cell: Cell, split: bool, path: Path, first: int, last: int) -> list[float]:
    """Losses of AdamW's steps, from a checkpoint on, and up to one."""
    with computing_in(torch.float64):
        trainer = make(cell, torch.float64, split, sgd=False)
    progress = trainer.load(path)
    assert (progress or {"step": 0})["step"] == first
    losses = [float(trainer.step(step, windows(step, 8))) for step in range(first, last)]
    trainer.save(path, {"step": last})
    return losses


def compiled() -> dict[str, Any]:
    """Losses of steps with compiled blocks and without; graphs before the first step and after."""
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    before, compiling.BACKEND = compiling.BACKEND, backend
    cell, device = cells()["peer"], torch.device("cpu")
    trainers = [make_trainer(cell, device, flag, print) for flag in (False, True)]
    assert trainers[1].compiled
    known = len(graphs)
    losses = [[float(t.step(n, windows(n, 8))) for n in range(3)] for t in trainers]
    compiling.BACKEND = before
    return {"losses": losses, "graphs": (known, len(graphs))}


def body(rank: int, port: int, folder: Path) -> None:
    """Four processes: of a group of four, then the first two of one of two, then one alone."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 4, rank == 0)
    cell = cells()["ungrouped"]
    for world in (4, 2, 1):
        if rank >= world:
            break
        dist.init_process_group(
            "gloo", store=dist.PrefixStore(str(world), store), rank=rank, world_size=world
        )
        results: Results = train_all() if world > 1 else {}
        if world == 2:
            results["compiled",] = compiled()
        first, last = {4: (0, 2), 2: (2, 4), 1: (4, 6)}[world]
        for split in (True, False):
            losses = steps(cell, split and world > 1, folder / f"{split}.pt", first, last)
            results["resumed", split] = {"losses": losses}
        if rank == 0:
            torch.save(results, folder / f"{world}.results")
        dist.barrier()
        dist.destroy_process_group()
