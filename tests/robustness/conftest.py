"""How many cases of each kind are tried, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.counts import STORED, store, write_document

COUNTS: dict[str, dict[str, int]] = {}


@pytest.fixture
def robustness(pytestconfig: pytest.Config) -> int:
    """Cases of each kind."""
    return int(pytestconfig.getoption("--robustness"))


@pytest.fixture
def counted() -> Callable[..., None]:
    """Note the counts of a kind of case, for the summary."""

    def note(kind: str, **counts: int) -> None:
        COUNTS[kind] = counts

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if COUNTS and config.getoption("--robustness-store"):
        path = Path(config.getoption("--robustness-store"))
        store(path, COUNTS)
        if path.resolve() == STORED:
            write_document()
    for kind, counts in COUNTS.items():
        text = ", ".join(f"{count} {name}" for name, count in counts.items())
        terminalreporter.write_line(f"robustness: {kind}: {text}")
