"""What a stored benchmark holds: the device and the results, and nothing of whose machine it is."""

from typing import Any

import pytest

from isoflop.analysis.report.benchmarks import Machine
from tests.benchmarks import machine
from tests.benchmarks.conftest import (
    pytest_benchmark_update_json,
    pytest_benchmark_update_machine_info,
)


def test_the_device_is_stored_and_not_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "bandwidth", lambda: 1e10)
    monkeypatch.setattr(machine, "matmul_rate", lambda: 1e12)
    stored = {"node": "my-laptop", "release": "6.1-mine", "cpu": {"hz_actual": 3e9}}
    pytest_benchmark_update_machine_info(None, stored)
    assert set(stored) == set(Machine.model_fields)
    assert Machine.model_validate(stored).copy_bytes_per_second == 1e10


def test_results_are_stored_and_not_every_round() -> None:
    stored: dict[str, Any] = {
        "commit_info": {"id": "abc", "dirty": False, "project": "mine", "branch": "mine"},
        "datetime": "2030-01-02T03:04:05+00:00",
        "benchmarks": [
            {
                "name": "test_a",
                "fullname": "/home/me/test_x.py::test_a",
                "stats": {"median": 1.0, "iqr": 0.1, "rounds": 3, "data": [1.0, 0.9, 1.1]},
                "extra_info": {"problem": "a"},
            }
        ],
    }
    pytest_benchmark_update_json(None, None, stored)
    assert stored == {
        "commit_info": {"id": "abc", "dirty": False},
        "datetime": "2030-01-02",
        "benchmarks": [
            {
                "name": "test_a",
                "stats": {"median": 1.0, "iqr": 0.1, "rounds": 3},
                "extra_info": {"problem": "a"},
            }
        ],
    }
