"""isoFLOP curves against records whose truth is known."""

import numpy as np
import pytest

from isoflop.analysis.curves import AnalysisError, Curve, Noise, fit_curves
from isoflop.analysis.simulate import optimum, record, simulate
from isoflop.results.record import Record

BUDGETS = (1e14, 4e14, 1.6e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def changed(record: Record, **fields: object) -> Record:
    return record.model_copy(update=fields)


def only(records: list[Record]) -> Curve:
    (curve,), _ = fit_curves(records, samples=100)
    return curve


def bowl(vertex: float = 1.2e6, bend: float = 0.03) -> list[Record]:
    """Five sizes whose losses lie on a parabola."""
    cells = [record("dense", 1e14, size) for size in (4e5, 8e5, 1.6e6, 3.2e6, 6.4e6)]
    return [
        changed(cell, loss=3.0 + bend * np.log(cell.parameters.active / vertex) ** 2)
        for cell in cells
    ]


def test_an_exact_parabola_comes_back() -> None:
    curve = only(bowl())
    assert curve.trusted
    assert curve.parabola.at.value == pytest.approx(1.2e6, rel=1e-6)
    assert curve.parabola.loss.value == pytest.approx(3.0, abs=1e-9)
    assert curve.cells[curve.nearest][0].parameters.active == pytest.approx(1.6e6, rel=0.1)


@pytest.mark.parametrize(
    ("records", "status"),
    [
        (bowl(bend=-0.03), "concave"),
        (bowl(vertex=3e5), "edge"),
        (bowl(vertex=9e6), "edge"),
        (bowl()[1:4], "few"),
        (bowl()[:1], "few"),
        (bowl()[:4], "ok"),
    ],
)
def test_what_is_not_to_be_trusted_says_why(records: list[Record], status: str) -> None:
    curve = only(records)
    assert curve.parabola.status == status
    assert curve.trusted == (status == "ok")


def test_only_finished_cells_count() -> None:
    records = bowl()
    wild = changed(records[1], status="diverged", loss=900.0)
    curve = only([records[0], wild, *records[2:]])
    assert len(curve.cells) == 4
    assert curve.parabola.at.value == pytest.approx(1.2e6, rel=1e-6)


def test_total_parameters_are_an_axis_too() -> None:
    records = simulate({"moe": 1.0}, (1e14,), octaves=OCTAVES)
    (active,), _ = fit_curves(records, samples=0)
    (total,), _ = fit_curves(records, axis="total", samples=0)
    np.testing.assert_allclose(
        np.exp(total.log_n), [cell[0].parameters.total for cell in total.cells]
    )
    assert total.parabola.at.value > 4 * active.parabola.at.value


def test_seeds_of_a_cell_make_one_point() -> None:
    (curve,), _ = fit_curves(simulate({"dense": 1.0}, (1e14,), octaves=OCTAVES, seeds=3))
    assert len(curve.loss) == len(OCTAVES)
    assert curve.loss[2] == pytest.approx(np.mean([run.loss for run in curve.cells[2]]))
    assert [run.seed for run in curve.cells[0]] == [0, 1, 2]


def test_the_noise_is_estimated() -> None:
    noises: list[Noise] = []
    for random in range(20):
        records = simulate(
            {"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, noise=0.01, random=random
        )
        noises.append(fit_curves(records, samples=0)[1])
    assert np.mean([noise.fit**2 for noise in noises]) == pytest.approx(0.01**2, rel=0.2)
    assert {noise.seed for noise in noises} == {0.0}
    assert {noise.degrees for noise in noises} == {12}


def test_seeds_are_noise_not_certainty() -> None:
    """Where sizes depart from the parabola alike in every seed, seeds must not narrow intervals."""
    bumps = np.array([0.01, -0.02, 0.015, -0.005, 0.01])
    widths = []
    for seeds in (1, 8):
        records = simulate({"dense": 1.0}, BUDGETS, octaves=OCTAVES, seeds=seeds, noise=1e-4)
        bumped = [
            changed(record, loss=(record.loss or 0) + bumps[index // seeds % len(OCTAVES)])
            for index, record in enumerate(records)
        ]
        curve = fit_curves(bumped)[0][-1]
        widths.append(curve.parabola.loss.high - curve.parabola.loss.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_intervals_cover_at_their_nominal_rate() -> None:
    """Of optimum and loss, with one and three seeds, over 100 simulated suites each."""
    for seeds in (1, 3):
        inside = []
        for random in range(100):
            records = simulate(
                {"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, seeds=seeds, random=random
            )
            for curve in fit_curves(records, samples=300)[0]:
                size, nats = optimum(curve.budget, 1.5 if curve.variant == "peer" else 1.0)
                inside.append(curve.parabola.at.low <= size <= curve.parabola.at.high)
                inside.append(curve.parabola.loss.low <= nats <= curve.parabola.loss.high)
        assert 0.90 <= np.mean(inside) <= 0.99, seeds


def test_the_same_records_give_the_same_samples_in_any_order() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, seeds=2)
    forward, _ = fit_curves(records)
    backward, _ = fit_curves(records[::-1])
    for curve, same in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(curve.parabola.lowest, same.parabola.lowest)


def test_without_an_estimate_of_the_noise_there_is_no_interval() -> None:
    curves, noise = fit_curves(simulate({"dense": 1.0}, (1e14,), octaves=(-1, 0, 1)))
    assert noise.degrees == 0
    assert np.isnan(curves[0].parabola.loss.low)


def test_seeds_alone_give_the_noise() -> None:
    _, noise = fit_curves(
        simulate({"dense": 1.0}, BUDGETS, octaves=(-1, 0, 1), seeds=40, noise=0.02)
    )
    assert noise.seed == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_hash": "other"}, "different validation_hash"),
        ({"flop_convention": "6ND"}, "different flop_convention"),
        ({"loss": None}, "loss: None"),
        ({"loss": -1.0}, "loss: -1.0"),
    ],
)
def test_records_not_to_be_compared_are_refused(fields: dict[str, object], message: str) -> None:
    records = simulate({"dense": 1.0}, (1e14,))
    with pytest.raises(AnalysisError, match=message) as error:
        fit_curves([*records[:-1], changed(records[-1], **fields)])
    assert "\n" not in str(error.value)
    assert records[-1].cell in str(error.value)


def test_a_cell_twice_is_refused() -> None:
    records = simulate({"dense": 1.0}, (1e14,))
    twin = changed(records[0], cell="twin")
    with pytest.raises(AnalysisError, match=r"two records: .*twin\.json"):
        fit_curves([*records, twin])


def test_no_finished_record_is_refused() -> None:
    failed = [changed(record, status="failed", loss=None) for record in simulate({"dense": 1.0})]
    with pytest.raises(AnalysisError, match="no finished cell among 20 records"):
        fit_curves(failed)
