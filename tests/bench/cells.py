"""What the tests of bench share: a tiny suite, its cells, and a finished record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from isoflop.bench.data import prepare
from isoflop.bench.plan import Cell, plan
from isoflop.bench.suite import Suite, to_toml
from isoflop.bench.train import describe, train_cell
from isoflop.results.record import Measured, Record, write_record

TINY: dict[str, Any] = {
    "name": "tiny",
    "corpus": {"source": "sotu", "vocabulary": 300, "documents": 40, "validation": 0.2},
    "training": {"context": 16, "batch": 4, "validation_tokens": 512},
    "sizes": {"s": {"width": 16, "depth": 2, "heads": 2}},
    "budgets": [{"flops": 5e8}],
    "transfer": {"width": 16},
    "variants": {
        "dense": {"layer": "dense", "learning_rate": 1e-2},
        "peer": {
            "layer": "peer",
            "learning_rate": 1e-2,
            "options": {"n_experts": 64, "heads": 2, "top_k": 4, "d_key": 8},
        },
    },
}


def tiny_suite(**changes: Any) -> Suite:
    return Suite.model_validate(TINY | changes)


def tiny_cells(**changes: Any) -> list[Cell]:
    return plan(tiny_suite(**changes), "tiny.toml")


def keep_run(folder: Path, **changes: Any) -> Path:
    """The folder of a run of the tiny suite that has kept its models."""
    (folder / "suite.toml").write_text(to_toml(tiny_suite(**changes)))
    cells = tiny_cells(**changes)
    tokens = prepare(cells[0].corpus)
    for cell in cells:
        record = train_cell(cell, tokens, torch.device("cpu"), folder, models=folder / "models")
        write_record(folder / "records", record)
    return folder


def make_record(**changes: Any) -> Record:
    record = describe(
        tiny_cells()[0],
        {"status": "finished", "loss": 4.5, "bits_per_byte": 2.5},
        tokens_in_corpus=100_000,
        validation_hash="0123456789abcdef",
        curve=[(10, 5.0), (20, 4.75)],
        measured=Measured(
            device="test",
            started="2026-01-01T00:00:00+00:00",
            seconds=2.0,
            train_seconds=1.5,
            tokens_per_second=1000.0,
            peak_memory_bytes=10**8,
            versions={"torch": "2"},
            git_revision=None,
        ),
    )
    return record.model_copy(update=changes)
