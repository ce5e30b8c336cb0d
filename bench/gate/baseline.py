"""The gate: is this code what it was, in counts, losses, time and memory?

The stored side is `results/<suite>/baseline.json`, made by `isoflop check --accept`: the counts of
every model, and the losses of every cell over several seeds. What a machine decides, time and
memory, is never stored: `isoflop.bench.gate.stopwatch` measures base and head in the same job.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import stats

from isoflop.bench.gate.stopwatch import Ratio
from isoflop.bench.plan import Cell
from isoflop.results.errors import IsoflopError
from isoflop.results.record import Flops, Parameters, Record, write_whole

ERROR = 0.01  # probability that the losses of unchanged code fail
SHOWN = 20  # lines of a check's details


class GateError(IsoflopError):
    """The gate cannot judge; one line says why and what to do."""


class StoredCell(BaseModel):
    """What unchanged code gives for one cell."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    variant: str
    size: str
    budget: float  # FLOPs asked for
    flops: int  # FLOPs spent
    flops_per_token: Flops
    parameters: Parameters
    losses: list[float]  # nats per token, by seed

    @property
    def key(self) -> tuple[str, str, float]:
        return self.variant, self.size, self.budget


class Baseline(BaseModel):
    """The stored side of the gate."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = 1
    suite: str
    device: str
    versions: dict[str, str]
    validation_hash: str
    seeds: Annotated[list[int], Field(min_length=3)]  # two are left when one is held out
    cells: list[StoredCell]


@dataclass(frozen=True)
class Check:
    """What one part of the gate says."""

    name: str
    ok: bool
    text: str  # one line
    details: Sequence[str] = ()  # a line each
    table: Sequence[dict[str, str]] = ()


def read_baseline(path: Path) -> Baseline:
    """Read the stored side.

    Raises:
        GateError: there is none, or it is not one.
    """
    try:
        return Baseline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise GateError(f"{path}: {error.strerror}; `isoflop check --accept` makes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise GateError(f"{path}: {where}: {first['msg']}") from None


def write_baseline(path: Path, records: Sequence[Record]) -> Baseline:
    """Store what this code gives.

    Args:
        records: every cell of a suite, with the same seeds.
    Raises:
        GateError: a cell has not finished.
    """
    bad = [record for record in records if record.loss is None]
    if bad:
        raise GateError(f"{bad[0].variant} {bad[0].size.name}: {bad[0].status}: {bad[0].message}")
    groups: dict[tuple[str, str, float], list[Record]] = {}
    for record in sorted(records, key=lambda one: one.seed):
        groups.setdefault(_key(record), []).append(record)
    first = records[0]
    baseline = Baseline(
        suite=first.suite,
        device=first.measured.device,
        versions=first.measured.versions,
        validation_hash=str(first.validation_hash),
        seeds=sorted({record.seed for record in records}),
        cells=[
            StoredCell(
                variant=variant,
                size=size,
                budget=budget,
                flops=own[0].flops,
                flops_per_token=own[0].flops_per_token,
                parameters=own[0].parameters,
                losses=[float(f"{record.loss:.6g}") for record in own],
            )
            for (variant, size, budget), own in sorted(groups.items())
        ],
    )
    write_whole(path, baseline.model_dump_json(indent=1) + "\n")
    return baseline


def counts(baseline: Baseline, cells: Sequence[Cell]) -> Check:
    """FLOPs and parameters of every cell, equal to the stored ones to the integer."""
    stored = {one.key: one for one in baseline.cells}
    found = {_key(cell): cell for cell in cells}
    details = [f"{_name(key)}: not stored; --accept stores it" for key in found.keys() - stored]
    details += [
        f"{_name(key)}: stored, but no longer in the suite" for key in stored.keys() - found
    ]
    for key in sorted(found.keys() & stored.keys()):
        old, cell = stored[key], found[key]
        before = {"flops": old.flops, **old.flops_per_token.model_dump()}
        after = {"flops": cell.flops, **cell.flops_per_token.model_dump()}
        before |= {f"{k} parameters": v for k, v in old.parameters.model_dump().items()}
        after |= {f"{k} parameters": v for k, v in cell.parameters.model_dump().items()}
        details += [
            f"{_name(key)}: {what} {value} is stored, {after[what]} counted"
            for what, value in before.items()
            if value != after[what]
        ]
    text = f"FLOPs and parameters of {len(found)} cells equal the stored ones"
    if details:
        text = f"differences from the stored FLOPs and parameters: {len(details)}"
    return Check("counts", not details, text, sorted(details))


@dataclass(frozen=True)
class Departure:
    """How far losses are from the stored ones, in standard deviations, and what noise allows."""

    z: float
    limit: float

    @property
    def ok(self) -> bool:
        return abs(self.z) <= self.limit


def departures(
    stored: Sequence[Sequence[float]], new: Sequence[float], groups: Sequence[tuple[str, object]]
) -> tuple[dict[str, Departure], list[Departure]]:
    """Whether losses agree with the stored ones: each variant's as a whole, and each cell's.

    A cell's z is its loss less the stored mean over the standard deviation of that difference; the
    deviation between seeds is pooled over the cells of equal size and budget, as it depends on
    those far more than on the layer. A variant's z is the sum of its cells' over the root of their
    number. Cells of one seed share their data order, so its spread may be above 1: it is taken from
    the stored seeds, each judged in turn by the others. Both limits are two-sided, of Student's t,
    with half of `ERROR` for each, shared out over variants and cells.

    Args:
        stored: losses by cell and seed, (cells, seeds).
        new: of one run of each cell.
        groups: variant, and size with budget, of each cell.
    """
    losses = np.array(stored)
    seeds = losses.shape[1]
    variant = np.array([name for name, _ in groups])
    same = {place: index for index, place in enumerate(dict.fromkeys(g for _, g in groups))}
    group = np.array([same[place] for _, place in groups])

    def scores(known: np.ndarray, one: np.ndarray) -> np.ndarray:
        variance = known.var(axis=1, ddof=1)
        pooled = np.array([variance[group == each].mean() for each in range(len(same))])[group]
        return (one - known.mean(axis=1)) / np.sqrt(pooled * (1 + 1 / known.shape[1]))

    def whole(score: np.ndarray, name: str) -> float:
        own = score[variant == name]
        return float(own.sum() / math.sqrt(len(own)))

    names = list(dict.fromkeys(variant.tolist()))
    held_out = [scores(np.delete(losses, each, axis=1), losses[:, each]) for each in range(seeds)]
    spread = math.sqrt(np.mean([whole(score, name) ** 2 for score in held_out for name in names]))
    score = scores(losses, np.array(new))
    limit = float(stats.t.isf(ERROR / 4 / len(names), len(names) * (seeds - 1)))
    of_variant = {name: Departure(whole(score, name) / max(spread, 1), limit) for name in names}
    degrees = (seeds - 1) * np.bincount(group)[group]
    of_cell = stats.t.isf(ERROR / 4 / len(score), degrees)
    return of_variant, [Departure(float(z), float(t)) for z, t in zip(score, of_cell, strict=True)]


def losses(baseline: Baseline, records: Sequence[Record]) -> Check:
    """Losses of one run of every cell, within the noise of the stored ones."""
    stored = {one.key: one for one in baseline.cells}
    details, known = [], []
    for record in sorted(records, key=_key):
        key = _key(record)
        if record.loss is None:
            details.append(f"{_name(key)}: {record.status}: {record.message}")
        elif record.validation_hash != baseline.validation_hash:
            details.append(f"{_name(key)}: scored on other text than the stored losses")
        elif key not in stored:
            details.append(f"{_name(key)}: no stored losses; --accept stores them")
        else:
            known.append((stored[key], record.loss))
    table = []
    if known:
        groups = [(one.variant, (one.size, one.budget)) for one, _ in known]
        new = [loss for _, loss in known]
        variants, cells = departures([one.losses for one, _ in known], new, groups)
        for (one, loss), departure in zip(known, cells, strict=True):
            if not departure.ok:
                details.append(
                    f"{_name(one.key)}: loss {loss:.4f}, {np.mean(one.losses):.4f} is stored: "
                    f"z = {departure.z:+.1f}, beyond {departure.limit:.1f}"
                )
        for name, departure in variants.items():
            own = [loss - np.mean(one.losses) for one, loss in known if one.variant == name]
            table.append(
                {
                    "variant": name,
                    "mean change (nats)": f"{np.mean(own):+.4f}",
                    "z": f"{departure.z:+.2f}",
                    "limit": f"{departure.limit:.2f}",
                }
            )
            if not departure.ok:
                word = "worse" if departure.z > 0 else "better"
                details.append(
                    f"{name}: {word} than stored by {abs(np.mean(own)):.4f} nats on average: "
                    f"z = {departure.z:+.1f}, beyond {departure.limit:.1f}"
                )
    text = f"{len(records)} losses within the noise of {len(baseline.seeds)} stored seeds"
    if details:
        text = f"departures from the stored losses: {len(details)}"
    return Check("losses", not details, text, details, table)


def ratios(
    name: str, unit: str, scale: float, measured: Sequence[Ratio], new: Sequence[str]
) -> Check:
    """Step time or peak memory of head over base, each within its threshold.

    Args:
        unit: of the table, `scale` times that of the values.
        new: variants that base does not have.
    """
    slow = [one for one in measured if not one.ok]
    worst = max(measured, key=lambda one: one.ratio)
    text = f"{worst.variant} {worst.ratio:.3f}x of base at most; a regression above "
    text += f"{worst.threshold:.3f}x"
    if new:
        text += f"; not in base: {', '.join(new)}"
    details = [f"{one.variant}: {one.ratio:.3f}x, beyond {one.threshold:.3f}x" for one in slow]
    table = [
        {
            "variant": one.variant,
            f"base ({unit})": f"{one.base * scale:.3g}",
            f"head ({unit})": f"{one.head * scale:.3g}",
            "head / base": f"{one.ratio:.3f}",
            "threshold": f"{one.threshold:.3f}",
        }
        for one in measured
    ]
    return Check(name, not slow, text, details, table)


def shown(check: Check) -> Sequence[str]:
    """The details that a reader can use: the first of many."""
    if len(check.details) <= SHOWN:
        return check.details
    return [*check.details[: SHOWN - 1], f"and {len(check.details) - SHOWN + 1} more"]


def as_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return [asdict(one) for one in checks]


def _key(one: Record | Cell) -> tuple[str, str, float]:
    return one.variant, one.size.name, one.budget


def _name(key: tuple[str, str, float]) -> str:
    return f"{key[0]} {key[1]} {key[2]:g} FLOPs"
