"""The engine `ray`: a real cluster of nodes on this machine, one of which is lost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from isoflop.bench.engines.contract import EngineError, Limits
from isoflop.bench.engines.local import Local
from isoflop.bench.engines.ray import Ray
from isoflop.results.record import load_records
from tests.bench.cells import tiny_cells

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.getcwd()}
    import ray
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
    )
    try:
        for _ in range(2):
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
def test_records_are_those_of_a_local_run_though_a_node_is_lost(
    cluster: Any, tmp_path: Path
) -> None:
    cells = tiny_cells(seeds=[0, 1])
    list(Local().train(cells, tmp_path / "plain" / "records", Limits()))
    expected = load_records(tmp_path / "plain" / "records")
    records = tmp_path / "out" / "records"
    lost = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    seen: list[str] = []
    for event in Ray([]).train(cells, records, Limits()):
        if event.record is not None:
            seen.append(event.cell.id)
            if len(seen) == 1:
                cluster.remove_node(lost, allow_graceful=False)
    assert sorted(seen) == sorted(cell.id for cell in cells)
    stored = load_records(records)
    assert [r.model_dump(exclude={"measured"}) for r in stored] == [
        r.model_dump(exclude={"measured"}) for r in expected
    ]
