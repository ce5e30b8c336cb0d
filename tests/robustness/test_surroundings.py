"""Odd surroundings: a read-only folder, a full disk, another user, no home, an ASCII locale, a path
with spaces and other letters, a layer file that never ends. The program works, or says why not in
one line."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isoflop.bench import isolate
from isoflop.results.record import write_record
from tests.bench.cells import make_record
from tests.robustness.program import run
from tests.robustness.test_mutations import SUITE, corpus

ROOT = Path(__file__).parents[2]
NOBODY = 65534
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, who may be another user"
)


def isoflop(
    folder: Path, *arguments: str, before: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The program with nothing in its environment but what is given."""
    return subprocess.run(
        [sys.executable, "-B", "-m", "isoflop", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath} | environment,
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Its line, if it ended as bad input does."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("isoflop: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return lines[0]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results of a run"
    for seed in range(3):
        write_record(folder / "records", make_record(cell=f"cell{seed}", seed=seed))
    return folder


def test_no_file_can_grow(results: Path) -> None:
    """As on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    line = one_line(isoflop(results.parent, "report", results.name, before=limit))
    assert "File too large" in line
    assert not [path for path in results.rglob(".*")]  # no temporary file


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can make a small disk")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be made here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_keeps_what_was_there(small_disk: Path) -> None:
    path = write_record(small_disk / "run/records", make_record())
    (small_disk / "run/index.html").write_text("old")
    content = path.read_bytes()
    line = one_line(isoflop(small_disk, "report", "run"))
    assert "No space left on device" in line
    assert path.read_bytes() == content
    assert (small_disk / "run/index.html").read_text() == "old"


@as_root
def test_another_user_s_folder_is_read_only(results: Path) -> None:
    for folder in (results.parent, *results.parent.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/"):
            if not folder.is_relative_to("/tmp") or folder == Path("/tmp"):
                pytest.skip("another user cannot reach the tests' folder")
            folder.chmod(folder.stat().st_mode | 0o055)

    def become_nobody() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    done = isoflop(results.parent, "report", results.name, before=become_nobody)
    if "No module named" in done.stderr or "Permission denied: '" in done.stderr:
        pytest.skip("another user cannot read this Python")
    line = one_line(done)
    assert line.startswith(f"isoflop: {results.name}/")
    assert line.endswith("Permission denied")
    shown = isoflop(results.parent, "show", "records/x.json", before=become_nobody)
    assert one_line(shown) == "isoflop: records/x.json: no such file"


def test_a_run_without_a_home_in_an_ascii_locale_at_an_odd_path(tmp_path: Path) -> None:
    folder = tmp_path / "a run\u00e9 of \u4e2d 'mine'"
    folder.mkdir()
    (folder / "text.txt").write_text(corpus())
    (folder / "tiny.toml").write_text(SUITE)
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = isoflop(
        folder, "run", str(folder / "tiny.toml"), "--out", "r\u00e9sultats", COLUMNS="20",
        XDG_CACHE_HOME=str(tmp_path / "cache dir"), **ascii_only,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "r\u00e9sultats/records").glob("*.json"))) == 4
    assert (folder / "r\u00e9sultats/index.html").exists()


def test_an_endless_layer_is_a_finding_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "SECONDS", 3.0)
    (tmp_path / "endless.py").write_text("while True:\n    pass\n")
    outcome = run(tmp_path, "lint", "endless.py:Layer")
    assert outcome.crash == ""
    assert outcome.code in (1, 2)
    assert "endless.py" in outcome.out + outcome.err
    assert "was stopped after 3 s" in outcome.out + outcome.err
