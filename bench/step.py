"""A model with its optimiser: one training step, and the evaluation."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.bench.compiling import compile_blocks, problem_of_compiling
from isoflop.bench.plan import Cell
from isoflop.bench.suite import Training
from isoflop.models import Decoder

EVALUATION_TOKENS = 16384  # per forward pass of the evaluation
LOGITS_TOKENS = 8192  # whose logits exist at a time in the evaluation on a GPU


def seed_for(purpose: str, seed: int) -> int:
    """A seed of its own for initialisation and for data order, so that either can be held fixed."""
    return zlib.crc32(f"{purpose} {seed}".encode())


def learning_rate_at(step: int, steps: int, peak: float, training: Training) -> float:
    """Linear warm-up, then cosine, or constant and linear, decay to `final` of the peak."""
    warmup = max(1, round(training.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    if training.schedule == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        share = 0.5 * (1 + math.cos(math.pi * done))
    else:
        share = min(1.0, (steps - step) / max(1, round(training.decay * steps)))
    return peak * (training.final + (1 - training.final) * share)


def make_optimizer(model: Decoder, training: Training) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices alone, not on embedding, norms, and tables."""
    spared = {id(p) for layer in model.tested for p in layer.tables()}
    spared.add(id(model.embedding.weight))
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in spared]
    kept = {id(p) for p in decayed}
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": training.weight_decay},
            {
                "params": [p for p in model.parameters() if id(p) not in kept],
                "weight_decay": 0.0,
            },
        ],
        betas=(0.9, training.beta2),
        fused=True,
    )


class Trainer:
    """A model, its optimiser and a step.

    Args:
        compiled: train with compiled blocks, if the compiler can.
        warn: is told in a line that it cannot.

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
    ) -> None:
        self.cell, self.device = cell, device
        self.compiled = compiled
        if compiled:
            problem = problem_of_compiling(cell, device)
            if problem:
                warn(f"torch.compile failed, so the cell trains without it: {problem}")
                self.compiled = False
        torch.manual_seed(seed_for("init", cell.seed))
        with torch.device(device):
            self.model = Decoder(cell.config)
        self.optimizer = make_optimizer(self.model, cell.training)
        if self.compiled:
            compile_blocks(self.model)

    def step(self, step: int, windows: np.ndarray) -> Tensor:
        """One optimiser step on [batch, context + 1] tokens.

        Returns:
            the mean cross-entropy in nats per token, a scalar on the device.
        """
        training = self.cell.training
        rate = learning_rate_at(step, self.cell.steps, self.cell.learning_rate, training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tokens = self._to_device(windows)
        parts = tokens.split(training.micro_batch or training.batch)
        total = torch.zeros((), device=self.device)
        for part in parts:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                cross_entropy, auxiliary = self.model.loss(part[:, :-1], part[:, 1:])
            ((cross_entropy + auxiliary) / len(parts)).backward()
            total += cross_entropy.detach() / len(parts)
        nn.utils.clip_grad_norm_(self.model.parameters(), training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    @torch.no_grad()
    def evaluate(self, windows: np.ndarray) -> float:
        """Mean cross-entropy in nats per token over [windows, context + 1] tokens.

        Batches have the training batch's number of sequences or a multiple of it: expert choice
        sees the same group size as in training, or larger.
        """
        batch = self.cell.training.micro_batch or self.cell.training.batch
        batch *= max(1, EVALUATION_TOKENS // (batch * self.cell.training.context))
        # Logits of 32,768 tokens over a vocabulary of 32,768 would take 11 GB.
        part_tokens = LOGITS_TOKENS if self.device.type == "cuda" else None
        self.model.eval()
        total = 0.0
        # Other shapes and another mode than in training: each would be compiled anew.
        plain = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        for part in self._to_device(windows).split(batch):
            with plain, torch.autocast(self.device.type, dtype=torch.bfloat16):
                cross_entropy, _ = self.model.loss(part[:, :-1], part[:, 1:], part_tokens)
            total += float(cross_entropy) * len(part)
        self.model.train()
        return total / len(windows)

    def _to_device(self, windows: np.ndarray) -> Tensor:
        tokens = torch.from_numpy(windows)
        if self.device.type == "cuda":
            return tokens.pin_memory().to(self.device, non_blocking=True)
        return tokens
