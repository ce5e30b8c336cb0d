"""What methods after training cost in loss, beside smaller models trained with as many FLOPs.

A sibling of a source cell is a cell of the same variant and seed, at any size and budget. Its loss
at a wanted size is interpolated in the logarithm of the size between trained sizes of one budget,
and in the logarithm of FLOPs between budgets where recovery training spent more than the source.
Outside of what was trained there is no sibling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from scipy.special import stdtrit

from isoflop.analysis.curves import AnalysisError
from isoflop.analysis.estimate import Estimate
from isoflop.results.compressed import Compressed
from isoflop.results.record import Record

SEEDS = 3  # of the source, and of calibration, that a verdict needs
SAME = 0.01  # budgets are met within this share
BYTES = 2  # of a weight of a model as it was trained, in bfloat16

Size = Callable[[Record], float]
Verdict = Literal[
    "significantly better",
    "significantly worse",
    "not significantly different",
    "inconclusive",
    "no sibling",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SIBLING_SIZES: dict[str, Size] = {
    "parameters": lambda record: record.parameters.total,
    "stored bytes": lambda record: BYTES * record.parameters.total,
    "FLOPs per token": lambda record: record.flops_per_token.forward,
    "bytes read per token": lambda record: BYTES * record.parameters.active,
}
SIZES: dict[str, Callable[[Compressed], float]] = {
    "parameters": lambda item: item.parameters.total,
    "stored bytes": lambda item: item.stored_bytes,
    "FLOPs per token": lambda item: item.measured_flops_per_token,
    "bytes read per token": lambda item: item.read_bytes,
}


@dataclass(frozen=True)
class Row:
    """A method with its options and recovery, on the cells of a variant, size and budget."""

    items: tuple[Compressed, ...]  # of all source seeds and calibration seeds
    loss: Estimate  # over source seeds; on the second text, where the source went on with one
    change: Estimate  # to the source's loss
    against: Estimate  # its loss minus a sibling's of equal stored bytes and total FLOPs
    verdict: Verdict

    @property
    def first(self) -> Compressed:
        return self.items[0]

    @property
    def source(self) -> tuple[str, str, float]:
        return self.first.variant, self.first.size.name, self.first.budget

    @property
    def options(self) -> str:
        words = [f"{key} {value}" for key, value in self.first.options.items()]
        if self.first.continued:
            words.append(f"after {self.first.continued.share:.0%} on {self.first.continued.text}")
        return ", ".join(words)

    @property
    def seeds(self) -> tuple[int, int]:
        """Source seeds, and the fewest calibration seeds of one."""
        by_seed = _by_seed(self.items)
        return len(by_seed), min(map(len, by_seed.values()))

    @property
    def decode_ms(self) -> float | None:
        """Median over all seeds; None if none was measured."""
        return median_known(item.decode_ms for item in self.items)

    @property
    def source_decode_ms(self) -> float | None:
        """The same of its source, measured in turn with it."""
        return median_known(item.source_decode_ms for item in self.items)

    def size(self, axis: str) -> float:
        """The mean over all seeds; FLOPs may differ between them."""
        return float(np.mean([SIZES[axis](item) for item in self.items]))


def post_training(records: Sequence[Record], items: Iterable[Compressed]) -> list[Row]:
    """A row per source, method, options and recovery, by source and then by stored bytes.

    Raises:
        AnalysisError: losses on different text.
    """
    groups: dict[tuple[str, ...], list[Compressed]] = {}
    for item in items:
        options = json.dumps(item.options, sort_keys=True)
        key = (
            item.variant,
            item.size.name,
            repr(item.budget),
            item.method,
            options,
            repr(item.recovery.share),
            item.continued.model_dump_json() if item.continued else "",
            item.calibration.text,
            str(item.calibration.tokens),
        )
        groups.setdefault(key, []).append(item)
    hashes = {item.validation_hash for group in groups.values() for item in group}
    if len(hashes | {r.validation_hash for r in records if r.status == "finished"}) > 1:
        raise AnalysisError(
            "records and compressed models were scored on different text: they may not be compared"
        )
    rows = [_row(tuple(group), records) for group in groups.values()]
    return sorted(rows, key=lambda row: (row.source, -row.size("stored bytes"), row.loss.value))


def _row(group: tuple[Compressed, ...], records: Sequence[Record]) -> Row:
    losses, changes, differences = [], [], []
    for items in _by_seed(group).values():
        loss, source_loss = np.mean([item.scored for item in items], axis=0).tolist()
        losses.append(loss)
        changes.append(loss - source_loss)
        beside = [sibling(records, item, "stored bytes") for item in items]
        differences.append(loss - float(np.mean(beside)))
    against = mean_interval([difference for difference in differences if np.isfinite(difference)])
    row = Row(group, mean_interval(losses), mean_interval(changes), against, "no sibling")
    return replace(row, verdict=_verdict(row, differences))


def _verdict(row: Row, differences: Sequence[float]) -> Verdict:
    if not np.isfinite(differences).any():
        return "no sibling"
    sources, calibrations = row.seeds
    seen = row.first.calibration.tokens > 0 or row.first.recovery.steps > 0
    enough = sources >= SEEDS and (calibrations >= SEEDS or not seen)
    if not enough or not np.isfinite(differences).all():
        return "inconclusive"
    if row.against.high < 0:
        return "significantly better"
    return "significantly worse" if row.against.low > 0 else "not significantly different"


def median_known(times: Iterable[float | None]) -> float | None:
    """The median of what was measured; None if nothing was."""
    known = [time for time in times if time is not None]
    return float(np.median(known)) if known else None


def _by_seed(items: Iterable[Compressed]) -> dict[int, list[Compressed]]:
    result: dict[int, list[Compressed]] = {}
    for item in items:
        result.setdefault(item.seed, []).append(item)
    return result


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean with its 95% interval by Student's t; no interval for a single value."""
    if not values:
        return Estimate(np.nan, np.nan, np.nan)
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, np.nan, np.nan)
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)


def sibling(records: Sequence[Record], item: Compressed, axis: str) -> float:
    """The loss of a model trained at the item's size with its total FLOPs; nan if none was.

    No cell is trained on a second text: of a source that is, there is no sibling.

    Args:
        axis: a key of `SIZES`, of which the item's value is the size.
    """
    if item.continued:
        return np.nan
    wanted = SIZES[axis](item)
    by_budget: dict[float, list[Record]] = {}
    for record in records:
        same = (record.variant, record.seed) == (item.variant, item.seed)
        if same and record.loss is not None and not record.ablation:
            by_budget.setdefault(record.budget, []).append(record)
    losses = {
        budget: _between(
            [SIBLING_SIZES[axis](record) for record in cells],
            [float(record.loss or 0) for record in cells],
            wanted,
        )
        for budget, cells in by_budget.items()
    }
    total = item.budget * item.total_flops / item.source_flops
    for budget, loss in losses.items():
        if abs(total / budget - 1) <= SAME and not item.recovery.steps:
            return loss
    known = {budget: loss for budget, loss in losses.items() if np.isfinite(loss)}
    return _between(list(known), list(known.values()), total)


def _between(places: Sequence[float], losses: Sequence[float], wanted: float) -> float:
    """Linear in the logarithm between the two nearest places; nan outside of them."""
    if not places:
        return np.nan
    order = np.argsort(places)
    at, values = np.log(np.array(places)[order]), np.array(losses)[order]
    if not at[0] - 1e-9 <= np.log(wanted) <= at[-1] + 1e-9:
        return np.nan
    return float(np.interp(np.log(wanted), at, values))


def too_large(rows: Sequence[Row], records: Sequence[Record]) -> list[tuple[str, str, float]]:
    """Sources beside which a smaller model of the same variant and budget has a lower mean loss.

    There "train a smaller one" wins before any method does anything.
    """
    losses: dict[tuple[str, float], dict[int, list[float]]] = {}
    for record in records:
        if record.loss is not None and not record.ablation:
            by_size = losses.setdefault((record.variant, record.budget), {})
            by_size.setdefault(record.parameters.total, []).append(record.loss)
    result = []
    for row in rows:
        variant, _, budget = row.source
        means = {n: float(np.mean(v)) for n, v in losses.get((variant, budget), {}).items()}
        size = row.first.source_parameters.total
        smaller = [loss for n, loss in means.items() if n < size]
        if smaller and min(smaller) < means.get(size, -np.inf) and row.source not in result:
            result.append(row.source)
    return result


def sentence(rows: Sequence[Row]) -> str:
    """Which method beats training a smaller model, and where."""
    count = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    wins: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict == "significantly better":
            variant, size, _ = row.source
            share = row.size("stored bytes") / row.first.source_stored_bytes
            where = f"{variant} {size} at {share:.0%} of its bytes"
            if row.first.recovery.share:
                where += f" after {row.first.recovery.share:.0%} of recovery"
            places = wins.setdefault(row.first.method, [])
            if where not in places:
                places.append(where)
    listed = "; ".join(f"{method} ({', '.join(places)})" for method, places in wins.items())
    rest = ", ".join(
        f"{number} {verdict}"
        for verdict, number in count.items()
        if number and verdict != "significantly better"
    )
    smaller = "training a smaller model of equal stored bytes and equal total FLOPs"
    if wins:
        start = f"Better than {smaller}: {listed}"
    else:
        start = f"No method is significantly better than {smaller}"
    return f"{start}. Other comparisons: {rest}." if rest else f"{start}."
