"""More seeds than a suite has."""

from isoflop.bench.suite import Suite


def first_seeds(seeds: list[int], count: int) -> list[int]:
    """The first `count` seeds: those given, then the smallest unused ones."""
    further = [seed for seed in range(count + len(seeds)) if seed not in seeds]
    return [*seeds, *further][:count]


def with_seeds(suite: Suite, seeds: list[int]) -> Suite:
    """The suite with these seeds at every budget."""
    budgets = [budget.model_copy(update={"seeds": None}) for budget in suite.budgets]
    return suite.model_copy(update={"seeds": seeds, "budgets": budgets})
