"""From kept models to records of what methods make of them."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from isoflop.bench.data import bits_per_byte, hash_of_windows, open_tokens
from isoflop.bench.decoding.decode import milliseconds
from isoflop.bench.evaluate import HeldOutSet
from isoflop.bench.isolate import describe
from isoflop.bench.kept_models import initial_path, load_model, model_path
from isoflop.bench.layers import source_hash
from isoflop.bench.machine import device_name, measured, peak_memory, reset_peak_memory
from isoflop.bench.methods.counts import counts, stored_bytes
from isoflop.bench.methods.experts import Rebuilt, UnfitError
from isoflop.bench.methods.further import RATE, Continuation, planned, train_further
from isoflop.bench.methods.method import Calibration, Method, find_choices
from isoflop.bench.methods.text import Held, from_text, from_training
from isoflop.bench.plan import Cell
from isoflop.bench.step import Trainer
from isoflop.models import Decoder
from isoflop.results import compressed
from isoflop.results.compressed import Compressed, Continued, read_compressed, write_compressed
from isoflop.results.errors import IsoflopError
from isoflop.results.record import Record

VERSION = 2  # part of every id: raise it when a change to the code changes results
MEASURED_WINDOWS = 16  # on which the executed FLOPs are counted


@dataclass(frozen=True)
class Request:
    """What is asked of every source model."""

    method: str  # as `find_method` takes it
    options: Sequence[dict[str, Any]]  # each a choice of options
    seeds: int  # calibration seeds, from 0 on
    tokens: int  # of calibration
    shares: Sequence[float]  # of the source's FLOPs, for recovery training
    text: HeldOutSet | None = None  # to calibrate on; the training text if None


@dataclass(frozen=True)
class Kept:
    """A cell with kept weights."""

    cell: Cell
    record: Record
    models: Path  # the folder of weights
    corpus: Path  # the folder of tokens
    others: Sequence[HeldOutSet]
    continuation: Continuation | None

    @property
    def name(self) -> str:
        return f"{self.cell.variant}, size {self.cell.size.name}, seed {self.cell.seed}"


class Source:
    """A cell with kept weights, and the texts of its corpus and its evaluations."""

    def __init__(self, kept: Kept, device: torch.device) -> None:
        self.cell, self.record, self.models = kept.cell, kept.record, kept.models
        self.tokens, self.device = open_tokens(kept.corpus), device
        self.continuation = kept.continuation
        second = [self.continuation.held_out] if self.continuation else []
        self.others = [*kept.others, *second]
        training = self.cell.training
        self.windows = self.tokens.validation_windows(training.validation_tokens, training.context)

    @property
    def name(self) -> str:
        return f"{self.cell.variant}, size {self.cell.size.name}"

    @cached_property
    def kept(self) -> Decoder:
        """The trained model, on the CPU.

        Raises:
            IsoflopError: see `load_model`.
        """
        return load_model(model_path(self.models, self.cell.id), self.cell)

    @cached_property
    def model(self) -> Decoder:
        """The model that methods change, on the CPU: the trained one, or after its continuation.

        Raises:
            IsoflopError: see `load_model`; or the second text overlaps an evaluation.
        """
        if self.continuation is None:
            return self.kept
        windows = self.continuation.windows(self.held)
        return self.continuation.model(
            self.kept, self.cell, self.record.flops, windows, self.models, self.device
        )

    def initial(self) -> Decoder:
        """The model before its last training.

        Raises:
            IsoflopError: it was not kept, or see `load_model`.
        """
        if self.continuation is not None:
            return self.kept
        path = initial_path(self.models, self.cell.id)
        if not path.exists():
            raise IsoflopError(
                f"{path}: no weights before training, which the method needs: they were trained "
                "before --keep-models kept them; train them anew in another folder"
            )
        return load_model(path, self.cell)

    @cached_property
    def held(self) -> Held:
        evaluations = [self.windows, *(part.windows for part in self.others)]
        return Held(evaluations, self.cell.training.context)

    def calibration(self, request: Request, seed: int) -> np.ndarray:
        """Windows, [n, context + 1].

        Raises:
            DataError: they overlap an evaluation, or are too few.
        """
        context = self.cell.training.context
        count = max(1, request.tokens // context)
        if request.text is not None:
            return from_text(request.text.windows, self.held, request.text.name, count, seed)
        return from_training(self.tokens, self.held, context, count, seed)

    def losses(self, model: Decoder) -> tuple[float, dict[str, float]]:
        """Of a model on the device: on the validation text, and on the others by name."""
        trainer = Trainer(self.cell, self.device, model=model)
        others = {part.name: trainer.evaluate(part.windows) for part in self.others}
        return trainer.evaluate(self.windows), others

    @cached_property
    def own_losses(self) -> tuple[float, dict[str, float]]:
        """Of the source itself; that of its record, where nothing else is asked for."""
        loss = self.record.loss if self.record.loss is not None else float("nan")
        if not self.others:
            return loss, {}
        again, others = self.losses(copy.deepcopy(self.model).to(self.device))
        return again if self.continuation else loss, others


def compress(source: Source, request: Request, folder: Path) -> Iterator[Compressed]:
    """The records that were asked for, each stored before it is given.

    A record that is there is not made again. A method without calibration has one seed where no
    recovery training follows.

    Raises:
        UnfitError: the method does not fit the source's layers.
        IsoflopError: its options do not, or its counts are wrong, or a file cannot be read.
    """
    code, choices = find_choices(request.method, request.options)
    windows = [source.calibration(request, seed) for seed in range(request.seeds)]
    for method, options in choices:
        for seed, part in enumerate(windows):
            job = _Job(source, method, options, source_hash(code), request, seed, part)
            yield from job.records(folder)


@dataclass(frozen=True)
class _Job:
    """One source, method, choice of options and calibration seed; a record for each recovery."""

    source: Source
    method: Method
    options: dict[str, Any]
    code: str | None  # a hash of the method's file
    request: Request
    seed: int
    windows: np.ndarray  # of calibration

    def records(self, folder: Path) -> Iterator[Compressed]:
        changed: Decoder | None = None
        for share in self.request.shares:
            if not self.method.calibrated and share == 0 and self.seed:
                continue  # it would be the same once more
            path = folder / f"{self.id(share)}.json"
            if not path.exists():
                if changed is None:
                    changed = self.apply()
                write_compressed(folder, self.make(changed, share))
            yield read_compressed(path)

    def id(self, share: float) -> str:
        seen = hash_of_windows(self.windows) if self.method.calibrated else None
        decides = {
            "version": VERSION,
            "cell": self.source.cell.id,
            "method": self.method.name,
            "code": self.code,
            "options": self.options,
            "calibration": [seen, self.seed],
            "recovery": [share, RATE] if share else 0,
            "evaluated": [hash_of_windows(part.windows) for part in self.source.others],
        }
        continued = self.continued()
        if continued is not None:
            decides["continued"] = continued.model_dump(exclude={"text"})
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]

    def continued(self) -> Continued | None:
        source = self.source
        if source.continuation is None:
            return None
        return source.continuation.described(source.cell, source.record.flops)

    def note(self) -> str:
        """What a reader must know: of a method that compares two models, which they are."""
        if self.source.continuation is None or not self.method.needs_initial:
            return self.method.note
        return "compared with the model before it was trained on"

    def apply(self) -> Decoder:
        tokens = torch.from_numpy(self.windows)
        initial = self.source.initial() if self.method.needs_initial else None
        calibration = Calibration(tokens[:, :-1], tokens[:, 1:], self.seed, initial)
        try:
            return self.method.apply(self.source.model, calibration)
        except UnfitError:
            raise
        except ValueError as error:
            raise IsoflopError(f"{self.source.name}: {error}") from None
        except Exception as error:
            if self.code is None:
                raise  # a fault of the program, not of a user's method
            line = f"{self.method.name}: {describe(error)}"
            raise IsoflopError(f"{self.source.name}: {line}") from None

    def make(self, changed: Decoder, share: float) -> Compressed:
        """The record: counts, recovery training, evaluation."""
        source, cell, method = self.source, self.source.cell, self.method
        started, begin = datetime.datetime.now(datetime.UTC), perf_counter()
        tokens = torch.from_numpy(source.windows[:MEASURED_WINDOWS, :-1])
        held = counts(changed, tokens, method.name)
        reset_peak_memory(source.device)
        model = copy.deepcopy(changed).to(source.device)
        teaching = sum(
            layer.teaching_flops_per_token() for layer in model.tested if isinstance(layer, Rebuilt)
        )
        record, trained = source.record, perf_counter()
        recovery = planned(cell, share, record.flops, held.flops.training + teaching)
        corpus, device = source.tokens.train, source.device
        train_further(model, cell, recovery, corpus, "recovery", self.seed, device)
        seconds = perf_counter() - trained
        loss, others = source.losses(model)
        source_loss, source_others = source.own_losses
        decode_ms, source_decode_ms = _decoding_times(
            [changed, source.model], source.windows[0, :-1].tolist()
        )
        return Compressed(
            id=self.id(share),
            cell=cell.id,
            suite=record.suite,
            variant=cell.variant,
            layer=record.layer,
            size=cell.size,
            seed=cell.seed,
            budget=cell.budget,
            source_flops=record.flops,
            source_loss=source_loss,
            source_parameters=cell.parameters,
            source_stored_bytes=stored_bytes(source.model),
            continued=self.continued(),
            method=method.name,
            options=self.options,
            note=self.note(),
            calibration=compressed.Calibration(
                text=self.request.text.name if self.request.text else cell.corpus.source,
                tokens=self.windows[:, 1:].size if method.calibrated else 0,
                seed=self.seed,
                hash=hash_of_windows(self.windows),
            ),
            search_evaluations=method.searched(),
            recovery=recovery,
            loss=loss,
            bits_per_byte=bits_per_byte(loss, source.windows, source.tokens.bytes_of_token),
            validation_hash=hash_of_windows(source.windows),
            other_losses=others,
            other_source_losses=source_others,
            parameters=held.parameters,
            flops_per_token=held.flops,
            measured_flops_per_token=held.measured,
            stored_bytes=held.stored_bytes,
            read_bytes=held.read_bytes,
            decode_ms=decode_ms,
            source_decode_ms=source_decode_ms,
            measured=measured(
                device_name(source.device),
                started,
                perf_counter() - begin,
                threads=torch.get_num_threads() if source.device.type == "cpu" else None,
                train_seconds=seconds,
                peak_memory_bytes=peak_memory(source.device),
            ),
        )


def _decoding_times(models: Sequence[Decoder], tokens: list[int]) -> list[float | None]:
    """Milliseconds of a token; None if one has user's layers that cannot decode token by token."""
    try:
        return [*milliseconds(models, tokens)]
    except ValueError:
        return [None for _ in models]
