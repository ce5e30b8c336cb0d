"""Multipliers under other FLOP conventions."""

import pytest

from isoflop.analysis.analyse import analyse
from isoflop.analysis.conventions import conventions
from isoflop.analysis.report.sections import convention_rows, markdown
from isoflop.analysis.simulate import simulate
from isoflop.results.record import Flops, Record

BUDGETS = (1e14, 4e14, 1.6e15)


def routed(record: Record, share: float) -> Record:
    """The record with a share of its FLOPs counted as routing."""
    forward = record.flops_per_token.forward
    routing = round(forward * share)
    parts = Flops(attention=0, ffn=forward - routing, routing=routing, head=0)
    return record.model_copy(update={"flops_per_token": parts})


@pytest.fixture
def records() -> list[Record]:
    shares = {"dense": 0.0, "moe": 0.0, "peer": 0.5}
    return [
        routed(record, shares[record.variant])
        for record in simulate({"dense": 1.0, "moe": 1.5, "peer": 1.2}, BUDGETS, noise=0.002)
    ]


def test_measured_flops_cost_what_they_cost(records: list[Record]) -> None:
    spent = [
        record.model_copy(update={"flops": 2 * record.flops, "planned_flops": record.flops})
        if record.variant == "moe"
        else record
        for record in records
    ]
    before, after = (
        {
            convention.name: convention.multipliers["moe"].value
            for convention in conventions(analyse(kind, samples=50).fits, kind)
        }
        for kind in (records, spent)
    )
    assert after["as counted"] == pytest.approx(before["as counted"] / 2, rel=0.02)
    # the planned FLOPs are fewer without attention's upper half, those beyond them are not
    assert after["causal attention"] < 0.98 * before["causal attention"] / 2


def test_as_counted_it_is_the_published_multiplier(records: list[Record]) -> None:
    analysis = analyse(records, samples=100)
    published = {s.variant: s.headline.value for s in analysis.standings if s.headline}
    first, *_ = conventions(analysis.fits, records)
    assert first.name == "as counted"
    for variant, value in first.multipliers.items():
        assert value.value == pytest.approx(published[variant], rel=0.01)
        assert value.low < value.value < value.high
    assert first.swapped == ()


def test_routing_at_no_cost_doubles_a_layer_that_spends_half_on_it(records: list[Record]) -> None:
    analysis = analyse(records, samples=100)
    columns = {column.name: column for column in conventions(analysis.fits, records)}
    counted, free = columns["as counted"], columns["routing free"]
    assert free.multipliers["moe"].value == pytest.approx(
        counted.multipliers["moe"].value, rel=0.02
    )
    ratio = free.multipliers["peer"].value / counted.multipliers["peer"].value
    assert ratio == pytest.approx(2, rel=0.1)
    assert free.swapped == (("peer", "moe"),)
    assert convention_rows(analysis)[-1] == ["order changed", "-", "-", "-", "peer before moe"]
    assert "## Other FLOP conventions" in markdown(analysis)
