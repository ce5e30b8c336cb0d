"""`plan --power`: what is printed is what the analysis gives for the cells of the plan."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isoflop.analysis.power import Assumed, assumed_from, resolution
from isoflop.analysis.simulate import simulate
from isoflop.analysis.surface import gather
from isoflop.cli.main import app
from isoflop.cli.power import assumed_for, power_rows
from isoflop.cli.suites import load_cells
from isoflop.results.errors import IsoflopError
from isoflop.results.record import load_records

QUICK = Path(__file__).parents[3] / "results" / "submissions" / "quick-baselines" / "records"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_is_the_resolution_of_the_planned_cells() -> None:
    """The plan of quick has the cells of its records, of one seed."""
    assumed = Assumed(seed=0.01)
    row = next(
        row for row in power_rows("quick", load_cells("quick")[1], assumed)
        if row["variant"] == "pkm"
    )  # fmt: skip
    cells = gather([record for record in load_records(QUICK) if record.seed == 0])
    expected = resolution(cells, "dense", "pkm", 7.5e11, assumed)
    assert row["resolves"] == pytest.approx(expected.smallest_ratio, rel=1e-3)
    assert 1 < row["interval"] < row["resolves"]
    for what in ("one_more_seed", "one_more_size", "one_larger_budget"):
        assert 1 < row[what] < row["resolves"]
        assert row[f"{what}_flops"] > 1e12


def test_the_verb_prints_it_and_what_is_assumed() -> None:
    done = CliRunner().invoke(app, ["plan", "quick", "--power", "--noise", "0.02", "--seeds", "2"])
    assert done.exit_code == 0
    assert "Assumed: 0.02 nats between runs of a cell and 0 nats that no seed" in done.stdout
    assert "exponents as Chinchilla's: exponents 0.34 and 0.28" in done.stdout
    assert "one more seed 6.02e13" in done.stdout
    halved, twice = (
        json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)[0]["resolves"]
        for command in (
            ["plan", "quick", "--power", "--noise", "0.01"],
            ["plan", "quick", "--power", "--noise", "0.02"],
        )
    )
    assert halved**2 == pytest.approx(twice)


def test_law_and_noise_come_from_published_records() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, noise=0.006)
    assumed = assumed_from(records)
    assert assumed
    assert assumed.alpha == pytest.approx(0.32, rel=0.2)
    assert assumed.beta == pytest.approx(0.32, rel=0.2)
    assert (assumed.fit, assumed.seed) == (0, pytest.approx(0.006, rel=0.4))
    assert assumed_from(simulate({"peer": 1.5})) is None
    assert assumed_from([]) is None
    where = Path("results/mine/records")
    where.mkdir(parents=True)
    for record in records:
        (where / f"{record.cell}.json").write_text(record.model_dump_json())
    found, law = assumed_for("mine", None)
    assert found == assumed
    assert law == "the law of dense in results/mine"
    assert assumed_for("mine", 0.02)[0].seed == 0.02
    assert assumed_for("other", None)[0] == Assumed()


def test_several_seeds_tell_noise_from_departures() -> None:
    records = [
        record.model_copy(
            update={"loss": (record.loss or 0) + 0.02 * (int(record.size.width / 8) % 2)}
        )
        for record in simulate({"dense": 1.0, "peer": 1.5}, noise=0.004, seeds=3)
    ]
    assumed = assumed_from(records)
    assert assumed
    assert assumed.fit > assumed.seed > 0


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (lambda cell: cell.variant == "dense", "mine.toml: variants: dense alone"),
        (lambda cell: cell.layer != "dense", "mine.toml: variants: no dense variant"),
        (
            lambda cell: cell.budget == 7.5e11 and cell.variant != "swiglu",
            "mine.toml: dense: 4 finished cells; a surface needs 6",
        ),
    ],
)
def test_what_has_no_power_is_refused(kept, reason: str) -> None:
    cells = [cell for cell in load_cells("quick")[1] if kept(cell)]
    with pytest.raises(IsoflopError, match=reason):
        power_rows("mine.toml", cells, Assumed())
