"""Engines with cells that several processes train."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from isoflop.bench.cost import Device
from isoflop.bench.data import Tokens
from isoflop.bench.engines import local
from isoflop.bench.engines.contract import EngineError, Limits
from isoflop.bench.engines.local import Local, Place, grouped
from isoflop.bench.plan import Cell
from isoflop.bench.suite import SuiteError
from isoflop.bench.train import train_cell
from tests.bench.cells import TINY, tiny_cells

LIKE = Device("core", 1e10, 1e9, float("inf"), 1e-4)
CPU = torch.device("cpu")
BROKEN = """
import torch.distributed as dist
from isoflop.models import LAYERS

class Broken(LAYERS["dense"]):
    def forward(self, x_BTD):
        if dist.is_initialized() and dist.get_rank() == 1 and self.training:
            raise MemoryError("no room")
        return super().forward(x_BTD)
"""


def suite(gpus: int, **changes: Any) -> dict[str, Any]:
    """A suite whose cells have 12 steps."""
    training = {**TINY["training"], "micro_batch": 2, "gpus_per_cell": gpus}
    budgets = [
        {"flops": 12 * cell.flops / cell.steps, "variants": [cell.variant]}
        for cell in tiny_cells(training=training, **changes)
    ]
    return {"training": training, "budgets": budgets, **changes}


def cells(gpus: int, **changes: Any) -> list[Cell]:
    return tiny_cells(**suite(gpus, **changes))


def test_the_number_of_processes_is_part_of_the_id_only_off_its_default() -> None:
    plain = {**TINY["training"], "micro_batch": 2}
    before = tiny_cells(**suite(1) | {"training": plain})
    assert [cell.id for cell in cells(1)] == [cell.id for cell in before]
    assert [cell.id for cell in cells(2)] != [cell.id for cell in before]


@pytest.mark.parametrize(("micro", "gpus", "parts"), [(2, 3, 2), (None, 2, 1)])
def test_processes_that_cannot_share_the_micro_batches_are_refused(
    micro: int | None, gpus: int, parts: int
) -> None:
    training = {**TINY["training"], "gpus_per_cell": gpus}
    with pytest.raises(SuiteError) as caught:
        tiny_cells(training=training | ({"micro_batch": micro} if micro else {}))
    line = f"training.gpus_per_cell: {gpus} processes cannot share the {parts} micro-batches"
    assert line in str(caught.value)
    assert "set training.micro_batch" in str(caught.value)


def test_places_are_grouped() -> None:
    gpus = [Place(torch.device("cuda", n), LIKE, cores=4, warm=True) for n in range(5)]
    first, second = grouped(gpus, 2)
    assert (first.device, *first.others) == (torch.device("cuda", 0), torch.device("cuda", 1))
    assert (second.device, *second.others) == (torch.device("cuda", 2), torch.device("cuda", 3))
    assert first.cores == 8
    assert grouped(gpus, 1) == gpus
    with pytest.raises(EngineError, match="gpus_per_cell: 8, and there are 5 GPUs"):
        grouped(gpus, 8)
    cores = [Place(CPU, LIKE, cores=1, warm=False)] * 2
    assert [len(place.others) for place in grouped(cores, 4)] == [3]


def test_the_local_engine_trains_a_cell_by_two_processes(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says what happened where one of them fails while the other waits for it."""
    monkeypatch.setattr(local, "places", lambda: [Place(CPU, LIKE, 1, warm=False)] * 2)
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    variants = {
        "broken": {"layer": f"{file}:Broken", "learning_rate": 1e-2},
        "peer": TINY["variants"]["peer"],
    }
    planned = cells(2, variants=variants)
    events = list(Local().train(planned, tmp_path / "run" / "records", Limits(tmp_path / "models")))
    records = {e.cell.variant: e.record for e in events if e.record is not None}
    assert records["broken"].status == "failed"
    assert records["broken"].message == "process 1: " + (
        "out of memory: set training.micro_batch, or leave the size out"
    )
    shared = records["peer"]
    assert shared.status == "finished"
    assert shared.measured.device.startswith("2 x ")
    kept = [path.stem for path in (tmp_path / "models").iterdir()]
    assert [name for name in kept if "." not in name] == [shared.cell]  # the rest is untrained
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (cell,) = cells(1, variants={"peer": TINY["variants"]["peer"]})
    alone = train_cell(cell, tokens, CPU, tmp_path)
    torch.set_num_threads(threads)
    assert shared.loss == pytest.approx(alone.loss, abs=1e-3)  # AdamW: rounding grows
    assert shared.flops == alone.flops
    assert shared.layers[0].output_rms == alone.layers[0].output_rms


def test_torchrun_starts_the_processes_of_a_cell(tmp_path: Path) -> None:
    table = TINY | suite(2, variants={"peer": TINY["variants"]["peer"]})
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))

    def start(processes: int) -> subprocess.CompletedProcess[str]:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "isoflop", "run", "tiny.toml"),
        ]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    good = start(2)
    assert good.returncode == 0, good.stderr
    (path,) = (tmp_path / "runs" / "tiny" / "records").iterdir()
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    assert record["measured"]["device"].startswith("2 x ")
    path.unlink()
    bad = start(3)
    assert "isoflop: torchrun: 3 processes cannot share the 2 micro-batches" in bad.stderr
    assert "exitcode  : 2" in bad.stderr  # torchrun's own report of the first process
    assert list(path.parent.iterdir()) == []
