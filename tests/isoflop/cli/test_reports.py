import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop.analysis.laws.dense import CHINCHILLA
from isoflop.cli.main import app
from isoflop.cli.reports import draw_curve, find_record
from isoflop.results.record import RecordError, write_record
from tests.analysis.laws.grids import isoflop_grid
from tests.bench.cells import make_record

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def put(folder: str, cell: str, **changes: object) -> Path:
    return write_record(Path(folder), make_record(cell=cell, **changes))


def test_every_folder_of_records_is_searched_and_the_first_wins() -> None:
    folders = [
        "runs/a/records",
        "runs/a/tune",
        "results/a/records",
        "results/a/tune",
        "results/submissions/a/records",
        "results/submissions/a/tune",
    ]
    for folder in reversed(folders):
        put(folder, "abc123")
        assert find_record("abc") == Path(folder) / "abc123.json"


def test_a_path_is_taken_as_it_is() -> None:
    path = put("elsewhere", "abc123")
    assert find_record(str(path)) == path


def test_a_whole_id_is_not_ambiguous() -> None:
    path = put("runs/a/records", "abc")
    put("runs/a/records", "abcd")
    assert find_record("abc") == path


def test_an_ambiguous_beginning_lists_the_candidates() -> None:
    for number in range(3):
        put("runs/a/records", f"ab{number}")
    put("runs/b/records", "ab1")  # the same cell elsewhere is no other cell
    with pytest.raises(RecordError, match=r"^'ab' begins several cells: ab0, ab1, ab2$"):
        find_record("ab")
    for number in range(3, 10):
        put("runs/a/records", f"ab{number}")
    with pytest.raises(RecordError, match=r"ab0, .*, ab7 and 2 more$"):
        find_record("ab")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("zz", "isoflop: no record of a cell 'zz' in runs/*/records, runs/*/tune, results/*/"),
        ("*", "isoflop: no record of a cell '*' in "),
        ("nowhere/x.json", "isoflop: nowhere/x.json: no such file"),
        ("bad.json", "isoflop: bad.json: Invalid JSON"),
    ],
)
def test_what_cannot_be_shown_is_one_line(folder: Path, cell: str, message: str) -> None:
    put("runs/a/records", "abc123")
    Path("bad.json").write_text("{")
    done = subprocess.run(
        [sys.executable, "-m", "isoflop", "show", cell],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def show(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["show", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_essentials_are_there() -> None:
    put("runs/a/records", "abc123", curve=[(1, 6.0), (2, 4.0)])
    shown = show("abc")
    for text in (
        "dense, size s, 5e8 FLOPs, seed 0",
        "runs/a/records/abc123.json",
        "4.5000 nats per token",
        "2.5",
        "0.01 at its peak",
        "activation gelu, ratio 4.0",
        "attention 6,144",
        "95 MiB",
        "torch 2",
        "training loss, nats per token",
        "steps",
    ):
        assert text in shown
    assert "\x1b" not in shown  # no colour where there is no terminal
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_json_is_the_record_itself() -> None:
    path = put("runs/a/records", "abc123")
    assert json.loads(show("abc123", "--json")) == json.loads(path.read_text())


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_what_went_wrong_comes_first(status: str) -> None:
    message = "its process was ended by SIGKILL, [perhaps] for want of memory"
    put(
        "runs/a/records",
        "abc123",
        status=status,
        message=message,
        loss=None,
        bits_per_byte=None,
        curve=[],
    )
    shown = show("abc123")
    assert shown.splitlines()[2] == f"{status}: {message}"
    assert "no loss curve" in shown


def dots(drawing: str, lines: int) -> set[tuple[int, int]]:
    """(x, y) of every dot, from the top left."""
    drawn = set()
    for row, line in enumerate(drawing.splitlines()[1 : lines + 1]):
        for column, character in enumerate(line[7:]):
            for bit in range(8):
                if (ord(character) - 0x2800) >> bit & 1:
                    x, y = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)][bit]
                    drawn.add((2 * column + x, 4 * row + y))
    return drawn


def test_a_straight_line_is_drawn_from_corner_to_corner() -> None:
    drawing = draw_curve([(0, 8.0), (30, 0.0)], width=7 + 16, lines=8)
    assert dots(drawing, 8) == {(x, x) for x in range(32)}
    lines = drawing.splitlines()
    assert lines[0] == "training loss, nats per token"
    assert [line[:5] for line in lines[1:] if line[:5].strip()] == ["8.000", "4.000", "0.000"]
    assert lines[-1].split() == ["0", "steps", "30"]


def test_a_steep_curve_has_no_gaps() -> None:
    drawn = dots(draw_curve([(0, 9.0), (1, 1.0), (100, 1.0)], width=40, lines=6), 6)
    assert {y for _, y in drawn} == set(range(24))
    assert {x for x, _ in drawn} == set(range(2 * 33))


@pytest.mark.parametrize("width", [10, 80, 200])
def test_a_drawing_has_the_width_it_is_given(width: int) -> None:
    drawing = draw_curve([(10, 2.0), (20, 2.0)], width, 5)  # level: no division by nothing
    assert max(map(len, drawing.splitlines()[1:-1])) == width


def test_a_fit_to_isoflop_parabolas_states_their_bias() -> None:
    surface = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    grid = isoflop_grid(surface, np.geomspace(1e18, 1e21, 5), sizes=9, decades=1.5)
    rows = zip(grid["C"], grid["N"], CHINCHILLA.predict(surface, grid), strict=True)
    table = "\n".join(",".join(map(repr, map(float, row))) for row in rows)
    Path("runs.csv").write_text(f"C,N,L\n{table}\n")

    def fit(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["fit", "runs.csv", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    bias = json.loads(fit("--law", "chinchilla-isoflop", "--json"))["bias"]
    assert abs(bias["exponent"]) < 1e-6  # the grid is centred on the optimum
    assert len(bias["size_ratio"]) == 5
    assert min(bias["size_ratio"]) > 1.02  # but wide
    assert f"optimal sizes {bias['size_ratio'][0]:.3f} to " in fit("--law", "chinchilla-isoflop")
    assert "bias" not in json.loads(fit("--json"))
