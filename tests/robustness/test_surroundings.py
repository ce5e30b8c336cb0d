"""Odd surroundings: a read-only folder, a full disk, another user, no home, an ASCII locale, a path
with spaces and other letters, a layer file that never ends. The program works, or says why not in
one line."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
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
    assert not list(results.rglob(".*"))  # no temporary file


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


def test_a_read_only_folder_is_one_line(small_disk: Path) -> None:
    write_record(small_disk / "run/records", make_record())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    line = one_line(isoflop(small_disk, "report", "run"))
    assert line.startswith("isoflop: run/")
    assert line.endswith(": Read-only file system")


@as_root
def test_another_user_s_folder_is_read_only() -> None:
    def become_nobody() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    with tempfile.TemporaryDirectory() as name:  # the tests' own folder is closed to others
        folder = Path(name)
        folder.chmod(0o755)
        write_record(folder / "run/records", make_record())
        command = [sys.executable, "-c", f"open({str(ROOT / 'tox.ini')!r})"]
        try:
            subprocess.run(command, preexec_fn=become_nobody, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("another user can read neither this Python nor the project")
        line = one_line(isoflop(folder, "report", "run", before=become_nobody, MPLCONFIGDIR=name))
        assert line.startswith("isoflop: run/")
        assert line.endswith(": Permission denied")


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
