import math

import pytest

from analysis.parabola import Estimate
from analysis.verdict import verdict


def test_an_interval_beyond_one_settles_it() -> None:
    assert verdict(Estimate(1.2, 1.1, 1.3), 1).word == "better"
    assert verdict(Estimate(0.8, 0.7, 0.9), 1).word == "worse"
    assert verdict(Estimate(1.2, 1.0, 1.3), 1).word == "not resolved"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("distance", "half", "seeds"), [(0.1, 0.3, 1), (0.1, 0.11, 2), (0.05, 0.97, 3)]
)
def test_the_seeds_asked_for_are_the_fewest_that_would_do(
    sign: int, distance: float, half: float, seeds: int
) -> None:
    """The interval of the estimate after n seeds is half * sqrt(seeds / n) to either side."""
    ends = sorted(math.exp(sign * distance + side * half) for side in (-1, 1))
    found = verdict(Estimate(math.exp(sign * distance), *ends), seeds)
    assert found.word == "not resolved"
    assert found.more_seeds is not None
    total = seeds + found.more_seeds
    assert half * math.sqrt(seeds / total) < distance
    assert half * math.sqrt(seeds / (total - 1)) >= distance


def test_no_number_where_none_can_be_given() -> None:
    for value in (Estimate(1.0, 0.9, 1.1), Estimate(1.2, math.nan, math.nan)):
        assert verdict(value, 1).more_seeds is None
        assert verdict(value, 1).word == "not resolved"
