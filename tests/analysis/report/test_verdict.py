import math
from collections.abc import Sequence

import numpy as np
import pytest

from isoflop.analysis.analyse import analyse
from isoflop.analysis.curves import fit_curves
from isoflop.analysis.parabola import Estimate
from isoflop.analysis.ranking import Multiplier, Standing, rank
from isoflop.analysis.report.verdict import POWER, larger_budget, result, verdict
from isoflop.analysis.simulate import simulate

BUDGETS = (1e13, 4e13, 1.6e14, 6.4e14)


def standing(
    multiplier: float,
    *,
    budgets: Sequence[float] = BUDGETS,
    noise: float = 0.012,
    seeds: int = 1,
    trend: float = 0.0,
    random: int,
) -> Standing:
    """What simulated records of a known multiplier say."""
    truth = {"dense": 1.0, "peer": multiplier}
    records = simulate(truth, budgets, noise=noise, seeds=seeds, trend=trend, random=random)
    curves, _ = fit_curves(records, samples=200)
    by_variant = {name: [one for one in curves if one.variant == name] for name in truth}
    placed = rank(by_variant, "dense", max(budgets))
    return next(one for one in placed if one.variant == "peer")


def test_an_interval_beyond_one_settles_it() -> None:
    assert verdict(Estimate(1.2, 1.1, 1.3), 1).word == "better"
    assert verdict(Estimate(0.8, 0.7, 0.9), 1).word == "worse"
    assert verdict(Estimate(1.2, 1.0, 1.3), 1).word == "inconclusive"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("lasting", [0.0, 0.02])
@pytest.mark.parametrize(
    ("distance", "half", "seeds"), [(0.1, 0.3, 1), (0.1, 0.11, 2), (0.2, 0.97, 3)]
)
def test_the_seeds_asked_for_are_the_fewest_that_would_do(
    sign: int, lasting: float, distance: float, half: float, seeds: int
) -> None:
    """Half the interval of n seeds is half * sqrt(lasting + (1 - lasting) seeds / n)."""
    ends = sorted(math.exp(sign * distance + side * half) for side in (-1, 1))
    found = verdict(Estimate(math.exp(sign * distance), *ends), seeds, lasting)
    assert found.word == "inconclusive"
    assert found.more_seeds is not None

    def reaches(total: int) -> bool:
        return POWER * half * math.sqrt(lasting + (1 - lasting) * seeds / total) <= distance

    assert reaches(seeds + found.more_seeds)
    assert not reaches(seeds + found.more_seeds - 1)


def test_no_number_where_none_can_be_given() -> None:
    for value in (Estimate(1.0, 0.9, 1.1), Estimate(1.2, math.nan, math.nan)):
        assert verdict(value, 1).more_seeds is None
        assert verdict(value, 1).word == "inconclusive"
    assert verdict(Estimate(1.1, 0.8, 1.5), 1, lasting=0.2).more_seeds is None


@pytest.mark.parametrize("truth", [1.06, 0.95])
def test_the_promised_seeds_resolve_it_four_times_in_five(truth: float) -> None:
    """At the true multiplier, with the median interval of one seed."""
    before = [standing(truth, random=seed).headline for seed in range(15)]
    half = np.median([math.log(each.high / each.low) / 2 for each in before if each])
    ends = (truth * math.exp(-half), truth * math.exp(half))
    more = verdict(Estimate(truth, *ends), 1).more_seeds
    assert more
    after = [standing(truth, seeds=1 + more, random=100 + seed).headline for seed in range(40)]
    words = [verdict(each, 1).word for each in after if each]
    assert words.count("better" if truth > 1 else "worse") >= 26  # of 40; 32 expected, less 2.4 sd


@pytest.mark.parametrize(("truth", "trend"), [(1.02, 0.15), (0.98, -0.15), (1.02, -0.15)])
def test_the_promised_budget_resolves_it_mostly(truth: float, trend: float) -> None:
    tried = resolved = 0
    for seed in range(20):
        found = standing(truth, noise=0.006, trend=trend, random=seed)
        assert found.headline
        assert found.multiplier
        if verdict(found.headline, 1).word != "inconclusive":
            continue
        budget = larger_budget(found.multiplier, found.headline)
        assert budget
        assert BUDGETS[-1] < budget < 3 * BUDGETS[-1]
        top = truth * 10 ** (trend * math.log10(budget / BUDGETS[-1]))
        then = standing(
            top, budgets=(*BUDGETS, budget), noise=0.006, trend=trend, random=100 + seed
        )
        assert then.headline
        tried += 1
        resolved += verdict(then.headline, 1).word == ("better" if trend > 0 else "worse")
    assert tried >= 10
    assert resolved / tried >= 0.7


def test_no_budget_is_promised_without_a_trend() -> None:
    promised = 0
    for seed in range(20):
        found = standing(1.03, noise=0.012, random=seed)
        assert found.multiplier
        assert found.headline
        budget = larger_budget(found.multiplier, found.headline)
        assert not (budget and found.multiplier.trend == "inconclusive")
        promised += budget is not None
    assert promised <= 2


@pytest.mark.parametrize(("spread", "expected"), [(0.01, 2e14), (0.04, None)])
def test_a_trend_that_may_be_none_promises_nothing_however_sure_the_level(
    spread: float, expected: float | None
) -> None:
    """A line at 1.30x in the middle of the budgets, 1e13, and 0.05 decades up a decade."""
    budgets = np.array([1e12, 1e13, 1e14])
    slope = 0.05 + spread * np.append(0, np.random.default_rng(0).standard_normal(400))
    logs = math.log10(1.3) + slope[:, None] * np.log10(budgets / 1e13)
    found = Multiplier(budgets, 10**logs, 1e15, budgets[:0], logs[:, :0], slope)
    assert found.trend == ("grows" if expected else "inconclusive")
    half = (math.log(1.3) + 0.05 * math.log(10) * math.log10(20)) / POWER  # reached at 2e14
    budget = larger_budget(found, Estimate(1.3, 1.3 * math.exp(-half), 1.3 * math.exp(half)))
    assert budget == (None if expected is None else pytest.approx(expected, rel=0.13))


def test_the_sentence_says_what_would_settle_it() -> None:
    records = simulate({"dense": 1.0, "peer": 1.02, "pkm": 1.5}, noise=0.012, random=5)
    found = result(analyse(records, highlight="peer", samples=100))
    text = str(found["sentence"])
    assert found["verdict"] == "inconclusive"
    assert text.startswith("peer: compute multiplier ")
    assert f"at least {found['more_seeds']} more seed" in text
    assert "would resolve a difference of this size with 80% power" in text
    assert text.endswith("its trend with compute is inconclusive")
    # one more seed of either: five sizes at each of four budgets
    assert found["more_flops"] == pytest.approx(
        int(str(found["more_seeds"])) * 2 * 5 * sum(BUDGETS), rel=0.01
    )
    grows = simulate({"dense": 1.0, "peer": 1.0}, noise=0.006, trend=0.15, random=3)
    found = result(analyse(grows, highlight="peer", samples=100))
    assert found["larger_budget"] is not None
    assert "a decade continues, which is a guess, so would budgets up to" in str(found["sentence"])


def test_what_seeds_cannot_remove_is_not_promised() -> None:
    """With two seeds a cell their noise is known apart: here sizes depart from any parabola."""
    records = simulate({"dense": 1.0, "peer": 1.02}, noise=0.0005, seeds=2)
    bent = [
        one.model_copy(update={"loss": (one.loss or 0) + 0.03 * (int(one.size.width / 8) % 3)})
        for one in records
    ]
    found = result(analyse(bent, highlight="peer", samples=100))
    assert found["verdict"] == "inconclusive"
    assert found["more_seeds"] is None
    assert "no number of further seeds is known to resolve it" in str(found["sentence"])


def test_the_largest_budget_of_the_layer_is_judged() -> None:
    """Others may have larger ones, not only the baseline."""
    records = [
        one
        for one in simulate({"dense": 1.0, "peer": 1.5, "pkm": 1.2}, BUDGETS)
        if one.variant != "peer" or one.budget < BUDGETS[-1]
    ]
    found = result(analyse(records, highlight="peer", samples=50))
    assert found["budget"] == BUDGETS[-2]
    assert found["verdict"] == "better"


def test_a_layer_without_a_multiplier_says_why() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, octaves=(0.0,))
    text = result(analyse(records, highlight="peer", samples=10))["sentence"]
    assert text == (
        "peer: no compute multiplier at 6.4e14 FLOPs: fewer than 4 points: a parabola through them "
        "has nothing left to be checked with"
    )
