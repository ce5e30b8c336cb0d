"""The records of an ablation are submitted and checked like others."""

import shutil
from pathlib import Path

import pytest

from isoflop.bench.submissions.bundle import SubmissionError, submit
from isoflop.bench.submissions.verify import problems
from isoflop.results.manifest import read_manifest
from isoflop.results.record import load_records

PUBLISHED = Path(__file__).parents[3] / "results/submissions/robustness-baselines"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What `run` leaves."""
    source = tmp_path / "runs/robustness"
    shutil.copytree(PUBLISHED / "records", source / "records")
    shutil.copyfile(PUBLISHED / "suite.toml", source / "suite.toml")
    return source


def test_choices_travel_with_their_variants(trained: Path, tmp_path: Path) -> None:
    top = tmp_path / "submissions"
    whole = submit("whole", trained, top=top)
    assert set(read_manifest(whole).variants) == {"dense", "moe-g1", "moe-g4", "pkm", "peer"}
    assert len(load_records(whole / "records")) == 159
    shutil.rmtree(whole)
    part = submit("part", trained, ["dense", "peer"], top=top)
    assert {record.of_variant for record in load_records(part / "records")} == {"dense", "peer"}
    assert problems(part) == []


def test_a_choice_that_is_missing_is_named(trained: Path, tmp_path: Path) -> None:
    folder = submit("mine", trained, top=tmp_path / "submissions")
    record = next(
        record
        for record in load_records(folder / "records")
        if record.ablation and (record.of_variant, record.ablation.choice) == ("peer", "last")
    )
    (folder / "records" / f"{record.cell}.json").unlink()
    (line,) = [line for line in problems(folder) if "no record of" in line]
    assert "no record of peer placement=last, size s" in line
    (trained / "records" / f"{record.cell}.json").unlink()
    with pytest.raises(SubmissionError, match="1 of 159 cells have no record yet"):
        submit("again", trained, top=tmp_path / "others")
