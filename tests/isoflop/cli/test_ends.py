"""However the command line ends, it says so in one line."""

import errno
from pathlib import Path

import pytest

from isoflop.analysis.report.derive import report
from isoflop.analysis.report.markdown import escape
from isoflop.cli import main as cli
from isoflop.results import record
from isoflop.results.errors import printable
from isoflop.results.record import write_record
from tests.bench.cells import make_record


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "a/b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (IsADirectoryError(21, "Is a directory", "x\x1b[2J"), 2, "x\\x1b[2J: Is a directory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "invoke", fail)
    monkeypatch.setattr(cli, "_forget_output", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == f"isoflop: {line}\n"


def test_foreign_text_is_printable() -> None:
    assert printable("a\x1b[31m\n::error::b\x9b\u202e") == "a\\x1b[31m\\n::error::b\\x9b\\u202e"
    assert escape("[x](http://y) | <b>\x1b") == r"[x\](http\://y) \| \<b>\\x1b"


def test_a_full_disk_leaves_the_old_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path / "runs/tiny/records", make_record())
    readme = tmp_path / "README.md"
    text = "mine\n" * 2000 + "<!-- isoflop:headline runs/tiny -->\n<!-- /isoflop -->\nthe end\n"
    readme.write_text(text)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    report(tmp_path / "runs/tiny")
    monkeypatch.setattr(record.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        report(tmp_path / "runs/tiny", readme)
    assert readme.read_text() == text
    assert [path.name for path in tmp_path.glob(".*")] == []
