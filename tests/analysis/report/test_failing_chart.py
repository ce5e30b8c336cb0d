"""A chart that cannot be drawn costs no other, and positive quantities have positive intervals."""

from pathlib import Path

import pytest

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.report import charts, figures, leaderboard
from isoflop.analysis.report.derive import report, stale
from isoflop.analysis.simulate import simulate
from isoflop.results.record import write_record

BUDGETS = (1e14, 4e14, 1.6e15)


def broken(analysis: Analysis) -> None:
    raise ValueError("no\x1b[2J\n::error::room")


def test_a_chart_that_fails_is_named_and_the_rest_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in simulate({"dense": 1.0, "peer": 1.5}, BUDGETS):
        write_record(tmp_path / "records", record)
    kept = {name: figures.FIGURES[name] for name in ("isoflop", "multiplier")}
    monkeypatch.setattr(figures, "FIGURES", {"frontier": broken} | kept)
    monkeypatch.setitem(charts.CHARTS, "frontier", broken)
    rows = report(tmp_path)
    assert {row["variant"] for row in rows} == {"dense", "peer"}
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in kept for kind in ("png", "svg")}
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'id="isoflop-0"' in page
    assert 'id="frontier-0"' not in page
    assert (tmp_path / "LEADERBOARD.md").exists()
    error = capsys.readouterr().err
    reason = r"ValueError: no\x1b[2J\n::error::room"
    assert error == f"{tmp_path}: chart frontier could not be drawn: {reason}\n"
    assert stale(tmp_path) == []


@pytest.mark.parametrize("noise", [0.002, 0.05])
def test_intervals_of_positive_quantities_are_positive(noise: float) -> None:
    truth = {"dense": 1.0, "peer": 1.5, "pkm": 0.5}
    analysis = analyse(simulate(truth, BUDGETS, noise=noise), samples=200)
    for row in leaderboard.rows(analysis):
        for key, value in row.items():
            # A trend is a logarithm: the one interval that may lie below zero.
            positive = key.endswith(("_low", "_high")) and not key.startswith("trend")
            if positive and isinstance(value, float) and value == value:
                assert value > 0, (row["variant"], key)
    for chart in charts.charts(analysis, None):
        for panel in chart.panels:
            if panel.y.log:
                ends = [end for series in panel.series for end in series.low or ()]
                assert all(end > 0 for end in ends), chart.id
