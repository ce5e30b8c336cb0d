"""What a stored benchmark holds: the device and the results, and nothing of whose machine it is."""

from typing import Any

import pytest

from isoflop.analysis.report.benchmarks import Machine, Problem, Ratios
from tests.benchmarks import machine
from tests.benchmarks.conftest import (
    pytest_benchmark_update_json,
    pytest_benchmark_update_machine_info,
)
from tests.benchmarks.merge import merge


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


def stored(ours: float, rival: float, share: float, allocator: str = "plain") -> dict[str, Any]:
    """What a process stores, with times of ours and a rival's."""

    def times(side: str, seconds: float) -> dict[str, Any]:
        return {"side": side, "forward_seconds": 1.0, "step_seconds": seconds, "peak_bytes": 7}

    problem = {
        "problem": "a",
        "bytes_forward": 9.0,
        "flops_forward": 0.0,
        "ours": times("ours", ours),
        "others": [times("theirs", rival), {"side": "broken", "failed": "RuntimeError"}],
    }
    ratios = {"what": "share", "ratios": {"dense": share}}
    return {
        "machine_info": {"kind": "CPU", "threads": 2, "allocator": allocator},
        "benchmarks": [
            {"name": "test_a", "extra_info": problem},
            {"name": "test_b", "extra_info": ratios},
        ],
    }


def test_several_processes_are_merged_to_medians_with_ranges() -> None:
    runs = [stored(1.0, 8.0, 0.4), stored(2.0, 10.0, 0.5), stored(1.5, 9.0, 0.3)]
    merged = merge(runs)
    assert merged["processes"] == 3
    assert merged["machine_info"] == runs[0]["machine_info"]
    problem = Problem.model_validate(merged["benchmarks"][0]["extra_info"])
    assert (problem.ours.step_seconds, problem.others[0].step_seconds) == (1.5, 9.0)
    assert problem.others[0].ratio == (6.0, 5.0, 8.0)  # not the ratio of the medians alone
    assert problem.others[1].failed == "RuntimeError"
    ratios = Ratios.model_validate(merged["benchmarks"][1]["extra_info"])
    assert (ratios.ratios, ratios.ranges) == ({"dense": 0.4}, {"dense": (0.3, 0.5)})
    with pytest.raises(ValueError, match="not hold the same benchmarks"):
        merge([runs[0], runs[1] | {"benchmarks": runs[1]["benchmarks"][:1]}])


def test_ratios_in_workers_stand_beside_those_of_plain_processes() -> None:
    workers = [stored(9.0, rival, 9.0, "worker") for rival in (9.0, 18.0, 27.0)]
    merged = merge([stored(1.0, 8.0, 0.4), *workers])
    assert merged["processes"] == 1
    problem = Problem.model_validate(merged["benchmarks"][0]["extra_info"])
    assert problem.ours.step_seconds == 1.0
    assert problem.others[0].ratio == (8.0, 8.0, 8.0)
    assert problem.others[0].ratio_in_worker == (2.0, 1.0, 3.0)
    assert merged["benchmarks"][1]["extra_info"]["ratios"] == {"dense": 0.4}
