"""What `plan` refuses, and `run` and `tune` in the same words, before any work."""

import gzip
import json
import random
import sys
from pathlib import Path

import pytest

from isoflop.bench import data
from isoflop.bench.plan import plan, sweep_cells
from isoflop.bench.suite import Corpus, load_suite
from isoflop.results.record import write_record
from tests.bench.test_other_settings import record_of
from tests.robustness.program import Outcome, run

WORDS = "the of a model loss scale data token layer width expert key value budget curve".split()
SUITE = """[corpus]
source = "docs.jsonl"
vocabulary = 300

[training]
context = 32
batch = 4
validation_tokens = 512

[sizes]
a = { width = 16, depth = 2, heads = 2 }
b = { width = 24, depth = 2, heads = 2 }

[[budgets]]
flops = 1e9

[transfer]
width = 32

[tune]
sizes = ["a"]
budget = 1e9

[variants]
dense = { layer = "dense", learning_rate = 8e-3 }
"""
EC = '{ layer = "moe_ec", learning_rate = 8e-3, options = { expansion = 8 } }'


@pytest.fixture(scope="module")
def texts() -> list[str]:
    r = random.Random(0)
    return [" ".join(r.choices(WORDS, k=r.randint(5, 40))) + "." for _ in range(3000)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> Path:
    """A corpus, and an empty cache."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "int.jsonl").write_text('{"text": 5}\n' * 60)
    return tmp_path


def call(folder: Path, verb: str, text: str, *options: str) -> Outcome:
    (folder / "suite.toml").write_text(text)
    outcome = run(folder, verb, "suite.toml", *options)
    assert not outcome.fault, outcome
    return outcome


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_good_suite_is_planned_with_its_epochs(folder: Path, encoding: str) -> None:
    (folder / "bom.toml").write_text(SUITE, encoding=encoding)
    outcome = run(folder, "plan", "bom.toml", "--json")
    rows = json.loads(outcome.out)
    assert len(rows) == 2
    assert all(row["epochs"] > 0 for row in rows)
    assert "tokenising docs.jsonl (" in outcome.err
    assert run(folder, "plan", "bom.toml", "--json").err == ""  # it is in the cache now


def test_the_same_text_in_every_form_gives_the_same_plan(folder: Path, texts: list[str]) -> None:
    (folder / "docs.json.gz").write_bytes(gzip.compress((folder / "docs.jsonl").read_bytes()))
    (folder / "shards").mkdir()
    for part in range(2):
        half = texts[:1500] if part == 0 else texts[1500:]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in half)
        (folder / "shards" / f"part-{part}.jsonl").write_text(lines)
    plans = [
        call(folder, "plan", SUITE.replace("docs.jsonl", source), "--json").out
        for source in ("docs.jsonl", "docs.json.gz", "shards", "shards/*.jsonl")
    ]
    assert len({json.dumps([r["epochs"] for r in json.loads(text)]) for text in plans}) == 1


REFUSED = {
    "no such file": (
        "docs.jsonl",
        "dosc.jsonl",
        "corpus.source: no such file dosc.jsonl (did you mean 'docs.jsonl'?)",
    ),
    "large vocabulary": ("= 300", "= 50257", "corpus.vocabulary: 50257 tokens are asked for"),
    "long validation": (
        "= 512",
        "= 5000000",
        "training.validation_tokens: the held-out text has ",
    ),
    "large batch": (
        "batch = 4",
        "batch = 40000",
        "training.batch: the training text has ",
    ),
    "large batch of a size": (
        "heads = 2 }\nb",
        "heads = 2, batch = 40000 }\nb",
        "sizes.a.batch: the training text has ",
    ),
    "one document": (
        'source = "docs.jsonl"',
        'source = "docs.jsonl"\ndocuments = 1',
        "corpus.source: docs.jsonl has too few documents to hold some out",
    ),
    "column": (
        'source = "docs.jsonl"',
        'source = "docs.jsonl"\ntext = "body"',
        "corpus.text: docs.jsonl: line 1: no column 'body'; it has text",
    ),
    "column of integers": (
        "docs.jsonl",
        "int.jsonl",
        "corpus.text: int.jsonl: line 1: column 'text' holds an integer, not text",
    ),
    "expert choice": (
        "dense = {",
        f"ec = {EC}\ndense = {{",
        "training.batch: variants.ec, size a: a batch of 4 sequences must be a multiple of "
        "expansion 8",
    ),
    "expert choice, micro batch": (
        "batch = 4\n",
        "batch = 8\nmicro_batch = 4\n",
        "training.micro_batch: variants.ec, size a: a batch of 4 sequences must be",
    ),
    "expert choice, evaluation": (
        "batch = 4\nvalidation_tokens = 512",
        "batch = 8\nvalidation_tokens = 640",
        "training.validation_tokens: variants.ec, size a: a batch of 4 sequences must be",
    ),
    "text for a number": ("batch = 4", 'batch = "4"', "training.batch: Input should be a valid in"),
    "true for a number": ("batch = 4", "batch = true", "training.batch: Input should be a valid i"),
    "a float": ("batch = 4", "batch = 4.0", "training.batch: Input should be a valid integer"),
    "inf": ("flops = 1e9", "flops = inf", "budgets.0.flops: "),
    "nan": ("= 8e-3", "= nan", "variants.dense.learning_rate: "),
    "inf rate": ("= 8e-3", "= inf", "variants.dense.learning_rate: "),
    "exponent": ("width = 32\n", "width = 32\nexponent = 1e308\n", "transfer.exponent: "),
    "huge budget": ("flops = 1e9", "flops = 1e300", "budgets.0.flops: "),
    "huge depth": ("depth = 2", "depth = 1000000000", "sizes.a.depth: Input should be less than"),
    "long integer": ("context = ", f"context = {'9' * 5000} # ", "not TOML"),
    "nested": ("[corpus]", f"x = {'[' * 5000}{']' * 5000}\n[corpus]", "not TOML: nested too"),
    "long name": ("[corpus]", f'name = "{"a" * 300}"\n[corpus]', "name: a name has 100 characters"),
    "no factors": ("budget = 1e9", "budget = 1e9\nfactors = []", "tune.factors: "),
}


def changed(name: str) -> tuple[str, str]:
    old, new, line = REFUSED[name]
    text = SUITE.replace(old, new)
    assert text != SUITE
    if name.startswith("large"):  # room for a step
        text = text.replace("1e9", "1e14")
    if "variants.ec" in line and "ec =" not in text:
        text = text.replace("dense = {", f"ec = {EC}\ndense = {{")
    return text, line


@pytest.mark.parametrize("name", REFUSED)
def test_plan_run_and_tune_refuse_in_the_same_line_before_any_work(name: str, folder: Path) -> None:
    text, line = changed(name)
    lines = set()
    for verb in ("plan", "run", "tune"):
        outcome = call(folder, verb, text)
        assert outcome.code == 2
        assert f"isoflop: suite.toml: {line}" in outcome.err.splitlines()[-1]
        lines.add(outcome.err.splitlines()[-1])
    assert len(lines) == 1
    assert not (folder / "runs").exists()


def test_flops_refuses_a_batch_that_the_layer_cannot_take(folder: Path) -> None:
    outcome = call(folder, "flops", changed("expert choice")[0])
    assert (outcome.code, "must be a multiple of expansion 8" in outcome.err) == (2, True)


def test_a_layer_of_a_file_is_asked_for_its_batch(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from isoflop.models import Dense\n\n\nclass Mine(Dense):\n    def forward(self, x):\n"
        "        if len(x) % 3:\n            raise ValueError('sequences come in threes')\n"
        "        return super().forward(x)\n"
    )
    text = SUITE.replace('layer = "dense"', 'layer = "mine.py:Mine"')
    outcome = call(folder, "plan", text)
    assert outcome.code == 2
    assert "suite.toml: training.batch: variants.dense, size a: sequences come in" in outcome.err


def test_a_plugin_that_miscounts_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoflop.models import LAYERS, Dense

    class Miscounting(Dense):
        name = "miscounting"

        def flops_per_token(self) -> int:
            return 5

    monkeypatch.setitem(LAYERS, "miscounting", Miscounting)
    outcome = call(folder, "plan", SUITE.replace('"dense"', '"miscounting"'))
    assert outcome.code == 2
    assert "suite.toml: variants.dense.layer: layer 'miscounting', width 16: ffn" in outcome.err


def test_a_hub_dataset_is_only_looked_up(folder: Path) -> None:
    outcome = call(folder, "plan", SUITE.replace("docs.jsonl", "allenai/c4"), "--json")
    assert [row["epochs"] for row in json.loads(outcome.out)] == [None, None]
    assert outcome.err == "epochs are not known: allenai/c4 is not in the cache yet\n"


def test_many_epochs_get_a_note(folder: Path) -> None:
    """1e9 FLOPs are a fraction of an epoch, 1e11 are many."""
    assert "note: " not in call(folder, "plan", SUITE).err
    outcome = call(folder, "plan", SUITE.replace("flops = 1e9", "flops = 1e11"), "--json")
    rows = json.loads(outcome.out)
    many = [row["epochs"] for row in rows if row["epochs"] > 4]
    assert many
    start = f"note: {len(many)} of 2 cells see their text more than 4 times, up to {max(many):.3g}"
    assert start in outcome.err
    assert "arXiv 2305.16264" in outcome.err


def test_the_cells_of_shipped_suites_are_what_they_were() -> None:
    """Their records are named so."""
    first = {
        name: [cell.id for cell in plan(load_suite(name), name)][::40]
        for name in ("ci", "quick", "h100", "h100-lunch", "paper", "post-training")
    }
    assert first == {
        "ci": ["28454735fe1c", "a429e06730b7"],
        "quick": ["0c728b0b0b21", "35f7f3a81744", "5086ed4bb6c5"],
        "h100": ["59e59b432f90", "a42a6136333b"],
        "h100-lunch": ["c2caaa17f6fe", "d79f8c0b3926", "55fd5c68832d"],
        "paper": ["32f875252e5f"],
        "post-training": ["920934d3a859", "31f4790ac06b"],
    }


def test_the_fingerprint_of_a_corpus_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens in a user's cache are named so."""
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("a\nb\n")
    corpora = (Corpus(source="t.txt"), Corpus(source="no/such"), load_suite("h100").corpus)
    names = [data._folder(corpus).name for corpus in corpora]
    assert names == ["9f6ef0441695473b", "3aaf22133daa1d7a", "5d036006ad497789"]


def test_without_the_unix_modules_a_suite_is_planned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("resource", "fcntl"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails, as on Windows
    assert call(folder, "plan", SUITE).code == 0


@pytest.mark.parametrize(("verb", "records"), [("run", "records"), ("tune", "tune")])
def test_records_of_another_setting_are_named_before_training(
    folder: Path, verb: str, records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "suite.toml").write_text(SUITE)
    suite = load_suite("suite.toml")
    cells = plan(suite, "") if verb == "run" else sweep_cells(suite, "")
    for cell in cells:
        write_record(folder / "runs" / "suite" / records, record_of(cell))
    text = SUITE.replace("batch = 4", "batch = 8")
    outcome = call(folder, verb, text)
    assert outcome.code == 2
    start = f"isoflop: runs/suite/{records}: {len(cells)} records are of another setting (batch 4,"
    assert outcome.err.startswith(start)
    assert not (folder / "runs" / "suite" / "suite.toml").exists()


def test_text_that_has_changed_since_is_named_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "suite.toml").write_text(SUITE)
    cell = plan(load_suite("suite.toml"), "")[0]
    write_record(folder / "runs" / "suite" / "records", record_of(cell))
    outcome = call(folder, "run", SUITE)
    assert outcome.code == 2
    assert "1 record is of other text: docs.jsonl has changed since" in outcome.err
