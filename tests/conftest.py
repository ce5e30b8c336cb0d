"""Options of the tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--robustness", type=int, default=10, help="cases of each kind in tests/robustness"
    )
    parser.addoption("--trials", action="store_true", help="tests of suites that take minutes")
    parser.addoption("--robustness-store", help="JSON file for the counts of tests/robustness")
