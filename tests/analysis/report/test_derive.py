"""From records on disk to generated files, and whether these are current."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.analysis.curves import AnalysisError
from isoflop.analysis.report import derive as reporting
from isoflop.analysis.report import figures
from isoflop.analysis.report.derive import report, stale
from isoflop.analysis.simulate import rate_sweep, simulate
from isoflop.results.record import RecordError, write_record

BLOCK = """before
<!-- isoflop:headline quick -->
<!-- /isoflop -->
<!-- isoflop:leaderboard quick -->
old
<!-- /isoflop -->
after
"""


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    directory = tmp_path / "quick"
    for record in simulate({"dense": 1.0, "peer": 1.5, "pkm": 0.7}, (1e14, 4e14, 1.6e15)):
        write_record(directory / "records", record)
    return directory


@pytest.fixture
def document(quick: Path) -> Path:
    path = quick.parent / "README.md"
    path.write_text(BLOCK)
    return path


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing all of them takes most of a report's time."""
    monkeypatch.setattr(figures, "FIGURES", {"frontier": figures.FIGURES["frontier"]})


def test_everything_is_written_and_then_current(quick: Path, document: Path) -> None:
    for record in rate_sweep("dense", (5e-4, 1e-3, 2e-3), 1e-3):
        write_record(quick / "tune", record)
    assert len(stale(quick, document)) > 10
    rows = report(quick, document)
    assert [row["variant"] for row in rows] == ["peer", "dense", "pkm"]
    assert stale(quick, document) == []
    for name in ("isoflop", "frontier", "multiplier", "multiplier_scale", "wall_clock", "holdout"):
        png, svg = quick / "figures" / f"{name}.png", quick / "figures" / f"{name}.svg"
        assert png.read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in svg.read_bytes()
    assert "learning_rate" in (quick / "index.html").read_text()
    assert "## Learning-rate sweeps" in (quick / "LEADERBOARD.md").read_text()
    text = document.read_text()
    assert "|    1 | peer    |" in text
    assert "\nAt 1.6e15 FLOPs, dense needs " in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- /isoflop -->\nafter\n")
    assert "old" not in text


@pytest.mark.usefixtures("one_figure")
def test_a_changed_record_or_file_is_stale(quick: Path, document: Path) -> None:
    report(quick, document)
    document.write_text(document.read_text().replace("| peer ", "| mine "))
    (quick / "figures" / "frontier.svg").unlink()
    assert set(stale(quick, document)) == {document, quick / "figures" / "frontier.svg"}
    report(quick, document)
    (quick / "LEADERBOARD.md").write_text("better numbers")
    assert stale(quick, document) == [quick / "LEADERBOARD.md"]
    report(quick, document)
    next((quick / "records").glob("*.json")).unlink()
    assert quick / "leaderboard.csv" in stale(quick, document)
    assert quick / "figures" / "frontier.png" in stale(quick, document)


@pytest.mark.usefixtures("one_figure")
def test_figures_of_other_library_versions_are_current_if_of_the_same_records(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "DRAWN_BY", "matplotlib 1.5 on Plan9")
    report(quick)
    monkeypatch.undo()
    monkeypatch.setattr(figures, "FIGURES", {"frontier": figures.FIGURES["frontier"]})
    assert stale(quick) == []
    next((quick / "records").glob("*.json")).unlink()
    assert quick / "figures" / "frontier.png" in stale(quick)


@pytest.mark.usefixtures("one_figure")
def test_a_figure_no_longer_drawn_is_stale_and_goes(quick: Path) -> None:
    report(quick)
    leftover = quick / "figures" / "granularity.png"
    leftover.write_bytes(b"of another day")
    assert stale(quick) == [leftover]
    report(quick)
    assert not leftover.exists()


@pytest.mark.usefixtures("one_figure")
def test_the_page_shows_the_suite_file(quick: Path) -> None:
    (quick / "suite.toml").write_text("budgets = [1e14]\n")
    report(quick)
    assert "<pre># quick/suite.toml\nbudgets = [1e14]\n</pre>" in (quick / "index.html").read_text()


@pytest.mark.usefixtures("one_figure")
def test_a_comparison_says_so_itself(quick: Path) -> None:
    report(quick)
    plain = {path: path.read_bytes() for path in quick.rglob("*.*") if path.is_file()}
    path = quick / "comparison.json"
    path.write_text(json.dumps({"variant": "pkm", "seeds": 1, "command": "isoflop compare <pkm>"}))
    assert path in stale(quick)  # it has no result yet
    report(quick)
    assert stale(quick) == []
    comparison = json.loads(path.read_text())
    assert (comparison["variant"], comparison["seeds"], comparison["verdict"]) == (
        "pkm",
        1,
        "worse",
    )
    sentence = comparison["sentence"]
    assert sentence.startswith("pkm has a compute multiplier of 0.69x [")
    assert "at 1.6e15 FLOPs (95% interval): significantly worse than dense. The time" in sentence
    board = (quick / "LEADERBOARD.md").read_text()
    assert board.startswith(f"# Comparison: pkm against dense, suite simulated\n\n{sentence}\n\n|")
    html = (quick / "index.html").read_text()
    assert "<h1>pkm against dense, suite simulated</h1>" in html
    assert f'class="headline">{sentence}</p>' in html
    assert "<pre>isoflop compare &lt;pkm&gt;</pre>" in html
    path.write_text(path.read_text().replace('"worse"', '"better"'))
    assert stale(quick) == [path]
    path.unlink()
    report(quick)
    assert all(file.read_bytes() == content for file, content in plain.items())


@pytest.mark.usefixtures("one_figure")
def test_the_margin_of_equivalence_is_an_option(tmp_path: Path) -> None:
    directory = tmp_path / "quick"
    for record in simulate({"dense": 1.0, "peer": 1.0}, (1e14, 4e14, 1.6e15)):
        write_record(directory / "records", record)
    assert {row["variant"]: row["verdict"] for row in report(directory)}["peer"] == "equivalent"
    assert "equivalent within 10%" in (directory / "LEADERBOARD.md").read_text()
    rows = {row["variant"]: row for row in report(directory, margin=0.005)}
    assert rows["peer"]["verdict"] == "inconclusive"
    assert "equivalent within 0.5%" in (directory / "LEADERBOARD.md").read_text()
    assert directory / "LEADERBOARD.md" in stale(directory)


@pytest.mark.usefixtures("one_figure")
def test_a_comparison_without_a_record_yet_is_reported(quick: Path) -> None:
    path = quick / "comparison.json"
    path.write_text(json.dumps({"variant": "Mine", "command": "isoflop compare mine.py"}))
    report(quick)
    assert "it has no record yet" in json.loads(path.read_text())["sentence"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "not JSON"), ("[1]", "variant: missing"), ('{"variant": "pkm"}', "command: missing")],
)
def test_a_broken_comparison_is_named(quick: Path, text: str, reason: str) -> None:
    (quick / "comparison.json").write_text(text)
    with pytest.raises(AnalysisError, match=rf"comparison\.json: {reason}"):
        report(quick)


@pytest.mark.usefixtures("one_figure")
def test_blocks_of_other_directories_are_left_alone(quick: Path, document: Path) -> None:
    text = BLOCK.replace("quick", "h100")
    document.write_text(text)
    report(quick, document)
    assert document.read_text() == text


@pytest.mark.usefixtures("one_figure")
def test_an_unknown_block_is_refused(quick: Path, document: Path) -> None:
    document.write_text(BLOCK.replace("leaderboard", "leadreboard"))
    with pytest.raises(AnalysisError, match=r"README\.md: isoflop:leadreboard: no such block"):
        report(quick, document)


@pytest.mark.usefixtures("one_figure")
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


def test_records_not_to_be_compared_name_their_directory(quick: Path) -> None:
    (record,) = simulate({"moe": 1.0}, (1e14,), octaves=(0.0,))
    write_record(quick / "records", record.model_copy(update={"validation_hash": "other"}))
    with pytest.raises(AnalysisError, match=f"^{quick}: records of different validation_hash"):
        report(quick)


def test_torch_is_never_imported() -> None:
    code = (
        "import sys, isoflop.analysis.report.derive;"
        "print(sorted({'torch', 'datasets', 'fvcore', 'pandas', 'scipy.stats'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_process_draws_the_same_bytes(quick: Path) -> None:
    report(quick)
    code = (
        "import sys, pathlib; from isoflop.analysis.report.derive import stale;"
        f"print(stale(pathlib.Path({str(quick)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
