import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import isoflop.bench.train
from isoflop.bench.data import Tokens
from isoflop.bench.kept_models import initial_path, model_path
from isoflop.bench.plan import Cell, plan
from isoflop.bench.step import Trainer
from isoflop.bench.suite import load_suite
from isoflop.bench.train import Hooks, Progress, StoppedError, train_cell
from isoflop.models import LAYERS, Decoder
from isoflop.results.record import Record, read_record, write_record
from tests.bench.cells import TINY, tiny_cells

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def comparable(record: Record) -> dict[str, Any]:
    """A record without what depends on the machine and the day."""
    return record.model_dump(exclude={"measured"})


@pytest.mark.parametrize("index", [0, 1], ids=["dense", "peer"])
def test_the_same_cell_twice_gives_the_same_record(
    index: int, tokens: Tokens, tmp_path: Path
) -> None:
    cell = tiny_cells()[index]
    first, second = (train_cell(cell, tokens, CPU, tmp_path) for _ in range(2))
    assert first.status == "finished"
    assert comparable(first) == comparable(second)
    other = train_cell(tiny_cells(seeds=[1])[index], tokens, CPU, tmp_path)
    assert other.loss != first.loss


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
@pytest.mark.parametrize("variant", ["dense", "moe-g1", "moe-g8", "pkm", "peer"])
def test_on_a_gpu_a_step_s_loss_is_one_graph_of_the_fast_operators(variant: str) -> None:
    """Traced on CUDA tensors without data, so on any machine: torch.compile need not break it."""
    cell = next(cell for cell in plan(load_suite("h100"), "h100") if cell.variant == variant)
    with torch.device("meta"):
        model = Decoder(cell.config)
    operators: set[str] = set()

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    batch, context = 8, cell.training.context
    torch._dynamo.reset()
    torch.set_autocast_enabled("cuda", True)  # torch.autocast would ask for a GPU
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cuda")
            tokens = torch.empty(batch, context + 1, dtype=torch.int64, device="cuda")
            inputs = tokens[:, :-1], tokens[:, 1:]
            loss, _ = torch.compile(model.loss, fullgraph=True, backend=collect)(*inputs)
            with FlopCounterMode(display=False) as counter:
                model.loss(*inputs)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert loss.device.type == "cuda"
    expected = {
        "dense": set(),
        "moe": {"isoflop.grouped_mm.default", "isoflop.gated_activation.default"},
        "pkm": {"isoflop.product_key_topk.default", "isoflop.value_sum.default"},
        "peer": {"isoflop.product_key_topk.default", "isoflop.expert_mix.default"},
    }[cell.config.layer.name]
    assert {name for name in operators if name.startswith("isoflop")} == expected
    assert 3 * counter.get_total_flops() == cell.flops_per_token.training * batch * context


def test_training_learns(tokens: Tokens, tmp_path: Path) -> None:
    """Far below a uniform guess, and below the best guess that ignores the context."""
    cell = tiny_cells(budgets=[{"flops": 5e9}])[0]
    record = train_cell(cell, tokens, CPU, tmp_path)
    counts = np.bincount(tokens.train, minlength=300) + 1.0
    windows = tokens.validation_windows(512, 16)
    unigram = -np.log(counts / counts.sum())[windows[:, 1:]].mean()
    assert record.loss is not None
    assert record.loss < unigram - 0.3
    assert record.loss < math.log(300) - 1
    assert record.curve[-1][0] == cell.steps
    assert record.curve[0][1] > record.curve[-1][1]


def test_a_cell_resumes_from_its_checkpoint_with_the_same_result(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = tiny_cells()[1]
    whole = train_cell(cell, tokens, CPU, tmp_path / "a")
    monkeypatch.setattr(isoflop.bench.train, "CHECKPOINT_SECONDS", 0.0)
    save, saved = isoflop.bench.train._Run._save, []

    class KilledError(BaseException):
        pass

    def save_then_die(run: isoflop.bench.train._Run, pending: list[torch.Tensor]) -> None:
        save(run, pending)
        saved.append(run.step)
        if len(saved) == 3:
            raise KilledError

    monkeypatch.setattr(isoflop.bench.train._Run, "_save", save_then_die)
    with pytest.raises(KilledError):
        train_cell(cell, tokens, CPU, tmp_path / "b")
    assert 0 < saved[-1] < cell.steps
    steps: list[int] = []
    step = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self, i, windows: (steps.append(i), step(self, i, windows))[1]
    )
    resumed = train_cell(cell, tokens, CPU, tmp_path / "b")
    assert steps[0] == saved[2]
    assert comparable(resumed) == comparable(whole)
    assert [path.name for path in (tmp_path / "b").iterdir()] == [f"{cell.id}.pt"]


class Dropout(LAYERS["dense"]):  # type: ignore[misc,name-defined]
    """Draws from torch's generator in training."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.dropout(x_BTD, 0.2, self.training))


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_a_stopped_cell_goes_on_with_the_same_result_whatever_it_draws(
    steps: int, tokens: Tokens, tmp_path: Path
) -> None:
    """Stopped between two entries of the loss curve too, so that these stay whole."""
    variants = {"mine": {"layer": f"{__file__}:Dropout", "learning_rate": 1e-2}}
    cell = tiny_cells(variants=variants, budgets=[{"flops": 2e9}])[0]
    assert cell.steps > 128  # an entry of the curve is the mean of several steps
    whole = train_cell(cell, tokens, CPU, tmp_path / "a")
    asked = iter(range(10**6))
    with pytest.raises(StoppedError):
        train_cell(cell, tokens, CPU, tmp_path / "b", Hooks(stop=lambda: next(asked) >= steps))
    torch.manual_seed(12345)
    torch.rand(7)
    resumed = train_cell(cell, tokens, CPU, tmp_path / "b")
    assert comparable(resumed) == comparable(whole)


def test_a_checkpoint_that_cannot_be_saved_costs_nothing_but_a_line(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = tiny_cells()[0]
    path = tmp_path / f"{cell.id}.pt"
    monkeypatch.setattr(isoflop.bench.train, "CHECKPOINT_SECONDS", 0.0)

    def full(state: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    path.write_bytes(b"an older one")
    warnings: list[str] = []
    record = train_cell(cell, tokens, CPU, tmp_path, Hooks(warn=warnings.append))
    assert record.status == "finished"
    assert f"{path}: a damaged checkpoint" in warnings[0]
    assert "the cell starts at step 0" in warnings[0]
    assert f"{path}: cannot save a checkpoint: PytorchStreamWriter failed" in warnings[1]
    assert not any("\n" in line for line in warnings)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"an older one"]


def test_a_failing_cell_keeps_its_checkpoint(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = tiny_cells()[0]
    with pytest.raises(StoppedError):
        train_cell(cell, tokens, CPU, tmp_path, Hooks(stop=lambda: True))
    before = (tmp_path / f"{cell.id}.pt").read_bytes()
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: 1 / 0)
    assert train_cell(cell, tokens, CPU, tmp_path).status == "failed"
    assert (tmp_path / f"{cell.id}.pt").read_bytes() == before


def test_kept_weights_give_the_loss_of_the_record(tokens: Tokens, tmp_path: Path) -> None:
    cell = tiny_cells()[1]  # with a BatchNorm, whose statistics are part of the model
    record = train_cell(cell, tokens, CPU, tmp_path, models=tmp_path / "models")
    path = model_path(tmp_path / "models", cell.id)
    kept = [f"{cell.id}.initial.safetensors", f"{cell.id}.safetensors"]
    assert sorted(p.name for p in path.parent.iterdir()) == kept
    trainer = Trainer(cell, CPU)
    initial = load_file(initial_path(path.parent, cell.id))
    assert all(torch.equal(initial[k], v) for k, v in trainer.model.state_dict().items())
    trainer.model.load_state_dict(load_file(path))
    training = cell.training
    windows = tokens.validation_windows(training.validation_tokens, training.context)
    assert trainer.evaluate(windows) == record.loss


def test_a_diverging_cell_says_so(tokens: Tokens, tmp_path: Path) -> None:
    variants = {"dense": {"layer": "dense", "learning_rate": 1e3}}
    record = train_cell(tiny_cells(variants=variants)[0], tokens, CPU, tmp_path)
    assert record.status == "diverged"
    assert record.loss is None
    assert record.message is not None
    assert "lower the learning rate" in record.message


def test_a_loss_that_is_no_number_leaves_a_readable_record(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([5.5, math.nan])
    monkeypatch.setattr(Trainer, "step", lambda *_: torch.tensor(next(losses)))
    record = train_cell(tiny_cells()[0], tokens, CPU, tmp_path)
    assert record.status == "diverged"
    assert record.curve == [(1, 5.5)]
    assert read_record(write_record(tmp_path, record)) == record


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: set training.micro_batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: set"),
        (RuntimeError("shapes differ\nand more"), "RuntimeError: shapes differ"),
    ],
)
def test_a_failing_cell_says_what_happened(
    tokens: Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "step", fail)
    record = train_cell(tiny_cells()[0], tokens, CPU, tmp_path)
    assert record.status == "failed"
    assert record.message is not None
    assert record.message.startswith(message)
    assert "\n" not in record.message


def test_micro_batches_add_up_to_the_batch(tokens: Tokens) -> None:
    training = {**TINY["training"], "micro_batch": 2}
    whole, parts = tiny_cells()[0], tiny_cells(training=training)[0]
    windows = np.arange(4 * 17).reshape(4, 17) % 300
    gradients = []
    for cell in (whole, parts):
        trainer = Trainer(cell, CPU)
        torch.nn.init.normal_(trainer.model.head.weight)
        trainer.optimizer.step = lambda *_: None  # type: ignore[method-assign]
        kept: dict[str, torch.Tensor] = {}
        for name, p in trainer.model.named_parameters():
            p.register_post_accumulate_grad_hook(
                lambda p, name=name, kept=kept: kept.__setitem__(name, p.grad.clone())
            )
        loss = trainer.step(0, windows)
        gradients.append((loss, kept))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-2, atol=1e-2)
    for name, gradient in gradients[0][1].items():
        torch.testing.assert_close(gradient, gradients[1][1][name], rtol=0.1, atol=0.02)


def test_progress_is_reported(tokens: Tokens, tmp_path: Path) -> None:
    seen: list[Progress] = []
    cell: Cell = tiny_cells()[0]
    train_cell(cell, tokens, CPU, tmp_path, Hooks(seen.append))
    assert seen[-1].step == cell.steps
    assert seen[-1].tokens_per_second > 0


def test_reports_together_hold_the_curve_once_also_of_a_resumed_cell(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = tiny_cells()[0]
    clock = iter(range(10**9))
    monkeypatch.setattr(
        isoflop.bench.train, "perf_counter", lambda: float(next(clock))
    )  # report each time
    monkeypatch.setattr(isoflop.bench.train, "CHECKPOINT_SECONDS", 10.0)
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.step > cell.steps // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cell(cell, tokens, CPU, tmp_path, Hooks(stop))
    assert len(seen) > 2
    assert [step for p in seen for step, _ in p.curve] == [p.step for p in seen]
    seen.clear()
    record = train_cell(cell, tokens, CPU, tmp_path, Hooks(seen.append))
    assert len(seen[0].curve) > 1  # from the checkpoint
    assert [entry for p in seen for entry in p.curve] == record.curve
