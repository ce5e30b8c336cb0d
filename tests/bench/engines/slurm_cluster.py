"""A real SLURM on one machine: a controller and nodes, without systemd or accounting."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.test_run import children_of

SLURMD_TIMEOUT = 15  # seconds until a node counts as lost
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=cred_expire=10
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmdTimeout={timeout}
SchedulerParameters=sched_interval=2
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] RealMemory=2000
PartitionName=small Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no SLURM can be started here; empty if one can."""
    if os.environ.get("ISOFLOP_ENGINES") != "1":
        return "a SLURM is started by `tox -e engines` alone"
    absent = [name for name in NEEDED if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "SLURM's daemons are started by root"


@dataclass
class Cluster:
    """A running SLURM."""

    environment: dict[str, str]  # in which its commands find it
    daemons: dict[str, subprocess.Popen[bytes]]  # of the nodes, by name

    def ask(self, *command: str) -> str:
        """What one of its commands prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout

    def tasks(self) -> dict[str, tuple[str, str]]:
        """Of every task of an array, by its number: SLURM's own number, and the node."""
        text = self.ask("squeue", "--noheader", "--array", "--format=%K %A %N")
        return {
            key: (job, rest[0] if rest else "")
            for key, job, *rest in map(str.split, text.splitlines())
        }

    def lose(self, node: str) -> None:
        """End a node as a power cut does: its daemon, its slurmstepds, and all that they run."""
        wanted = {f"SLURM_CONF={self.environment['SLURM_CONF']}", f"SLURMD_NODENAME={node}"}
        doomed = {self.daemons[node].pid}
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError, IndexError):
                if wanted <= set(path.read_text(errors="replace").split("\0")):
                    stat = path.with_name("stat").read_text().rsplit(")", 1)[1]
                    doomed |= {int(path.parent.name), int(stat.split()[1])}
        # A task's parent is its slurmstepd, but one whose parent ended has this process or init.
        doomed -= {os.getpid(), 1}
        doomed |= {child for pid in doomed for child in children_of(pid)}
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def slurm(folder: Path, nodes: int = 4) -> Iterator[Cluster]:
    """A SLURM of nodes n1, n2 ..."""
    host, port = socket.gethostname().split(".")[0], 20000 + os.getpid() % 20000
    (folder / "state").mkdir(parents=True)
    configuration = folder / "slurm.conf"
    ports = {"port": port, "first": port + 1, "last": port + nodes}
    text = SETTINGS.format(host=host, folder=folder, nodes=nodes, timeout=SLURMD_TIMEOUT, **ports)
    configuration.write_text(text)
    environment = os.environ | {"SLURM_CONF": str(configuration), "PATH": _path()}
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        with (folder / "daemons.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        return process

    def states() -> str:
        command = ["sinfo", "--noheader", "--format=%T %D"]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    try:
        if not Path("/run/munge/munge.socket.2").is_socket():
            Path("/run/munge").mkdir(exist_ok=True)  # systemd would
            shutil.chown("/run/munge", "munge", "munge")
            start("runuser", "-u", "munge", "--", "munged", "--foreground", "--force")
            wait_for(Path("/run/munge/munge.socket.2").is_socket)
        start("slurmctld", "-D", "-f", str(configuration))
        daemons = {
            name: start("slurmd", "-D", "-N", name, "-f", str(configuration))
            for name in (f"n{number}" for number in range(1, nodes + 1))
        }
        wait_for(lambda: states().split() == ["idle", str(nodes)])
        yield Cluster(environment, daemons)
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, check=False, timeout=30)
        time.sleep(1)  # the tasks' own processes are ended by their slurmd
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
