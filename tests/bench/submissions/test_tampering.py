"""Attacks on a leaderboard: whatever is on it was checked, and whatever is not is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isoflop.bench import isolate
from isoflop.bench.submissions import verify
from isoflop.bench.submissions.verify import hashes, problems, read_folder
from isoflop.bench.suite import load_suite, to_toml
from isoflop.cli.main import app
from isoflop.results.manifest import read_manifest, submissions
from isoflop.results.record import load_records, write_record
from isoflop.results.sources import sources

ROOT = Path(__file__).parents[3]
BASELINES = "quick-baselines"
PUBLISHED = ROOT / "results/submissions" / BASELINES


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """These attacks show without building the models of 68 cells, which takes seconds."""
    monkeypatch.setattr(verify, "recomputed", lambda folder: [])
    options = {name: e.options for name, e in read_manifest(PUBLISHED).variants.items()}
    monkeypatch.setattr(
        verify, "options_of", lambda folder: {n: options[n] for n in folder.suite.variants}
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's results, in which the baselines are submitted."""
    shutil.copytree(PUBLISHED, tmp_path / "results/submissions" / BASELINES)
    shutil.copytree(ROOT / "results/quick", tmp_path / "results/quick")
    monkeypatch.chdir(tmp_path)
    return Path("results")


def seal(folder: Path) -> None:
    """What a forger would do: a manifest that fits the changed files."""
    content = read_folder(folder)[0]
    options = {name: entry.options for name, entry in read_manifest(folder).variants.items()}
    manifest = verify.manifest_of(content, options)
    (folder / "submission.json").write_text(manifest.model_dump_json())


def evil(folder: Path) -> None:
    """Records of a layer that nobody trained."""
    for record in load_records(folder / "records"):
        if record.variant == "peer":
            changes = {"variant": "evil", "cell": f"e{record.cell[1:]}", "loss": 1.0}
            write_record(folder / "records", record.model_copy(update=changes))


def hidden(results: Path) -> None:
    folder = results / "submissions/.evil"
    shutil.copytree(results / "submissions" / BASELINES, folder)
    evil(folder)


def no_manifest(results: Path) -> None:
    hidden(results)
    (results / "submissions/.evil").rename(results / "submissions/evil")
    (results / "submissions/evil/submission.json").unlink()


def beside(kind: str) -> Callable[[Path], None]:
    def attack(results: Path) -> None:
        shutil.copytree(results / "submissions" / BASELINES / "records", results / "quick" / kind)
        evil(results / "quick")

    return attack


def linked(name: str) -> Callable[[Path], None]:
    """A part of the submission is elsewhere, where no hash is taken."""

    def attack(results: Path) -> None:
        path = results / "submissions" / BASELINES / name
        Path("elsewhere").mkdir()
        shutil.move(path, "elsewhere/moved")
        path.symlink_to(Path("elsewhere/moved").absolute())
        seal(results / "submissions" / BASELINES)

    return attack


def linked_submission(results: Path) -> None:
    shutil.move(results / "submissions" / BASELINES, "elsewhere")
    (results / "submissions" / BASELINES).symlink_to(Path("elsewhere").absolute())


def linked_board(results: Path) -> None:
    shutil.move(results / "quick", "elsewhere")
    (results / "quick").symlink_to(Path("elsewhere").absolute())


def one_record_linked(results: Path) -> None:
    folder = results / "submissions" / BASELINES / "records"
    linked(f"records/{min(os.listdir(folder))}")(results)


def without(keep: Callable[[float, str], bool]) -> Callable[[Path], None]:
    """Budgets or sizes go from the suite, with their records."""

    def attack(results: Path) -> None:
        folder = results / "submissions" / BASELINES
        suite = load_suite(str(folder / "suite.toml"))
        budgets = []
        for budget in suite.budgets:
            sizes = [s for s in budget.sizes or suite.sizes if keep(budget.flops, s)]
            if sizes:
                budgets.append(budget.model_copy(update={"sizes": sizes}))
        (folder / "suite.toml").write_text(to_toml(suite.model_copy(update={"budgets": budgets})))
        for record in load_records(folder / "records"):
            if not keep(record.budget, record.size.name):
                (folder / "records" / f"{record.cell}.json").unlink()
        seal(folder)

    return attack


def other_seed(at: int | None) -> Callable[[Path], None]:
    """Another seed everywhere, or at one budget."""

    def attack(results: Path) -> None:
        folder = results / "submissions" / BASELINES
        suite = load_suite(str(folder / "suite.toml"))
        budgets = [
            budget.model_copy(update={"seeds": [3] if number == at else None})
            for number, budget in enumerate(suite.budgets)
        ]
        changed = {"seeds": suite.seeds if at is not None else [3], "budgets": budgets}
        (folder / "suite.toml").write_text(to_toml(suite.model_copy(update=changed)))
        seal(folder)

    return attack


def hidden_record(results: Path) -> None:
    folder = results / "submissions" / BASELINES
    path = min((folder / "records").iterdir())
    shutil.copy(path, path.with_name(f".{path.name}"))
    seal(folder)


def fifo(results: Path) -> None:
    os.mkfifo(results / "submissions" / BASELINES / "records/0123456789ab.json")


def folder_of_records(results: Path) -> None:
    (results / "submissions" / BASELINES / "records/x.json").mkdir()


ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a hidden folder": (hidden, r"submissions/.evil: hidden, so on no leaderboard"),
    "no manifest": (no_manifest, r"submissions/evil: has no submission.json"),
    "records beside": (beside("records"), r"quick/records: counts nowhere"),
    "sweeps beside": (beside("tune"), r"quick/tune: counts nowhere"),
    "records linked": (linked("records"), r"records: a link"),
    "a record linked": (one_record_linked, r".json: a link"),
    "the suite linked": (linked("suite.toml"), r"suite.toml: a link"),
    "a submission linked": (linked_submission, r"quick-baselines: a link"),
    "a leaderboard linked": (linked_board, r"results/quick: a link"),
    "a budget dropped": (without(lambda budget, _: budget < 4e11), "lacks 7.5e+11 FLOPs"),
    "a size dropped": (without(lambda _, size: size != "xxs"), "lacks 1.5e+11 FLOPs at size xxs"),
    "another seed": (other_seed(None), "seeds: are [3] at 1.5e+11 FLOPs; those of the"),
    "another seed at a budget": (other_seed(1), "seeds: are [3] at 3.3e+11 FLOPs; those of the"),
    "a hidden record": (hidden_record, "json: hidden"),
    "a pipe": (fifo, "0123456789ab.json: no plain file"),
    "a folder as a record": (folder_of_records, "x.json: a folder among the records"),
}


@pytest.mark.usefixtures("not_built")
@pytest.mark.parametrize("name", ATTACKS)
def test_check_fails_and_names_every_attack(here: Path, name: str) -> None:
    attack, expected = ATTACKS[name]
    attack(here)
    done = CliRunner().invoke(app, ["check", "--no-execute"])
    assert done.exit_code == 1, done.output
    assert expected in done.stdout.replace("\\", ""), done.stdout
    if attack in (hidden, no_manifest) or "beside" in name:
        assert "evil" not in {record.variant for record in sources(here / "quick")[0]}


def test_the_published_baselines_agree(here: Path) -> None:
    assert problems(here / "submissions" / BASELINES) == []
    assert list(submissions(here / "submissions")) == [here / "submissions" / BASELINES]


ENDINGS = {
    "sys.exit(0)": "import sys; sys.exit(0)",
    "os._exit(0)": "import os; os._exit(0)",
    "a crash": "import os; os.kill(os.getpid(), 11)",
    "an exception": "raise RuntimeError('no')",
    "no end": "while True: pass",
}


@pytest.mark.usefixtures("not_built")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_layer_file_that_ends_the_process_fails(
    here: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Executed in a child with a time limit, of which the result counts and not the exit code."""
    monkeypatch.setattr(isolate, "SECONDS", 5.0)
    folder = here / "submissions" / BASELINES
    (folder / "layers").mkdir()
    (folder / "layers/mine.py").write_text(ENDINGS[ending] + "\n")
    suite = folder / "suite.toml"
    suite.write_text(suite.read_text().replace('layer = "peer"', 'layer = "layers/mine.py:Mine"'))
    seal(folder)
    lines = problems(folder)
    assert any("layers/mine.py" in line and "\n" not in line for line in lines), lines
    unexecuted = problems(folder, execute=False)
    assert len(unexecuted) < len(lines)
    assert verify.not_executed(folder) == [f"{folder}: layers/mine.py:Mine, variant peer"]


@pytest.mark.usefixtures("not_built")
def test_a_forged_count_shows_without_the_layer_too(here: Path) -> None:
    """Were the layer's file to forge the child's result, what needs no layer is still seen."""
    folder = here / "submissions" / BASELINES
    (folder / "layers").mkdir()
    (folder / "layers/mine.py").write_text("")
    suite = (folder / "suite.toml").read_text()
    (folder / "suite.toml").write_text(
        suite.replace('layer = "dense"', 'layer = "layers/mine.py:Mine"')
    )
    seal(folder)
    records = load_records(folder / "records")
    cell = next(record.cell for record in records if record.variant == "dense")
    path = folder / "records" / f"{cell}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"tokens": record["tokens"] + 64}))
    content = json.loads((folder / "submission.json").read_text())
    content["files"] = hashes(folder)
    (folder / "submission.json").write_text(json.dumps(content))
    assert any("tokens: says" in line for line in problems(folder, execute=False))
