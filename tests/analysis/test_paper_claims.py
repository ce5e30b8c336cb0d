"""Claims of papers, on records made up so that the answer is known."""

from typing import Any

import pytest

from isoflop.analysis.paper_claims import CLAIMS, Comparison, compare
from isoflop.analysis.post_training import post_training
from isoflop.analysis.report.papers import report, verdicts
from isoflop.results.compressed import Compressed, Continued
from tests.analysis.test_post_training import compressed, siblings

CONTINUED = Continued(
    text="second.txt", hash="y", share=0.2, steps=9, flops=2 * 10**8, learning_rate=0.1
)


def made(method: str, better: float, options: dict[str, Any], **changes: Any) -> list[Compressed]:
    items = compressed(better, method=method, options=options, share=changes.pop("share", 0.0))
    more: dict[str, Any] = {}
    if changes.pop("continued", False):
        more = {"continued": CONTINUED}
    return [
        item.model_copy(
            update={
                **more,
                "other_losses": {"second.txt": item.loss + 1},
                "other_source_losses": {"second.txt": item.source_loss + 1},
            }
            | changes
        )
        for item in items
    ]


def only(items: list[Compressed], text: str) -> list[Comparison]:
    return [row for row in compare(items) if row.claim.text == text]


GENETIC = {"search": "genetic", "keep": 1.0, "whiten": True}


@pytest.mark.parametrize(
    ("better", "verdict"),
    [(0.1, "holds"), (-0.1, "the opposite holds"), (0.0, "no significant difference")],
)
def test_a_difference_decides(better: float, verdict: str) -> None:
    items = made("moe-i2", better, {"drop": 0.5, **GENETIC}) + made(
        "prune-random", 0, {"drop": 0.5}
    )
    if not better:  # else the pairs would not differ at all
        items = [
            item.model_copy(update={"loss": item.loss + (item.seed - 1) * 0.01})
            if item.method == "moe-i2"
            else item
            for item in items
        ]
    (row,) = only(items, "pruning by its searches beats random")
    assert row.verdict == verdict
    assert row.difference.value == pytest.approx(-better, abs=1e-9)
    assert (row.seeds, row.setting) == (3, "drop 0.5")
    (line,) = verdicts([row])
    assert line.endswith(f"{verdict} in 1 of 1 comparisons.")


def test_settings_that_both_share_are_compared_with_themselves() -> None:
    items: list[Compressed] = []
    for drop, better in ((0.25, 0.1), (0.5, -0.1)):
        items += made("moe-i2", better, {"drop": drop, **GENETIC})
        items += made("prune-random", 0, {"drop": drop})
    rows = only(items, "pruning by its searches beats random")
    assert [(row.setting, row.verdict) for row in rows] == [
        ("drop 0.25", "holds"),
        ("drop 0.5", "the opposite holds"),
    ]


def test_recovery_and_a_second_text_are_kept_apart() -> None:
    plain, after = {"drop": 0.5, "dropped": "smallest"}, {"drop": 0.5}
    items = made("prune-router-norm", 0.1, plain) + made("prune-random", 0, after)
    items += made("prune-router-norm", -0.2, plain, continued=True)
    items += made("prune-random", 0, after, continued=True)
    items += made("prune-random", 0.5, after, share=0.05)  # no partner
    rows = [row for row in compare(items) if row.claim.lower.method == "prune-router-norm"]
    assert [(row.claim.lower.continued, row.verdict) for row in rows] == [
        (True, "the opposite holds"),
        (False, "holds"),
    ]
    assert rows[0].difference.value == pytest.approx(0.2, abs=1e-9)


def test_training_may_differ_where_the_claim_says_so() -> None:
    options = {"experts": 4, "chosen": 1, "mask": "router", "split": "random", "train": "router"}
    items = made("factorise-dense", 0.3, options, share=0.05)
    items += made("factorise-dense", 0.0, options)
    (row,) = only(items, "a taught router beats an untrained one")
    assert (row.setting, row.verdict) == ("chosen 1, experts 4", "holds")


def test_two_seeds_are_inconclusive() -> None:
    items = made("moe-i2", 0.1, {"drop": 0.5, **GENETIC}) + made("prune-random", 0, {"drop": 0.5})
    few = [item for item in items if item.seed < 2]
    (row,) = only(few, "pruning by its searches beats random")
    assert row.verdict == "inconclusive"


def test_every_claim_names_options_that_its_method_has() -> None:
    from isoflop.bench.methods import METHODS
    from isoflop.bench.methods.method import make_method

    for claim in CLAIMS:
        for choice in (claim.lower, claim.higher):
            complete = make_method(METHODS[choice.method], choice.options)[1]
            assert choice.options.items() <= complete.items()


def test_the_report_says_what_decoding_and_routing_gave() -> None:
    items = made("moe-i2", 0.1, {"drop": 0.5, **GENETIC}) + made("prune-random", 0, {"drop": 0.5})
    row = {
        "variant": "moe", "link": "simulated 1 GB/s + 0.1 ms", "hit_rate": 0.5,
        "bytes_per_token": 100.0, "nats_per_token": 4.0, "tokens_per_second": 10.0,
    }  # fmt: skip
    decoded = [
        row | {"method": "lru"},
        row | {"method": "hobbit", "bytes_per_token": 50.0, "nats_per_token": 4.01,
               "tokens_per_second": 15.0},
    ]  # fmt: skip
    routed = (
        "variant,size,budget,experts_per_token,reuse,reuse_by_chance,lru_hits_2x,best_hits_2x\n"
        "a,s,1e9,2,0.4,0.2,0.5,0.7\na,s,1e9,2,0.6,0.2,0.5,0.7\nb,s,1e9,4,0.3,0.2,0.6,0.8\n"
    )
    text = report(post_training(siblings(), items), items, decoded, routed)
    assert "pruning by its searches beats random: holds in 1 of 1 comparisons." in text
    assert "HOBBIT reads 0.50 times the bytes per token, at +0.0100 nats" in text
    assert "1.50 times as fast" in text
    assert "50.0%" in text  # the mean of both seeds
    assert "size s, 1e+09" in text.lower().replace("**", "")
    without = report(post_training(siblings(), items), items, [], "")
    assert "HOBBIT" not in without
    assert "Locality" not in without
