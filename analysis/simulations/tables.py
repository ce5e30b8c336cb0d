"""The tables of simulations in a document, from the stored counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.analysis.report.derive import embed
from isoflop.analysis.report.markdown import table
from isoflop.analysis.simulations import cluster
from isoflop.analysis.simulations.stored import read
from isoflop.analysis.simulations.truths import RANK_LISTS

DENSE = "dense"  # the baseline of the layouts


def write_tables(document: Path, store: Path) -> None:
    """Write the tables of `document` anew."""
    text = document.read_text(encoding="utf-8")
    document.write_text(embedded(text, document, store), encoding="utf-8")


def embedded(text: str, document: Path, store: Path) -> str:
    """The text of a document with the tables that the stored counts give."""
    counts = read(store)
    blocks = {"coverage": coverage(counts), "pairs": pairs(counts), "setting": setting(counts)}
    blocks |= cluster.blocks(read(store.parent / cluster.STORED), read(store.parent / cluster.RUN))
    return embed(text, document, store.parent, blocks)


def setting(counts: Mapping[str, Any]) -> str:
    """How the counts came about, in a sentence."""
    parts = (
        f"{_range(counts, 'suites')} suites of each truth",
        f"{_range(counts, 'samples')} bootstrap samples",
        f"seed {_range(counts, 'seed')}",
    )
    return "; ".join(parts) + ".\n"


def _range(counts: Mapping[str, Any], key: str) -> str:
    values = sorted({count[key] for count in counts.values()})
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def coverage(counts: Mapping[str, Any]) -> str:
    """Errors and coverage by truth."""
    rows = []
    for name, count in counts.items():
        surface, parabola, headline = (count[kind] for kind in ("surface", "parabola", "headline"))
        shares = [inside / total for inside, total in surface["covered"].values()]
        known = parabola["missing"] < 1  # for some layer of some suite
        rows.append(
            (
                name,
                f"{surface['rmse']:.3f}",
                f"{parabola['rmse']:.3f}" if known else "-",
                f"{surface['bias']:+.3f}",
                f"{parabola['bias']:+.3f}" if known else "-",
                f"x/{np.exp(surface['half_width']):.2f}",
                f"x/{np.exp(parabola['half_width']):.2f}" if known else "-",
                f"{_percent(surface['coverage'])} ({min(shares):.0%} to {max(shares):.0%})",
                _percent(parabola["coverage"]) if known else "-",
                _percent(headline["coverage"]),
                _percent(parabola["missing"]),
                _percent(count["switched"]),
                _percent(count["failed"]),
            )
        )
    header = (
        "truth",
        "rmse J",
        "rmse P",
        "bias J",
        "bias P",
        "half-width J",
        "half-width P",
        "coverage J (by layer)",
        "coverage P",
        "coverage shown",
        "P has none",
        "P shown",
        "held-out test fails",
    )
    return table(header, rows, left=("truth",))


def pairs(counts: Mapping[str, Any]) -> str:
    """How often pairs of a known ratio are told apart, over the lists of `rank_truths`."""
    rows = []
    for name in RANK_LISTS:
        groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
        for pair in counts.get(name, {"pairs": []})["pairs"]:
            with_dense = DENSE in (pair["first"], pair["second"])
            key = pair["ratio"], "dense and a layer" if with_dense else "two layers"
            groups.setdefault(key, []).append(pair)
        for (ratio, kind), members in sorted(groups.items()):
            shares = _shares(members, counts[name])
            rows.append((name, f"{ratio:.2f}x", kind, str(len(members)), *shares))
    header = ("list", "ratio", "of", "pairs", "told apart", "rightly", "wrongly")
    return table(header, rows, left=("list", "of"))


def _shares(members: Sequence[Mapping[str, Any]], count: Mapping[str, Any]) -> tuple[str, ...]:
    total = len(members) * count["suites"]
    right = sum(pair["first_better"] for pair in members)
    wrong = sum(pair["second_better"] for pair in members)
    if members[0]["ratio"] == 1:
        return _percent((right + wrong) / total), "", _percent((right + wrong) / total)
    return _percent((right + wrong) / total), _percent(right / total), _percent(wrong / total)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
