"""Options of the tests, and their order."""

import os
from pathlib import Path

import pytest

# for the coverage of processes that start in another folder: see pyproject.toml
os.environ["ISOFLOP_ROOT"] = str(Path(__file__).resolve().parents[1])

# files of few tests that take minutes: first, so that no process is left with one at the end
LONG = (
    "isoflop/test_wheel.py",
    "bench/test_run.py",
    "models/ops/test_interpreter.py",
    "isoflop/cli/test_layers.py",
    "bench/test_parallel.py",
    "bench/engines/test_ranks.py",
    "bench/test_user_layers.py",
    "examples/test_notebook.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--robustness", type=int, default=10, help="cases of each kind in tests/robustness"
    )
    parser.addoption("--trials", action="store_true", help="tests of suites that take minutes")
    parser.addoption("--robustness-store", help="JSON file for the counts of tests/robustness")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not str(item.path).endswith(LONG))
