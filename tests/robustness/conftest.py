"""How many cases of each kind are tried, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.counts import STORED, store, write_document

PROPERTY = "robustness"  # of a test's report, which also comes from a worker of pytest-xdist


@pytest.fixture
def robustness(pytestconfig: pytest.Config) -> int:
    """Cases of each kind."""
    return int(pytestconfig.getoption("--robustness"))


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note the counts of a kind of case, for the summary."""

    def note(kind: str, **counts: int) -> None:
        request.node.user_properties.append((PROPERTY, {kind: counts}))

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    counts: dict[str, dict[str, int]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY:
                    counts |= value
    if counts and config.getoption("--robustness-store"):
        path = Path(config.getoption("--robustness-store"))
        store(path, counts)
        if path.resolve() == STORED:
            write_document()
    for kind, count in sorted(counts.items()):
        text = ", ".join(f"{number} {what}" for what, number in count.items())
        terminalreporter.write_line(f"robustness: {kind}: {text}")
