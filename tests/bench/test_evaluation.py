"""The evaluation in parts, as on a GPU, and what a record's peak memory is the peak of."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import isoflop.bench.train
from isoflop.bench.data import prepare
from isoflop.bench.step import Trainer
from isoflop.bench.train import train_cell
from tests.bench.cells import TINY, tiny_cells

CPU = torch.device("cpu")
EXPERT_CHOICE = {"layer": "moe_ec", "learning_rate": 1e-2, "options": {"expansion": 4}}


@pytest.mark.parametrize("variant", [*TINY["variants"], "expert-choice"])
def test_logits_in_parts_give_the_same_loss(variant: str) -> None:
    """Only the head works in parts: an expert that chooses tokens sees the group as it is."""
    entry = TINY["variants"].get(variant, EXPERT_CHOICE)
    cell = tiny_cells(variants={variant: entry})[0]
    torch.manual_seed(0)
    model = Trainer(cell, CPU).model.eval()
    nn.init.normal_(model.head.weight)  # it starts at zero, where every loss is the same
    tokens = torch.randint(300, (8, 17))
    rows: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows.append(output.flatten(0, -2).shape[0])

    model.head.register_forward_hook(note)
    with torch.no_grad():
        whole, auxiliary = model.loss(tokens[:, :-1], tokens[:, 1:])
        parts, same = model.loss(tokens[:, :-1], tokens[:, 1:], 50)
    assert rows == [128, 50, 50, 28]
    assert float(parts) == pytest.approx(float(whole), rel=1e-6)
    assert float(whole) != pytest.approx(5.7, abs=0.1)
    assert float(same) == float(auxiliary)


def test_the_evaluation_of_a_cpu_has_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last digits of stored losses depend on it."""
    cell = tiny_cells()[0]
    trainer = Trainer(cell, CPU)
    rows: list[int] = []
    trainer.model.head.register_forward_hook(
        lambda m, i, output: rows.append(output[..., 0].numel())
    )
    monkeypatch.setattr("isoflop.bench.step.LOGITS_TOKENS", 16)
    windows = prepare(cell.corpus).validation_windows(512, cell.training.context)
    trainer.evaluate(windows)
    assert rows == [512]


def test_the_output_s_scale_is_one_number_for_a_layer_however_large_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one forward pass of the evaluation, where the batch would take several."""
    training = {**TINY["training"], "batch": 8, "micro_batch": 2}
    (cell,) = tiny_cells(
        training=training, variants={"peer": TINY["variants"]["peer"]}, budgets=[{"flops": 5e9}]
    )
    monkeypatch.setattr("isoflop.bench.step.EVALUATION_TOKENS", 64)  # 4 sequences
    windows = prepare(cell.corpus).validation_windows(512, cell.training.context)
    trainer = Trainer(cell, CPU)
    assert trainer.output_rms(windows[:8]) == trainer.output_rms(windows[:4])
    assert len(trainer.output_rms(windows[:8])) == 1


def test_peak_memory_is_that_of_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Begun anew for each cell, since a process on a GPU trains several."""
    calls: list[str] = []
    peaks = {"training": 1, "evaluation": 2}
    evaluate, step = Trainer.evaluate, Trainer.step

    def stepping(trainer: Trainer, *arguments: object) -> Tensor:
        calls.append("training")
        return step(trainer, *arguments)  # type: ignore[arg-type]

    def evaluating(trainer: Trainer, *arguments: object) -> float:
        calls.append("evaluation")
        return evaluate(trainer, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", stepping)
    monkeypatch.setattr(Trainer, "evaluate", evaluating)
    module = isoflop.bench.train
    monkeypatch.setattr(module, "reset_peak_memory", lambda device: calls.append("reset"))
    monkeypatch.setattr(module, "peak_memory", lambda device: peaks[calls[-1]])
    cell = tiny_cells()[0]
    record = train_cell(cell, prepare(cell.corpus), CPU, tmp_path)
    assert (calls[0], calls[-1]) == ("reset", "evaluation")
    assert record.measured.peak_memory_bytes == 1
