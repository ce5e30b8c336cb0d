"""The engine `slurm`: options and batch file anywhere, the rest on a real SLURM of four nodes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoflop.bench.engines.contract import Event, Limits
from isoflop.bench.engines.shared_queue import SharedQueue
from isoflop.bench.engines.slurm import Slurm
from isoflop.results.errors import IsoflopError
from isoflop.results.record import load_records, write_record
from tests.bench.cells import make_record, tiny_cells
from tests.bench.engines.slurm_cluster import missing, slurm, wait_for
from tests.bench.test_run import SUITE

REASON = missing()


def refused(*given: str) -> str:
    with pytest.raises(IsoflopError) as error:
        Slurm(list(given))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_options_that_cannot_be_are_one_line() -> None:
    assert "slurm has no option 'partitoin' (did you mean 'partition'?)" in refused("partitoin=a")
    assert "'workers' is not key=value" in refused("workers")
    assert "workers: '0' is no whole number from 1 on" in refused("workers=0")
    assert "cpus: '2.5' is no whole number" in refused("cpus=2.5")
    assert "cpus is given twice" in refused("cpus=1", "cpus=2")
    assert "dry-run is yes or no" in refused("dry-run=perhaps")
    assert "account" in refused("account=a b")


def test_a_dry_run_is_the_batch_file(tmp_path: Path) -> None:
    given = ["dry-run=yes", "workers=16", "gpus=h100:1", "time=11:59:00", "partition=gpu"]
    cells = tiny_cells()
    text = Slurm(given).dry_run(cells, tmp_path / "records", Limits())
    lines = text.splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "#SBATCH --array=1-2" in lines  # no more tasks than cells
    assert "#SBATCH --gpus=h100:1" in lines
    assert "#SBATCH --time=11:59:00" in lines
    assert "#SBATCH --partition=gpu" in lines
    assert "#SBATCH --requeue" in lines
    assert not any("account" in line for line in lines)
    folder = tmp_path / "slurm-records"
    assert lines[-1] == f"exec {sys.executable} -m isoflop.bench.engines.slurm_task {folder}"
    assert not folder.exists()
    assert Slurm(given[1:]).dry_run(cells, tmp_path / "records", Limits()) == ""


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
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def isoflop(folder: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    (folder / "suite.toml").write_text(SUITE)
    return subprocess.Popen(
        [sys.executable, "-m", "isoflop", "run", "suite.toml", "--out", "out", *options],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def comparable(records: Path) -> dict[str, object]:
    return {r.cell: r.model_dump(exclude={"measured"}) for r in load_records(records)}


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_an_unknown_partition_is_one_line(cluster: dict[str, str], tmp_path: Path) -> None:
    output, _ = isoflop(
        tmp_path, cluster, "--on", "slurm", "--engine-options", "partition=smal"
    ).communicate(timeout=300)
    assert "slurm has no partition 'smal' (did you mean 'small'?)" in output
    assert "Traceback" not in output


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_records_are_those_of_a_local_run_though_a_node_is_lost(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    output, _ = isoflop(plain, cluster).communicate(timeout=400)
    expected = comparable(plain / "out" / "records")
    assert len(expected) == 4, output

    process = isoflop(tmp_path, cluster, "--on", "slurm", "--engine-options", "workers=3")
    claims = tmp_path / "out" / "slurm-records" / "claims"
    try:
        wait_for(lambda: claims.exists() and len(list(claims.iterdir())) >= 2, 300)
        for state in ("down", "resume"):  # its job is queued again at once
            command = ["scontrol", "update", "nodename=n1", f"state={state}", "reason=test"]
            subprocess.run(command, env=cluster, check=True)
        output, _ = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert comparable(tmp_path / "out" / "records") == expected
    assert not (tmp_path / "out" / "slurm-records").exists()


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_a_killed_command_is_started_again_and_watches_the_same_job(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    process = isoflop(tmp_path, cluster, "--on", "slurm")
    jobs = tmp_path / "out" / "slurm-records" / "jobs"
    wait_for(jobs.exists, 300)
    process.kill()
    process.wait()
    output, _ = isoflop(tmp_path, cluster, "--on", "slurm").communicate(timeout=500)
    assert len(load_records(tmp_path / "out" / "records")) == 4, output
