"""The records of an ablation are submitted and checked like others."""

import shutil
import tomllib
from pathlib import Path

import pytest
import tomli_w

from isoflop.bench.plan import plan
from isoflop.bench.submissions.bundle import SubmissionError, submit
from isoflop.bench.submissions.verify import problems
from isoflop.bench.suite import load_suite
from isoflop.results.manifest import read_manifest
from isoflop.results.record import load_records, write_record
from tests.bench.submissions.tiny import LAYER, SUITE, made_up, seal

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
    assert len(load_records(whole / "records")) == 174
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
    with pytest.raises(SubmissionError, match="1 of 174 cells have no record yet"):
        submit("again", trained, top=tmp_path / "others")


def test_an_axis_that_the_published_suite_has_is_missed(trained: Path, tmp_path: Path) -> None:
    suite = trained / "suite.toml"
    table = tomllib.loads(suite.read_text())
    del table["axes"]["placement"]
    suite.write_text(tomli_w.dumps(table))
    for record in load_records(trained / "records"):
        if record.ablation and record.ablation.axis == "placement":
            (trained / "records" / f"{record.cell}.json").unlink()
    with pytest.raises(SubmissionError, match=r"axes\.placement\.\w+: not as in the published"):
        submit("mine", trained, top=tmp_path / "submissions")


AXIS = """
[axes.text]
other = { corpus = { vocabulary = 280 }, variants = ["dense"] }
"""


@pytest.mark.usefixtures("in_process")
def test_records_of_a_choice_of_other_text_agree_with_each_other(tmp_path: Path) -> None:
    """Their held-out text, its bytes and the length of the training text are not the suite's."""
    source = tmp_path / "runs/tiny"
    (source / "user").mkdir(parents=True)
    (source / "user/mine.py").write_text(LAYER)
    (source / "suite.toml").write_text(SUITE + AXIS)
    for cell in plan(load_suite(str(source / "suite.toml")), ""):
        record = made_up(cell)
        if cell.ablation:
            assert cell.corpus.vocabulary == 280
            assert record.loss is not None
            changes = {"validation_hash": "other", "epochs": 2 * record.epochs}
            record = record.model_copy(update=changes | {"bits_per_byte": record.loss / 3})
        write_record(source / "records", record)
    folder = submit("mine", source, ["dense"], tmp_path / "submissions")
    assert problems(folder) == []
    assert read_manifest(folder).validation_hash == "0123456789abcdef"
    changed = next(r for r in load_records(folder / "records") if r.ablation)
    for change, said in (
        ({"validation_hash": "third"}, "validation_hash: says"),
        ({"epochs": 3 * changed.epochs}, "tokens over epochs is"),
    ):
        write_record(folder / "records", changed.model_copy(update=change))
        seal(folder)
        lines = problems(folder)
        assert any(said in line for line in lines), lines
