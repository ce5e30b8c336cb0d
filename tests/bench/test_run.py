import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from isoflop.bench.engines.contract import Event, Limits, RunError
from isoflop.bench.engines.local import Local, cores
from isoflop.bench.flops import FlopError
from isoflop.bench.run import missing, run_suite
from isoflop.bench.worker import ALLOCATOR, interrupt_afterwards
from isoflop.models import LAYERS
from isoflop.results.record import load_records
from tests.bench.cells import TINY, tiny_cells

SUITE = """
[corpus]
vocabulary = 300
documents = 40
validation = 0.2
[training]
context = 16
batch = 4
validation_tokens = 512
[sizes]
s = { width = 16, depth = 2, heads = 2 }
[[budgets]]
flops = 1e9
[[budgets]]
flops = 4e9
[transfer]
width = 16
[variants]
dense = { layer = "dense", learning_rate = 1e-2 }
again = { layer = "dense", learning_rate = 2e-2 }
"""

# The program, with cells of the smaller budget, the last to start if there is no time limit, that
# wait in their tenth step while a file is there and nobody asks them to stop: so a test acts on a
# run in a known state, however busy the machine.
HELD = """
import os, signal, time
from isoflop.bench import train
step, run = train.Trainer.step, train._Run.train

def noted(self):
    train.Trainer.stop = staticmethod(self.hooks.stop)
    run(self)

def held(trainer, number, windows):
    while number >= 10 and trainer.cell.budget < 2e9 and os.path.exists("hold"):
        open(f"held-{trainer.cell.id}", "w").close()
        if trainer.stop():
            break
        time.sleep(0.02)
    return step(trainer, number, windows)

train._Run.train, train.Trainer.step = noted, held
if __name__ == "__main__":
    # A shell that runs the tests in the background has its children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from isoflop.cli.main import main
    main()
"""


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    (folder / "suite.toml").write_text(SUITE)
    (folder / "held.py").write_text(HELD)
    return subprocess.Popen(
        [sys.executable, "held.py", "run", "suite.toml", "--out", "out", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """All descendants, by /proc."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    children, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        children += new
    return children


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the worker processes in /proc")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_keeps_what_finished_and_goes_on(tmp_path: Path, kind: signal.Signals) -> None:
    records, hold = tmp_path / "out" / "records", tmp_path / "hold"
    hold.touch()
    process = start(tmp_path)
    try:
        wait_for(lambda: len(list(records.glob("[!.]*.json"))) == 2)
        wait_for(lambda: len(list(tmp_path.glob("held-*"))) >= 1)
        workers = children_of(process.pid)
        assert workers
        process.send_signal(kind)
        if kind == signal.SIGKILL:
            process.wait()
            hold.unlink()
        output, _ = process.communicate(timeout=120)
        # Workers of a killed parent notice, and end by themselves.
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 120)
    finally:
        process.kill()
    if kind != signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[kind]
        assert "interrupted; finished records are whole" in output
        assert "Traceback" not in output
    before = {r.cell: r for r in load_records(records)}
    assert len(before) == 2
    hold.unlink(missing_ok=True)
    output, _ = start(tmp_path).communicate(timeout=120)
    assert "2 of 4 cells to train" in output
    after = {r.cell: r for r in load_records(records)}
    assert len(after) == 4
    assert all(after[cell] == record for cell, record in before.items())
    output, _ = start(tmp_path).communicate(timeout=120)
    assert "nothing to train: all 4 cells have records" in output


def test_a_time_limit_saves_the_running_cells_and_the_next_call_goes_on(tmp_path: Path) -> None:
    """On another machine too: the run folder is carried along."""
    records = tmp_path / "out" / "records"
    plain, _ = start(tmp_path).communicate(timeout=120)
    whole = {r.cell: r.model_dump(exclude={"measured"}) for r in load_records(records)}
    assert len(whole) == 4, plain
    (tmp_path / "out").rename(tmp_path / "plain")

    (tmp_path / "hold").touch()
    # The smaller budget begins, and waits: its two cells are left, and all that find no core.
    output, _ = start(tmp_path, "--time-limit", "20s").communicate(timeout=120)
    left = 4 - len(load_records(records))
    assert left >= (4 if cores() <= 2 else 2)
    assert f"stopped at the time limit with {left} cells left; the same command goes on" in output
    assert list((tmp_path / "out" / "checkpoints").glob("[!.]*.pt"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").rename(elsewhere / "out")
    output, _ = start(elsewhere, "--time-limit", "1h").communicate(timeout=120)
    assert f"{left} of 4 cells to train" in output
    after = load_records(elsewhere / "out" / "records")
    assert {r.cell: r.model_dump(exclude={"measured"}) for r in after} == whole
    assert not (elsewhere / "out" / "checkpoints").exists()


def test_a_time_limit_before_the_first_record_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    run = start(tmp_path, "--time-limit", "1s")
    output, _ = run.communicate(timeout=120)
    assert "stopped at the time limit with 4 cells left; the same command goes on" in output
    assert (run.returncode, "no records" in output) == (0, False)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_worker_starts_comes_late_and_is_not_lost(kind: signal.Signals) -> None:
    def tell(number: int, frame: object) -> None:
        raise InterruptedError(number)

    before, ended = signal.signal(kind, tell), []

    @interrupt_afterwards()
    def start_worker() -> None:
        os.kill(os.getpid(), kind)
        time.sleep(0.01)
        ended.append(True)

    try:
        with pytest.raises(InterruptedError):
            start_worker()
        assert signal.getsignal(kind) is tell
    finally:
        signal.signal(kind, before)
    assert ended


def test_ctrl_c_while_a_worker_starts_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that nobody knew of would wait for an order, and the program for its end."""
    start_process = BaseProcess.start

    def interrupted(process: BaseProcess) -> None:
        start_process(process)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    monkeypatch.setattr(BaseProcess, "start", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not active_children()


def finish(records: Path, variants: dict | None = None) -> list[Event]:
    cells = tiny_cells(**({"variants": variants} if variants else {}))
    return list(Local().train(cells, records, Limits()))


class Suicide(LAYERS["dense"]):  # type: ignore[misc,name-defined]
    """Stands for a worker that the kernel kills for want of memory."""

    def forward(self, x_BTD):  # type: ignore[no-untyped-def]
        if not x_BTD.is_meta:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x_BTD)


def test_a_worker_that_dies_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    variants = {
        "killed": {"layer": f"{__file__}:Suicide", "learning_rate": 1e-2},
        "dense": TINY["variants"]["dense"],
    }
    finish(tmp_path / "records", variants)
    records = {r.variant: r for r in load_records(tmp_path / "records")}
    assert records["dense"].status == "finished"
    assert records["killed"].status == "failed"
    assert (
        records["killed"].message == "its process was ended by SIGKILL, perhaps for want of memory"
    )
    # A failed cell is tried again, a finished one is not.
    left = missing(tiny_cells(variants=variants), tmp_path / "records")
    assert [cell.variant for cell in left] == ["killed"]


def test_cells_of_an_ablation_train_on_their_own_corpus(tmp_path: Path) -> None:
    """Records of a run with two corpora are those of each corpus alone."""
    choices = {"small": {"corpus": {"documents": 20}, "variants": ["dense"]}}
    dense, _, small = tiny_cells(axes={"text": choices})
    assert (dense.corpus.documents, small.corpus.documents) == (40, 20)
    list(run_suite([dense, small], tmp_path / "both"))
    list(run_suite([small], tmp_path / "alone"))
    both = {record.cell: record for record in load_records(tmp_path / "both")}
    (alone,) = load_records(tmp_path / "alone")
    assert both[small.id].model_dump(exclude={"measured"}) == alone.model_dump(exclude={"measured"})
    assert both[small.id].validation_hash != both[dense.id].validation_hash
    assert both[small.id].epochs > both[dense.id].epochs


def test_a_full_disk_is_one_line_and_keeps_finished_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device; finished records are whole"):
        finish(tmp_path / "records")
    assert len(load_records(tmp_path / "records")) == 1


def test_records_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """A worker's record is that of the cell trained here."""
    import torch

    from isoflop.bench.data import prepare
    from isoflop.bench.train import train_cell

    cell = tiny_cells()[0]
    finish(tmp_path / "records")
    there = next(r for r in load_records(tmp_path / "records") if r.cell == cell.id)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = train_cell(cell, prepare(cell.corpus), torch.device("cpu"), tmp_path)
    torch.set_num_threads(threads)
    assert there.model_dump(exclude={"measured"}) == here.model_dump(exclude={"measured"})
    assert there.measured.threads == 1
    assert not any(key in os.environ for key in ALLOCATOR)
    json.loads((tmp_path / "records" / f"{cell.id}.json").read_text())


def test_a_run_of_a_suite_first_says_what_is_stored_then_verifies_then_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, peer = cells = tiny_cells()
    list(Local().train([dense], tmp_path, Limits()))
    stored, waiting, *later = run_suite(cells, tmp_path)
    (before,) = (record for record in load_records(tmp_path) if record.cell == dense.id)
    assert (stored.cell, stored.record, stored.stored) == (dense, before, True)
    assert waiting == Event(peer)
    assert {event.cell.id for event in later} == {peer.id}
    assert (later[-1].record is not None, later[-1].stored) == (True, False)
    assert len(load_records(tmp_path)) == 2
    assert [event.stored for event in run_suite(cells, tmp_path)] == [True, True]

    def refuse(*_: object) -> None:
        raise FlopError("formula and trace differ")

    monkeypatch.setattr("isoflop.bench.run.verify_flops", refuse)
    events = run_suite(cells, tmp_path / "new")
    assert [next(events).stored for _ in cells] == [False, False]
    with pytest.raises(FlopError):
        next(events)
    assert not (tmp_path / "new").exists()  # nothing was trained
