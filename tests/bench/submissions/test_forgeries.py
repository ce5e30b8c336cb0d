"""A submission that was tampered with: each change has its line."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isoflop.analysis.report.derive import report
from isoflop.bench.submissions.verify import problems
from isoflop.cli.main import app
from isoflop.results.record import read_record, write_record
from tests.bench.submissions.tiny import edit, first, lower_the_loss, seal


def set_in_record(**changes: Any) -> Callable[[Path], None]:
    """Change fields, or those of a table as table__field, of the first record."""

    def change(record: dict[str, Any]) -> None:
        for name, value in changes.items():
            *tables, field = name.split("__")
            for table in tables:
                record = record[table]
            record[field] = value(record[field]) if callable(value) else value

    return lambda folder: edit(first(folder), change)


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
