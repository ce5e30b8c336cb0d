"""Load and gradients of routers in the report, and the flags they raise."""

import math

from isoflop.analysis.analyse import analyse
from isoflop.analysis.report.layer_figures import flags, rows
from isoflop.analysis.report.sections import markdown
from isoflop.analysis.simulate import simulate
from isoflop.results.record import LayerFigures, Record

BUDGETS = (1e14, 4e14, 1.6e15)


def with_figures(record: Record, **changes: float) -> Record:
    values = {"experts": 8, "used": 1.0, "load_kl": 0.1, "routing_gradient": 0.5} | changes
    return record.model_copy(
        update={"layers": [LayerFigures(block=1, output_rms=0.65, **values)]}  # type: ignore[arg-type]
    )


def test_the_report_shows_the_load_of_sparse_layers() -> None:
    records = [
        with_figures(record) if record.variant == "moe" else record
        for record in simulate({"dense": 1.0, "moe": 1.5}, BUDGETS)
    ]
    analysis = analyse(records, samples=50)
    assert rows(analysis.standings) == [["moe", "0.650", "0.5", "8", "100.0%", "0.10"]]
    assert "## What explains the layers" in markdown(analysis)
    plain = analyse(simulate({"dense": 1.0, "moe": 1.5}, BUDGETS), samples=50)
    assert "What explains" not in markdown(plain)


def test_a_collapsed_router_and_one_that_learns_nothing_are_flagged() -> None:
    (record, *_) = simulate({"dense": 1.0}, BUDGETS)
    assert flags([record]) == flags([with_figures(record)]) == []
    collapsed = with_figures(record, used=1 / 8, load_kl=math.log(8))
    assert flags([collapsed]) == ["its router has collapsed: few experts take most of the load"]
    unlearned = with_figures(record, routing_gradient=1e-6)
    assert flags([unlearned]) == ["its router learns nothing from the loss"]
