import pytest

from isoflop.bench.plan import Cell, plan, sweep_cells
from isoflop.bench.shard import share
from isoflop.bench.suite import SuiteError, load_suite
from tests.bench.cells import tiny_cells

SUITES = ["ci", "quick"]


def cells_of(name: str) -> list[Cell]:
    return plan(load_suite(name), name)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_shares_together_are_exactly_the_cells_in_their_order(suite: str, n: int) -> None:
    cells = cells_of(suite)
    shares = [share(cells, f"{k}/{n}") for k in range(1, n + 1)]
    assert sorted(c.id for part in shares for c in part) == sorted(c.id for c in cells)
    places = {cell.id: place for place, cell in enumerate(cells)}
    for part in shares:
        order = [places[cell.id] for cell in part]
        assert order == sorted(order)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_shares_cost_about_the_same(suite: str, n: int) -> None:
    cells = cells_of(suite)
    costs = [sum(c.flops for c in share(cells, f"{k}/{n}")) for k in range(1, n + 1)]
    # Within the largest cell of each other, which no deal of whole cells can promise to beat.
    assert max(costs) - min(costs) <= max(cell.flops for cell in cells)


def test_the_first_share_does_not_get_the_larger_of_every_pair() -> None:
    """8 + 5 + 4 + 1 = 7 + 6 + 3 + 2, where always in turn would be 20 against 16."""
    variants = {"dense": {"layer": "dense", "learning_rate": 1e-2}}
    cells = tiny_cells(variants=variants, budgets=[{"flops": n * 1e9} for n in range(1, 9)])
    first, second = (sum(c.flops for c in share(cells, f"{k}/2")) for k in (1, 2))
    assert first == pytest.approx(second, rel=0.01)


def test_every_share_has_cells_of_every_size() -> None:
    """In the order of the plan, each share would get one size, or two."""
    cells = cells_of("ci")
    sizes = {cell.size.name for cell in cells}
    for k in range(1, 5):
        assert {cell.size.name for cell in share(cells, f"{k}/4")} == sizes


def test_sweeps_are_shared_too() -> None:
    cells = sweep_cells(load_suite("quick"), "quick")
    assert sorted(c.id for k in (1, 2, 3) for c in share(cells, f"{k}/3")) == sorted(
        cell.id for cell in cells
    )


@pytest.mark.parametrize(
    "shard", ["", "1", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3", "1 / 2", "01/2", "1/2\n"]
)
def test_a_bad_shard_is_refused(shard: str) -> None:
    with pytest.raises(SuiteError, match=r"--shard: .* is not K/N with K from 1 to N"):
        share(tiny_cells(), shard)


def test_more_shares_than_cells_are_refused() -> None:
    with pytest.raises(SuiteError, match="--shard: 1/3: there are only 2 cells to share"):
        share(tiny_cells(), "1/3")
