"""The gate: have counts, losses, step time or memory changed?

The stored baseline is `results/<suite>/baseline.json`, made by `isoflop check --accept`: the counts
of every model, the losses of every cell over several seeds, and how far rounding moves them. Step
time and memory depend on the machine and are never stored: `isoflop.bench.gate.stopwatch` measures
a baseline and the candidate in the same job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from isoflop.bench.gate.noise import departures
from isoflop.bench.gate.same_seed import departures as departures_of_seed
from isoflop.bench.gate.stopwatch import Ratio
from isoflop.bench.plan import Cell
from isoflop.results.errors import IsoflopError, explain
from isoflop.results.files import write_whole
from isoflop.results.record import Flops, Frozen, Parameters, Point, Record

SHOWN = 20  # lines of a check's details


class GateError(IsoflopError):
    """The gate cannot judge; one line says why and what to do."""


class StoredCell(Frozen):
    """Counts and losses of the cells that differ in their seed alone."""

    variant: str
    size: str
    budget: float  # FLOPs asked for
    flops: int  # FLOPs spent
    flops_per_token: Flops
    parameters: Parameters
    losses: list[float]  # nats per token, by seed

    @property
    def point(self) -> Point:
        return self.variant, self.size, self.budget


class Baseline(Frozen):
    """The stored baseline of a suite."""

    schema_version: Literal[1] = 1
    suite: str
    device: str
    versions: dict[str, str]
    validation_hash: str
    seeds: Annotated[list[int], Field(min_length=3)]  # their noise is estimated by leaving out one
    capability: str = ""  # of the CPU, see `same_seed`; empty: seeds are not compared one by one
    shifts: dict[str, float] = {}  # by variant, nats: what a tiny change of the weights does
    cells: list[StoredCell]


@dataclass(frozen=True)
class Check:
    """The result of one part of the gate."""

    name: str
    ok: bool
    text: str  # one line
    details: Sequence[str] = ()  # a line each
    table: Sequence[dict[str, str]] = ()


def read_baseline(path: Path) -> Baseline:
    """Read a stored baseline.

    Raises:
        GateError: the file is not there, or is no baseline.
    """
    try:
        return Baseline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise GateError(f"{path}: {error.strerror}; `isoflop check --accept` makes it") from None
    except ValidationError as error:
        raise GateError(f"{path}: {explain(error, Baseline)}") from None


def write_baseline(
    path: Path,
    records: Sequence[Record],
    shifts: Mapping[str, float] | None = None,
    capability: str = "",
) -> Baseline:
    """Store the counts and losses of these records as the baseline.

    Args:
        records: every cell of a suite, with the same seeds.
        shifts, capability: see `same_seed`.
    Raises:
        GateError: a cell has not finished.
    """
    bad = [record for record in records if record.loss is None]
    if bad:
        raise GateError(f"{bad[0].variant} {bad[0].size.name}: {bad[0].status}: {bad[0].message}")
    groups: dict[Point, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.key):
        groups.setdefault(record.key.point, []).append(record)
    first = records[0]
    baseline = Baseline(
        suite=first.suite,
        device=first.measured.device,
        versions=first.measured.versions,
        validation_hash=str(first.validation_hash),
        seeds=sorted({record.seed for record in records}),
        capability=capability,
        shifts={name: float(f"{shift:.3g}") for name, shift in (shifts or {}).items()},
        cells=[
            StoredCell(
                variant=variant,
                size=size,
                budget=budget,
                flops=group[0].planned_flops or group[0].flops,
                flops_per_token=group[0].flops_per_token,
                parameters=group[0].parameters,
                losses=[float(f"{record.loss:.6g}") for record in group],
            )
            for (variant, size, budget), group in groups.items()
        ],
    )
    write_whole(path, baseline.model_dump_json(indent=1) + "\n")
    return baseline


def counts(baseline: Baseline, cells: Sequence[Cell]) -> Check:
    """FLOPs and parameters of every cell, equal to the stored ones to the integer."""
    stored = {cell.point: cell for cell in baseline.cells}
    counted = {cell.key.point: cell for cell in cells}
    details = [
        f"{_name(point)}: not stored; --accept stores it" for point in counted.keys() - stored
    ]
    details += [
        f"{_name(point)}: stored, but no longer in the suite" for point in stored.keys() - counted
    ]
    for point in counted.keys() & stored.keys():
        before, after = _counts(stored[point]), _counts(counted[point])
        details += [
            f"{_name(point)}: {what} {value} is stored, {after[what]} counted"
            for what, value in before.items()
            if value != after[what]
        ]
    text = f"FLOPs and parameters of {len(counted)} cells equal the stored ones"
    if details:
        text = f"differences from the stored FLOPs and parameters: {len(details)}"
    return Check("counts", not details, text, sorted(details))


def _counts(cell: StoredCell | Cell) -> dict[str, int]:
    return {
        "flops": cell.flops,
        **cell.flops_per_token.model_dump(),
        **{f"{part} parameters": n for part, n in cell.parameters.model_dump().items()},
    }


def losses(baseline: Baseline, records: Sequence[Record], capability: str = "") -> Check:
    """Losses of a run of every cell: those of the same stored seed, if they can be compared, else
    within the noise of the stored ones.

    Args:
        capability: of the CPU that they were trained on. On another than the baseline's, or for
            seeds or variants that it does not have, the spread between seeds decides.
    """
    stored = {cell.point: cell for cell in baseline.cells}
    details: list[str] = []
    table: list[dict[str, str]] = []
    pairs: list[tuple[StoredCell, float]] = []
    for record in sorted(records, key=lambda record: record.key):
        point = record.key.point
        if record.loss is None:
            details.append(f"{_name(point)}: {record.status}: {record.message}")
        elif record.validation_hash != baseline.validation_hash:
            details.append(f"{_name(point)}: scored on other text than the stored losses")
        elif point not in stored:
            details.append(f"{_name(point)}: no stored losses; --accept stores them")
        else:
            pairs.append((stored[point], record.loss))
    further: list[str] = []
    if pairs:
        further, table = _judged(pairs)
    same = _same_seed(baseline, records, stored) if capability == baseline.capability else None
    if same is None:
        details += further
        text = f"{len(records)} losses within the noise of {len(baseline.seeds)} stored seeds"
    else:
        # The spread between seeds is of interest only once the arithmetic has changed.
        details += [*same, *(further if same else ())]
        text = f"{len(records)} losses equal those of the same stored seed, but for rounding"
    if details:
        text = f"departures from the stored losses: {len(details)}"
    if same:
        beyond = "some are" if further else "none is"
        text += f"; the arithmetic has changed, and {beyond} beyond the spread between seeds"
    return Check("losses", not details, text, details, table)


def _same_seed(
    baseline: Baseline, records: Sequence[Record], stored: Mapping[Point, StoredCell]
) -> list[str] | None:
    """Departures from the losses of the same seed; None where they cannot be compared."""
    changes = []
    for record in records:
        cell = stored.get(record.key.point)
        if record.loss is None or cell is None:
            continue
        if record.seed not in baseline.seeds or record.variant not in baseline.shifts:
            return None
        change = record.loss - cell.losses[baseline.seeds.index(record.seed)]
        changes.append((record.variant, _name(cell.point), change))
    return departures_of_seed(changes, baseline.shifts)


def _judged(pairs: Sequence[tuple[StoredCell, float]]) -> tuple[list[str], list[dict[str, str]]]:
    """A line for each departure beyond its limit, and a table of all variants.

    Args:
        pairs: what is stored of a cell, and its new loss.
    """
    groups = [(cell.variant, (cell.size, cell.budget)) for cell, _ in pairs]
    new = [loss for _, loss in pairs]
    variants, cells = departures([cell.losses for cell, _ in pairs], new, groups)
    details, table = [], []
    for (cell, loss), departure in zip(pairs, cells, strict=True):
        if not departure.ok:
            details.append(
                f"{_name(cell.point)}: loss {loss:.4f}, {np.mean(cell.losses):.4f} is stored: "
                f"z = {departure.z:+.1f}, beyond {departure.limit:.1f}"
            )
    for name, departure in variants.items():
        change = np.mean([loss - np.mean(c.losses) for c, loss in pairs if c.variant == name])
        table.append(
            {
                "variant": name,
                "mean change (nats)": f"{change:+.4f}",
                "z": f"{departure.z:+.2f}",
                "limit": f"{departure.limit:.2f}",
            }
        )
        if not departure.ok:
            word = "worse" if departure.z > 0 else "better"
            details.append(
                f"{name}: {word} than stored by {abs(change):.4f} nats on average: "
                f"z = {departure.z:+.1f}, beyond {departure.limit:.1f}"
            )
    return details, table


def ratios(
    name: str, unit: str, scale: float, measured: Sequence[Ratio], new: Sequence[str]
) -> Check:
    """Step time or peak memory of the candidate over the baseline's, within its threshold.

    Args:
        name: of the check.
        unit: of the table, `scale` times that of the values.
        new: variants that the baseline does not have.
    """
    regressions = [ratio for ratio in measured if not ratio.ok]
    worst = max(measured, key=lambda ratio: ratio.ratio)
    text = f"{worst.variant} {worst.ratio:.3f}x of the baseline at most; a regression above "
    text += f"{worst.threshold:.3f}x"
    if new:
        text += f"; not in the baseline: {', '.join(new)}"
    details = [f"{r.variant}: {r.ratio:.3f}x, beyond {r.threshold:.3f}x" for r in regressions]
    table = [
        {
            "variant": ratio.variant,
            f"baseline ({unit})": f"{ratio.baseline * scale:.3g}",
            f"candidate ({unit})": f"{ratio.candidate * scale:.3g}",
            "candidate / baseline": f"{ratio.ratio:.3f}",
            "threshold": f"{ratio.threshold:.3f}",
        }
        for ratio in measured
    ]
    return Check(name, not regressions, text, details, table)


def shown(check: Check) -> Sequence[str]:
    """The first `SHOWN` lines of a check's details."""
    if len(check.details) <= SHOWN:
        return check.details
    return [*check.details[: SHOWN - 1], f"and {len(check.details) - SHOWN + 1} more"]


def as_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return [asdict(check) for check in checks]


def _name(point: Point) -> str:
    return f"{point[0]} {point[1]} {point[2]:g} FLOPs"
