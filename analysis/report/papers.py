"""REPORT.md of a study of methods after training: what holds of each paper at its size."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from isoflop.analysis.paper_claims import Comparison, compare
from isoflop.analysis.post_training import Row, sentence
from isoflop.analysis.report.format import interval, listed
from isoflop.analysis.report.markdown import escape, table
from isoflop.results.compressed import Compressed

HEADER = ("paper", "claim", "source", "setting", "seeds", "difference, nats", "verdict")
LEFT = ("paper", "claim", "source", "setting", "verdict")
DECODED = (
    "variant", "method", "link", "tokens_per_second", "p50_ms", "p95_ms", "hit_rate",
    "low_precision", "left_out", "bytes_per_token", "nats_per_token",
)  # fmt: skip


def report(
    rows: Sequence[Row],
    items: Sequence[Compressed],
    decoded: Sequence[Mapping[str, Any]],
    routed: str,
) -> str:
    """The text of REPORT.md.

    Args:
        decoded: what `isoflop decode --json` has printed; empty if it was not run.
        routed: locality.csv, or nothing.
    """
    comparisons = compare(items)
    parts = [
        "# What methods after training do at this size\n",
        f"{escape(sentence(rows))} All rows: [POST-TRAINING.md](POST-TRAINING.md).\n",
        "## What holds of each paper\n",
        *(f"- {escape(line)}\n" for line in verdicts(comparisons)),
        "Differences of losses in nats per token, mean over the seeds of the source, each the mean "
        "over calibration seeds, with a 95% interval (Student's t), at equal settings of what both "
        "share; negative: as claimed. A verdict takes three seeds, and is not corrected for the "
        "number of comparisons. Models of this size and this text say nothing of large ones.\n",
    ]
    if comparisons:
        parts.append(table(HEADER, [_cells(row) for row in comparisons], LEFT) + "\n")
    if decoded:
        parts += ["## Experts in a file: HOBBIT (arXiv 2411.01433)\n", *_decoding(decoded)]
    if routed:
        parts += ["## Routing locality\n", *_locality(list(csv.DictReader(io.StringIO(routed))))]
    return "\n".join(parts)


def verdicts(comparisons: Sequence[Comparison]) -> list[str]:
    """A line for each claim: how often it holds."""
    lines = []
    for claim, group in groupby(comparisons, lambda comparison: comparison.claim):
        made = [comparison.verdict for comparison in group]
        counted = [f"{word} in {made.count(word)}" for word in dict.fromkeys(made)]
        lines.append(f"{claim.paper}: {claim.text}: {listed(counted)} of {len(made)} comparisons.")
    return lines


def _cells(comparison: Comparison) -> list[str]:
    claim = comparison.claim
    return [
        claim.paper,
        claim.text,
        f"{comparison.variant} {comparison.size}",
        comparison.setting or "-",
        str(comparison.seeds),
        interval(comparison.difference, "+.4f"),
        comparison.verdict,
    ]


def _decoding(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = {
            row["method"]: row
            for row in rows
            if row["variant"] == variant and row["link"].startswith("simulated")
        }
        if not {"lru", "hobbit"} <= mine.keys():
            continue
        lru, hobbit = mine["lru"], mine["hobbit"]
        lines.append(
            f"- {escape(variant)}: beside LRU of as many bytes HOBBIT reads "
            f"{hobbit['bytes_per_token'] / lru['bytes_per_token']:.2f} times the bytes per token, "
            f"at {hobbit['nats_per_token'] - lru['nats_per_token']:+.4f} nats and hit rates of "
            f"{hobbit['hit_rate']:.0%} and {lru['hit_rate']:.0%}; over the simulated link it "
            f"decodes {hobbit['tokens_per_second'] / lru['tokens_per_second']:.2f} times as fast.\n"
        )
    shown = [[_shown(row.get(name)) for name in DECODED] for row in rows]
    words = [name.replace("_", " ") for name in DECODED]
    note = (
        "Experts of this size lie in memory whatever is asked of the system: cold and warm speeds "
        "say nothing of reading from a disk, and one link is simulated. Hit rates, bytes and "
        "losses hold.\n"
    )
    return [*lines, note, table(words, shown, ("variant", "method", "link")) + "\n"]


def _locality(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Of the size and budget with the most granularities, means over seeds."""
    groups: dict[tuple[float, str], dict[int, list[Mapping[str, str]]]] = {}
    for row in rows:
        by_granularity = groups.setdefault((float(row["budget"]), row["size"]), {})
        by_granularity.setdefault(int(row["experts_per_token"]), []).append(row)
    (budget, size), shown = max(groups.items(), key=lambda group: (len(group[1]), group[0]))

    def mean(group: Sequence[Mapping[str, str]], name: str) -> float:
        return sum(float(row[name]) for row in group) / len(group)

    cells = [
        [
            str(granularity),
            *(f"{mean(group, name):.1%}" for name in
              ("reuse", "reuse_by_chance", "lru_hits_2x", "best_hits_2x")),
        ]
        for granularity, group in sorted(shown.items())
    ]  # fmt: skip
    header = (
        "experts per token", "used by the last token too", "by chance", "LRU hits, cache 2x",
        "best possible hits",
    )  # fmt: skip
    text = (
        f"Size {escape(size)}, {budget:g} FLOPs, the same training FLOPs and bytes of cache at "
        "every granularity; means over seeds. All sizes: [locality.md](locality/locality.md).\n"
    )
    return [text, table(header, cells) + "\n", "![Locality](locality/locality.png)\n"]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)
