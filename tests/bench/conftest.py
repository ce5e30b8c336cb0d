import pytest

from isoflop.bench import isolate


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a user's code in this process, as if it were a child: starting one takes seconds."""
    monkeypatch.setattr(isolate, "_in_child", True)
