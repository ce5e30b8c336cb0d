"""Wrong use of the command line is one line in the form of all errors; odd terminals are served."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from isoflop.cli.console import show
from isoflop.results.record import write_record
from tests.bench.cells import make_record
from tests.robustness.program import run

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            "rnu ci",
            "no verb 'rnu' (did you mean 'run'?); known: check, eval, compress, ",
        ),
        ("plan --devise h100", "plan: no option '--devise' (did you mean '--device'?); known: --"),
        ("report x --jso", "report: no option '--jso' (did you mean '--json'?); known: --json, "),
        ("--vresion", "no option '--vresion'; known: --help"),
        ("plan --seeds 0", "plan: --seeds: "),
        ("plan --seeds x", "plan: --seeds: "),
        ("plan --seeds", "plan: option '--seeds' requires an argument; see `isoflop plan --help`"),
        ("plan ci quick", "plan: got unexpected extra argument"),
        ("compare", "compare: missing argument "),
        ("run --json=3", "run: option '--json' does not take a value; see `isoflop run --help`"),
        ("run --time-limit 5x", "--time-limit: '5x' is no duration"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_two(arguments: str, line: str, tmp_path: Path) -> None:
    outcome = run(tmp_path, *arguments.split())
    assert (outcome.code, outcome.out, outcome.crash) == (2, "", "")
    assert outcome.err.startswith(f"isoflop: {line}")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"]])
def test_help_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    outcome = run(tmp_path, *arguments)
    assert (outcome.code, outcome.err, outcome.crash) == (0, "", "")
    assert "Usage: isoflop" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["report", "r\u00e9sultats"], 0, "r\\xe9sultats"),
        (["show", "r\u00e9sultats/records/cell.json"], 0, "4.5000 nats"),
        (["report", "fehlt-\u00fc"], 2, "isoflop: fehlt-\\xfc/records: no records here"),
        (["plan", "\u4e2d.toml"], 2, "isoflop: \\u4e2d.toml: No such file"),
    ],
)
def test_an_ascii_locale_shows_other_letters_as_escapes(
    arguments: list[str], code: int, text: str, tmp_path: Path
) -> None:
    record = make_record(cell="cell", variant="dens\u00e9")
    write_record(tmp_path / "r\u00e9sultats/records", record)
    done = subprocess.run(
        [sys.executable, "-m", "isoflop", *arguments],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONIOENCODING": "ascii:strict",  # what Python's own tolerance of this locale hides
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert text in (done.stdout + done.stderr).decode("ascii")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("columns", [1, 20, 40, 80])
def test_a_narrow_terminal_shows_every_entry(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")  # a dumb one has 80 columns
    show([{"variant": "moe-g4", "budget": 1e11, "note": "a [b] c"}], "Three columns", False)
    text = capsys.readouterr().out
    assert "moe-g4" in text
    if columns < 27:
        assert "note: a [b] c" in text
    else:
        plain = re.sub(r"\x1b\[[\d;]*m", "", text)
        assert max(map(cell_len, plain.splitlines())) <= columns


def test_foreign_text_in_a_table_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"variant": "a\x1b[2J\n::error::b\x9b"}], "title\x1b[31m", False)
    out = capsys.readouterr().out
    assert "a\\x1b[2J\\n::error::b\\x9b" in out
    assert not set("\x1b\x9b") & set(out)


@pytest.mark.parametrize("verb", ["report", "show"])
def test_verbs_run_on_a_terminal_of_twenty_columns(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    path = write_record(tmp_path / "runs/mine/records", make_record())
    outcome = run(tmp_path, *{"report": ("report",), "show": ("show", str(path))}[verb])
    assert (outcome.code, outcome.crash) == (0, "")
    assert "dense" in outcome.out
