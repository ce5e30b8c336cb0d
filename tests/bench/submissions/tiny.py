"""A small suite with a layer of one's own, records made up for it, and edits of its files."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.bench.plan import Cell, plan, sweep_cells
from isoflop.bench.submissions.verify import hashes
from isoflop.bench.suite import load_suite
from isoflop.bench.train import describe
from isoflop.results.record import Record, write_record
from tests.bench.cells import make_record

SUITE = """
name = "tiny"
[corpus]
vocabulary = 300
[training]
context = 16
batch = 4
validation_tokens = 512
[sizes]
a = { width = 8, depth = 1, heads = 1 }
b = { width = 16, depth = 1, heads = 1 }
c = { width = 24, depth = 1, heads = 1 }
d = { width = 32, depth = 1, heads = 1 }
[[budgets]]
flops = 1e9
[[budgets]]
flops = 2e9
[[budgets]]
flops = 4e9
variants = ["dense"]
[transfer]
width = 16
[tune]
sizes = ["b"]
budget = 1e9
factors = [0.3, 1.0, 3.0]
[variants]
dense = { layer = "dense", learning_rate = 1e-2 }
mine = { layer = "user/mine.py:Mine", learning_rate = 2e-2, options = { ratio = 2 } }
"""
LAYER = """
from dataclasses import dataclass

from torch import nn

from isoflop import Layer


class Mine(Layer):
    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        ratio: int = 4

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.up = nn.Linear(d_model, self.options.ratio * d_model, bias=False)
        self.down = nn.Linear(self.options.ratio * d_model, d_model, bias=False)

    def forward(self, x_BTD):
        return self.down(self.up(x_BTD).relu())

    def flops_per_token(self):
        return 4 * self.options.ratio * self.d_model**2
"""


def made_up(cell: Cell) -> Record:
    """The record of a cell, its loss of a known law; torch may spare itself the training."""
    record = make_record()
    gain = 1.5 if cell.variant == "mine" else 1.0
    distance = math.log(cell.parameters.active / 5000)
    loss = 4 * (gain * cell.budget / 1e9) ** -0.1 + 0.1 * distance**2 + 0.001 * (cell.steps % 7)
    speed = {"tokens_per_second": cell.tokens / record.measured.train_seconds}
    return describe(
        cell,
        {"status": "finished", "loss": loss, "bits_per_byte": loss / 2.5},
        tokens_in_corpus=100_000,
        validation_hash=record.validation_hash,
        curve=[(1, 5.0), (cell.steps, loss)],
        measured=record.measured.model_copy(update=speed),
    )


def make_results(folder: Path) -> None:
    """A results directory as `run` and `tune` leave one, beside the file of a user's layer."""
    (folder / "user").mkdir(parents=True)
    (folder / "user/mine.py").write_text(LAYER)
    (folder / "suite.toml").write_text(SUITE)
    suite = load_suite(str(folder / "suite.toml"))
    for kind, cells in (("records", plan(suite, "")), ("tune", sweep_cells(suite, ""))):
        for cell in cells:
            write_record(folder / kind, made_up(cell))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1))


def first(folder: Path, kind: str = "records") -> Path:
    return min((folder / kind).iterdir())


def seal(folder: Path) -> None:
    """What a forger would do: hashes that fit the changed files."""
    edit(folder / "submission.json", lambda m: m.update(files=hashes(folder)))


def lower_the_loss(folder: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["loss"] -= 0.3
        record["bits_per_byte"] = record["loss"] / 2.5

    edit(first(folder), change)
