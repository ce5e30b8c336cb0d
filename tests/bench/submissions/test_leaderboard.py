"""Leaderboards, comparisons and reruns of submissions."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isoflop.analysis.report.derive import report, stale
from isoflop.bench.compare import prepare
from isoflop.bench.plan import plan
from isoflop.bench.run import missing
from isoflop.bench.submissions.verify import problems
from isoflop.bench.suite import load_suite
from isoflop.cli.main import app
from isoflop.results.manifest import read_manifest
from isoflop.results.record import load_records, write_record
from isoflop.results.sources import sources
from tests.bench.submissions.tiny import LAYER, first, made_up


@pytest.mark.usefixtures("one_figure")
def test_the_leaderboard_is_rebuilt_from_submissions_alone(here: Path) -> None:
    """The same bytes as from the records where they were made, torch or no torch."""
    directory = Path("results/tiny")
    shutil.copytree("runs/tiny", "elsewhere/tiny")
    shutil.rmtree("runs")
    assert [row["variant"] for row in report(directory)] == ["mine", "dense"]
    report(Path("elsewhere/tiny"))
    for name in ("LEADERBOARD.md", "leaderboard.csv"):
        assert (directory / name).read_bytes() == Path("elsewhere/tiny", name).read_bytes()
    assert stale(directory) == []
    shown = (directory / "index.html").read_text()
    assert all(f"# {name}/suite.toml\n" in shown for name in ("base", "mine"))
    shutil.rmtree(here / "mine")
    assert directory / "LEADERBOARD.md" in stale(directory)
    assert [row["variant"] for row in report(directory)] == ["dense"]


def test_sources_of_a_leaderboard_are_submissions_alone(here: Path) -> None:
    records, tune = sources(Path("results/tiny"))
    assert (len(records), len(tune)) == (8 + 12, 6)
    assert [record.cell for record in records] == sorted(record.cell for record in records)
    assert sources(Path("results/other")) == ([], [])
    write_record(Path("results/tiny/records"), records[0].model_copy(update={"loss": 1.0}))
    assert sources(Path("results/tiny"))[0] == records
    shutil.rmtree(here)
    assert len(sources(Path("results/tiny"))[0]) == 1


@pytest.mark.usefixtures("one_figure")
def test_a_comparison_can_be_submitted(here: Path) -> None:
    """Its baseline comes from submissions, and its suite.toml says what the directory holds."""
    shutil.copy("runs/tiny/suite.toml", "tiny.toml")
    shutil.copytree("runs/tiny/user", "user")
    shutil.rmtree("runs")
    text = LAYER.replace("class Mine", "class Further")
    Path("further.py").write_text(text)
    comparison = prepare(f"{Path('further.py').absolute()}:Further", "tiny.toml", 0.05, 2)
    assert comparison.source == Path("results/submissions")
    comparison.collect()
    for cell in comparison.cells:
        write_record(comparison.records, made_up(cell))
    described = load_suite("runs/compare-Further/suite.toml")
    assert described.name == "tiny"
    assert list(described.variants) == ["dense", "mine", "Further"]
    assert described.variants["Further"].learning_rate == 0.05
    assert len(load_records(comparison.records)) == 8 + 12 + 16
    done = CliRunner().invoke(app, ["submit", "further", "--from", "runs/compare-Further"])
    assert done.exit_code == 0, done.output
    assert "Further for suite tiny; `isoflop report results/tiny`" in done.stdout
    assert list(read_manifest(here / "further").variants) == ["Further"]
    assert problems(here / "further") == []
    rows = report(Path("results/tiny"))
    assert {row["variant"]: row["seeds"] for row in rows} == {"Further": 2, "mine": 1, "dense": 1}


def test_a_reviewer_can_rerun_a_cell(here: Path) -> None:
    """With one record taken away, exactly its cell is missing."""
    shutil.copytree(here / "mine", "again")
    taken = first(Path("again"))
    taken.unlink()
    cells = plan(load_suite("again/suite.toml"), "")
    assert [f"{cell.id}.json" for cell in missing(cells, Path("again/records"))] == [taken.name]
