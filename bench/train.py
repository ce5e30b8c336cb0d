"""Training a cell: build, train, evaluate, and describe the result as a record."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.bench.data import Sampler, Tokens, bits_per_byte, hash_of_windows
from isoflop.bench.kept_models import initial_path, keep_model, model_path
from isoflop.bench.machine import device_name, measured, peak_memory, reset_peak_memory
from isoflop.bench.plan import Cell
from isoflop.bench.step import Trainer, describe_devices, make_trainer, seed_for
from isoflop.models.decoder import blocks_with_layer
from isoflop.results.record import LayerFigures, Measured, Record

CURVE_POINTS = 64  # entries of a record's loss curve
CHECKPOINT_SECONDS = 600.0  # a cell that takes longer saves its state this often


class DivergedError(Exception):
    """The loss is not finite, or above that of a uniform guess long after the start."""


class StoppedError(Exception):
    """Training was asked to stop. The state is saved, and a later call goes on from it."""


@dataclass(frozen=True)
class Progress:
    """What a running cell reports."""

    step: int  # steps done
    loss: float  # latest mean training loss, nats per token
    tokens_per_second: float
    curve: list[tuple[int, float]]  # entries since the last report; all so far in the first report


@dataclass(frozen=True)
class Hooks:
    """What a caller of `train_cell` is told, and may ask."""

    report: Callable[[Progress], None] = lambda progress: None
    warn: Callable[[str], None] = lambda line: None  # of trouble that does not end the cell
    stop: Callable[[], bool] = lambda: False  # asked after every step
    built: Callable[[nn.Module], None] = lambda model: None  # before any step or checkpoint


def train_cell(
    cell: Cell,
    tokens: Tokens,
    device: torch.device,
    scratch: Path,
    hooks: Hooks = Hooks(),
    models: Path | None = None,
    compiled: bool = False,
) -> Record:
    """Train a cell and return its record.

    A cell that diverges, runs out of memory or raises an error returns a record that says so.

    Args:
        tokens: of the cell's corpus.
        scratch: folder for the checkpoint; a later call resumes from it. It stays there, for the
            caller to remove once the record is stored.
        hooks: `report` is called at entries of the loss curve, at most twice a second.
        models: folder for the trained weights, `<cell>.safetensors`, and those before the first
            step, `<cell>.initial.safetensors`; they are dropped if None.
        compiled: train with compiled blocks, if the compiler can; the record says whether it could.
    Raises:
        StoppedError: `hooks.stop` said so.
        DataError: the corpus is too short for the validation tokens or for a batch.
    """
    started = datetime.datetime.now(datetime.UTC)
    begin = perf_counter()
    training = cell.training
    windows = tokens.validation_windows(training.validation_tokens, training.context)
    outcome: dict[str, Any] = {"status": "finished", "loss": None, "bits_per_byte": None}
    run = _Run(cell, device, tokens, windows, checkpoint_path(scratch, cell), hooks, compiled)
    run.initial = None if models is None else initial_path(models, cell.id)
    reset_peak_memory(device)
    peak, spent = None, None
    try:
        run.train()
        peak = peak_memory(device)  # of training: the evaluation has other sizes
        loss = run.trainer.evaluate(windows)
        if not math.isfinite(loss):
            raise DivergedError("the validation loss is not finite")
        outcome["loss"] = loss
        outcome["layers"] = run.layers()
        spent = run.trainer.flops()
        outcome["bits_per_byte"] = bits_per_byte(loss, windows, tokens.bytes_of_token)
        weights = run.trainer.whole_state() if models is not None else None
        if models is not None and weights is not None:
            keep_model(model_path(models, cell.id), cell, weights)
    except StoppedError:
        raise
    except DivergedError as error:
        outcome |= {"status": "diverged", "message": str(error)}
    except Exception as error:  # a bad cell must not take the suite with it
        outcome |= {"status": "failed", "message": failure(error)}
    return describe(
        cell,
        outcome,
        spent=spent,
        tokens_in_corpus=len(tokens.train),
        validation_hash=hash_of_windows(windows),
        curve=run.curve,
        measured=measured(
            describe_devices(device_name(device)),
            started,
            perf_counter() - begin,
            threads=torch.get_num_threads() if device.type == "cpu" else None,
            compiled=run.compiled if device.type != "cpu" else None,
            train_seconds=run.train_seconds,
            tokens_per_second=cell.tokens / run.train_seconds if outcome["loss"] else None,
            peak_memory_bytes=peak if peak is not None else peak_memory(device),
        ),
    )


def checkpoint_path(scratch: Path, cell: Cell) -> Path:
    """Where the state of a cell in training is saved."""
    return scratch / f"{cell.id}.pt"


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
        windows: np.ndarray,
        path: Path,
        hooks: Hooks,
        compiled: bool,
    ) -> None:
        self.windows = windows  # [windows, context + 1] tokens for validation
        self.cell, self.device, self.path, self.hooks = cell, device, path, hooks
        self.compiled = compiled
        self.initial: Path | None = None  # where to keep the weights before the first step
        seed = seed_for("data", cell.seed)
        self.sampler = Sampler(tokens.train, cell.training.context, cell.training.batch, seed)
        self.step, self.train_seconds = 0, 0.0
        self.curve: list[tuple[int, float]] = []

    def train(self) -> None:
        """Take all steps, from the checkpoint on if there is one.

        Raises:
            DivergedError: at an entry of the loss curve.
            StoppedError: after a step, with the state saved.
        """
        self.trainer = self._trainer()
        self.compiled = self.trainer.compiled
        self.hooks.built(self.trainer.model)
        if self.initial is not None and (weights := self.trainer.whole_state()) is not None:
            keep_model(self.initial, self.cell, weights)
        self.output_rms = self.trainer.output_rms(self.windows[: self.cell.training.batch])
        losses = self._resume()
        every = max(1, self.cell.steps // CURVE_POINTS)
        begin = saved = shown = perf_counter()
        before, first, sent = self.train_seconds, self.step, 0
        while self.step < self.cell.steps:
            losses.append(self.trainer.step(self.step, self.sampler(self.step)))
            self.step += 1
            if self.step < self.cell.steps and self.trainer.agree(self.hooks.stop()):
                self.train_seconds = before + perf_counter() - begin
                self._save(losses)
                raise StoppedError
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
                self.hooks.report(Progress(self.step, loss, speed, self.curve[sent:]))
                shown, sent = now, len(self.curve)
            due = self.trainer.agree(now - saved > CHECKPOINT_SECONDS)
            if due and self.step < self.cell.steps:
                self._save(losses)
                saved = perf_counter()

    def _trainer(self) -> Trainer:
        return make_trainer(self.cell, self.device, self.compiled, self.hooks.warn)

    def layers(self) -> list[LayerFigures]:
        """What explains the result: of every layer under test, once training and evaluation end."""
        part = self.windows[: self.cell.training.micro_batch or self.cell.training.batch]
        blocks = sorted(blocks_with_layer(self.cell.placement, self.cell.size.depth))
        return [
            LayerFigures(block=block, output_rms=rms, routing_gradient=gradient, **load)
            for block, rms, gradient, load in zip(
                blocks,
                self.output_rms,
                self.trainer.routing_gradients(part),
                self.trainer.load_figures(),
                strict=True,
            )
        ]

    def _check(self, loss: float) -> None:
        uniform = math.log(self.cell.corpus.vocabulary)
        late = self.step > self.cell.steps // 10
        if not math.isfinite(loss) or (late and loss > uniform + 0.5):
            raise DivergedError(
                f"training loss {loss:.3g} at step {self.step} of {self.cell.steps} "
                f"(a uniform guess has {uniform:.3g}): lower the learning rate"
            )

    def _save(self, pending: list[Tensor]) -> None:
        """Save the state. A failure, such as a full disk, is said and costs no more than that."""
        progress = {
            "step": self.step,
            "curve": self.curve,
            "pending": [float(loss) for loss in pending],  # since the curve's last entry
            "train_seconds": self.train_seconds,
        }
        try:
            self.trainer.save(self.path, progress)
        except OSError as error:
            self.hooks.warn(
                f"{self.path}: cannot save a checkpoint: {error.strerror or error}; "
                "a kill would cost the steps since the last one"
            )

    def _resume(self) -> list[Tensor]:
        """Load the checkpoint if there is one; the losses since the curve's last entry."""
        try:
            state = self.trainer.load(self.path)
        except (ValueError, RuntimeError, KeyError) as error:
            # Part of it may have been loaded: start over.
            self.hooks.warn(f"{str(error).splitlines()[0]}; the cell starts at step 0")
            self.trainer = self._trainer()
            return []
        if state is None:
            return []
        self.step, self.train_seconds = state["step"], state["train_seconds"]
        self.curve = [(step, loss) for step, loss in state["curve"]]
        return [torch.tensor(loss, device=self.device) for loss in state["pending"]]


def describe(
    cell: Cell,
    outcome: dict[str, Any],
    tokens_in_corpus: int,
    validation_hash: str | None,
    curve: list[tuple[int, float]],
    measured: Measured,
    spent: int | None = None,
) -> Record:
    """The record of a cell: its settings and counts, and an outcome (status, loss, message).

    FLOPs are the planned ones unless `spent` has measured ones.
    """
    return Record(
        cell=cell.id,
        suite=cell.suite,
        variant=cell.variant,
        ablation=cell.ablation,
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
        flops=cell.flops if spent is None else spent,
        planned_flops=None if spent is None else cell.flops,
        tokens=cell.tokens,
        steps=cell.steps,
        epochs=cell.tokens / tokens_in_corpus,
        learning_rate=cell.learning_rate,
        table_rate=cell.table_rate,
        output_norm=cell.output_norm,
        parameters=cell.parameters,
        flops_per_token=cell.flops_per_token,
        layer_bytes_per_token=cell.layer_bytes_per_token,
        validation_hash=validation_hash,
        curve=curve,
        measured=measured,
        **outcome,
    )
