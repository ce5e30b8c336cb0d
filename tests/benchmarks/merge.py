"""Makes one stored benchmark out of those of several processes: medians, and the range of ratios.

    python -m tests.benchmarks.merge OUT IN...

What one process measures depends on where its memory lies and on what else the machine did.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from isoflop.results.files import write_whole


def merge(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All numbers are medians over the runs; the time of each rival over ours, and each ratio of
    training steps, also has its least and largest value.

    Raises:
        ValueError: the runs do not hold the same benchmarks.
    """
    names = [[benchmark["name"] for benchmark in run["benchmarks"]] for run in runs]
    if any(other != names[0] for other in names):
        raise ValueError("the files do not hold the same benchmarks")
    merged = _median(runs) | {"processes": len(runs)}
    for place, benchmark in enumerate(merged["benchmarks"]):
        info = benchmark["extra_info"]
        parts = [run["benchmarks"][place]["extra_info"] for run in runs]
        for number, rival in enumerate(info.get("others", [])):
            if "failed" not in rival:
                ratios = [
                    part["others"][number]["step_seconds"] / part["ours"]["step_seconds"]
                    for part in parts
                ]
                rival["ratio"] = [median(ratios), min(ratios), max(ratios)]
        if "ratios" in info:
            info["ranges"] = {
                name: [f(part["ratios"][name] for part in parts) for f in (min, max)]
                for name in info["ratios"]
            }
    return merged


def _median(values: list[Any]) -> Any:
    """Of numbers at the same place in equal structures; what is no number is the first's."""
    first = values[0]
    if isinstance(first, dict):
        if any("failed" in value for value in values):  # a rival that failed once is no rival
            return next(value for value in values if "failed" in value)
        return {key: _median([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_median(list(entries)) for entries in zip(*values, strict=True)]
    if isinstance(first, bool) or not isinstance(first, int | float):
        return first
    return median(values)


if __name__ == "__main__":
    target, *sources = map(Path, sys.argv[1:])
    content = merge([json.loads(source.read_text()) for source in sources])
    write_whole(target, json.dumps(content, indent=1) + "\n")
