"""How many cases of each kind are tried, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
        Path(config.getoption("--robustness-store")).write_text(json.dumps(COUNTS, indent=1) + "\n")
    for kind, counts in COUNTS.items():
        text = ", ".join(f"{count} {name}" for name, count in counts.items())
        terminalreporter.write_line(f"robustness: {kind}: {text}")
