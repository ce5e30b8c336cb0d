"""The engine `slurm`: its queue anywhere, the rest on a real SLURM of four nodes."""

import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from isoflop.bench.engines.contract import Event, Limits
from isoflop.bench.engines.local import Local
from isoflop.bench.engines.shared_queue import SharedQueue
from isoflop.bench.engines.slurm import Slurm
from isoflop.bench.plan import Cell
from isoflop.results.errors import IsoflopError
from isoflop.results.record import load_records, write_record
from tests.bench.cells import TINY, make_record, tiny_cells
from tests.bench.engines.slurm_cluster import Cluster, missing, slurm, wait_for
from tests.bench.test_run import SUITE

REASON = missing()
needs_slurm = pytest.mark.skipif(bool(REASON), reason=REASON)
# A layer whose training notes every step, and is slow while a file is there: so a test acts on a
# run in a known state, however busy the machine.
HELD = """
import os, time
from isoflop.models import LAYERS

class Held(LAYERS["dense"]):
    def after_step(self):
        if "SLURM_JOB_ID" in os.environ:
            task = os.environ["SLURM_ARRAY_TASK_ID"]
            with open(f"{noted}/{{task}}-{{os.getpid()}}", "a") as file:
                file.write("x")
            if os.path.exists({hold!r}):
                time.sleep(0.3)
"""


def test_a_machine_without_slurm_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IsoflopError, match="no sbatch here; run it where jobs are submitted"):
        next(Slurm([]).train(tiny_cells(), tmp_path / "records", Limits()))


@pytest.fixture
def queue(tmp_path: Path) -> SharedQueue:
    queue = SharedQueue(tmp_path / "queue")
    queue.fill(tiny_cells(), tmp_path / "corpus", tmp_path / "records", Limits())
    return queue


def test_a_cell_is_taken_by_one_task_and_given_back_when_that_dies(queue: SharedQueue) -> None:
    first, second = (SharedQueue(queue.folder, task) for task in ("7_1", "7_2"))
    dense, peer = cells = tiny_cells()
    assert first.take(lambda cell: cell.id == peer.id) == peer
    assert second.take(lambda cell: True) == dense
    assert second.take(lambda cell: True) is None
    claims = queue.claims()
    assert set(claims.values()) == {"7_1", "7_2"}
    queue.release(claims, {"7_2"})
    assert second.take(lambda cell: True) == peer
    SharedQueue(queue.folder, "7_2").give_back_all()  # the task has been started again
    assert [first.take(lambda cell: True) for _ in cells] == cells
    assert set(queue.claims().values()) == {"7_1"}


def test_what_is_done_is_not_taken_again(queue: SharedQueue, tmp_path: Path) -> None:
    dense, peer = tiny_cells()
    write_record(tmp_path / "records", make_record(cell=dense.id))
    failed = make_record(cell=peer.id, status="failed", loss=None, bits_per_byte=None)
    write_record(tmp_path / "records", failed)
    task = SharedQueue(queue.folder, "7_1")
    assert task.take(lambda cell: True) == peer
    task.report(Event(peer, record=failed))
    queue.release(queue.claims(), set())
    assert task.take(lambda cell: True) is None


def test_news_are_read_once_and_a_record_without_a_report_counts(
    queue: SharedQueue, tmp_path: Path
) -> None:
    dense, peer = cells = tiny_cells()
    left = {cell.id: cell for cell in cells}
    task = SharedQueue(queue.folder, "7_1")
    task.report(Event(dense, warning="a disk is full"))
    with (queue.folder / "news" / "7_1-0.jsonl").open("a") as file:
        file.write('{"cell": "')  # being written
    assert list(queue.news(left)) == [Event(dense, warning="a disk is full")]
    record = make_record(cell=peer.id)
    write_record(tmp_path / "records", record)
    assert list(queue.news(left)) == [Event(peer, record=record)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def isoflop(folder: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    (folder / "suite.toml").write_text(SUITE)
    return subprocess.Popen(
        [sys.executable, "-m", "isoflop", "run", "suite.toml", *options],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def comparable(records: Path) -> dict[str, object]:
    return {r.cell: r.model_dump(exclude={"measured"}) for r in load_records(records)}


@needs_slurm
def test_an_unknown_partition_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    options = ("--on", "slurm", "--engine-options", "partition=smal")
    output, _ = isoflop(tmp_path, cluster.environment, *options).communicate(timeout=300)
    assert "slurm has no partition 'smal' (did you mean 'small'?)" in output
    assert "Traceback" not in output


@needs_slurm
def test_a_killed_command_is_started_again_and_watches_the_same_job(
    cluster: Cluster, tmp_path: Path
) -> None:
    options = ("--out", "out", "--on", "slurm")
    process = isoflop(tmp_path, cluster.environment, *options)
    jobs = tmp_path / "out" / "slurm-records" / "jobs"
    wait_for(jobs.exists, 300)
    process.kill()
    process.wait()
    output, _ = isoflop(tmp_path, cluster.environment, *options).communicate(timeout=500)
    assert len(load_records(tmp_path / "out" / "records")) == 4, output


@needs_slurm
def test_srun_starts_torchrun_on_two_nodes_for_a_cell(cluster: Cluster, tmp_path: Path) -> None:
    """The batch file of the documentation, with a process and no GPU on each."""
    document = Path("docs/run-on-a-cluster.md").read_text()
    blocks = re.findall(r"^  ```sh\n(.*?)^  ```$", document, re.MULTILINE | re.DOTALL)
    (batch,) = (textwrap.dedent(block) for block in blocks if "srun torchrun" in block)
    for before, after in (
        ("#SBATCH --gpus-per-node=8", f"#SBATCH --output={tmp_path}/log"),
        ("--nproc-per-node 8", "--nproc-per-node 1"),
        ("torchrun ", f"{sys.executable} -m torch.distributed.run "),
        (":29500", f":{31000 + os.getpid() % 1000}"),
    ):
        assert before in batch
        batch = batch.replace(before, after)
    training = {**TINY["training"], "micro_batch": 2, "gpus_per_cell": 2}
    table = TINY | {
        "name": "my",
        "training": training,
        "variants": {"peer": TINY["variants"]["peer"]},
    }
    (tmp_path / "my.toml").write_text(tomli_w.dumps(table))
    (tmp_path / "my.sbatch").write_text(batch)
    environment = cluster.environment | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        ["sbatch", "--wait", "my.sbatch"], cwd=tmp_path, env=environment, check=False, timeout=500
    )
    log = (tmp_path / "log").read_text()
    (record,) = load_records(tmp_path / "runs" / "my" / "records")
    assert record.status == "finished", log
    assert record.measured.device.startswith("2 x "), log


@needs_slurm
def test_a_task_of_two_nodes_is_cut_by_its_time_limit_and_goes_on(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a process and no GPU on each. No step is repeated."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    hold, noted, records = tmp_path / "hold", tmp_path / "steps", tmp_path / "out" / "records"
    hold.touch()
    noted.mkdir()
    file = tmp_path / "held.py"
    file.write_text(HELD.format(hold=str(hold), noted=str(noted)))
    variants = {
        "held": {"layer": f"{file}:Held", "learning_rate": 1e-2},
        "peer": TINY["variants"]["peer"],
    }
    training = {**TINY["training"], "micro_batch": 2, "gpus_per_cell": 2}
    budgets = [{"flops": 8e8, "variants": ["held"]}, {"flops": 3e8, "variants": ["peer"]}]
    cells = tiny_cells(variants=variants, training=training, budgets=budgets)
    status: dict[str, str] = {}

    def run() -> None:
        given = ["workers=1", "nodes=2", "time=30"]
        for event in Slurm(given).train(cells, records, Limits()):
            if event.record is not None:
                status[event.cell.variant] = event.record.status

    def steps() -> list[int]:
        return [path.stat().st_size for path in noted.iterdir()]

    running = threading.Thread(target=run, daemon=True)
    running.start()
    wait_for(lambda: len(steps()) == 2 and min(steps()) >= 5, 300)
    (job, _) = cluster.tasks()["1"]
    cluster.ask("scontrol", "update", f"jobid={job}", "timelimit=1")
    wait_for(lambda: any((tmp_path / "out" / "checkpoints").glob("*.shards")))
    state = ("squeue", "--noheader", f"--jobs={job}", "--format=%T")
    wait_for(lambda: cluster.ask(*state).strip() == "PENDING")
    cluster.ask("scontrol", "update", f"jobid={job}", "timelimit=30", "starttime=now")
    hold.unlink()
    running.join(300)
    log = (tmp_path / "out" / "slurm-records" / "task-1.log").read_text() if not status else ""
    assert status == {"held": "finished", "peer": "finished"}, log
    assert len(steps()) == 4  # processes
    assert sum(steps()) == 2 * next(cell.steps for cell in cells if cell.variant == "held")
    assert {r.measured.device[:4] for r in load_records(records)} == {"2 x "}


def forty_cells(folder: Path, noted: Path, hold: Path) -> list[Cell]:
    """Ten of each kind; the slow ones start first, since they have the most steps."""
    file = folder / "held.py"
    file.write_text(HELD.format(hold=str(hold), noted=str(noted)))
    variants = TINY["variants"] | {
        "moe": {"layer": "moe", "learning_rate": 1e-2, "options": {"expansion": 2}},
        "held": {"layer": f"{file}:Held", "learning_rate": 1e-2},
    }
    budgets = [
        {"flops": 5e8, "variants": ["dense", "peer", "moe"]},
        {"flops": 2e9, "variants": ["held"]},
    ]
    return tiny_cells(seeds=list(range(10)), variants=variants, budgets=budgets)


@needs_slurm
def test_forty_cells_though_a_node_is_lost_and_a_task_meets_its_time_limit(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has one record, and the task that is cut repeats no step.

    Compared with a local run are eight cells, two of each kind.
    """
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    hold, noted, records = tmp_path / "hold", tmp_path / "steps", tmp_path / "out" / "records"
    hold.touch()
    noted.mkdir()
    cells = forty_cells(tmp_path, noted, hold)
    assert len(cells) == 40
    seen: list[str] = []

    def run() -> None:
        for event in Slurm(["workers=4", "time=30"]).train(cells, records, Limits()):
            seen.extend([event.cell.id] if event.record is not None else [])

    def steps() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in noted.iterdir()}

    running = threading.Thread(target=run, daemon=True)
    running.start()
    wait_for(lambda: len(steps()) == 4 and min(steps().values()) >= 5, 300)
    tasks = cluster.tasks()
    node, cut = tasks["1"][1], tasks["2"][0]
    cluster.lose(node)
    wasted = sum(count for name, count in steps().items() if name.startswith("1-"))
    cluster.ask("scontrol", "update", f"jobid={cut}", "timelimit=1")
    # SLURM warns before the limit; the cell saves its state, and the task is queued again.
    wait_for(lambda: any((tmp_path / "out" / "checkpoints").glob("*.pt")))
    state = ("squeue", "--noheader", f"--jobs={cut}", "--format=%T")
    wait_for(lambda: cluster.ask(*state).strip() == "PENDING")
    cluster.ask("scontrol", "update", f"jobid={cut}", "timelimit=30")  # of its second start
    wait_for(lambda: node in cluster.ask("sinfo", "--noheader", "--states=down", "--format=%N"))
    hold.unlink()
    some = [cell for cell in cells if cell.seed < 2]
    list(Local().train(some, tmp_path / "plain" / "records", Limits()))
    running.join(300)
    assert sorted(seen) == sorted(cell.id for cell in cells)
    result, expected = comparable(records), comparable(tmp_path / "plain" / "records")
    assert sorted(result) == sorted(seen)
    assert len(expected) == 8
    assert {cell: result[cell] for cell in expected} == expected
    assert not (tmp_path / "out" / "slurm-records").exists()
    assert cluster.ask("squeue", "--noheader", "--states=PENDING") == ""
    assert not (tmp_path / "out" / "checkpoints").exists()
    length = next(cell.steps for cell in cells if cell.variant == "held")
    assert 5 <= wasted < length
    assert sum(steps().values()) == 10 * length + wasted
    assert len(steps()) == 10 + 2  # processes, of which two were ended
