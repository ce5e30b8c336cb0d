"""What pytest-benchmark stores is fit to be published: the device and the results, not the host."""

from __future__ import annotations

from typing import Any


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    from tests.benchmarks.machine import describe

    machine_info.clear()
    machine_info.update(describe())


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Names, medians and what the benchmarks themselves state; the day and the revision."""
    commit = output_json["commit_info"]
    output_json["commit_info"] = {key: commit.get(key) for key in ("id", "dirty")}
    output_json["datetime"] = output_json["datetime"][:10]
    output_json["benchmarks"] = [
        {
            "name": each["name"],
            "stats": {key: each["stats"][key] for key in ("median", "iqr", "rounds")},
            "extra_info": each["extra_info"],
        }
        for each in output_json["benchmarks"]
    ]
