"""Compiled blocks: how many compilations, the same loss, and what happens where it fails."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoflop.bench import compiling
from isoflop.bench.data import prepare
from isoflop.bench.step import Trainer
from isoflop.bench.train import Hooks, train_cell
from tests.bench.cells import tiny_cells

CPU = torch.device("cpu")
DEEP = {"sizes": {"s": {"width": 16, "depth": 6, "heads": 2}}, "budgets": [{"flops": 2e9}]}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the compiler was given; it runs as it is."""
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    return seen


def test_equal_blocks_are_compiled_once_and_the_evaluation_not_at_all(graphs: list[Any]) -> None:
    cell = tiny_cells(**DEEP)[1]
    windows = np.random.default_rng(0).integers(300, size=(4, 17))
    plain = Trainer(cell, CPU)
    trainer = Trainer(cell, CPU, compiled=True)
    assert trainer.compiled
    kinds = len(graphs)
    # the dense blocks, of which there are five, the layer under test, and the head with the loss
    assert kinds == 3
    losses = [[float(t.step(n, windows)) for n in range(3)] for t in (plain, trainer)]
    assert losses[0] == losses[1]
    assert plain.evaluate(windows) == trainer.evaluate(windows)
    trainer.step(3, windows)
    assert len(graphs) == kinds


@torch._dynamo.config.patch(recompile_limit=2)
def test_a_process_may_train_more_shapes_than_the_compiler_allows(graphs: list[Any]) -> None:
    for width in range(1, 5):
        sizes = {"s": {"width": 8 * width, "depth": 2, "heads": 2}}
        cell = tiny_cells(sizes=sizes, budgets=[{"flops": 2e9}])[0]
        Trainer(cell, CPU, compiled=True)
        assert len(graphs) == 2 * width  # a block, and the head with the loss


def test_where_compiling_fails_the_cell_trains_without_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise RuntimeError("no ptxas here\nand a second line")

    cell = tiny_cells()[1]
    tokens = prepare(cell.corpus)
    plain = train_cell(cell, tokens, CPU, tmp_path)
    monkeypatch.setattr(compiling, "BACKEND", broken)
    warnings: list[str] = []
    record = train_cell(cell, tokens, CPU, tmp_path, Hooks(warn=warnings.append), compiled=True)
    assert len(warnings) == 1
    assert warnings[0].startswith("torch.compile failed, so the cell trains without it: ")
    assert "no ptxas here" in warnings[0]
    assert "\n" not in warnings[0]
    assert record.model_dump(exclude={"measured"}) == plain.model_dump(exclude={"measured"})


def test_a_model_without_room_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(compiling, "compile_blocks", lambda model: full(None, None))  # type: ignore[arg-type]
    with pytest.raises(torch.OutOfMemoryError):
        Trainer(tiny_cells()[0], CPU, compiled=True)
