from isoflop.bench.plan import plan
from isoflop.bench.seeds import first_seeds, with_seeds
from tests.bench.cells import tiny_suite


def test_the_first_seeds_are_the_suite_s_then_the_smallest_unused() -> None:
    assert first_seeds([4, 1], 1) == [4]
    assert first_seeds([4, 1], 5) == [4, 1, 0, 2, 3]


def test_more_seeds_are_those_of_every_budget() -> None:
    budgets = [{"flops": 5e8, "seeds": [0, 2]}, {"flops": 1e9}]
    cells = plan(with_seeds(tiny_suite(budgets=budgets, seeds=[1]), [1, 0]), "tiny.toml")
    planned = sorted((cell.budget, cell.seed) for cell in cells if cell.variant == "peer")
    assert planned == [(5e8, 0), (5e8, 1), (1e9, 0), (1e9, 1)]
