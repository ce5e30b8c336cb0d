"""The published records agree with the suites and the code that are here."""

from functools import cache
from pathlib import Path

import pytest

from isoflop.bench.plan import plan
from isoflop.bench.seeds import with_seeds
from isoflop.bench.submissions.verify import problems
from isoflop.bench.suite import load_suite
from isoflop.results.manifest import submissions
from isoflop.results.record import FLOP_CONVENTION, Record, load_records

SUBMISSIONS = Path(__file__).parents[2] / "results" / "submissions"
each_suite = pytest.mark.parametrize("suite", ["quick", "cpu"])


@cache
def published(suite: str) -> list[Record]:
    return [
        record
        for folder in submissions(SUBMISSIONS, suite)
        for record in load_records(folder / "records")
    ]


@each_suite
def test_what_can_be_recomputed_agrees(suite: str) -> None:
    folders = list(submissions(SUBMISSIONS, suite))
    assert folders
    assert [line for folder in folders for line in problems(folder)] == []


@each_suite
def test_every_cell_has_a_record_whose_counts_are_those_of_the_code(suite: str) -> None:
    described = load_suite(suite)
    shipped = [record for record in published(suite) if record.variant in described.variants]
    records = {record.cell: record for record in shipped}
    seeds = sorted({record.seed for record in shipped})
    cells = {cell.id: cell for cell in plan(with_seeds(described, seeds), suite)}
    assert {cell.id for cell in plan(described, suite)} <= records.keys() <= cells.keys()
    for name, cell in ((name, cells[name]) for name in records):
        record = records[name]
        assert (record.planned_flops or record.flops) == cell.flops
        assert record.flops_per_token == cell.flops_per_token
        assert record.parameters == cell.parameters
        assert record.flop_convention == FLOP_CONVENTION
        assert cell.flops == pytest.approx(record.budget, rel=0.01)


@each_suite
def test_losses_are_comparable_and_none_is_missing(suite: str) -> None:
    records = published(suite)
    assert {record.status for record in records} == {"finished"}
    assert len({record.validation_hash for record in records}) == 1
