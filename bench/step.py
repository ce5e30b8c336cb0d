"""A model with its optimiser: one training step, and the evaluation."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from isoflop.bench import checkpoint, diagnostics
from isoflop.bench.autocast import autocast
from isoflop.bench.compiling import compile_blocks, problem_of_compiling
from isoflop.bench.plan import Cell
from isoflop.bench.suite import Training
from isoflop.models import Decoder, Layer, measures_flops

EVALUATION_TOKENS = 16384  # per forward pass of the evaluation
LOGITS_TOKENS = 8192  # whose logits exist at a time in the evaluation on a GPU


def seed_for(purpose: str, seed: int) -> int:
    """A seed each for initialisation, data order and dropout, so that either can be held fixed."""
    return zlib.crc32(f"{purpose} {seed}".encode())


def learning_rate_at(
    step: int, steps: int, peak: float, training: Training, constant: bool = False
) -> float:
    """Linear warm-up, then cosine, or constant and linear, decay to `final` of the peak.

    Args:
        constant: stay at the peak after the warm-up.
    """
    warmup = max(1, round(training.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    if constant:
        return peak
    if training.schedule == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        share = 0.5 * (1 + math.cos(math.pi * done))
    else:
        share = min(1.0, (steps - step) / max(1, round(training.decay * steps)))
    return peak * (training.final + (1 - training.final) * share)


def make_optimizer(
    model: Decoder, training: Training, table_rate: float = 1.0
) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices alone, not on embedding and norms.

    Parameters of a layer's `parameter_groups` have the decay and the rate stated there; the rate of
    its tables is multiplied by `table_rate`. Each group of the optimiser carries `rate`, a
    multiplier of the cell's rate, and `constant`, whether it stays after the warm-up.
    """
    groups: list[dict[str, Any]] = []
    grouped: set[int] = set()
    for layer in model.tested:
        tables = {id(table) for table in layer.tables()}
        for stated in layer.parameter_groups():
            for in_tables in (True, False):
                members = [p for p in stated.parameters if (id(p) in tables) is in_tables]
                grouped |= {id(p) for p in members}
                groups.append(
                    {
                        "params": members,
                        "weight_decay": stated.decay * training.weight_decay,
                        "rate": stated.rate * (table_rate if in_tables else 1.0),
                        "constant": stated.constant,
                    }
                )
    rest = [p for p in model.parameters() if id(p) not in grouped]
    decayed = [p for p in rest if p.ndim >= 2 and p is not model.embedding.weight]
    kept = {id(p) for p in decayed}
    plain = {"rate": 1.0, "constant": False}
    groups += [
        {"params": decayed, "weight_decay": training.weight_decay, **plain},
        {"params": [p for p in rest if id(p) not in kept], "weight_decay": 0.0, **plain},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], betas=(0.9, training.beta2), fused=True
    )


def clip_divisor(parameters: Sequence[nn.Parameter], clip: float) -> Tensor:
    """What to divide gradients by so that their norm is at most `clip`, on their device.

    The factor of `clip_grad_norm_`, upside down: what a fused optimiser takes as `grad_scale`.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return ((norm + 1e-6) / clip).clamp(min=1.0)


class Trainer:
    """A model, its optimiser and a step.

    Args:
        compiled: train with compiled blocks, if the compiler can.
        warn: is told in a line that it cannot.
        model: to go on with, on the device; a new one if None.

    Attributes:
        model: the decoder, parameters in float32, on the device.
        compiled: whether its blocks are.
    """

    def __init__(
        self,
        cell: Cell,
        device: torch.device,
        compiled: bool = False,
        warn: Callable[[str], None] = lambda line: None,
        model: Decoder | None = None,
    ) -> None:
        self.cell, self.device = cell, device
        self.compiled = compiled
        if compiled:
            problem = problem_of_compiling(cell, device)
            if problem:
                warn(f"torch.compile failed, so the cell trains without it: {problem}")
                self.compiled = False
        torch.manual_seed(seed_for("init", cell.seed))
        self.model = model or self._build()
        torch.manual_seed(seed_for("dropout", cell.seed))
        self.optimizer = make_optimizer(self.model, cell.training, cell.table_rate)
        if self.compiled:
            compile_blocks(self.model)

    def _build(self) -> Decoder:
        with torch.device(self.device):
            return Decoder(self.cell.config)

    def step(self, step: int, windows: np.ndarray) -> Tensor:
        """One optimiser step on [batch, context + 1] tokens.

        Returns:
            the mean cross-entropy in nats per token, a scalar on the device.
        """
        training = self.cell.training
        for group in self.optimizer.param_groups:
            peak = self.cell.learning_rate * group["rate"]
            group["lr"] = learning_rate_at(step, self.cell.steps, peak, training, group["constant"])
        parts = self._to_device(windows).split(training.micro_batch or training.batch)
        total = self._accumulate(parts, len(parts))
        self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._after_step()
        return total

    def _accumulate(self, parts: Sequence[Tensor], count: int) -> Tensor:
        """Add the gradients of micro-batches to those that are there.

        Args:
            count: micro-batches of the step, whose mean loss is lowered.
        Returns:
            their part of the mean cross-entropy.
        """
        total = torch.zeros((), device=self.device, dtype=self.model.head.weight.dtype)
        for part in parts:
            with autocast(self.device.type):
                cross_entropy, auxiliary = self._loss(part[:, :-1], part[:, 1:])
            ((cross_entropy + auxiliary) / count).backward()
            total += cross_entropy.detach() / count
        return total

    def _loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """`Decoder.loss` of a micro-batch in training."""
        return self.model.loss(tokens_BT, targets_BT)

    def _after_step(self) -> None:
        for layer in self.model.tested:
            layer.after_step()

    def _clip(self) -> None:
        """Let the optimiser step with gradients whose norm is at most the suite's `clip`."""
        parameters, clip = list(self.model.parameters()), self.cell.training.clip
        if self.device.type == "cuda":  # the fused kernel divides, which saves a pass over them
            self.optimizer.grad_scale = clip_divisor(parameters, clip)  # type: ignore[attr-defined]
        else:
            nn.utils.clip_grad_norm_(parameters, clip)

    def agree(self, flag: bool) -> bool:
        """Whether any process that trains this cell says so; each must ask."""
        return flag

    def whole_state(self) -> dict[str, Tensor] | None:
        """The weights, for the process that stores them; None in the others."""
        return self.model.state_dict()

    def save(self, path: Path, progress: dict[str, Any]) -> None:
        """Save model and optimiser, and what the caller keeps with them.

        Raises:
            OSError: see `checkpoint.save_whole`.
        """
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        checkpoint.save(path, state | progress, self.device)

    def load(self, path: Path) -> dict[str, Any] | None:
        """Go on from what `save` saved; what the caller kept, or None if there is nothing.

        Raises:
            ValueError, RuntimeError, KeyError: it is damaged. Part of it may have been loaded.
        """
        state = checkpoint.load(path, self.device)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        return state

    def output_rms(self, windows: np.ndarray) -> list[float]:
        """Root mean square of the output of each layer under test, in evaluation."""
        with diagnostics.output_rms(self.model) as result:
            self._evaluate(windows[: self._evaluated_together()])
        return result

    def load_figures(self) -> list[dict[str, Any]]:
        """`load_figures` of each layer under test, on what `evaluate` has seen last."""
        return [
            diagnostics.load_figures(self.loads[i]) if i in self.loads else {}
            for i in range(len(self.model.tested))
        ]

    def flops(self) -> int | None:
        """FLOPs of the whole training; None if they are the planned ones, since no layer measures.

        Raises:
            ValueError: what it measured cannot be.
        """
        if not any(measures_flops(layer) for layer in self.model.tested):
            return None
        more = 0.0
        for layer in self.model.tested:
            measured = layer.measured_flops_per_token()
            if not 0 <= measured < math.inf:
                raise ValueError(f"measured_flops_per_token() is {measured}")
            more += measured - layer.flops_per_token()
        return self.cell.flops + round(3 * more * self.cell.tokens)

    def routing_gradients(self, windows: np.ndarray) -> list[float | None]:
        """`routing_gradient` of each layer under test, in evaluation, on these windows."""
        tokens = self._to_device(windows)
        self.model.eval()
        with self._plain(), autocast(self.device.type):
            cross_entropy, _ = self.model.loss(tokens[:, :-1], tokens[:, 1:])
        cross_entropy.backward()
        self.model.train()
        result = [self._routing_gradient(layer) for layer in self.model.tested]
        self.optimizer.zero_grad(set_to_none=True)
        return result

    def _routing_gradient(self, layer: Layer) -> float | None:
        return diagnostics.routing_gradient(layer)

    def evaluate(self, windows: np.ndarray) -> float:
        """Mean cross-entropy in nats per token over [windows, context + 1] tokens.

        Batches have the training batch's number of sequences or a multiple of it: expert choice
        sees the same group size as in training, or larger.
        """
        with diagnostics.loads(self.model) as self.loads:
            return self._evaluate(windows)

    def _evaluated_together(self) -> int:
        """Sequences of a forward pass of the evaluation."""
        batch = self.cell.training.micro_batch or self.cell.training.batch
        return batch * max(1, EVALUATION_TOKENS // (batch * self.cell.training.context))

    @torch.no_grad()
    def _evaluate(self, windows: np.ndarray) -> float:
        batch = self._evaluated_together()
        # Logits of 32,768 tokens over a vocabulary of 32,768 would take 11 GB.
        part_tokens = LOGITS_TOKENS if self.device.type == "cuda" else None
        self.model.eval()
        total = 0.0
        for part in self._to_device(windows).split(batch):
            with self._plain(), autocast(self.device.type):
                cross_entropy, _ = self.model.loss(part[:, :-1], part[:, 1:], part_tokens)
            total += float(cross_entropy) * len(part)
        self.model.train()
        return total / len(windows)

    def _plain(self) -> AbstractContextManager[object]:
        """Without compiled blocks: evaluation has other shapes, which would compile anew."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def _to_device(self, windows: np.ndarray) -> Tensor:
        tokens = torch.from_numpy(windows)
        if self.device.type == "cuda":
            return tokens.pin_memory().to(self.device, non_blocking=True)
        return tokens


def make_trainer(
    cell: Cell, device: torch.device, compiled: bool, warn: Callable[[str], None]
) -> Trainer:
    """The trainer of a cell; in a group of processes, that of one of them."""
    if not dist.is_initialized():
        return Trainer(cell, device, compiled, warn)
    from isoflop.bench.parallel import ParallelTrainer  # imports much that is seldom needed

    return ParallelTrainer(cell, device, compiled, warn)


def describe_devices(name: str) -> str:
    """The devices of all processes that train a cell, by the name of this one's."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    return f"{world} x {name}" if world > 1 else name
