import pytest

from isoflop.bench import isolate
from isoflop.bench.data import Tokens, prepare
from tests.bench.cells import tiny_cells


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a user's code in this process, as if it were a child: starting one takes seconds."""
    monkeypatch.setattr(isolate, "_in_child", True)


@pytest.fixture(scope="session")
def tokens() -> Tokens:
    """Of the tiny cells' corpus."""
    return prepare(tiny_cells()[0].corpus)
