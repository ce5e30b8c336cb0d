"""What a cluster may lack: one line each, and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.bench.engines.contract import EngineError, Limits
from isoflop.bench.engines.shared_queue import SharedQueue
from isoflop.bench.engines.slurm import Slurm
from tests.bench.cells import TINY, tiny_cells
from tests.bench.test_run import SUITE
from tests.robustness.program import run

PARTITION = ("--engine-options", "partition=smal")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a suite, where SLURM's commands are what a test makes of them, and Ray is missing."""
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(sys.modules, "ray", None)
    return tmp_path


def command(folder: Path, name: str, *lines: str) -> None:
    """One of SLURM's commands."""
    path = folder / "bin" / name
    path.write_text("\n".join(("#!/bin/sh", *lines)))
    path.chmod(0o755)


def refused(folder: Path, *options: str) -> str:
    outcome = run(folder, "run", "suite.toml", *options)
    assert not outcome.fault, outcome
    assert outcome.code == 2
    assert not list(folder.rglob("*.json"))
    return outcome.err.splitlines()[-1]


def test_an_engine_that_is_not_there(folder: Path) -> None:
    line = "isoflop: --on: no engine 'slrum' (did you mean 'slurm'?); known: local, slurm, ray"
    assert refused(folder, "--on", "slrum") == line
    line = "isoflop: --on ray: Ray is not installed: pip install 'isoflop[ray]'"
    assert refused(folder, "--on", "ray") == line
    assert "isoflop: --on slurm: no sbatch here" in refused(folder, "--on", "slurm")


def test_a_partition_that_does_not_exist(folder: Path) -> None:
    command(folder, "sbatch")
    command(folder, "sinfo", "echo small", "echo large")
    line = refused(folder, "--on", "slurm", *PARTITION)
    assert line == (
        "isoflop: --engine-options: slurm has no partition 'smal' (did you mean 'small'?); "
        "known: large, small"
    )


def test_a_controller_that_does_not_answer(folder: Path) -> None:
    command(folder, "sbatch")
    command(folder, "sinfo", "echo 'slurm_load_partitions: Unable to contact' >&2", "exit 1")
    line = refused(folder, "--on", "slurm", *PARTITION)
    assert line == "isoflop: --on slurm: sinfo: slurm_load_partitions: Unable to contact"


def test_a_world_size_that_does_not_divide_the_micro_batches(folder: Path) -> None:
    text = SUITE.replace("batch = 4", "batch = 4\nmicro_batch = 2\ngpus_per_cell = 3")
    (folder / "suite.toml").write_text(text)
    line = "training.gpus_per_cell: 3 processes cannot share the 2 micro-batches of size s evenly"
    assert line in refused(folder)
    assert line in refused(folder, "--on", "slurm")


@pytest.mark.parametrize("gpus", ["1", "h100:1"])
def test_fewer_gpus_in_a_task_than_a_cell_takes(gpus: str, tmp_path: Path) -> None:
    training = {**TINY["training"], "micro_batch": 2, "gpus_per_cell": 2}
    cells = tiny_cells(training=training)
    line = (
        "slurm's gpus: 1 are fewer than the 2 of training.gpus_per_cell; nodes=N gives a task as "
        "many on each of N nodes"
    )
    for options in ([f"gpus={gpus}"], [f"gpus={gpus}", "dry-run=yes"]):
        engine = Slurm(options)
        with pytest.raises(EngineError, match=line):
            engine.dry_run(cells, tmp_path / "records", Limits())
    assert "--gpus=h100:2" in Slurm(["gpus=h100:2", "dry-run=yes"]).dry_run(
        cells, tmp_path / "records", Limits()
    )


def test_nodes_that_cannot_share_the_processes_of_a_cell(tmp_path: Path) -> None:
    for gpus, nodes in ((1, 2), (4, 3)):
        training = {**TINY["training"], "batch": 8, "micro_batch": 2, "gpus_per_cell": gpus}
        line = f"slurm's nodes: {nodes} cannot share the {gpus} processes of training.gpus_per_cell"
        with pytest.raises(EngineError, match=line):
            Slurm([f"nodes={nodes}"]).dry_run(
                tiny_cells(training=training), tmp_path / "records", Limits()
            )


def test_a_node_without_the_corpus(tmp_path: Path) -> None:
    queue = SharedQueue(tmp_path / "queue")
    queue.fill(tiny_cells(), tmp_path / "corpus", tmp_path / "records", Limits())
    done = subprocess.run(
        [sys.executable, "-m", "isoflop.bench.engines.slurm_task", str(queue.folder)],
        env=os.environ | {"SLURM_JOB_ID": "7", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"isoflop: {tmp_path}/corpus: no corpus on node {os.uname().nodename}: set ISOFLOP_CACHE "
        "to a folder that the nodes share\n"
    )
