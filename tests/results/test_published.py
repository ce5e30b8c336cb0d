"""The published records agree with the suite and the code that are here."""

from pathlib import Path

import pytest

from isoflop.bench.plan import plan
from isoflop.bench.submissions.verify import problems
from isoflop.bench.suite import load_suite
from isoflop.results.record import FLOP_CONVENTION, load_records

SUBMISSION = Path(__file__).parents[2] / "results" / "submissions" / "quick-baselines"
RECORDS = SUBMISSION / "records"


def test_what_can_be_recomputed_agrees() -> None:
    assert problems(SUBMISSION) == []


def test_every_cell_has_a_record_and_no_record_is_an_orphan() -> None:
    cells = {cell.id for cell in plan(load_suite("quick"), "quick")}
    assert {record.cell for record in load_records(RECORDS)} == cells


def test_stored_counts_are_those_of_the_code() -> None:
    records = {record.cell: record for record in load_records(RECORDS)}
    for cell in plan(load_suite("quick"), "quick"):
        record = records[cell.id]
        assert record.flops == cell.flops
        assert record.flops_per_token == cell.flops_per_token
        assert record.parameters == cell.parameters
        assert record.flop_convention == FLOP_CONVENTION
        assert record.flops == pytest.approx(record.budget, rel=0.01)


def test_losses_are_comparable_and_none_is_missing() -> None:
    records = load_records(RECORDS)
    assert {record.status for record in records} == {"finished"}
    assert len({record.validation_hash for record in records}) == 1
