"""The engine `local` where several cells share a device, as on a GPU; here the device is a core."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from isoflop.bench.cost import Device
from isoflop.bench.data import DataError, prepare
from isoflop.bench.engines import local
from isoflop.bench.engines.contract import EngineError, Limits
from isoflop.bench.engines.local import Local, Place, starting_order
from isoflop.bench.worker import workers
from isoflop.cli.engines import find_engine
from isoflop.results.record import load_records
from tests.bench.cells import TINY, tiny_cells

# As small as a real core is slow: seconds of training go into launches, which others can overlap.
LIKE = Device("gpu", 1e15, 1e12, 1e12, 1e-3)
HUNGRY = """
from pathlib import Path
from isoflop.models import LAYERS

class Hungry(LAYERS["dense"]):
    def forward(self, x_BTD):
        flag = Path({flag!r})
        if not x_BTD.is_meta and not flag.exists():
            flag.touch()
            raise MemoryError("no room")
        return super().forward(x_BTD)
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that the engine starts, with one place for two cells at a time."""
    place = Place(torch.device("cpu"), LIKE, cores=2, warm=True)
    monkeypatch.setattr(local, "places", lambda: [place])
    processes: list[Any] = []

    class Context:
        def __init__(self, context: Any) -> None:
            self.Pipe, self.make = context.Pipe, context.Process

        def Process(self, **arguments: Any) -> Any:  # noqa: N802
            processes.append(self.make(**arguments))
            return processes[-1]

    @contextmanager
    def counted() -> Iterator[Context]:
        with workers() as context:
            yield Context(context)

    monkeypatch.setattr(local, "workers", counted)
    return processes


def test_a_process_trains_one_cell_after_another_with_the_same_results(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = tiny_cells(seeds=[0, 1, 2])
    list(Local().train(cells, tmp_path / "warm" / "records", Limits()))
    assert len(started) == 2
    assert all(process.exitcode == 0 for process in started)
    monkeypatch.undo()
    list(Local().train(cells, tmp_path / "cold" / "records", Limits()))
    warm, cold = (
        [r.model_dump(exclude={"measured"}) for r in load_records(tmp_path / name / "records")]
        for name in ("warm", "cold")
    )
    assert len(warm) == 6
    assert warm == cold


def test_what_a_worker_says_of_the_tokens_is_said_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back as the error that it was, and not as a process that ended."""
    gone = replace(prepare(tiny_cells()[0].corpus), folder=tmp_path / "gone")
    monkeypatch.setattr(local, "prepare_tokens", lambda corpus: gone)
    with pytest.raises(DataError, match="gone: the tokens are gone or damaged"):
        list(Local().train(tiny_cells(), tmp_path / "records", Limits()))
    assert not (tmp_path / "records").exists()


def test_a_cell_without_memory_beside_others_trains_again_by_itself(
    started: list[Any], tmp_path: Path
) -> None:
    file = tmp_path / "hungry.py"
    file.write_text(HUNGRY.format(flag=str(tmp_path / "flag")))
    variants = {
        "hungry": {"layer": f"{file}:Hungry", "learning_rate": 1e-2},
        "dense": TINY["variants"]["dense"],
    }
    cells = tiny_cells(variants=variants)
    events = list(Local().train(cells, tmp_path / "records", Limits()))
    assert [event.warning for event in events if event.warning] == [
        "out of memory beside other cells; again, by itself"
    ]
    assert {r.variant: r.status for r in load_records(tmp_path / "records")} == {
        "hungry": "finished",
        "dense": "finished",
    }


@pytest.mark.parametrize(
    ("deadline", "expected"), [(None, [2e9, 1e9, 5e8]), (0.0, [5e8, 1e9, 2e9])]
)
def test_a_time_limit_trains_cheap_budgets_first(
    deadline: float | None, expected: list[float]
) -> None:
    cells = tiny_cells(
        budgets=[{"flops": flops} for flops in (1e9, 5e8, 2e9)],
        variants={"dense": TINY["variants"]["dense"]},
    )
    order = starting_order(cells, Limits(deadline=deadline))
    assert [cell.budget for cell in order] == expected


def test_engines_are_known_by_name() -> None:
    assert isinstance(find_engine("local", None), Local)
    with pytest.raises(EngineError, match=r"no engine 'slrum' .did you mean 'slurm'"):
        find_engine("slrum", None)
    with pytest.raises(EngineError, match="local has no option 'workers'; it has none"):
        find_engine("local", ["workers=3"])
