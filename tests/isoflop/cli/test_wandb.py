"""Weights & Biases in its offline mode: what is on disk is the record."""

import json
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from isoflop.bench.engines.contract import Event, Limits
from isoflop.bench.engines.local import Local
from isoflop.bench.train import Progress
from isoflop.cli.scalars import run_name, scalars
from isoflop.cli.wandb import WandbError, WandbRun, require_wandb
from isoflop.results.record import read_record
from tests.bench.cells import tiny_cells
from tests.isoflop.cli.without import run_without

BLOCK = 32768  # bytes of a block of the log, which is LevelDB's
HEADER = 7  # bytes before the first record of a file, and of each part of a record


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of all runs of this file: wandb reads its settings once."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (("MODE", "offline"), ("DIR", str(folder)), ("ERROR_REPORTING", "false")):
            patch.setenv(f"WANDB_{key}", value)
        yield folder


def messages(path: Path) -> list[Any]:
    """The records of an offline run's log."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole, result = path.read_bytes(), HEADER, b"", []
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # too short for another part
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            result.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return result


def logged(folder: Path, project: str) -> dict[str, dict[str, Any]]:
    """Of each run of a project, by name: its settings, its points by tag, and its exit code."""
    runs = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        result: dict[str, Any] = {"points": {}}
        for message in messages(path):
            if message.HasField("run"):
                result["name"], result["project"] = message.run.display_name, message.run.project
                result["config"] = {
                    item.key: json.loads(item.value_json) for item in message.run.config.update
                }
            elif message.HasField("history"):
                entries = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in message.history.item
                }
                for tag in entries:
                    if "/" in tag:
                        point = (entries["step"], entries[tag])
                        result["points"].setdefault(tag, []).append(point)
            elif message.HasField("exit"):
                result["exit"] = message.exit.exit_code
        if result.get("project") == project:
            runs[result["name"]] = result
    return runs


def ended(folder: Path, project: str) -> dict[str, dict[str, Any]]:
    """`logged`, once wandb's own process has written the ends of all runs."""
    last = time.monotonic() + 60
    runs = logged(folder, project)
    while not all("exit" in run for run in runs.values()):
        assert time.monotonic() < last
        time.sleep(0.2)
        runs = logged(folder, project)
    return runs


def test_a_run_is_logged_as_it_is_recorded(offline: Path, tmp_path: Path) -> None:
    cells, records = tiny_cells(), tmp_path / "records"
    events = Local().train(cells, records, Limits())
    passed = list(scalars(events, partial(WandbRun, project="sizes")))
    assert {event.cell.id for event in passed if event.record} == {cell.id for cell in cells}
    runs = ended(offline, "sizes")
    assert len(runs) == len(cells)
    for cell in cells:
        record, run = read_record(records / f"{cell.id}.json"), runs[run_name(cell)]
        assert run["exit"] == 0
        assert run["config"]["cell"] == cell.id
        assert run["config"]["budget"] == cell.budget
        assert run["points"]["train/loss"] == [tuple(point) for point in record.curve]
        assert run["points"]["validation/loss"] == [(record.steps, record.loss)]
        assert run["points"]["validation/bits_per_byte"] == [(record.steps, record.bits_per_byte)]
        assert len(run["points"]["train/learning_rate"]) == len(record.curve)


def test_a_cell_that_goes_back_and_does_not_end_is_a_failed_run(offline: Path) -> None:
    """Its node was lost at step 30: what comes again from step 20 on is logged once."""
    cell = tiny_cells()[0]
    curve = [(10, 5.0), (20, 4.5), (30, 4.25)]
    events = [
        Event(cell, progress=Progress(30, 4.25, 100.0, curve)),
        Event(cell, progress=Progress(20, 4.5, 90.0, curve[:2])),
    ]
    assert list(scalars(iter(events), partial(WandbRun, project="lost"))) == events
    (run,) = ended(offline, "lost").values()
    assert run["exit"] == 1
    assert run["points"]["train/loss"] == curve
    assert run["points"]["train/tokens_per_second"] == [(30, 100.0), (20, 90.0)]


def test_names_that_are_no_project_are_refused() -> None:
    for name in ("", " ", "a/b", "a\nb", "50%"):
        with pytest.raises(WandbError, match=r"--wandb: .* is no name of a project"):
            require_wandb(name)
    assert require_wandb(None) is None


def test_what_wandb_refuses_is_one_line(offline: Path) -> None:
    with pytest.raises(WandbError, match=r"^--wandb: .*; finished records are whole$") as error:
        WandbRun(tiny_cells()[0], "a" * 300)
    assert "\n" not in str(error.value)


def test_without_the_package_nothing_is_trained(tmp_path: Path) -> None:
    done = run_without("wandb", tmp_path, "run", "ci", "--wandb", "sizes")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("isoflop: --wandb: the wandb package is missing: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
