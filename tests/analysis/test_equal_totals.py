"""Losses at equal total parameters."""

import numpy as np
import pytest

from isoflop.analysis.analyse import analyse
from isoflop.analysis.equal_totals import EqualTotals, equal_totals
from isoflop.analysis.report.equal_total_table import rows
from isoflop.analysis.report.page import page
from isoflop.analysis.report.sections import markdown
from isoflop.analysis.simulate import loss, simulate
from isoflop.results.record import Record

BUDGETS = (1e14, 4e14, 1.6e15)
TRUTH = {"dense": 1.0, "moe": 1.5, "peer": 1.2, "pkm": 1.1}
STORED = {"dense": 0, "moe": 4, "peer": 8, "pkm": 200}  # over the active parameters


def stored(record: Record, times: float) -> Record:
    """The record of a model with so many times its active parameters in store besides."""
    parameters = record.parameters
    more = round(times * parameters.active)
    layer = {"layer_total": parameters.layer_active + more, "embedding": 0}
    return record.model_copy(update={"parameters": parameters.model_copy(update=layer)})


def records(noise: float = 0.0) -> list[Record]:
    made = simulate(TRUTH, BUDGETS, noise=noise)
    return [stored(record, STORED[record.variant]) for record in made]


def compared(noise: float = 0.0) -> EqualTotals:
    analysis = analyse(records(noise), samples=100)
    surfaces = {s.variant: s.surface for s in analysis.standings if s.surface}
    table = equal_totals(surfaces, analysis.records, BUDGETS[-1])
    assert table
    return table


def test_the_loss_is_that_of_the_size_with_the_total() -> None:
    table = compared()
    assert 1 < len(table.totals) <= 5
    assert list(table.totals) == sorted(table.totals)
    for name, losses in table.losses.items():
        for total, value in zip(table.totals, losses, strict=True):
            if value:
                active = total / (1 + STORED[name])
                expected = loss(BUDGETS[-1], active, TRUTH[name])
                assert value.value == pytest.approx(expected, abs=0.01), (name, total)


def test_a_variant_without_models_around_a_total_has_no_loss_there() -> None:
    table = compared()
    spans = {
        name: [r.parameters.total for r in records() if r.variant == name] for name in table.losses
    }
    for name, losses in table.losses.items():
        known = [value is not None for value in losses]
        inside = [min(spans[name]) <= total <= max(spans[name]) for total in table.totals]
        assert known == inside
    assert not all(value for losses in table.losses.values() for value in losses)
    for column in range(len(table.totals)):
        assert sum(losses[column] is not None for losses in table.losses.values()) >= 2


def test_the_interval_is_of_the_noise() -> None:
    table = compared(0.02)
    widths = [
        value.high - value.low for losses in table.losses.values() for value in losses if value
    ]
    assert min(widths) > 0
    assert np.median(widths) < 0.1


def test_report_and_page_show_the_table() -> None:
    analysis = analyse(records(0.002), samples=50)
    table = rows(analysis)
    assert {row[0] for row in table} == set(TRUTH)
    assert any("[" in cell for row in table for cell in row)
    for text in (markdown(analysis), page(analysis, None)):
        assert "model with so many parameters in all" in " ".join(text.split())


def test_variants_that_share_no_total_have_no_table() -> None:
    apart = [r for r in records() if r.variant in ("dense", "pkm") and r.budget < BUDGETS[-1]]
    assert rows(analyse(apart, samples=10)) == []
