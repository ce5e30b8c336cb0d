"""Makes one stored benchmark out of those of several processes: medians, and the range of ratios.

    python -m tests.benchmarks.merge OUT IN...

What one process measures depends on where its memory lies and on what else the machine did. Of
processes with the allocator settings of a suite's workers, the ratios are stored beside the others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from isoflop.results.files import write_whole


def merge(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All numbers are medians over the plain processes; the time of each rival over ours, and each
    ratio of training steps, also has its least and largest value.

    Raises:
        ValueError: processes of one kind do not hold the same benchmarks.
    """
    plain, in_worker = (
        [run for run in runs if run["machine_info"]["allocator"] == allocator]
        for allocator in ("plain", "worker")
    )
    infos, worker_infos = _infos(plain), _infos(in_worker)
    merged = _median(plain) | {"processes": len(plain)}
    for benchmark in merged["benchmarks"]:
        name, info = benchmark["name"], benchmark["extra_info"]
        for number, rival in enumerate(info.get("others", [])):
            if "failed" not in rival:
                rival["ratio"] = _ratios(infos[name], number)
                if name in worker_infos:
                    rival["ratio_in_worker"] = _ratios(worker_infos[name], number)
        if "ratios" in info:
            info["ranges"] = {
                key: [f(part["ratios"][key] for part in infos[name]) for f in (min, max)]
                for key in info["ratios"]
            }
    return merged


def _infos(runs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What every process says of a benchmark, by its name."""
    names = [[benchmark["name"] for benchmark in run["benchmarks"]] for run in runs]
    if any(other != names[0] for other in names):
        raise ValueError("the files do not hold the same benchmarks")
    return {
        name: [run["benchmarks"][place]["extra_info"] for run in runs]
        for place, name in enumerate(names[0] if names else [])
    }


def _ratios(infos: list[Any], number: int) -> list[float] | None:
    """Median, least and largest time of a rival over ours; None where it failed."""
    rivals = [info["others"][number] for info in infos]
    if any("failed" in rival for rival in rivals):
        return None
    ratios = [
        rival["step_seconds"] / info["ours"]["step_seconds"]
        for rival, info in zip(rivals, infos, strict=True)
    ]
    return [median(ratios), min(ratios), max(ratios)]


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
