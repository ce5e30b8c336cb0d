"""A folder with records of another setting is refused before training, and says which differs."""

from pathlib import Path
from typing import Any

import pytest

from isoflop.bench.data import Tokens, hash_of_windows, prepare
from isoflop.bench.other_settings import refuse_other_settings, refuse_other_text
from isoflop.bench.plan import Cell, plan, sweep_cells
from isoflop.bench.suite import Suite, SuiteError, to_toml
from isoflop.bench.train import describe
from isoflop.results.record import Record, load_records, write_record
from tests.bench.cells import TINY, make_record, tiny_suite

DENSE = TINY["variants"]["dense"]
TWO = {"a": {"width": 16, "depth": 2, "heads": 2}, "b": {"width": 32, "depth": 2, "heads": 2}}


def record_of(cell: Cell, validation_hash: str = "0123456789abcdef") -> Record:
    return describe(
        cell,
        {"status": "finished", "loss": 4.5, "bits_per_byte": 2.5},
        tokens_in_corpus=100_000,
        validation_hash=validation_hash,
        curve=[],
        measured=make_record().measured,
    )


def fill(folder: Path, suite: Suite, cells: list[Cell], **changes: Any) -> Path:
    (folder / "suite.toml").write_text(to_toml(suite))
    for cell in cells:
        write_record(folder / "records", record_of(cell, **changes))
    return folder / "records"


def refuse(suite: Suite, records: Path) -> None:
    refuse_other_settings(suite, plan(suite, "tiny.toml"), records, load_records(records))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"variants": {**TINY["variants"], "dense": DENSE | {"learning_rate": 0.02}}},
            "1 record is of another setting (learning_rate 0.01, now 0.02)",
        ),
        (
            {"variants": {"peer": TINY["variants"]["peer"] | {"table_rate": 2.0}}},
            "1 record is of another setting (table_rate 1.0, now 2.0)",
        ),
        (
            {"variants": {"dense": DENSE | {"options": {"ratio": 2.0}}}},
            "1 record is of another setting (options.ratio 4.0, now 2.0)",
        ),
        ({"placement": "all"}, '2 records are of another setting (placement "middle", now "all")'),
        (
            {"training": {**TINY["training"], "batch": 8}},
            "2 records are of another setting (batch 4, now 8)",
        ),
        (
            {"training": {**TINY["training"], "clip": 0.5, "beta2": 0.9}},
            "(training.beta2 0.95, now 0.9, training.clip 1.0, now 0.5)",
        ),
        (
            {"corpus": {**TINY["corpus"], "documents": 41}},
            "(corpus.documents 40, now 41)",
        ),
        (
            {"corpus": {**TINY["corpus"], "vocabulary": 310}, "seeds": [7]},
            "(corpus.vocabulary 300, now 310)",
        ),
        (
            {"sizes": {"s": {"width": 16, "depth": 2, "heads": 1}}},
            "(sizes.s.heads 2, now 1)",
        ),
    ],
)
def test_the_setting_that_differs_is_named(changes: dict, message: str, tmp_path: Path) -> None:
    before = tiny_suite()
    records = fill(tmp_path, before, plan(before, "tiny.toml"))
    refuse(before, records)
    with pytest.raises(SuiteError) as caught:
        refuse(tiny_suite(**changes), records)
    line = str(caught.value)
    assert line.startswith(f"{records}: ")
    assert message in line
    assert line.endswith("): move them away, or use --out with another folder")


def test_records_of_what_was_taken_out_or_added_may_stay(tmp_path: Path) -> None:
    budgets = [{"flops": 5e8}, {"flops": 1e9}]
    before = tiny_suite(budgets=budgets, seeds=[0, 1], sizes=TWO)
    records = fill(tmp_path, before, plan(before, "tiny.toml"))
    refuse(tiny_suite(sizes=TWO), records)
    refuse(tiny_suite(budgets=[{"flops": 2e9}], seeds=[5], sizes=TWO), records)
    refuse(tiny_suite(), tmp_path / "nowhere")


def test_an_edited_layer_is_another_setting(tmp_path: Path, here: None) -> None:
    path = tmp_path / "mine.py"
    text = "from isoflop.models import Dense\n\n\nclass Mine(Dense):\n    pass\n"
    path.write_text(text)
    suite = tiny_suite(variants={"mine": {"layer": f"{path}:Mine", "learning_rate": 1e-2}})
    records = fill(tmp_path, suite, plan(suite, "tiny.toml"))
    path.write_text(text + "# edited\n")
    with pytest.raises(SuiteError, match=r"of another setting \(the text of .*mine\.py\)"):
        refuse(suite, records)


def test_what_neither_record_nor_suite_tells_is_said_so(tmp_path: Path) -> None:
    suite = tiny_suite()
    records = fill(tmp_path, tiny_suite(seeds=[1]), plan(tiny_suite(seeds=[1]), "tiny.toml"))
    for path in records.glob("*.json"):
        path.write_text(path.read_text().replace('"seed": 1', '"seed": 0'))
    with pytest.raises(SuiteError, match="records do not hold, or another version of isoflop"):
        refuse(suite, records)


def test_a_sweep_may_be_extended(tmp_path: Path) -> None:
    def suite(factors: list[float], table_rate: float = 1.0, **training: Any) -> Suite:
        tune = {"sizes": ["s"], "budget": 5e8, "factors": factors}
        peer = TINY["variants"]["peer"] | {"table_rate": table_rate}
        variants = TINY["variants"] | {"peer": peer}
        return tiny_suite(tune=tune, training=TINY["training"] | training, variants=variants)

    cells = sweep_cells(suite([0.5, 1.0]), "tiny.toml")
    records = fill(tmp_path, suite([0.5, 1.0]), cells)

    def ask(suite: Suite) -> None:
        cells, stored = sweep_cells(suite, "tiny.toml"), load_records(records)
        refuse_other_settings(suite, cells, records, stored, sweep=True)

    ask(suite([1.0, 2.0]))
    ask(suite([1.0, 2.0], table_rate=3.0))
    with pytest.raises(SuiteError, match=r"4 records are of another setting \(training.clip 1.0"):
        ask(suite([1.0, 2.0], clip=0.5))


def test_records_of_other_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tiny_suite()
    cells = plan(suite, "tiny.toml")
    tokens: Tokens = prepare(suite.corpus)
    current = hash_of_windows(tokens.validation_windows(512, 16))
    records = fill(tmp_path, suite, cells, validation_hash=current)
    refuse_other_text(suite, cells, records, load_records(records), tokens)
    fill(tmp_path, suite, cells[:1])
    with pytest.raises(SuiteError, match="1 record is of other text: sotu has changed since"):
        refuse_other_text(suite, cells, records, load_records(records), tokens)
