"""The section on other text: the losses of `isoflop eval`, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from isoflop.analysis.ablation import pooled_deviation
from isoflop.analysis.estimate import Estimate
from isoflop.analysis.report.format import flops, interval
from isoflop.results.scored import Scored

BYTES = "The same in bits per byte of the text, which do not depend on the tokenizer."


def text(scored: Sequence[Scored]) -> str:
    """What the first table holds."""
    lengths = ", ".join(f"{name} {length:,}" for name, length in _sets(scored).items())
    return (
        f"Models of {flops(scored[0].budget)} FLOPs, of each variant the size nearest to its "
        "optimum there, scored on other text than the suite's, in the tokens of its corpus. Nats "
        "per token, and the perplexity per token in parentheses; the mean over seeds, with a 95% "
        "interval where there are several (Student's t, with the deviation between seeds pooled "
        f"over variants). Tokens scored: {lengths}."
    )


def header(scored: Sequence[Scored]) -> tuple[str, ...]:
    """The titles of both tables: a column per set."""
    return ("variant", "size", "seeds", *_sets(scored))


def losses(scored: Sequence[Scored], order: Sequence[str]) -> list[list[str]]:
    """Nats per token and perplexity per token, one row per variant.

    Args:
        order: of the variants.
    """
    half = _half_intervals(scored)
    return [
        [
            *first,
            *(
                f"{interval(_loss(one, half), '.3f')} ({one.perplexity_per_token:.1f})"
                for one in of_variant
            ),
        ]
        for first, of_variant in _by_variant(scored, order)
    ]


def bits_per_byte(scored: Sequence[Scored], order: Sequence[str]) -> list[list[str]]:
    """Bits per byte, one row per variant; `order` as for `losses`."""
    half = _half_intervals(scored)
    rows = []
    for first, of_variant in _by_variant(scored, order):
        scales = [one.bits_per_byte / one.nats_per_token for one in of_variant]
        values = [
            Estimate(*(scale * end for end in _loss(one, half)))
            for scale, one in zip(scales, of_variant, strict=True)
        ]
        rows.append([*first, *(interval(value, ".3f") for value in values)])
    return rows


def _sets(scored: Sequence[Scored]) -> dict[str, int]:
    """The sets in the order in which they were given, and their tokens."""
    return {one.data: one.tokens for one in scored}


def _by_variant(
    scored: Sequence[Scored], order: Sequence[str]
) -> list[tuple[list[str], list[Scored]]]:
    """The first columns and the sets of each variant."""
    lines = []
    for variant in sorted({one.variant for one in scored}, key=list(order).index):
        by_set = {one.data: one for one in scored if one.variant == variant}
        of_variant = [by_set[name] for name in _sets(scored)]
        lines.append(([variant, of_variant[0].size, str(of_variant[0].seeds)], of_variant))
    return lines


def _loss(one: Scored, half: dict[str, float]) -> Estimate:
    mean, end = one.nats_per_token, half[one.data] / np.sqrt(one.seeds)
    return Estimate(mean, mean - end, mean + end)


def _half_intervals(scored: Sequence[Scored]) -> dict[str, float]:
    """Half the 95% interval of one seed's loss by set; nan where no variant has two seeds."""
    result = {}
    for name in _sets(scored):
        deviation, degrees = pooled_deviation([one.losses for one in scored if one.data == name])
        result[name] = float(stdtrit(max(degrees, 1), 0.975) * deviation)
    return result
