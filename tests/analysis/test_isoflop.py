"""isoFLOP curves against records whose truth is known."""

import numpy as np
import pytest

from analysis.isoflop import AnalysisError, Curve, Noise, estimate, fit_curves
from analysis.simulate import optimum, record, simulate
from bench.record import Record

BUDGETS = (1e14, 4e14, 1.6e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def changed(one: Record, **fields: object) -> Record:
    return one.model_copy(update=fields)


def only(records: list[Record]) -> Curve:
    (curve,), _ = fit_curves(records, draws=100)
    return curve


def parabola(a: float, vertex: float, log_n: np.ndarray, base: float = 3.0) -> list[Record]:
    cells = [record("dense", 1e14, float(np.exp(x))) for x in log_n]
    return [
        changed(one, loss=base + a * (np.log(one.parameters.active) - vertex) ** 2) for one in cells
    ]


GRID = np.log([4e5, 8e5, 1.6e6, 3.2e6, 6.4e6])


def test_an_exact_parabola_comes_back() -> None:
    curve = only(parabola(0.03, np.log(1.2e6), GRID))
    assert curve.status == "ok"
    assert curve.optimum.value == pytest.approx(1.2e6, rel=1e-6)
    assert curve.optimum_loss.value == pytest.approx(3.0, abs=1e-9)
    assert curve.coefficients[0, 2] == pytest.approx(0.03, rel=1e-6)
    np.testing.assert_allclose(curve.parabola(curve.log_n), curve.loss)


def test_a_concave_curve_has_no_optimum() -> None:
    assert only(parabola(-0.03, np.log(1.2e6), GRID)).status == "concave"


@pytest.mark.parametrize("vertex", [3e5, 9e6])
def test_a_minimum_outside_the_grid_is_at_the_edge(vertex: float) -> None:
    curve = only(parabola(0.03, np.log(vertex), GRID))
    assert curve.status == "edge"
    assert np.log(curve.optimum.value) in (
        pytest.approx(curve.log_n[0]),
        pytest.approx(curve.log_n[-1]),
    )


def test_three_sizes_are_too_few() -> None:
    assert only(parabola(0.03, np.log(1.2e6), GRID[1:4])).status == "few"
    assert only(parabola(0.03, np.log(1.2e6), GRID[1:2])).status == "few"
    assert only(parabola(0.03, np.log(1.2e6), GRID[:4])).status == "ok"


def test_only_finished_cells_count_and_the_others_are_listed() -> None:
    records = parabola(0.03, np.log(1.2e6), GRID)
    wild = changed(records[1], status="diverged", loss=900.0)
    curve = only([records[0], wild, *records[2:]])
    assert len(curve.cells) == 4
    assert curve.missing == (wild,)
    assert curve.optimum.value == pytest.approx(1.2e6, rel=1e-6)


def test_total_parameters_are_an_axis_too() -> None:
    records = simulate({"moe": 1.0}, (1e14,), octaves=OCTAVES)
    (active,), _ = fit_curves(records, draws=0)
    (total,), _ = fit_curves(records, axis="total", draws=0)
    np.testing.assert_allclose(
        np.exp(total.log_n), [cell[0].parameters.total for cell in total.cells]
    )
    assert total.optimum.value > 4 * active.optimum.value


def test_seeds_of_a_cell_make_one_point() -> None:
    (curve,), _ = fit_curves(simulate({"dense": 1.0}, (1e14,), octaves=OCTAVES, seeds=3))
    assert len(curve.loss) == len(OCTAVES)
    assert curve.loss[2] == pytest.approx(np.mean([one.loss for one in curve.cells[2]]))
    assert [one.seed for one in curve.cells[0]] == [0, 1, 2]


def test_the_noise_is_found() -> None:
    found: list[Noise] = []
    for random in range(20):
        records = simulate(
            {"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, noise=0.01, random=random
        )
        found.append(fit_curves(records, draws=0)[1])
    assert np.mean([noise.fit**2 for noise in found]) == pytest.approx(0.01**2, rel=0.2)
    assert {noise.seed for noise in found} == {0.0}
    assert {noise.degrees for noise in found} == {12}


def test_seeds_are_noise_not_certainty() -> None:
    """Where sizes depart from the parabola alike in every seed, seeds must not narrow intervals."""
    bumps = np.array([0.01, -0.02, 0.015, -0.005, 0.01])
    widths = []
    for seeds in (1, 8):
        records = simulate({"dense": 1.0}, BUDGETS, octaves=OCTAVES, seeds=seeds, noise=1e-4)
        bumped = [
            changed(one, loss=(one.loss or 0) + bumps[index // seeds % len(OCTAVES)])
            for index, one in enumerate(records)
        ]
        curve = fit_curves(bumped)[0][-1]
        widths.append(curve.optimum_loss.high - curve.optimum_loss.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_intervals_cover_at_their_nominal_rate() -> None:
    """95% intervals of optimum and loss, one seed and three, counted over 200 simulated suites."""
    for seeds in (1, 3):
        inside = []
        for random in range(100):
            records = simulate(
                {"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, seeds=seeds, random=random
            )
            for curve in fit_curves(records, draws=300)[0]:
                size, nats = optimum(curve.budget, 1.5 if curve.variant == "peer" else 1.0)
                inside.append(curve.optimum.low <= size <= curve.optimum.high)
                inside.append(curve.optimum_loss.low <= nats <= curve.optimum_loss.high)
        assert 0.90 <= np.mean(inside) <= 0.99, seeds


def test_the_same_records_give_the_same_draws_in_any_order() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, BUDGETS, octaves=OCTAVES, seeds=2)
    first, _ = fit_curves(records)
    second, _ = fit_curves(records[::-1])
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.best_loss, other.best_loss)


def test_without_anything_to_tell_the_noise_there_is_no_interval() -> None:
    curves, noise = fit_curves(simulate({"dense": 1.0}, (1e14,), octaves=(-1, 0, 1)))
    assert noise.degrees == 0
    assert np.isnan(curves[0].optimum_loss.low)


def test_seeds_alone_tell_the_noise() -> None:
    _, noise = fit_curves(
        simulate({"dense": 1.0}, BUDGETS, octaves=(-1, 0, 1), seeds=40, noise=0.02)
    )
    assert noise.seed == pytest.approx(0.02, rel=0.15)


def test_an_optimum_hidden_in_noise_is_unsettled() -> None:
    (clear,), _ = fit_curves(simulate({"dense": 1.0}, (1e14,), octaves=OCTAVES, noise=0.001))
    (hidden,), _ = fit_curves(
        simulate({"dense": 1.0}, (1e14,), octaves=OCTAVES, noise=0.03, random=1)
    )
    assert not clear.unsettled
    assert hidden.unsettled


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
    failed = [changed(one, status="failed", loss=None) for one in simulate({"dense": 1.0})]
    with pytest.raises(AnalysisError, match="no finished cell among 20 records"):
        fit_curves(failed)


def test_an_estimate_is_draw_zero_within_the_percentiles_of_the_rest() -> None:
    value, low, high = estimate(np.concatenate([[5.0], np.arange(1001)]))
    assert (value, low, high) == (5.0, 25.0, 975.0)
