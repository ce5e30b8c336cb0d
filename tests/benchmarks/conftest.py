"""Reduces what pytest-benchmark stores to what can be published: the device and the results."""

from __future__ import annotations

from typing import Any


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    from tests.benchmarks.machine import describe

    machine_info.clear()
    machine_info.update(describe())


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keeps names, medians, the extra info of each benchmark, the date and the revision."""
    commit = output_json["commit_info"]
    output_json["commit_info"] = {key: commit.get(key) for key in ("id", "dirty")}
    output_json["datetime"] = output_json["datetime"][:10]
    output_json["benchmarks"] = [
        {
            "name": benchmark["name"],
            "stats": {key: benchmark["stats"][key] for key in ("median", "iqr", "rounds")},
            "extra_info": benchmark["extra_info"],
        }
        for benchmark in output_json["benchmarks"]
    ]
