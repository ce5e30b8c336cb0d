"""The stored run on a real SLURM of many nodes: `python -m tests.bench.engines.scale`."""

import json

import pytest

from tests.bench.engines import scale


def test_what_is_stored_is_of_this_code_and_whole() -> None:
    stored = json.loads(scale.STORED.read_text())
    assert stored["code"] == scale.code(), "run python -m tests.bench.engines.scale"
    assert stored["cells"] == stored["records"] == stored["equal"] == len(stored["seconds"])
    assert len(stored["losses"]) <= stored["begun_again"]
    assert stored["commands"] == 2
    assert stored["simulated"] == pytest.approx(scale.simulated(stored), rel=1e-6)
    assert stored["simulated"] == pytest.approx(stored["makespan"], rel=0.15)
