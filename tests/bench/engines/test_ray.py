"""The engine `ray`: a real cluster of eight nodes on this machine, three of which are lost."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isoflop.bench.engines.contract import EngineError, Limits
from isoflop.bench.engines.local import Local
from isoflop.bench.engines.ray import Ray
from isoflop.results.record import load_records
from tests.bench.cells import TINY, tiny_cells
from tests.bench.engines.slurm_cluster import wait_for
from tests.bench.test_run import SUITE

# Layers whose steps take long while a file is there: in all tasks, or in the first one alone.
SLOW = """
import os, time
from isoflop.models import LAYERS

FOLDER = {folder!r}

class Slower(LAYERS["dense"]):
    def after_step(self):
        if os.path.exists(FOLDER + "/hold-slower"):
            time.sleep(1)

class Slow(LAYERS["dense"]):
    first = None

    def after_step(self):
        if Slow.first is None:
            try:
                os.close(os.open(FOLDER + "/first", os.O_CREAT | os.O_EXCL))
                Slow.first = True
            except FileExistsError:
                Slow.first = False
        if Slow.first and os.path.exists(FOLDER + "/hold-slow"):
            time.sleep(1)
"""
NOTED = """
class Noted(Slower):
    def after_step(self):
        super().after_step()
        with open(f"{noted}/{{os.getpid()}}", "a") as file:
            file.write("x")
"""
INSTALLED = find_spec("ray") is not None
needs_ray = pytest.mark.skipif(
    not INSTALLED or os.environ.get("ISOFLOP_ENGINES") != "1",
    reason="a Ray cluster is started by `tox -e engines` alone",
)


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"Ray is not installed: pip install 'isoflop\[ray\]'"):
        Ray([])


def test_importing_isoflop_imports_no_ray() -> None:
    code = (
        "import sys, isoflop.cli.main, isoflop.bench.run, isoflop.bench.engines.slurm;"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_that_cannot_be_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    with pytest.raises(EngineError, match="ray's backups is yes or no"):
        Ray(["backups=perhaps"])
    with pytest.raises(EngineError, match="ray's gpus: '-1' is no whole number from 0 on"):
        Ray(["gpus=-1"])
    assert Ray(["cpus=0.25"]).cpus == 0.25
    for cpus in ("0", "many", "nan", "inf"):
        with pytest.raises(EngineError, match=f"ray's cpus: '{cpus}' is no number above 0"):
            Ray([f"cpus={cpus}"])
    cells = tiny_cells(training={**TINY["training"], "micro_batch": 2, "gpus_per_cell": 2})
    assert Ray(["gpus=2"]).dry_run(cells, Path("records"), Limits()) == ""
    with pytest.raises(EngineError, match="gpus: 1 are fewer than the 2 of"):
        Ray(["gpus=1"]).dry_run(cells, Path("records"), Limits())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Eight nodes, beside the one of the command."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or they starve where the machine does other work too
        "PYTHONPATH": os.getcwd(),
    }
    import ray
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
    )
    try:
        for _ in range(8):
            cluster.add_node(num_cpus=1, object_store_memory=memory)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@needs_ray
def test_a_request_that_no_node_can_meet_is_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no node has 4 CPUs and 0 GPUs for a cell; the largest"):
        next(Ray(["cpus=4"]).train(tiny_cells(), tmp_path / "records", Limits()))


@needs_ray
def test_every_cell_has_a_record_though_three_of_eight_nodes_are_lost(
    cluster: Any, tmp_path: Path
) -> None:
    """Compared with a local run are four cells, two of each kind."""
    cells = tiny_cells(seeds=list(range(8)))
    records = tmp_path / "out" / "records"
    workers = list(cluster.worker_nodes)
    seen: list[str] = []
    warnings: list[str] = []
    for event in Ray([]).train(cells, records, Limits()):
        warnings += [event.warning] if event.warning else []
        if event.record is not None:
            assert event.record.status == "finished"
            assert not event.stored
            seen.append(event.cell.id)
            if len(seen) <= 3:
                cluster.remove_node(workers.pop(), allow_graceful=False)
    assert "its node is gone" in warnings
    assert len(cells) == 16
    assert sorted(seen) == sorted(cell.id for cell in cells)
    some = [cell for cell in cells if cell.seed < 2]
    list(Local().train(some, tmp_path / "plain" / "records", Limits()))
    result, expected = (
        {
            r.cell: r.model_dump(exclude={"measured"})
            for r in load_records(tmp_path / of / "records")
        }
        for of in ("out", "plain")
    )
    assert sorted(result) == sorted(seen)
    assert len(expected) == 4
    assert {cell: result[cell] for cell in expected} == expected


@needs_ray
def test_an_idle_worker_takes_a_copy_of_the_cell_that_is_slow(cluster: Any, tmp_path: Path) -> None:
    """The slow one's record comes second: it is refused."""
    for name in ("slow", "slower"):
        (tmp_path / f"hold-{name}").touch()
    file = tmp_path / "slow.py"
    file.write_text(SLOW.format(folder=str(tmp_path)))
    variants = {
        name.lower(): {"layer": f"{file}:{name}", "learning_rate": 1e-2}
        for name in ("Slow", "Slower")
    }
    cells = tiny_cells(variants=variants)
    records, warnings = [], []
    for event in Ray([]).train(cells, tmp_path / "out" / "records", Limits()):
        if event.record is not None:
            records.append(event.cell.variant)
            (tmp_path / "hold-slow").unlink(missing_ok=True)  # the first task may end now
        if event.warning:
            warnings.append((event.cell.variant, event.warning))
            (tmp_path / "hold-slower").unlink()
    assert records == ["slow", "slower"]
    assert warnings == [("slow", "the record of its second copy is refused, 1 so far")]
    assert len(load_records(tmp_path / "out" / "records")) == 2


@needs_ray
def test_a_cell_of_two_processes_that_is_stopped_goes_on_from_its_state(
    cluster: Any, tmp_path: Path
) -> None:
    noted = tmp_path / "steps"
    file = tmp_path / "slow.py"
    file.write_text(SLOW.format(folder=str(tmp_path)) + NOTED.format(noted=str(noted)))
    noted.mkdir()
    variants = {"noted": {"layer": f"{file}:Noted", "learning_rate": 1e-2}}
    training = {**TINY["training"], "micro_batch": 2, "gpus_per_cell": 2}
    (cell,) = tiny_cells(variants=variants, training=training)
    (tmp_path / "hold-slower").touch()
    records = tmp_path / "out" / "records"
    limits = Limits(deadline=time.monotonic() + 45)
    engine = Ray(["backups=no"])
    assert [event.stopped for event in engine.train([cell], records, limits)][-1]
    assert any((tmp_path / "out" / "checkpoints").glob("*.shards/*.distcp"))
    (tmp_path / "hold-slower").unlink()
    (record,) = [e.record for e in engine.train([cell], records, Limits()) if e.record is not None]
    assert record.status == "finished"
    sizes = [path.stat().st_size for path in noted.iterdir()]
    assert len(sizes) == 4
    assert sum(sizes) == 2 * cell.steps
    assert not any((tmp_path / "out").glob("checkpoints/*"))


@needs_ray
def test_a_killed_command_is_started_again_and_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE.replace("4e9", "1.5e9"))
    given = ("--on", "ray", "--engine-options", f"address={cluster.address}")

    def command() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "isoflop", "run", "suite.toml", "--out", "out", *given],
            cwd=tmp_path,
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    records = tmp_path / "out" / "records"
    first = command()
    wait_for(lambda: any(records.glob("[!.]*.json")), 300)
    first.kill()
    first.wait()
    before = {path.name: path.stat().st_mtime_ns for path in records.glob("[!.]*.json")}
    second = command()
    try:
        output, _ = second.communicate(timeout=500)
    finally:
        second.kill()
    assert 1 <= len(before) <= 4
    assert len(load_records(records)) == 4, output
    assert {name: (records / name).stat().st_mtime_ns for name in before} == before
