"""Training a cell: build, train, evaluate, and describe the result as a record."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from isoflop.bench.data import Sampler, Tokens, bits_per_byte, hash_of_windows
from isoflop.bench.machine import device_name, git_revision, peak_memory, versions
from isoflop.bench.plan import Cell
from isoflop.bench.step import Trainer, seed_for
from isoflop.results.record import Measured, Record

CURVE_POINTS = 64  # entries of a record's loss curve
CHECKPOINT_SECONDS = 600.0  # a cell that takes longer saves its state this often


class DivergedError(Exception):
    """The loss is not finite, or above that of a uniform guess long after the start."""


@dataclass(frozen=True)
class Progress:
    """What a running cell reports."""

    step: int  # steps done
    loss: float  # latest mean training loss, nats per token
    tokens_per_second: float
    curve: list[tuple[int, float]]  # entries since the last report; all so far in the first report


def train_cell(
    cell: Cell,
    tokens: Tokens,
    device: torch.device,
    scratch: Path,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Record:
    """Train a cell and return its record.

    A cell that diverges, runs out of memory or raises an error returns a record that says so.

    Args:
        tokens: of the cell's corpus.
        scratch: folder for the checkpoint of a long cell; a later call resumes from it.
        report: called at entries of the loss curve, at most twice a second.
    Raises:
        DataError: the corpus is too short for the validation tokens or for a batch.
    """
    started = datetime.datetime.now(datetime.UTC)
    begin = perf_counter()
    training = cell.training
    windows = tokens.validation_windows(training.validation_tokens, training.context)
    outcome: dict[str, Any] = {"status": "finished", "loss": None, "bits_per_byte": None}
    run = _Run(cell, device, tokens, scratch / f"{cell.id}.pt", report)
    try:
        run.train()
        loss = run.trainer.evaluate(windows)
        if not math.isfinite(loss):
            raise DivergedError("the validation loss is not finite")
        outcome["loss"] = loss
        outcome["bits_per_byte"] = bits_per_byte(loss, windows, tokens.bytes_of_token)
    except DivergedError as error:
        outcome |= {"status": "diverged", "message": str(error)}
    except Exception as error:  # a bad cell must not take the suite with it
        outcome |= {"status": "failed", "message": failure(error)}
    run.checkpoint.unlink(missing_ok=True)
    return describe(
        cell,
        outcome,
        tokens_in_corpus=len(tokens.train),
        validation_hash=hash_of_windows(windows),
        curve=run.curve,
        measured=Measured(
            device=device_name(device),
            threads=torch.get_num_threads() if device.type == "cpu" else None,
            started=started.isoformat(timespec="seconds"),
            seconds=perf_counter() - begin,
            train_seconds=run.train_seconds,
            tokens_per_second=cell.tokens / run.train_seconds if outcome["loss"] else None,
            peak_memory_bytes=peak_memory(device),
            versions=versions(),
            git_revision=git_revision(),
        ),
    )


def failure(error: Exception) -> str:
    """What happened to a cell, as one line."""
    text = str(error).strip()
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text:
        return "out of memory: set training.micro_batch, or leave the size out"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}".rstrip(": ")


class _Run:
    """The training loop, and its state, which a checkpoint holds."""

    def __init__(
        self,
        cell: Cell,
        device: torch.device,
        tokens: Tokens,
        checkpoint: Path,
        report: Callable[[Progress], None],
    ) -> None:
        self.cell, self.device, self.checkpoint, self.report = cell, device, checkpoint, report
        self.sampler = Sampler(
            tokens.train,
            cell.training.context,
            cell.training.batch,
            seed_for("data", cell.seed),
        )
        self.step, self.train_seconds = 0, 0.0
        self.curve: list[tuple[int, float]] = []

    def train(self) -> None:
        """Take all steps, from the checkpoint on if there is one.

        Raises:
            DivergedError: at an entry of the loss curve.
        """
        self.trainer = Trainer(self.cell, self.device)
        self._resume()
        every = max(1, self.cell.steps // CURVE_POINTS)
        losses: list[Tensor] = []
        begin = saved = shown = perf_counter()
        before, first, sent = self.train_seconds, self.step, 0
        while self.step < self.cell.steps:
            losses.append(self.trainer.step(self.step, self.sampler(self.step)))
            self.step += 1
            if self.step % every and self.step < self.cell.steps:
                continue
            loss = float(torch.stack(losses).mean())  # the one synchronisation with the device
            losses.clear()
            if math.isfinite(loss):  # JSON has no other numbers
                self.curve.append((self.step, loss))
            now = perf_counter()
            self.train_seconds = before + now - begin
            self._check(loss)
            if now - shown > 0.5 or self.step == self.cell.steps:
                done = (self.step - first) * self.cell.training.batch * self.cell.training.context
                speed = done / (now - begin)
                self.report(Progress(self.step, loss, speed, self.curve[sent:]))
                shown, sent = now, len(self.curve)
            if now - saved > CHECKPOINT_SECONDS and self.step < self.cell.steps:
                self._save()
                saved = perf_counter()

    def _check(self, loss: float) -> None:
        uniform = math.log(self.cell.corpus.vocabulary)
        late = self.step > self.cell.steps // 10
        if not math.isfinite(loss) or (late and loss > uniform + 0.5):
            raise DivergedError(
                f"training loss {loss:.3g} at step {self.step} of {self.cell.steps} "
                f"(a uniform guess has {uniform:.3g}): lower the learning rate"
            )

    def _save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.checkpoint.with_suffix(".tmp")
        state = {
            "model": self.trainer.model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "step": self.step,
            "curve": self.curve,
            "train_seconds": self.train_seconds,
        }
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.trainer.model.load_state_dict(state["model"])
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        self.step, self.train_seconds = state["step"], state["train_seconds"]
        self.curve = [(step, loss) for step, loss in state["curve"]]


def describe(
    cell: Cell,
    outcome: dict[str, Any],
    tokens_in_corpus: int,
    validation_hash: str | None,
    curve: list[tuple[int, float]],
    measured: Measured,
) -> Record:
    """The record of a cell: its settings and counts, and an outcome (status, loss, message)."""
    return Record(
        cell=cell.id,
        suite=cell.suite,
        variant=cell.variant,
        layer=cell.config.layer.name,
        options=cell.options,
        placement=cell.placement,
        size=cell.size,
        seed=cell.seed,
        corpus=cell.corpus.source,
        vocabulary=cell.corpus.vocabulary,
        context=cell.training.context,
        batch=cell.training.batch,
        budget=cell.budget,
        flops=cell.flops,
        tokens=cell.tokens,
        steps=cell.steps,
        epochs=cell.tokens / tokens_in_corpus,
        learning_rate=cell.learning_rate,
        parameters=cell.parameters,
        flops_per_token=cell.flops_per_token,
        layer_bytes_per_token=cell.layer_bytes_per_token,
        validation_hash=validation_hash,
        curve=curve,
        measured=measured,
        **outcome,
    )
