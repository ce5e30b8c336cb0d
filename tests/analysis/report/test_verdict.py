"""Verdicts on simulated suites, and what is promised to settle an inconclusive one."""

import math
from dataclasses import replace

import numpy as np
import pytest

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.estimate import Estimate
from isoflop.analysis.ranking import Multiplier, Standing
from isoflop.analysis.report.verdict import POWER, larger_budget, loses_time, result, verdict
from isoflop.analysis.simulate import simulate

BUDGETS = (1e13, 4e13, 1.6e14, 6.4e14)


def compared(
    multiplier: float,
    *,
    noise: float = 0.012,
    trend: float = 0.0,
    random: int = 0,
    margin: float = 0.1,
) -> Analysis:
    """What simulated records of a known multiplier say."""
    truth = {"dense": 1.0, "peer": multiplier}
    records = simulate(truth, BUDGETS, noise=noise, trend=trend, random=random)
    return analyse(records, highlight="peer", margin=margin, samples=200)


def peer(analysis: Analysis) -> Standing:
    return next(s for s in analysis.standings if s.variant == "peer")


@pytest.mark.parametrize(
    ("multiplier", "noise", "margin", "word"),
    [
        (1.3, 0.012, 0.1, "better"),
        (0.8, 0.012, 0.1, "worse"),
        (1.0, 0.003, 0.1, "equivalent"),
        (1.0, 0.003, 0.005, "inconclusive"),
        (1.0, 0.05, 0.1, "inconclusive"),
        (1.05, 0.003, 0.1, "better"),  # significant, if small
    ],
)
def test_the_word_follows_from_the_interval(
    multiplier: float, noise: float, margin: float, word: str
) -> None:
    analysis = compared(multiplier, noise=noise, margin=margin)
    outcome = verdict(analysis, peer(analysis))
    assert outcome
    assert outcome.word == word
    assert (outcome.seeds is not None) == (word == "inconclusive")
    dense = next(s for s in analysis.standings if s.variant == "dense")
    assert verdict(analysis, dense) is None


def test_seeds_are_asked_of_the_side_that_has_few() -> None:
    """Dense has six seeds: further ones go to the layer."""
    records = [
        record
        for record in simulate({"dense": 1.0, "peer": 1.03}, BUDGETS, noise=0.04, seeds=6)
        if record.variant == "dense" or record.seed == 0
    ]
    analysis = analyse(records, highlight="peer", samples=200)
    outcome = verdict(analysis, peer(analysis))
    assert outcome
    assert outcome.word == "inconclusive"
    assert outcome.seeds
    assert outcome.seeds.variant > outcome.seeds.baseline
    per_seed = sum(BUDGETS) * 5
    price = per_seed * (outcome.seeds.variant + outcome.seeds.baseline)
    assert outcome.seeds.flops == pytest.approx(price, rel=0.01)


@pytest.mark.parametrize(("truth", "trend"), [(1.0, 0.3), (1.0, -0.3)])
def test_the_promised_budget_lies_on_the_trend(truth: float, trend: float) -> None:
    """A multiplier of 1 at the largest budget that changes by a factor of two a decade."""
    analysis = compared(truth, trend=trend, noise=0.012, random=1)
    standing = peer(analysis)
    assert standing.headline
    assert standing.multiplier
    assert standing.multiplier.trend == ("grows" if trend > 0 else "fades")
    budget = larger_budget(standing.multiplier, standing.headline)
    assert budget
    assert BUDGETS[-1] < budget < 10 * BUDGETS[-1]


@pytest.mark.parametrize(("spread", "expected"), [(0.01, 2e14), (0.04, None)])
def test_a_trend_that_may_be_none_promises_nothing_however_sure_the_level(
    spread: float, expected: float | None
) -> None:
    """A line at 1.30x in the middle of the budgets, 1e13, and 0.05 decades up a decade."""
    budgets = np.array([1e12, 1e13, 1e14])
    slope = 0.05 + spread * np.append(0, np.random.default_rng(0).standard_normal(400))
    logs = math.log10(1.3) + slope[:, None] * np.log10(budgets / 1e13)
    multiplier = Multiplier(budgets, 10**logs, 1e15, budgets[:0], logs[:, :0])
    assert multiplier.trend == ("grows" if expected else "inconclusive")
    half = (math.log(1.3) + 0.05 * math.log(10) * math.log10(20)) / POWER  # reached at 2e14
    budget = larger_budget(multiplier, Estimate(1.3, 1.3 * math.exp(-half), 1.3 * math.exp(half)))
    assert budget == (None if expected is None else pytest.approx(expected, rel=0.13))


def test_the_sentence_says_what_would_settle_it() -> None:
    values = result(compared(1.02, noise=0.03, random=5))
    text = str(values["sentence"])
    assert values["verdict"] == "inconclusive"
    assert text.startswith("peer has a compute multiplier of ")
    assert "at 6.4e14 FLOPs (95% interval): inconclusive at this noise." in text
    for side, name in (("dense", "dense"), ("layer", "peer")):
        if count := values[f"more_seeds_{side}"]:
            assert f"{count} more seed{'s' * (count != 1)} of {name}" in text
    assert "would settle it with 80% power." in text
    assert "Its trend with compute is inconclusive, so larger budgets may or may not" in text
    values = result(compared(1.0, trend=0.3, noise=0.012, random=1, margin=0.01))
    assert values["larger_budget"] is not None
    text = str(values["sentence"])
    assert "per decade of compute continues, which is an assumption, budgets of up to" in text
    assert text.endswith("FLOPs per cell would resolve it.")


def test_a_layer_that_wins_on_flops_and_loses_on_time_says_both() -> None:
    """Simulated layers take three times dense's seconds per FLOP."""
    text = str(result(compared(1.5, noise=0.003))["sentence"])
    assert ": significantly better than dense. The time multiplier of peer is 0.50x [0." in text
    assert text.endswith("]: it wins on FLOPs and loses on time.")
    text = str(result(compared(1.0, noise=0.003))["sentence"])
    assert (
        "(95% interval): equivalent to dense within 10%. The time multiplier of peer is 0.33x"
        in text
    )


def test_what_seeds_cannot_remove_is_not_promised() -> None:
    """Three seeds show that the noise is not theirs: the cells depart from any law."""
    records = simulate({"dense": 1.0, "peer": 1.02}, noise=0.0005, seeds=3)
    bent = [
        record.model_copy(
            update={"loss": (record.loss or 0) + 0.06 * (int(record.size.width / 8) % 3)}
        )
        for record in records
    ]
    values = result(analyse(bent, highlight="peer", margin=0.02, samples=100))
    assert values["verdict"] == "inconclusive"
    assert values["more_flops"] is None
    assert "More seeds alone would not settle a difference of this size." in str(values["sentence"])


def test_the_largest_budget_of_the_layer_is_judged() -> None:
    """Others may have larger ones, not only the baseline."""
    records = [
        record
        for record in simulate({"dense": 1.0, "peer": 1.5, "pkm": 1.2}, BUDGETS)
        if record.variant != "peer" or record.budget < BUDGETS[-1]
    ]
    values = result(analyse(records, highlight="peer", samples=50))
    assert values["budget"] == BUDGETS[-2]
    assert values["verdict"] == "better"
    assert ": significantly better than dense." in str(values["sentence"])


def test_a_layer_without_a_multiplier_says_why() -> None:
    records = simulate({"dense": 1.0, "peer": 1.5}, octaves=(0.0,))
    text = result(analyse(records, highlight="peer", samples=10))["sentence"]
    assert text == (
        "peer has no compute multiplier at 6.4e14 FLOPs: 4 finished cells; a surface needs 6."
    )


def test_only_a_better_layer_wins_on_flops_and_loses_on_time() -> None:
    """An interval above 1 may be chance among many variants; the verdict is then inconclusive."""
    (peer,) = (
        standing
        for standing in analyse(
            simulate({"dense": 1.0, "peer": 1.5}, BUDGETS), samples=50
        ).standings
        if standing.variant == "peer"
    )
    assert peer.time
    assert peer.time.high < 1
    assert loses_time(peer)
    assert not loses_time(replace(peer, differs=""))
