"""Kept models trained further: on their own text after a method, or on a second text before it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from isoflop.bench.data import Sampler, hash_of_windows
from isoflop.bench.evaluate import HeldOutSet
from isoflop.bench.kept_models import keep_model, load_model
from isoflop.bench.methods.text import Held
from isoflop.bench.plan import Cell
from isoflop.bench.readers import DataError
from isoflop.bench.step import Trainer, seed_for
from isoflop.models import Decoder
from isoflop.results.compressed import Continued, Recovery

RATE = 0.3  # peak learning rate over the source cell's
HELD_OUT = 0.1  # share of the second text, its end
MOST_HELD_OUT = 32768  # tokens of it


def planned(cell: Cell, share: float, flops: int, per_token: int) -> Recovery:
    """What training with a share of a cell's FLOPs takes, in whole steps.

    Args:
        flops: spent by the cell.
        per_token: training FLOPs.
    """
    per_step = per_token * cell.training.batch * cell.training.context
    steps = max(1, round(share * flops / per_step)) if share else 0
    rate = RATE * cell.learning_rate if steps else 0.0
    return Recovery(share=share, steps=steps, flops=steps * per_step, learning_rate=rate)


def train_further(
    model: Decoder, cell: Cell, plan: Recovery, tokens: np.ndarray, purpose: str, seed: int,
    device: torch.device,
) -> None:  # fmt: skip
    """Train a model on the device as planned, with the schedule of its cell.

    Args:
        purpose: what it is for, so that each has random numbers of its own.
    """
    if not plan.steps:
        return
    training, number = cell.training, seed_for(purpose, seed)
    torch.manual_seed(number)
    shorter = replace(cell, steps=plan.steps, learning_rate=plan.learning_rate)
    trainer = Trainer(shorter, device, model=model)
    sampler = Sampler(tokens, training.context, training.batch, number)
    model.train()
    for step in range(plan.steps):
        trainer.step(step, sampler(step))


@dataclass(frozen=True)
class Continuation:
    """Training on a second text between the cell's own training and a method.

    The cell's training is then the pre-training of a method that compares two models.
    """

    text: HeldOutSet
    share: float  # of the cell's FLOPs

    @cached_property
    def _count(self) -> int:
        """Windows that are held out."""
        windows = self.text.windows
        most = max(1, MOST_HELD_OUT // (windows.shape[1] - 1))
        return min(most, round(HELD_OUT * len(windows)))

    @cached_property
    def held_out(self) -> HeldOutSet:
        """The end of the text, which scores what comes out.

        Raises:
            DataError: the text is too short.
        """
        if self._count < 1:
            raise DataError(f"--continue: {self.text.name}: too short to hold out its end")
        return replace(self.text, windows=self.text.windows[-self._count :])

    def windows(self, held: Held) -> np.ndarray:
        """The rest, which it trains on, but for what shares a run of tokens with an evaluation.

        Raises:
            DataError: that is more than half of it.
        """
        windows = self.text.windows[: -self._count]
        apart = windows[~held.shares(windows)]
        if len(apart) < len(windows) / 2:
            raise DataError(
                f"--continue: {self.text.name}: {len(windows) - len(apart)} of {len(windows)} "
                "windows overlap a text that is evaluated: give another one"
            )
        return apart

    def described(self, cell: Cell, flops: int) -> Continued:
        """As a record states it."""
        plan = planned(cell, self.share, flops, cell.flops_per_token.training)
        windows = self.text.windows
        return Continued(text=self.text.name, hash=hash_of_windows(windows), **plan.model_dump())

    def model(
        self, kept: Decoder, cell: Cell, flops: int, windows: np.ndarray, models: Path,
        device: torch.device,
    ) -> Decoder:  # fmt: skip
        """The kept model after it, on the CPU: trained now, or as it was kept.

        Args:
            flops: spent by the cell.
            windows: to train on.
            models: where it is kept.
            device: to train on.
        Raises:
            IsoflopError: what was kept cannot be read.
            OSError: the folder is not writable.
        """
        plan = self.described(cell, flops)
        decides = plan.model_dump(exclude={"text"}) | {"windows": hash_of_windows(windows)}
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
        path = models / f"{cell.id}.{key}.safetensors"
        if not path.exists():
            model = Decoder(cell.config)
            model.load_state_dict(kept.state_dict())
            model.to(device)
            tokens = windows[:, :-1].ravel()  # one after the other, as they were
            train_further(model, cell, plan, tokens, "continue", cell.seed, device)
            keep_model(path, cell, model.state_dict())
        return load_model(path, cell)
