"""The record: one JSON file per finished cell, the source of truth for everything drawn from it.

This module does not import torch, so that a laptop without it can read and analyse records.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from isoflop.results.errors import IsoflopError, explain, printable
from isoflop.results.files import write_whole, written
from isoflop.results.strict import read_json

FLOP_CONVENTION = "full-attention, 3x forward"


class RecordError(IsoflopError):
    """A record that cannot be read; the message names the file and what is wrong."""


def _shown(text: str) -> str:
    if printable(text) != text or not text.strip():
        raise ValueError("must be text without control characters")
    return text


# A name is in file names, tables, pages and figures.
Shown = Annotated[str, AfterValidator(_shown), Field(max_length=200)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0, lt=2**63)]
Spent = Annotated[float, Field(ge=0)]


class Frozen(BaseModel):
    """A table of a file: an unknown key is an error, and nothing changes once it is read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


Stored = TypeVar("Stored", bound=BaseModel)


Point = tuple[str, str, float]  # variant, size and budget: a point of an isoFLOP curve


class CellKey(NamedTuple):
    """What tells the cells of a suite apart for a reader; the id tells all cells apart."""

    variant: str
    size: str  # its name
    budget: float  # FLOPs asked for
    seed: int

    @property
    def point(self) -> Point:
        """The key without the seed."""
        return self.variant, self.size, self.budget


class Size(Frozen):
    """A backbone: `depth` blocks of width `width` with `heads` attention heads."""

    name: Shown
    width: Positive
    depth: Positive
    heads: Positive


class Parameters(Frozen):
    """Parameter counts. `layer` is the layer under test, summed over the blocks that hold it."""

    embedding: Count
    head: Count
    backbone: Count  # attention, norms, and the dense FFN of every block that keeps it
    layer_active: Count  # parameters of the layer that one token uses
    layer_total: Count

    @property
    def active(self) -> int:
        """Parameters that one token multiplies: head included, embedding table excluded."""
        return self.head + self.backbone + self.layer_active

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.backbone + self.layer_total


class Flops(Frozen):
    """Forward FLOPs per token by part, under `FLOP_CONVENTION`."""

    attention: Count  # projections and the two full T x T products
    ffn: Count  # every FFN, the layer under test included, less its routing
    routing: Count  # router or retrieval of the layer under test
    head: Count

    @property
    def forward(self) -> int:
        return self.attention + self.ffn + self.routing + self.head

    @property
    def training(self) -> int:
        """Training FLOPs per token: forward plus a backward of twice the forward."""
        return 3 * self.forward


class Ablation(Frozen):
    """What a cell changes of its suite, to show what the choice decides."""

    variant: str  # name in the suite
    axis: str
    choice: str


class LayerFigures(Frozen):
    """What explains how a layer under test did."""

    block: int
    output_rms: float  # root mean square of its output at the start, on validation text
    # After training: gradient of the parameters that choose experts or slots, over that of the
    # layer's others, from the cross-entropy alone; root mean squares.
    routing_gradient: float | None = None
    experts: int | None = None  # or slots; None if the layer chooses nothing
    used: float | None = None  # share of them that the validation tokens use
    load_kl: float | None = None  # KL(load || uniform), nats: 0 if even, ln(experts) if one has all


class Measured(Frozen):
    """What depends on the machine and the day. Left out when two records are compared."""

    device: str
    threads: Positive | None = None  # CPU threads the cell trained with
    compiled: bool | None = None  # on a GPU: its blocks by torch.compile
    started: str  # ISO 8601, UTC
    seconds: Spent  # wall time of the whole cell
    train_seconds: Spent  # of which forward, backward and optimiser
    tokens_per_second: Spent | None  # training tokens over train_seconds
    peak_memory_bytes: Count | None
    versions: dict[str, str]  # isoflop, torch, python, and what else decides the numbers
    git_revision: str | None


class Record(Frozen):
    """One cell: what was asked, what was spent, what came out."""

    schema_version: Literal[1] = 1
    cell: Shown  # the cell id, also the file name: a hash of everything that can change the result
    status: Literal["finished", "diverged", "failed"]
    message: str | None = None  # for a cell that did not finish: what happened

    suite: str
    variant: Shown  # name in the suite, such as moe-g4; in an ablation with axis=choice
    ablation: Ablation | None = None
    layer: str  # registered name, such as moe, or file.py:Class wherever the file lay
    options: dict[str, Any]  # the layer's options, defaults included
    placement: str | list[int]
    size: Size
    seed: Count
    corpus: str
    vocabulary: Positive
    context: Positive  # tokens per sequence
    batch: Positive  # sequences per optimiser step

    budget: Annotated[float, Field(gt=0)]  # FLOPs asked for
    flops: Annotated[int, Field(gt=0)]  # FLOPs spent
    planned_flops: Positive | None = None  # None if those; else a layer's work depends on the data
    flop_convention: str = FLOP_CONVENTION
    tokens: Positive
    steps: Positive
    epochs: Spent
    learning_rate: Annotated[float, Field(gt=0)]  # peak
    table_rate: float = 1.0  # learning rate of the layer's tables over that of the rest
    output_norm: bool = False  # an RMSNorm on the layer's output
    parameters: Parameters
    flops_per_token: Flops
    layer_bytes_per_token: Count  # bytes of the layer's parameters that one token reads, in bf16

    loss: Spent | None  # validation cross-entropy, nats per token
    bits_per_byte: Spent | None
    validation_hash: str | None
    curve: list[tuple[Count, float]]  # (step, mean training loss since the entry before)
    layers: list[LayerFigures] = []  # in the order of their blocks

    measured: Measured

    @property
    def key(self) -> CellKey:
        return CellKey(self.variant, self.size.name, self.budget, self.seed)

    @property
    def of_variant(self) -> str:
        """The variant of the suite that this is, as it is or under a choice of an ablation."""
        return self.ablation.variant if self.ablation else self.variant


def write_record(directory: Path, record: Record) -> Path:
    """Write a record as `directory/<cell>.json`, whole or not at all."""
    path = directory / f"{record.cell}.json"
    write_whole(path, _text(record))
    return path


def add_record(directory: Path, record: Record) -> bool:
    """Write the record of a cell unless it has one: several processes may train the same cell.

    The first record wins. A record of a failed cell is no result: any other replaces it.

    Returns:
        whether the record was written.
    Raises:
        OSError: the folder is full or not writable.
        RecordError: the record that is there is unreadable.
    """
    path = directory / f"{record.cell}.json"
    with written(path, _text(record)) as temporary:
        try:
            os.link(temporary, path)  # unlike a replacement, fails if there is a file
        except FileExistsError:
            if read_record(path).status != "failed" or record.status == "failed":
                return False
            os.replace(temporary, path)
        except OSError:  # a file system without links
            if path.exists():
                return False
            os.replace(temporary, path)
    return True


def _text(record: Record) -> str:
    return record.model_dump_json(indent=1) + "\n"


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        RecordError: see `read_stored`; or its numbers contradict each other.
    """
    record = read_stored(path, Record)
    problem = contradiction(record)
    if problem:
        raise RecordError(f"{path}: {problem}")
    return record


def contradiction(record: Record) -> str:
    """What cannot be, of numbers that each could be; empty if there is nothing."""
    if (record.status == "finished") != (record.loss is not None):
        return f"loss: {record.loss} of a cell that {record.status}"
    most = record.tokens * record.flops_per_token.training
    if record.planned_flops is not None:
        if record.planned_flops != most:
            return f"planned_flops: {record.planned_flops}, not {most} for {record.tokens} tokens"
    elif record.flops > most:
        return f"flops: {record.flops}, more than {most} for {record.tokens} tokens"
    if record.tokens != record.steps * record.batch * record.context:
        return f"tokens: {record.tokens}, not steps x batch x context"
    if record.parameters.layer_active > record.parameters.layer_total:
        return "parameters.layer_active: more than layer_total"
    return ""


def read_stored(path: Path, schema: type[Stored]) -> Stored:
    """Read a JSON file that follows a schema.

    Raises:
        RecordError: the file is unreadable or does not follow the schema.
    """
    try:
        # As JSON, since strict mode there takes a list for a tuple, yet no "8" or true for 8.
        text = json.dumps(read_json(path))
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise RecordError(f"{path}: {explain(error, schema)}") from None
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from None


def load_records(directory: Path) -> list[Record]:
    """Every record in a folder, ordered by file name; none if there is no such folder.

    `isoflop.results.read_records` gives them as a table.

    Raises:
        RecordError: a record is unreadable.
    """
    return [read_record(path) for path in sorted(directory.glob("[!.]*.json"))]
