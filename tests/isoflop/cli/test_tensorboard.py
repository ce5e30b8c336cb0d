import math
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.bench.engines.contract import Event, Limits
from isoflop.bench.engines.local import Local
from isoflop.bench.plan import Cell
from isoflop.bench.step import learning_rate_at
from isoflop.bench.train import Progress
from isoflop.cli.scalars import run_name, scalars
from isoflop.cli.tensorboard import EventFile, TensorBoardError, require_tensorboard
from isoflop.results.record import Record, read_record
from tests.bench.cells import make_record, tiny_cells
from tests.isoflop.cli.without import run_without

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "train/loss",
    "train/learning_rate",
    "train/tokens_per_second",
    "validation/loss",
    "validation/bits_per_byte",
}


def watched(events: Iterable[Event], directory: Path) -> Generator[Event, None, None]:
    return scalars(events, partial(EventFile, directory=directory))


def reader(directory: Path, cell: Cell) -> Any:
    return EventAccumulator(str(directory / run_name(cell)), size_guidance={"scalars": 0}).Reload()


def points(events: Any, tag: str) -> np.ndarray:
    """[n, 2]: step, value, in the order they were written."""
    return np.array([(event.step, event.value) for event in events.Scalars(tag)])


def close_to(expected: list[tuple[int, float]]) -> Any:
    """Event files hold float32."""
    return pytest.approx(np.array(expected), rel=1e-6)


def test_a_run_writes_every_entry_of_every_curve_once(tmp_path: Path) -> None:
    cells, records = tiny_cells(), tmp_path / "records"
    events = list(watched(Local().train(cells, records, Limits()), tmp_path / "tb"))
    assert {event.cell.id for event in events if event.record} == {cell.id for cell in cells}
    for cell in cells:
        record = read_record(records / f"{cell.id}.json")
        events = reader(tmp_path / "tb", cell)
        assert set(events.Tags()["scalars"]) == TAGS
        assert points(events, "train/loss") == close_to(record.curve)
        assert points(events, "validation/loss") == close_to([(cell.steps, record.loss)])
        assert points(events, "validation/bits_per_byte") == close_to(
            [(cell.steps, record.bits_per_byte)]
        )
        rates = [
            (step, learning_rate_at(step - 1, cell.steps, cell.learning_rate, cell.training))
            for step, _ in record.curve
        ]
        assert points(events, "train/learning_rate") == close_to(rates)
        assert events.Scalars("train/tokens_per_second")[-1].step == cell.steps


def record_of(cell: Cell, curve: list[tuple[int, float]], **changes: Any) -> Record:
    return make_record(cell=cell.id, variant=cell.variant, curve=curve, steps=40, **changes)


def test_a_killed_run_starts_its_unfinished_cells_over(tmp_path: Path) -> None:
    """Killed at step 30, gone on from a checkpoint of step 20: nothing twice, nothing missing."""
    cell = tiny_cells()[0]
    curve = [(10, 5.0), (20, 4.5), (30, 4.25), (40, 4.0)]

    def killed() -> Iterator[Event]:
        yield Event(cell, progress=Progress(20, 4.5, 100.0, curve[:2]))
        yield Event(cell, progress=Progress(30, 9.9, 100.0, [(30, 9.9)]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(watched(killed(), tmp_path))
    watching = reader(tmp_path, cell)  # a TensorBoard that has been open all along
    assert points(watching, "train/loss") == close_to([*curve[:2], (30, 9.9)])
    again = [
        Event(cell, progress=Progress(30, 4.25, 50.0, curve[:3])),
        Event(cell, record=record_of(cell, curve)),
    ]
    assert list(watched(again, tmp_path)) == again
    for events in (reader(tmp_path, cell), watching.Reload()):
        assert points(events, "train/loss") == close_to(curve)
        assert points(events, "train/tokens_per_second") == close_to([(30, 50.0)])
        assert points(events, "validation/loss") == close_to([(40, 4.5)])
    # Also for a reader that does not know of restarts.
    files = (tmp_path / run_name(cell)).iterdir()
    assert len([path for path in files if path.stat().st_size]) == 1


def test_a_diverged_cell_has_its_curve_and_no_validation_loss(tmp_path: Path) -> None:
    cell = tiny_cells()[0]
    curve = [(10, 5.0), (20, 70.0)]
    lost = record_of(cell, curve, status="diverged", loss=None, bits_per_byte=None)
    list(watched([Event(cell, record=lost)], tmp_path))
    events = reader(tmp_path, cell)
    assert points(events, "train/loss") == close_to(curve)
    assert "validation/loss" not in events.Tags()["scalars"]


def test_a_reader_stopped_early_loses_nothing(tmp_path: Path) -> None:
    cell = tiny_cells()[0]
    curve = [(10, 5.0), (20, 4.5), (30, 4.0)]
    events = watched(
        (Event(cell, progress=Progress(*point, 1.0, [point])) for point in curve), tmp_path
    )
    next(events)
    next(events)
    events.close()
    assert points(reader(tmp_path, cell), "train/loss") == close_to(curve[:2])


def test_names_are_readable_and_apart() -> None:
    """Though 5.004e9 FLOPs read as 5e9, they are other cells."""
    budgets = [{"flops": 5e8}, {"flops": 5.004e9}, {"flops": 5e9}]
    cells = tiny_cells(seeds=[0, 1], budgets=budgets)
    names = [run_name(cell) for cell in cells]
    assert len(set(names)) == len(cells)
    assert names[0] == f"dense/s-5e8-lr0.01-seed0-{cells[0].id}"


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TensorBoardError, match=r"--tensorboard: .*file/tb: Not a directory"):
        require_tensorboard(tmp_path / "file" / "tb")
    cell = tiny_cells()[0]
    (tmp_path / "dense").write_text("")  # where the variant's folder would be
    with pytest.raises(TensorBoardError, match="finished records are whole"):
        list(watched([Event(cell, progress=Progress(1, math.pi, 1.0, []))], tmp_path))


@pytest.mark.parametrize("verb", [["run", "ci"], ["tune", "ci"], ["compare", "my_layer.py"]])
def test_without_the_package_nothing_is_trained(tmp_path: Path, verb: list[str]) -> None:
    done = run_without("tensorboard", tmp_path, *verb, "--tensorboard", "tb")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("isoflop: --tensorboard: the tensorboard package is missing: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
