"""From records on disk to derived files, and back to whether they are current."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.isoflop import AnalysisError
from analysis.report import report, stale
from analysis.simulate import simulate
from bench.record import RecordError, write_record

BLOCK = "before\n<!-- isoflop:leaderboard quick -->\nold\n<!-- /isoflop -->\nafter\n"


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    directory = tmp_path / "quick"
    for record in simulate({"dense": 1.0, "peer": 1.5, "pkm": 0.7}, (1e14, 4e14, 1.6e15)):
        write_record(directory / "records", record)
    return directory


def test_everything_is_written_and_then_current(quick: Path) -> None:
    document = quick.parent / "README.md"
    document.write_text(BLOCK)
    assert len(stale(quick, document)) > 4
    rows = report(quick, document)
    assert [row["variant"] for row in rows] == ["peer", "dense", "pkm"]
    assert stale(quick, document) == []
    for name in ("isoflop", "frontier", "multiplier", "wall_clock"):
        png, svg = quick / "figures" / f"{name}.png", quick / "figures" / f"{name}.svg"
        assert png.read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in svg.read_bytes()
    text = document.read_text()
    assert "| 1 | **peer** |" in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- /isoflop -->\nafter\n")
    assert "old" not in text


def test_a_changed_record_or_file_is_stale(quick: Path) -> None:
    document = quick.parent / "README.md"
    document.write_text(BLOCK)
    report(quick, document)
    document.write_text(document.read_text().replace("**peer**", "**mine**"))
    (quick / "figures" / "isoflop.svg").unlink()
    assert set(stale(quick, document)) == {document, quick / "figures" / "isoflop.svg"}
    report(quick, document)
    (quick / "LEADERBOARD.md").write_text("better numbers")
    assert stale(quick, document) == [quick / "LEADERBOARD.md"]
    report(quick, document)
    next((quick / "records").glob("*.json")).unlink()
    assert quick / "leaderboard.csv" in stale(quick, document)


def test_blocks_of_other_directories_are_left_alone(quick: Path) -> None:
    document = quick.parent / "README.md"
    other = BLOCK.replace("quick", "h100")
    document.write_text(other)
    report(quick, document)
    assert document.read_text() == other


def test_an_unknown_block_is_refused(quick: Path) -> None:
    document = quick.parent / "README.md"
    document.write_text(BLOCK.replace("leaderboard", "leadreboard"))
    with pytest.raises(AnalysisError, match=r"README\.md: isoflop:leadreboard: no such block"):
        report(quick, document)


def test_the_document_may_be_missing(quick: Path) -> None:
    report(quick, quick.parent / "README.md")
    assert not (quick.parent / "README.md").exists()


def test_no_records_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="no records here"):
        report(tmp_path)


def test_a_broken_record_is_named(quick: Path) -> None:
    (quick / "records" / "0.json").write_text("{}")
    with pytest.raises(RecordError, match=r"0\.json"):
        report(quick)


def test_the_csv_holds_the_rows(quick: Path) -> None:
    rows = report(quick)
    with (quick / "leaderboard.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["variant"] for row in read] == [row["variant"] for row in rows]
    assert float(read[0]["multiplier"]) == rows[0]["multiplier"]
    assert read[2]["rank"] == "3"


def test_torch_is_never_imported() -> None:
    code = (
        "import sys, analysis.report;"
        "print(sorted({'torch', 'datasets', 'fvcore', 'pandas'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_another_process_draws_the_same_bytes(quick: Path) -> None:
    report(quick)
    code = (
        "import sys, pathlib; from analysis.report import stale;"
        f"print(stale(pathlib.Path({str(quick)!r})))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert found.stdout.strip() == "[]"
