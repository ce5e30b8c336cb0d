"""What a submission holds, and what cannot be submitted."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from isoflop.bench.plan import plan
from isoflop.bench.seeds import with_seeds
from isoflop.bench.submissions.bundle import SubmissionError, submit
from isoflop.bench.submissions.verify import problems
from isoflop.bench.suite import SuiteError, load_suite, to_toml
from isoflop.results.manifest import read_manifest, submissions
from isoflop.results.record import load_records, read_record, write_record
from tests.bench.submissions.tiny import LAYER, made_up


def test_a_submission_holds_what_it_says_and_agrees(here: Path) -> None:
    folder = here / "mine"
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.suite) == ("mine", "tiny")
    assert manifest.variants.keys() == {"mine"}
    assert manifest.variants["mine"].layer == "layers/mine.py:Mine"
    assert manifest.variants["mine"].options == {"ratio": 2}
    assert manifest.devices == ["test"]
    assert manifest.versions == {"torch": ["2"]}
    assert manifest.validation_hash == "0123456789abcdef"
    assert (folder / "layers/mine.py").read_text() == LAYER
    for kind, count in (("records", 8), ("tune", 3)):
        paths = list((folder / kind).iterdir())
        assert len(paths) == count
        assert all(p.read_bytes() == Path("runs/tiny", kind, p.name).read_bytes() for p in paths)
    assert problems(folder) == problems(here / "base") == []
    assert not list(here.rglob("__pycache__"))


def test_its_suite_is_the_plan_of_its_records_wherever_it_is_read(here: Path) -> None:
    for name in ("mine", "base"):
        cells = plan(load_suite(str(here.absolute() / name / "suite.toml")), "")
        assert {f"{cell.id}.json" for cell in cells} == set(os.listdir(here / name / "records"))
    shutil.rmtree("runs")
    assert problems(here / "mine") == []


def refused(match: str, *arguments: Any) -> None:
    """Nothing is submitted, and nothing is left behind."""
    before = sorted(Path("results").rglob("*"))
    with pytest.raises((SubmissionError, SuiteError), match=match) as caught:
        submit(*arguments)
    assert "\n" not in str(caught.value)
    assert sorted(Path("results").rglob("*")) == before


def test_what_cannot_be_submitted_is_refused_and_nothing_is_written(here: Path) -> None:
    runs = Path("runs/tiny")
    refused(r"results/submissions/mine exists already", "mine", runs)
    refused(r"the name of a submission", "../mine", runs)
    refused(r"nowhere/records: no records here", "new", Path("nowhere"))
    refused(r"submissions has every variant of it already", "new", runs)
    refused(r"submissions/mine has variant mine of suite tiny already", "new", runs, ["mine"])
    refused(r"no records of a variant 'best' .* it has them of: dense, mine", "new", runs, ["best"])


@pytest.fixture
def unsubmitted(here: Path) -> Path:
    """With the baseline alone submitted."""
    shutil.rmtree(here / "mine")
    return Path("runs/tiny")


def test_an_incomplete_variant_is_refused(unsubmitted: Path) -> None:
    mine = [r for r in load_records(unsubmitted / "records") if r.variant == "mine"]
    for record in mine[:2]:
        (unsubmitted / "records" / f"{record.cell}.json").unlink()
    refused(r"2 of 8 cells have no record yet", "mine", unsubmitted)


def test_chosen_seeds_are_refused(unsubmitted: Path) -> None:
    """Seeds are the suite's, then the least others: nobody may pick the lucky ones."""
    suite = load_suite(str(unsubmitted / "suite.toml"))
    for cell in plan(suite.model_copy(update={"seeds": [5]}), ""):
        if cell.variant == "mine":
            write_record(unsubmitted / "records", made_up(cell))
    refused(r"8 records, such as .* are of no cell", "mine", unsubmitted)


def test_further_seeds_are_taken(unsubmitted: Path) -> None:
    suite = load_suite(str(unsubmitted / "suite.toml"))
    for cell in plan(suite.model_copy(update={"seeds": [1]}), ""):
        if cell.variant == "mine":
            write_record(unsubmitted / "records", made_up(cell))
    folder = submit("mine", unsubmitted)
    assert len(os.listdir(folder / "records")) == 16
    assert load_suite(str(folder / "suite.toml")).seeds == [0, 1]


def test_seeds_of_a_budget_are_taken_with_it(unsubmitted: Path) -> None:
    """Those of the suite where there are no others; more at every budget, or at none."""
    file = unsubmitted / "suite.toml"
    suite = load_suite(str(file))
    seeded = [
        b.model_copy(update={"seeds": [0, 1]} if b.flops == 1e9 else {}) for b in suite.budgets
    ]
    file.write_text(to_toml(suite.model_copy(update={"budgets": seeded})))

    def train(seeds: list[int], budgets: set[float]) -> None:
        for cell in plan(with_seeds(load_suite(str(file)), seeds), ""):
            if cell.variant == "mine" and cell.budget in budgets:
                write_record(unsubmitted / "records", made_up(cell))

    refused(r"4 of 12 cells have no record yet", "mine", unsubmitted)
    train([1], {1e9})
    folder = submit("mine", unsubmitted)
    submitted = load_suite(str(folder / "suite.toml"))
    assert [(b.flops, submitted.seeds_at(b)) for b in submitted.budgets] == [
        (1e9, [0, 1]),
        (2e9, [0]),
    ]
    assert problems(folder) == []
    shutil.rmtree(folder)
    train([2], {1e9})
    refused(r"8 of 24 cells have no record yet", "mine", unsubmitted)
    train([1, 2], {2e9})
    folder = submit("mine", unsubmitted)
    assert len(os.listdir(folder / "records")) == 24
    assert problems(folder) == []


def test_a_layer_file_that_is_gone_or_edited_is_refused(unsubmitted: Path) -> None:
    path = unsubmitted / "user/mine.py"
    path.write_text(LAYER + "# edited\n")
    refused(r"8 records, such as .*json of mine, are of no cell", "mine", unsubmitted)
    path.unlink()
    refused(r"variants.mine.layer: no file user/mine.py", "mine", unsubmitted)


def test_records_of_other_text_are_refused(unsubmitted: Path) -> None:
    for kind in ("records", "tune"):
        for record in load_records(unsubmitted / kind):
            other = record.model_copy(update={"validation_hash": "other"})
            write_record(unsubmitted / kind, other)
    refused(r"validation_hash: 'other', yet '0123456789abcdef' in .*base", "mine", unsubmitted)


def test_half_a_sweep_is_refused_and_none_is_taken(unsubmitted: Path) -> None:
    mine = [r for r in load_records(unsubmitted / "tune") if r.variant == "mine"]
    (unsubmitted / "tune" / f"{mine[0].cell}.json").unlink()
    refused(r"tune: 1 of 3 cells have no record yet", "mine", unsubmitted)
    shutil.rmtree(unsubmitted / "tune")
    assert not (submit("mine", unsubmitted) / "tune").exists()


def test_cells_that_did_not_finish_are_submitted_too(unsubmitted: Path) -> None:
    record = next(r for r in load_records(unsubmitted / "records") if r.variant == "mine")
    measured = record.measured.model_copy(update={"tokens_per_second": None})
    changes = {"status": "diverged", "message": "training loss 9", "loss": None}
    changes |= {"bits_per_byte": None, "curve": record.curve[:1], "measured": measured}
    write_record(unsubmitted / "records", record.model_copy(update=changes))
    folder = submit("mine", unsubmitted)
    assert read_record(folder / "records" / f"{record.cell}.json").status == "diverged"
    assert problems(folder) == []


def test_a_kill_leaves_nothing_that_counts(
    unsubmitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last moment, and with no chance to clean up."""

    class Killed(BaseException):
        pass

    def kill(self: Path, target: Path) -> None:
        shutil.copytree(self.parent, f"{self.parent}-left")
        raise Killed

    monkeypatch.setattr(Path, "rename", kill)
    with pytest.raises(Killed):
        submit("mine", unsubmitted)
    top = Path("results/submissions")
    assert sorted(path.name[:6] for path in top.iterdir()) == [".mine.", "base"]
    assert [folder.name for folder in submissions(top)] == ["base"]
    assert problems(top / "base") == []
    monkeypatch.undo()
