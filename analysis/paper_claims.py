"""What papers on methods after training claim, as pairs of methods, and what the records say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from isoflop.analysis.estimate import Estimate
from isoflop.analysis.post_training import SEEDS, mean_interval
from isoflop.results.compressed import Compressed

Verdict = Literal["holds", "the opposite holds", "no significant difference", "inconclusive"]


@dataclass(frozen=True)
class Choice:
    """Records of a method, with some options."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    continued: bool = False  # the source was trained further on a second text
    recovered: bool = False  # after recovery training

    def takes(self, item: Compressed) -> bool:
        """Whether a record is among them."""
        return (
            item.method == self.method
            and self.options.items() <= item.options.items()
            and (item.continued is not None) == self.continued
            and (item.recovery.share > 0) == self.recovered
        )


@dataclass(frozen=True)
class Claim:
    """The first choice has a lower loss than the second, at equal sizes."""

    paper: str
    text: str
    lower: Choice
    higher: Choice


@dataclass(frozen=True)
class Comparison:
    """A claim on the cells of one variant and size, at one setting of what both share."""

    claim: Claim
    variant: str
    size: str
    setting: str
    difference: Estimate  # loss of the first minus that of the second, over source seeds
    seeds: int
    verdict: Verdict


NORM, PAIR = "prune-router-norm", {"dropped": "smallest"}
MOE, WHOLE = "moe-i2", {"search": "genetic", "keep": 1.0}
LLM, PLAIN = "factorise-dense", {"split": "random"}
ROUTER, OTHERS = {"mask": "router", **PLAIN}, {"train": "experts", **PLAIN}
ROUTER_NORM, MOE_I2, FACTOR_LLM = (
    "router-norm change (arXiv 2405.16646)", "MoE-I^2 (arXiv 2411.01016)",
    "FactorLLM (arXiv 2408.11855)",
)  # fmt: skip

CLAIMS = (
    Claim(
        ROUTER_NORM, "after a second training, dropping the smallest change beats random",
        Choice(NORM, PAIR, continued=True), Choice("prune-random", continued=True),
    ),
    Claim(
        ROUTER_NORM, "after a second training, dropping the smallest change beats the largest",
        Choice(NORM, PAIR, continued=True), Choice(NORM, {"dropped": "largest"}, continued=True),
    ),
    Claim(
        ROUTER_NORM, "proxy, initial to final: dropping the smallest change beats random",
        Choice(NORM, PAIR), Choice("prune-random"),
    ),
    Claim(
        ROUTER_NORM, "proxy, initial to final: dropping the smallest change beats the largest",
        Choice(NORM, PAIR), Choice(NORM, {"dropped": "largest"}),
    ),
    Claim(
        MOE_I2, "pruning by its searches beats random",
        Choice(MOE, WHOLE), Choice("prune-random"),
    ),
    Claim(
        MOE_I2, "pruning by its searches beats importance alone",
        Choice(MOE, WHOLE), Choice(MOE, {"search": "importance", "keep": 1.0}),
    ),
    Claim(
        MOE_I2, "pruning by its searches beats REAP",
        Choice(MOE, WHOLE), Choice("prune-reap", {"gate": True}),
    ),
    Claim(
        MOE_I2, "after recovery too, its searches beat random",
        Choice(MOE, WHOLE, recovered=True), Choice("prune-random", recovered=True),
    ),
    Claim(
        MOE_I2, "whitened factors beat plain ones (added here)",
        Choice(MOE, {"keep": 0.5, "whiten": True}), Choice(MOE, {"keep": 0.5, "whiten": False}),
    ),
    Claim(
        FACTOR_LLM, "a taught router beats an untrained one",
        Choice(LLM, {"train": "router", **ROUTER}, recovered=True),
        Choice(LLM, {"train": "router", **ROUTER}),
    ),
    Claim(
        FACTOR_LLM, "teaching the experts too beats teaching the router alone",
        Choice(LLM, {"train": "experts", **ROUTER}, recovered=True),
        Choice(LLM, {"train": "router", **ROUTER}, recovered=True),
    ),
    Claim(
        FACTOR_LLM, "router and experts beat a fixed slice after equal training",
        Choice(LLM, {"mask": "router", **OTHERS}, recovered=True),
        Choice(LLM, {"mask": "fixed", **OTHERS}, recovered=True),
    ),
    Claim(
        FACTOR_LLM, "the slices of least error beat slices at random",
        Choice(LLM, {"mask": "oracle", **OTHERS}), Choice(LLM, {"mask": "random", **OTHERS}),
    ),
    Claim(
        FACTOR_LLM, "units that are active together beat units at random (MoEfication)",
        Choice(LLM, {"mask": "router", "split": "clusters", "train": "experts"}, recovered=True),
        Choice(LLM, {"mask": "router", **OTHERS}, recovered=True),
    ),
)  # fmt: skip


def compare(items: Sequence[Compressed]) -> list[Comparison]:
    """Every claim, on every variant, size, and setting that both of its choices were tried at."""
    rows = []
    for claim in CLAIMS:
        lower = _by_setting(claim, claim.lower, items)
        higher = _by_setting(claim, claim.higher, items)
        for key in sorted(lower.keys() & higher.keys()):
            first, second = lower[key], higher[key]
            pairs = sorted(first.keys() & second.keys())
            differences = [float(np.mean(first[cell]) - np.mean(second[cell])) for cell in pairs]
            estimate = mean_interval(differences)
            verdict = _verdict(estimate, len(pairs))
            rows.append(Comparison(claim, *key, estimate, len(pairs), verdict))
    return rows


def _by_setting(
    claim: Claim, choice: Choice, items: Sequence[Compressed]
) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    """Variant, size and setting -> source cell -> losses by calibration seed.

    The setting is what the two choices share without stating it: options of both methods, and the
    share of recovery where both were recovered.
    """
    stated = {*claim.lower.options, *claim.higher.options}
    shared = _names(claim.lower, items) & _names(claim.higher, items)
    recovery = claim.lower.recovered and claim.higher.recovered
    result: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for item in filter(choice.takes, items):
        setting = {
            name: value
            for name, value in item.options.items()
            if name in shared and name not in stated
        }
        words = [f"{name} {json.dumps(value)}" for name, value in sorted(setting.items())]
        if recovery:
            words.append(f"recovery {item.recovery.share:.0%}")
        key = item.variant, f"{item.size.name} {item.budget:g}", ", ".join(words)
        result.setdefault(key, {}).setdefault(item.cell, []).append(item.scored[0])
    return result


def _names(choice: Choice, items: Sequence[Compressed]) -> set[str]:
    return {name for item in items if choice.takes(item) for name in item.options}


def _verdict(difference: Estimate, seeds: int) -> Verdict:
    if seeds < SEEDS:
        return "inconclusive"
    if difference.high < 0:
        return "holds"
    return "the opposite holds" if difference.low > 0 else "no significant difference"
