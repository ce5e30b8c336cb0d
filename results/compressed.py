"""The record of a trained model that a method made smaller: one JSON file each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from isoflop.results.files import write_whole
from isoflop.results.record import (
    FLOP_CONVENTION,
    Count,
    Flops,
    Frozen,
    Measured,
    Parameters,
    Positive,
    RecordError,
    Shown,
    Size,
    Spent,
    read_stored,
)

FOLDER = "compressed"  # beside the records of the cells


class Calibration(Frozen):
    """The text that a method saw."""

    text: str  # the corpus, whose training part it is, or a path
    tokens: Count  # 0 if the method sees none
    seed: Count  # of the windows' choice, and of every other random one
    hash: str  # of the windows


class Recovery(Frozen):
    """Training after the method, on the training text of the source cell."""

    share: Annotated[float, Field(ge=0, le=1)]  # of the source cell's FLOPs that was asked for
    steps: Count
    flops: Count  # spent
    learning_rate: Spent  # peak


class Continued(Recovery):
    """Training of the source on a second text, before the method."""

    text: str  # the path; the loss on its end, which is held out, is in `other_losses`
    hash: str  # of its windows


class Compressed(Frozen):
    """What a method made of one cell's model, and how it does."""

    schema_version: Literal[1] = 1
    id: Shown  # a hash of all that can change the result; also the file name

    cell: Shown  # the source
    suite: str
    variant: Shown
    layer: str
    size: Size
    seed: Count
    budget: Annotated[float, Field(gt=0)]  # FLOPs asked for by the source
    source_flops: Positive  # FLOPs spent by the source
    source_loss: Spent  # of the source's record, or of the model that was trained on
    source_parameters: Parameters
    source_stored_bytes: Positive

    continued: Continued | None = None  # the source of the losses is then the model after it

    method: Shown
    options: dict[str, Any]  # defaults included
    note: str = ""  # what a reader must know of the method here
    calibration: Calibration
    search_evaluations: Count = 0  # of candidates
    recovery: Recovery

    loss: Spent  # validation cross-entropy, nats per token
    bits_per_byte: Spent
    validation_hash: str
    other_losses: dict[str, Spent] = {}  # by text, nats per token
    other_source_losses: dict[str, Spent] = {}

    flop_convention: str = FLOP_CONVENTION
    parameters: Parameters
    flops_per_token: Flops  # at most, where the work depends on the data
    measured_flops_per_token: Spent  # forward, on validation text
    stored_bytes: Positive  # bfloat16, but for quantised weights and their scales
    read_bytes: Positive  # of the weights that a token reads in decoding, at most
    decode_ms: Spent | None = None  # of a token at batch 1, the median, on one thread of a CPU
    source_decode_ms: Spent | None = None  # of the source, measured in turn with it
    measured: Measured

    @property
    def total_flops(self) -> int:
        """Training FLOPs of the source, of what followed it, and of the recovery."""
        before = self.continued.flops if self.continued else 0
        return self.source_flops + before + self.recovery.flops

    @property
    def scored(self) -> tuple[float, float]:
        """The loss that counts, and the source's: on the second text if training went on there."""
        if self.continued is None:
            return self.loss, self.source_loss
        name = self.continued.text
        return self.other_losses[name], self.other_source_losses[name]


def write_compressed(directory: Path, record: Compressed) -> Path:
    """Write a record as `directory/<id>.json`, whole or not at all."""
    path = directory / f"{record.id}.json"
    write_whole(path, record.model_dump_json(indent=1) + "\n")
    return path


def read_compressed(path: Path) -> Compressed:
    """Read one record.

    Raises:
        RecordError: it is unreadable, does not follow the schema, or contradicts itself.
    """
    record = read_stored(path, Compressed)
    if record.id != path.stem:
        raise RecordError(f"{path}: id: {record.id}, not the file's name")
    if record.parameters.layer_active > record.parameters.layer_total:
        raise RecordError(f"{path}: parameters.layer_active: more than layer_total")
    if record.measured_flops_per_token > record.flops_per_token.forward:
        raise RecordError(f"{path}: measured_flops_per_token: more than flops_per_token")
    if record.continued and record.continued.text not in record.other_losses:
        raise RecordError(f"{path}: other_losses: none on {record.continued.text}")
    return record


def load_compressed(directory: Path) -> list[Compressed]:
    """Every record in a folder, ordered by file name; none if there is no such folder.

    Raises:
        RecordError: a record is unreadable.
    """
    return [read_compressed(path) for path in sorted(directory.glob("[!.]*.json"))]
