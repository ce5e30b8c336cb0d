"""Ranks from ratios: paired samples, closed tests, and no dependence on order."""

import numpy as np
import pytest

from isoflop.analysis.ratios import compare


def samples(
    values: list[float], shared: float = 0.05, own: float = 0.02, count: int = 2000, seed: int = 0
) -> np.ndarray:
    """Logarithms of multipliers; the first is the baseline, whose noise is in all others."""
    generator = np.random.default_rng(seed)
    rows = np.array(values)[:, None] + own * generator.standard_normal((len(values), count + 1))
    rows += shared * generator.standard_normal(count + 1)
    rows[:, 0] = values
    rows[0] = 0
    return rows


def test_shared_noise_cancels_in_the_ratio() -> None:
    """Intervals that overlap widely, and a ratio that is clear."""
    rows = samples([0, 0.30, 0.42])
    comparison = compare(rows)
    low, high = np.quantile(np.exp(rows[1:, 1:]), (0.025, 0.975), axis=1)
    assert high[0] > low[1]
    assert comparison.better[2, 1]
    assert comparison.better[1, 0]
    assert comparison.ratio(2, 1).value == pytest.approx(np.exp(0.12))
    assert 1 < comparison.ratio(2, 1).low < np.exp(0.12) < comparison.ratio(2, 1).high
    assert comparison.ranks == [3, 2, 1]
    assert comparison.rank_intervals == [(3, 3), (2, 2), (1, 1)]


def test_a_variant_between_two_shares_the_rank_of_neither_for_sure() -> None:
    """0.00, 0.05 and 0.10 with noise .03: the ends differ, the middle differs from none."""
    comparison = compare(samples([0, 1.00, 1.05, 1.10], shared=0.3, own=0.02))
    assert comparison.better[3, 1]
    assert not comparison.better[2, 1]
    assert not comparison.better[3, 2]
    assert comparison.ranks[1:] == [2, 1, 1]
    assert comparison.rank_intervals[1:] == [(2, 3), (1, 3), (1, 2)]


def test_the_order_of_variants_changes_nothing() -> None:
    rows = samples([0, 0.1, 0.13, 0.2, 0.02, 0.13], own=0.03)
    comparison = compare(rows)
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_array_equal(
        compare(rows[order]).better, comparison.better[np.ix_(order, order)]
    )
    assert comparison.order[0] == 3


def by_definition(rows: np.ndarray) -> np.ndarray:
    """A pair differs if its interval excludes 0 and every stretch that holds both is rejected."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i, 0])

    def scaled(i: int, j: int) -> tuple[float, np.ndarray]:
        gap = rows[i] - rows[j]
        return abs(gap[0]) / gap[1:].std(), np.abs(gap[1:] - gap[1:].mean()) / gap[1:].std()

    def excludes_zero(i: int, j: int) -> bool:
        low, high = np.percentile(rows[i, 1:] - rows[j, 1:], (2.5, 97.5))
        return low > 0 or high < 0

    def rejected(stretch: list[int]) -> bool:
        if len(stretch) == 2:
            return excludes_zero(*stretch)
        pairs = [scaled(i, j) for i in stretch for j in stretch if i != j]
        largest = np.max([samples for _, samples in pairs], axis=0)
        return max(observed for observed, _ in pairs) > np.percentile(largest, 95)

    better = np.zeros((len(rows), len(rows)), dtype=bool)
    for a in range(len(rows)):
        for b in range(a + 1, len(rows)):
            stretches = [
                order[first : last + 1] for first in range(a + 1) for last in range(b, len(rows))
            ]
            better[order[a], order[b]] = excludes_zero(order[a], order[b]) and all(
                rejected(stretch) for stretch in stretches
            )
    return better


def test_the_tests_are_those_of_the_definition() -> None:
    """Where some differ and some do not, a few of them near the limit."""
    shares = []
    for seed in range(150):
        generator = np.random.default_rng(seed)
        values = [0, *generator.normal(0, 0.1, 3)]
        rows = samples(values, own=0.04, count=40, seed=seed)
        expected = by_definition(rows)
        np.testing.assert_array_equal(compare(rows).better, expected, str(seed))
        shares.append(expected.sum() / 6)
    assert 0.2 < np.mean(shares) < 0.8


def test_no_two_variants_are_each_better_than_the_other() -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        comparison = compare(samples([0, *generator.normal(0, 0.1, 7)], seed=seed))
        assert not (comparison.better & comparison.better.T).any()
        assert not comparison.better.diagonal().any()


def test_equal_variants_are_told_apart_in_a_twentieth_of_lists_however_long() -> None:
    """Eight equal variants, 400 lists: pairs alone would raise an alarm in half of them."""
    alarms, alone = [], []
    for seed in range(400):
        generator = np.random.default_rng(seed)
        rows = samples([0, *0.03 * generator.standard_normal(7)], shared=0, own=0.03, count=400)
        rows[1:, 1:] += 0.03 * generator.standard_normal(400)
        rows[1:] += 0.03 * generator.standard_normal()  # the baseline's own error
        comparison = compare(rows)
        alarms.append(comparison.better.any())
        gap = rows[:, None, 1:] - rows[None, :, 1:]
        alone.append((np.quantile(gap, 0.025, axis=2) > 0).any())
    assert np.mean(alarms) < 0.09
    assert np.mean(alone) > 0.3


def test_a_noisy_variant_beside_them_does_not_hide_a_clear_difference() -> None:
    generator = np.random.default_rng(0)
    rows = np.array([0, 0.5, 0.6, 0.55])[:, None] + np.array([0, 0.01, 0.01, 0.3])[
        :, None
    ] * generator.standard_normal((4, 2001))
    rows[:, 0] = 0, 0.5, 0.6, 0.55
    better = compare(rows).better
    assert better[2, 1]
    assert not better[2, 3]
    assert not better[3, 1]


def test_without_noise_nothing_is_better() -> None:
    comparison = compare(np.array([[0.0], [0.5]]))
    assert not comparison.better.any()
    assert comparison.ranks == [1, 1]
    assert comparison.rank_intervals == [(1, 2), (1, 2)]
