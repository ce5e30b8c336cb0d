import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isoflop.analysis.report import figures
from isoflop.analysis.report.derive import report, stale
from isoflop.bench.compare import prepare
from isoflop.bench.plan import Cell, plan, sweep_cells
from isoflop.bench.submissions import verify
from isoflop.bench.submissions.bundle import SubmissionError, submit
from isoflop.bench.submissions.verify import hashes, problems
from isoflop.bench.suite import SuiteError, load_suite
from isoflop.bench.train import describe
from isoflop.cli.main import app
from isoflop.results.manifest import read_manifest, submissions
from isoflop.results.record import Record, load_records, read_record, write_record
from isoflop.results.sources import sources
from tests.bench.cells import make_record

SUITE = """
name = "tiny"
[corpus]
vocabulary = 300
[training]
context = 16
batch = 4
validation_tokens = 512
[sizes]
a = { width = 8, depth = 1, heads = 1 }
b = { width = 16, depth = 1, heads = 1 }
c = { width = 24, depth = 1, heads = 1 }
d = { width = 32, depth = 1, heads = 1 }
[[budgets]]
flops = 1e9
[[budgets]]
flops = 2e9
[[budgets]]
flops = 4e9
variants = ["dense"]
[transfer]
width = 16
[tune]
sizes = ["b"]
budget = 1e9
factors = [0.3, 1.0, 3.0]
[variants]
dense = { layer = "dense", learning_rate = 1e-2 }
mine = { layer = "user/mine.py:Mine", learning_rate = 2e-2, options = { ratio = 2 } }
"""
LAYER = """
from dataclasses import dataclass

from torch import nn

from isoflop import Layer


class Mine(Layer):
    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        ratio: int = 4

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.up = nn.Linear(d_model, self.options.ratio * d_model, bias=False)
        self.down = nn.Linear(self.options.ratio * d_model, d_model, bias=False)

    def forward(self, x_BTD):
        return self.down(self.up(x_BTD).relu())

    def flops_per_token(self):
        return 4 * self.options.ratio * self.d_model**2
"""


def made_up(cell: Cell) -> Record:
    """The record of a cell, its loss of a known law; torch may spare itself the training."""
    record = make_record()
    gain = 1.5 if cell.variant == "mine" else 1.0
    distance = math.log(cell.parameters.active / 5000)
    loss = 4 * (gain * cell.budget / 1e9) ** -0.1 + 0.1 * distance**2 + 0.001 * (cell.steps % 7)
    speed = {"tokens_per_second": cell.tokens / record.measured.train_seconds}
    return describe(
        cell,
        {"status": "finished", "loss": loss, "bits_per_byte": loss / 2.5},
        tokens_in_corpus=100_000,
        validation_hash=record.validation_hash,
        curve=[(1, 5.0), (cell.steps, loss)],
        measured=record.measured.model_copy(update=speed),
    )


def make_results(folder: Path) -> None:
    """A results directory as `run` and `tune` leave one, beside the file of a user's layer."""
    (folder / "user").mkdir(parents=True)
    (folder / "user/mine.py").write_text(LAYER)
    (folder / "suite.toml").write_text(SUITE)
    suite = load_suite(str(folder / "suite.toml"))
    for kind, cells in (("records", plan(suite, "")), ("tune", sweep_cells(suite, ""))):
        for cell in cells:
            write_record(folder / kind, made_up(cell))


@pytest.fixture(scope="module", autouse=True)
def in_process() -> Iterator[None]:
    """A child imports torch anew, which takes seconds: `test_tampering` tries it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "stream", lambda function, *arguments: function(*arguments))
        yield


@pytest.fixture(scope="module")
def published(in_process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with results and two submissions; tests work on copies."""
    root = tmp_path_factory.mktemp("published")
    make_results(root / "runs/tiny")
    top = root / "results/submissions"
    submit("base", root / "runs/tiny", ["dense"], top)
    submit("mine", root / "runs/tiny", (), top)
    return root


@pytest.fixture
def here(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(published, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return Path("results/submissions")


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing all of them takes most of a report's time."""
    monkeypatch.setattr(figures, "FIGURES", {"frontier": figures.FIGURES["frontier"]})


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


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1))


def first(folder: Path, kind: str = "records") -> Path:
    return min((folder / kind).iterdir())


def seal(folder: Path) -> None:
    """What a forger would do: hashes that fit the changed files."""
    edit(folder / "submission.json", lambda m: m.update(files=hashes(folder)))


def set_in_record(**changes: Any) -> Callable[[Path], None]:
    """Change fields, or those of a table as table__field, of the first record."""

    def change(record: dict[str, Any]) -> None:
        for name, value in changes.items():
            *tables, field = name.split("__")
            for table in tables:
                record = record[table]
            record[field] = value(record[field]) if callable(value) else value

    return lambda folder: edit(first(folder), change)


def lower_the_loss(folder: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["loss"] -= 0.3
        record["bits_per_byte"] = record["loss"] / 2.5

    edit(first(folder), change)


def cheaper_file(folder: Path) -> None:
    path = folder / "layers/mine.py"
    path.write_text(path.read_text().replace("4 * self.options", "2 * self.options"))


def comment(folder: Path) -> None:
    path = folder / "layers/mine.py"
    path.write_text(path.read_text() + "# the same layer\n")


def other_rate(folder: Path) -> None:
    path = folder / "suite.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.02", "learning_rate = 0.03"))


def other_training(folder: Path) -> None:
    path = folder / "suite.toml"
    path.write_text(path.read_text().replace("clip = 1.0", "clip = 2.0"))


def copied(folder: Path) -> None:
    record = read_record(first(folder))
    write_record(folder / "records", record.model_copy(update={"cell": "0" * 12}))


def set_in_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "submission.json", change)


# What was done, whether the forger's hashes fit, and a part of each line that must come.
FORGERIES: dict[str, tuple[Callable[[Path], None], bool, list[str]]] = {
    "a loss": (lower_the_loss, False, ["json: changed: its SHA-256 is"]),
    "a loss alone": (
        set_in_record(loss=lambda loss: loss - 1e-6),
        True,
        ["loss over bits_per_byte is 2.5"],
    ),
    "a loss of nothing": (set_in_record(loss=0), True, ["loss: 0.0 of a finished cell"]),
    "a loss of one that failed": (
        set_in_record(status="failed"),
        True,
        [" of a cell that failed"],
    ),
    "bits per byte": (set_in_record(bits_per_byte=0.9), True, ["loss over bits_per_byte is"]),
    "a count": (
        set_in_record(parameters__layer_active=7),
        False,
        ["json: changed: its SHA-256", "layer_active: says 7, recomputed "],
    ),
    "FLOPs": (set_in_record(flops=10**9), True, ["json: flops: says 1000000000, recomputed "]),
    "a part of them": (
        set_in_record(flops_per_token__ffn=1),
        True,
        ["flops_per_token.ffn: says 1, recomputed ", "json: flops: says .*, recomputed "],
    ),
    "bytes": (set_in_record(layer_bytes_per_token=1), True, ["layer_bytes_per_token: says 1,"]),
    "steps": (
        set_in_record(steps=3),
        True,
        ["steps: says 3,", "curve: ends at", "tokens: says", "flops: says"],
    ),
    "epochs": (set_in_record(epochs=0.5), True, ["tokens over epochs is"]),
    "the budget": (
        set_in_record(budget=3e9),
        True,
        ["of no cell of suite.toml", "/records: no record of mine"],
    ),
    "the rate": (set_in_record(learning_rate=1.0), True, ["learning_rate: says 1.0, recomputed "]),
    "the convention": (
        set_in_record(flop_convention="halved attention"),
        True,
        [
            "flop_convention: says halved attention, recomputed full-attention",
            "says full-attention, 3x forward, recomputed",
        ],
    ),
    "the id": (
        set_in_record(cell="abc"),
        True,
        ["cell: says abc, unlike the file's name", "json: cell: says abc, recomputed "],
    ),
    "the seed": (
        set_in_record(seed=1),
        True,
        ["of no cell of suite.toml", "/records: no record of mine"],
    ),
    "the speed": (
        set_in_record(measured__tokens_per_second=1e9),
        True,
        ["measured.tokens_per_second: says 1000000000.0"],
    ),
    "the text": (
        set_in_record(validation_hash="other"),
        True,
        ["validation_hash: says ", "the others 0123456789abcdef"],
    ),
    "half a record": (
        lambda folder: first(folder).write_text("{"),
        True,
        ["Invalid JSON", "/records: no record of mine"],
    ),
    "one record less": (
        lambda folder: first(folder).unlink(),
        False,
        ["json: missing, yet submission.json lists it", "/records: no record of mine"],
    ),
    "one record less, sealed": (
        lambda folder: first(folder).unlink(),
        True,
        ["/records: no record of mine"],
    ),
    "one record more": (
        copied,
        False,
        ["json: submission.json does not list it", "already: mine", "says 0000"],
    ),
    "a sweep cut short": (
        lambda folder: first(folder, "tune").unlink(),
        True,
        ["/tune: no record of mine, size b"],
    ),
    "the layer's FLOPs": (cheaper_file, True, ["layers/mine.py:Mine: flops: "]),
    "a comment in the layer's file": (
        comment,
        False,
        ["layers/mine.py: changed", "records/", "tune/"],
    ),
    "a comment, sealed": (
        comment,
        True,
        ["recomputed [0-9a-f]+ .and so 7 more records", "and so 2 more records of mine"],
    ),
    "no layer file": (
        lambda folder: (folder / "layers/mine.py").unlink(),
        True,
        ["layers/mine.py:Mine: not a file of the submission"],
    ),
    "a layer file from elsewhere": (
        lambda folder: (folder / "suite.toml").write_text(
            (folder / "suite.toml").read_text().replace("layers/", "../../../runs/tiny/user/")
        ),
        True,
        ["user/mine.py:Mine: not a file of the submission"],
    ),
    "another rate in the suite": (
        other_rate,
        True,
        [
            "records/.* learning_rate: says .* .and so 7 more",
            "cell: says .* .and so 7 more",
            "tune/.* of no cell",
            "/tune: no record",
            "submission.json: variants: says",
        ],
    ),
    "other training in the suite": (
        other_training,
        True,
        ["cell: says .* .and so 7", "cell: says .* .and so 2", "suite.toml: training: not as in"],
    ),
    "the suite swapped": (
        lambda folder: shutil.copy(folder.parent / "base/suite.toml", folder / "suite.toml"),
        False,
        ["suite.toml: changed", "of no cell", "no record of dense", "variants: says"],
    ),
    "no suite": (
        lambda folder: (folder / "suite.toml").unlink(),
        False,
        ["suite.toml: missing", "suite.toml: No such file"],
    ),
    "a stray file": (
        lambda folder: (folder / "notes.txt").write_text("hello"),
        False,
        ["notes.txt: submission.json does not list it"],
    ),
    "versions": (
        set_in_manifest(lambda m: m.update(versions={"torch": ["3"]})),
        False,
        ["versions: says .'torch': .'3'.., recomputed"],
    ),
    "devices": (set_in_manifest(lambda m: m.update(devices=["h100"])), False, ["devices: says "]),
    "the hash of the text": (
        set_in_manifest(lambda m: m.update(validation_hash="x")),
        False,
        ["submission.json: validation_hash: says x, recomputed", "'x', yet", "the others x"],
    ),
    "the name": (set_in_manifest(lambda m: m.update(name="best")), False, ["name: says best"]),
    "the manifest's schema": (
        set_in_manifest(lambda m: m.update(schema_version=2)),
        False,
        ["submission.json: schema_version: Input should be 1"],
    ),
    "no manifest": (
        lambda folder: (folder / "submission.json").unlink(),
        False,
        ["submission.json: No such file"],
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_every_forgery_has_its_line(here: Path, what: str) -> None:
    forge, sealed, expected = FORGERIES[what]
    folder = here / "mine"
    forge(folder)
    if sealed:
        seal(folder)
    lines = problems(folder)
    assert all("\n" not in line and "results/submissions" in line for line in lines)
    for part in expected:
        assert any(re.search(part, line) for line in lines), (part, lines)
    others = [line for line in lines if not any(re.search(part, line) for part in expected)]
    assert not others  # nothing that is right is complained of


@pytest.mark.usefixtures("one_figure")
def test_check_prints_the_lines_and_ends_with_one(here: Path) -> None:
    shutil.rmtree("runs")
    report(Path("results/tiny"))
    done = CliRunner().invoke(app, ["check"])
    assert done.exit_code == 0, done.output
    assert "ok   submissions: every hash and count of results/submissions/base" in done.stdout
    assert "ok   generated files: " in done.stdout
    lower_the_loss(here / "mine")
    done = CliRunner().invoke(app, ["check"])
    assert done.exit_code == 1
    assert "FAIL submissions: 1 disagreements" in done.stdout
    assert f"     {first(here / 'mine')}: changed" in done.stdout
    done = CliRunner().invoke(app, ["check", "results/submissions/base"])
    assert done.exit_code == 0, done.output
    (here / "base/submission.json").unlink()
    assert "base: has no submission.json, so" in CliRunner().invoke(app, ["check"]).stdout


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
    from isoflop.bench.run import missing

    shutil.copytree(here / "mine", "again")
    taken = first(Path("again"))
    taken.unlink()
    cells = plan(load_suite("again/suite.toml"), "")
    assert [f"{cell.id}.json" for cell in missing(cells, Path("again/records"))] == [taken.name]
