"""The options of the engine `slurm`, and what sbatch gets for them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.bench.engines.contract import Limits
from isoflop.bench.engines.slurm import Slurm
from isoflop.results.errors import IsoflopError
from tests.bench.cells import TINY, tiny_cells
from tests.bench.engines.slurm_cluster import wait_for


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


def test_the_batch_file_of_tasks_of_several_nodes(tmp_path: Path) -> None:
    training = {**TINY["training"], "batch": 8, "micro_batch": 2, "gpus_per_cell": 4}
    given = ["dry-run=yes", "nodes=2", "gpus=h100:2", "cpus=8"]
    records = tmp_path / "a folder" / "records"
    text = Slurm(given).dry_run(tiny_cells(training=training), records, Limits())
    lines = text.splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1"} < set(lines)
    assert "#SBATCH --gpus-per-node=h100:2" in lines
    assert not any(line.startswith("#SBATCH --gpus=") for line in lines)
    assert "        --nnodes 2 --nproc-per-node 2 \\" in lines
    assert any(line.startswith("    srun --cpus-per-task=8 ") for line in lines)
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def shell(folder: Path, srun: str) -> subprocess.Popen[bytes]:
    """The batch file of a task of two nodes, without SLURM."""
    training = {**TINY["training"], "micro_batch": 2, "gpus_per_cell": 2}
    text = Slurm(["dry-run=yes", "nodes=2"]).dry_run(
        tiny_cells(training=training), folder / "records", Limits()
    )
    (folder / "slurm-records").mkdir()
    (folder / "slurm-records" / "near-limit-7").touch()  # of an earlier start
    (folder / "srun").write_text(f"#!/bin/sh\necho >>begun\n{srun}\n")
    (folder / "srun").chmod(0o755)
    environment = os.environ | {"SLURM_JOB_ID": "7", "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.Popen(["sh", "-c", text], cwd=folder, env=environment)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("code", [0, 1])
def test_the_shell_of_several_nodes_outlives_its_signals(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """It notes USR1, and waits for the processes, which save the cell; it starts no others."""
    process = shell(tmp_path, f"sleep 1\necho >>ended\nexit {code}")
    wait_for((tmp_path / "begun").exists)
    process.send_signal(number)
    process.wait(60)
    assert len((tmp_path / "begun").read_text()) == len((tmp_path / "ended").read_text()) == 1
    noted = (tmp_path / "slurm-records" / "near-limit-7").exists()
    assert noted is (number == signal.SIGUSR1)


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (1, 4)])
def test_processes_of_several_nodes_are_started_anew_where_they_failed(
    code: int, starts: int, tmp_path: Path
) -> None:
    shell(tmp_path, f"exit {code}").wait(60)
    assert len((tmp_path / "begun").read_text()) == starts
