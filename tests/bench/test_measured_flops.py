"""A layer whose work depends on the data: planned by its aim, charged what it did."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isoflop.bench.checks import real_flops
from isoflop.bench.data import Tokens
from isoflop.bench.executed import executed_flops
from isoflop.bench.plan import Cell
from isoflop.bench.step import Trainer
from isoflop.bench.submissions.recompute import against_cells
from isoflop.bench.train import Hooks, StoppedError, train_cell
from isoflop.models import ReMoE
from isoflop.results.record import Record, read_record, write_record
from tests.bench.cells import tiny_cells

CPU = torch.device("cpu")
OPTIONS = {"granularity": 2, "expansion": 4}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cell_of(layer: str, options: dict[str, Any]) -> Cell:
    variant = {"layer": layer, "learning_rate": 1e-2, "options": options}
    (cell,) = tiny_cells(variants={layer: variant})
    return cell


@pytest.fixture
def cell() -> Cell:
    return cell_of("remoe", OPTIONS)


def trained(cell: Cell, tokens: Tokens, folder: Path, **hooks: Any) -> Record:
    return train_cell(cell, tokens, CPU, folder, Hooks(**hooks))


def test_it_is_charged_what_ran(cell: Cell, tokens: Tokens, tmp_path: Path) -> None:
    uses = []

    def count(layer: ReMoE, inputs: tuple[Tensor]) -> None:
        if layer.training:
            uses.append(int((layer.router(inputs[0].float()) > 0).sum()))

    def watch(model: nn.Module) -> None:
        model.tested[0].register_forward_pre_hook(count)  # type: ignore[union-attr,index]

    record = trained(cell, tokens, tmp_path, built=watch)
    assert record.status == "finished", record.message
    assert record.planned_flops == cell.flops == record.tokens * record.flops_per_token.training
    more = sum(uses) - 2 * record.tokens
    assert more > 0.5 * record.tokens  # of 8 experts about 4 run at first
    # router logits of zero up to rounding under autocast: a few uses may be told apart
    assert record.flops - cell.flops == pytest.approx(3 * more * 4 * 16 * 32, rel=1e-3)
    assert read_record(write_record(tmp_path, record)) == record


def test_a_layer_that_does_as_planned_says_nothing_more(tokens: Tokens, tmp_path: Path) -> None:
    record = trained(cell_of("dense", {}), tokens, tmp_path)
    assert record.planned_flops is None
    assert record.flops == record.tokens * record.flops_per_token.training


def test_a_stopped_cell_goes_on_counting(cell: Cell, tokens: Tokens, tmp_path: Path) -> None:
    whole = trained(cell, tokens, tmp_path / "a")
    calls: list[int] = []
    with pytest.raises(StoppedError):
        trained(cell, tokens, tmp_path / "b", stop=lambda: (calls.append(0), len(calls) == 5)[1])
    resumed = trained(cell, tokens, tmp_path / "b")
    assert (resumed.flops, resumed.loss) == (whole.flops, whole.loss)


def test_what_is_measured_is_what_real_tensors_execute() -> None:
    torch.manual_seed(0)
    layer, x_BTD = ReMoE(32, **OPTIONS), torch.randn(2, 8, 32)
    flops = executed_flops(lambda: layer(x_BTD), "remoe")
    assert flops == pytest.approx(16 * layer.measured_flops_per_token(), rel=1e-12)
    assert flops != 16 * layer.flops_per_token()


def test_a_layer_that_measures_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReMoE, "measured_flops_per_token", ReMoE.flops_per_token)
    torch.manual_seed(0)
    line = real_flops(ReMoE(32, **OPTIONS), torch.randn(2, 8, 32))
    assert "by measured_flops_per_token: it must not do less there" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_measurement_that_cannot_be_is_an_error(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(ReMoE, "measured_flops_per_token", lambda layer: value)
    with pytest.raises(ValueError, match=r"measured_flops_per_token\(\) is"):
        Trainer(cell, CPU).flops()


def test_a_submitted_record_keeps_what_was_measured(
    cell: Cell, tokens: Tokens, tmp_path: Path
) -> None:
    record = trained(cell, tokens, tmp_path)
    assert list(against_cells(tmp_path, [record], [cell], by_rate=False)) == []
    bare = record.model_copy(update={"planned_flops": None, "flops": cell.flops})
    (line,) = against_cells(tmp_path, [bare], [cell], by_rate=False)
    assert f"planned_flops: says None, recomputed {cell.flops}" in line
    dense = cell_of("dense", {})
    claim = trained(dense, tokens, tmp_path).model_copy(
        update={"planned_flops": dense.flops, "flops": dense.flops // 2}
    )
    lines = list(against_cells(tmp_path, [claim], [dense], by_rate=False))
    assert len(lines) == 2  # no other layer may claim to have measured less
