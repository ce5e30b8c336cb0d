"""One cell: build, train to its own horizon, evaluate, and write down what came out."""

from __future__ import annotations

import datetime
import math
import os
import platform
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.bench.data import Sampler, Tokens, bits_per_byte, hash_of_windows
from isoflop.bench.plan import Cell
from isoflop.bench.suite import Training
from isoflop.models import Decoder
from isoflop.results.record import Measured, Record

CURVE_POINTS = 64  # entries of a record's loss curve
CHECKPOINT_SECONDS = 600.0  # a cell that takes longer saves its state this often
EVALUATION_TOKENS = 16384  # per forward pass of the evaluation


class DivergedError(Exception):
    """The loss is not finite, or above that of a uniform guess long after the start."""


@dataclass(frozen=True)
class Progress:
    """What a running cell reports: steps done and the latest mean training loss."""

    step: int
    loss: float
    tokens_per_second: float
    curve: list[tuple[int, float]]  # entries since the last report; the first has all so far


def seed_for(purpose: str, seed: int) -> int:
    """Seeds for initialisation and data order are apart, so that either can be held fixed."""
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

    Attributes:
        model: the decoder, parameters in float32, on the device.
    """

    def __init__(self, cell: Cell, device: torch.device) -> None:
        self.cell, self.device = cell, device
        torch.manual_seed(seed_for("init", cell.seed))
        with torch.device(device):
            self.model = Decoder(cell.config)
        self.optimizer = make_optimizer(self.model, cell.training)
        # Compiling costs tens of seconds a cell: it pays on a GPU, never on short CPU cells.
        self.loss: Any = (
            torch.compile(self.model.loss) if device.type == "cuda" else self.model.loss
        )

    def step(self, step: int, windows: np.ndarray) -> Tensor:
        """One optimiser step on [batch, context + 1] tokens; the loss, left on the device."""
        training = self.cell.training
        rate = learning_rate_at(step, self.cell.steps, self.cell.learning_rate, training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tokens = self._to_device(windows)
        parts = tokens.split(training.micro_batch or training.batch)
        total = torch.zeros((), device=self.device)
        for part in parts:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                cross_entropy, auxiliary = self.loss(part[:, :-1], part[:, 1:])
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
        self.model.eval()
        total = 0.0
        for part in self._to_device(windows).split(batch):
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                cross_entropy, _ = self.model.loss(part[:, :-1], part[:, 1:])
            total += float(cross_entropy) * len(part)
        self.model.train()
        return total / len(windows)

    def _to_device(self, windows: np.ndarray) -> Tensor:
        tokens = torch.from_numpy(windows)
        if self.device.type == "cuda":
            return tokens.pin_memory().to(self.device, non_blocking=True)
        return tokens


def train_cell(
    cell: Cell,
    tokens: Tokens,
    device: torch.device,
    scratch: Path,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Record:
    """Train one cell and return its record.

    Args:
        scratch: folder for the checkpoint of a long cell; a later call resumes from it.
        report: called about once a second and at every entry of the loss curve.
    A cell that diverges, runs out of memory or raises returns a record that says so.
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
    """One line that says what happened to a cell."""
    text = str(error).strip()
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text:
        return "out of memory: set training.micro_batch, or leave the size out"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}".rstrip(": ")


class _Run:
    """The training loop's state: what a checkpoint holds."""

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
        """All steps, from the checkpoint if there is one.

        Raises:
            DivergedError: seen at an entry of the loss curve.
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


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("isoflop", "torch", "tokenizers", "fvcore")
    }


def git_revision() -> str | None:
    """The revision of the code that runs, with `+` if it has uncommitted changes."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
