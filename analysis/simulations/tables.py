"""The tables of simulations in a document, from the stored counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.analysis.report.derive import embed
from isoflop.analysis.report.markdown import table
from isoflop.analysis.simulations.stored import read


def write_tables(document: Path, store: Path) -> None:
    """Write the tables of `document` anew."""
    text = document.read_text(encoding="utf-8")
    document.write_text(embedded(text, document, store), encoding="utf-8")


def embedded(text: str, document: Path, store: Path) -> str:
    """The text of a document with the tables that the stored counts give."""
    counts = read(store)
    blocks = {"coverage": coverage(counts), "pairs": pairs(counts), "setting": setting(counts)}
    return embed(text, document, store.parent, blocks)


def setting(counts: Mapping[str, Any]) -> str:
    """How the counts came about, in a sentence."""
    parts = (
        f"{_range(counts, 'suites')} suites of each truth",
        f"{_range(counts, 'samples')} bootstrap samples",
        f"seed {_range(counts, 'seed')}",
        f"code {', '.join(sorted({count['code'] for count in counts.values()}))}",
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
        rows.append(
            (
                name,
                f"{surface['rmse']:.3f}",
                f"{parabola['rmse']:.3f}",
                f"{surface['bias']:+.3f}",
                f"{parabola['bias']:+.3f}",
                f"x/{np.exp(surface['half_width']):.2f}",
                f"x/{np.exp(parabola['half_width']):.2f}",
                f"{_percent(surface['coverage'])} ({min(shares):.0%} to {max(shares):.0%})",
                _percent(parabola["coverage"]),
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
    """How often pairs of a known ratio are told apart, over all lists of the rank truths."""
    rows = []
    for name, count in counts.items():
        by_ratio: dict[float, list[Mapping[str, Any]]] = {}
        for pair in count["pairs"]:
            by_ratio.setdefault(pair["ratio"], []).append(pair)
        if not any(ratio == 1 for ratio in by_ratio):
            continue
        for ratio, members in sorted(by_ratio.items()):
            rows.append((name, f"{ratio:.2f}x", str(len(members)), *_shares(members, count)))
    header = ("list", "ratio", "pairs", "told apart", "rightly", "wrongly")
    return table(header, rows, left=("list",))


def _shares(members: Sequence[Mapping[str, Any]], count: Mapping[str, Any]) -> tuple[str, ...]:
    total = len(members) * count["suites"]
    right = sum(pair["first_better"] for pair in members)
    wrong = sum(pair["second_better"] for pair in members)
    if members[0]["ratio"] == 1:
        return _percent((right + wrong) / total), "", _percent((right + wrong) / total)
    return _percent((right + wrong) / total), _percent(right / total), _percent(wrong / total)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
