"""Two submissions of a small suite; forged, published and refused in the files beside."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from isoflop.analysis.report import figures
from isoflop.bench.submissions import verify
from isoflop.bench.submissions.bundle import submit
from tests.bench.submissions.tiny import make_results


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child imports torch anew, which takes seconds: `test_tampering` tries it."""
    monkeypatch.setattr(verify, "stream", called)


def called(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with results and two submissions; tests work on copies."""
    root = tmp_path_factory.mktemp("published")
    make_results(root / "runs/tiny")
    top = root / "results/submissions"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "stream", called)
        submit("base", root / "runs/tiny", ["dense"], top)
        submit("mine", root / "runs/tiny", (), top)
    return root


@pytest.fixture
def here(
    published: Path, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    shutil.copytree(published, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return Path("results/submissions")


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing all of them takes most of a report's time."""
    monkeypatch.setattr(figures, "FIGURES", {"frontier": figures.FIGURES["frontier"]})
