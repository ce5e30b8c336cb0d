"""Stored benchmarks of the sparse operators as tables; torch is never imported.

`tests/benchmarks` store one JSON file a device in `results/benchmarks`; from these come that
directory's `README.md`, every row, and in a document the block between

    <!-- isoflop:performance results/benchmarks --> ... <!-- /isoflop -->

one row a problem. A file holds times, bytes and limits; whatever is a quotient is derived here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from isoflop.analysis.report.derive import embed
from isoflop.results.errors import IsoflopError, explain

STORED = Path("results/benchmarks")
UNMEASURED = {
    "CPU": "No CPU has been measured.",
    "GPU": (
        "**No GPU has been measured, and no GPU time is claimed**: the Triton kernels are proved "
        "in Triton's interpreter and compile for Hopper, no more."
    ),
}
COLUMNS = (
    "problem",
    "side",
    "forward ms",
    "forward + backward ms",
    "time / ours",
    "forward GB/s",
    "% of limit",
    "forward + backward GB/s",
    "% of limit",
    "peak MB",
)
OTHERS = "time of others / ours"
LEFT = ("problem", "side", OTHERS)
LEGEND = (
    "Medians of alternating rounds in one process. Time / ours: forward + backward. GB/s: the "
    "bytes of the rows that must be read and written, three times the forward's for forward + "
    "backward, over the time. Limit: these bytes at the rate of a copy or, for MoE's experts, the "
    "FLOPs at that of a large product, whichever takes longer; what stays in a cache can pass it. "
    "Peak: the most memory that a step holds at once, besides its operands."
)


class PerformanceError(IsoflopError):
    """A stored benchmark that cannot be read; the message names the file and what is wrong."""


class Machine(BaseModel):
    """What was measured."""

    kind: Literal["CPU", "GPU"]
    device: str
    threads: int
    torch: str
    dtype: str
    copy_bytes_per_second: float = Field(gt=0)
    matmul_flops_per_second: float = Field(gt=0)


class Times(BaseModel):
    """Median seconds of one way to compute a problem, and the bytes a step holds at most."""

    side: str
    forward_seconds: float = Field(gt=0)
    step_seconds: float = Field(gt=0)  # forward + backward
    peak_bytes: float


class Failure(BaseModel):
    """A way that could not be timed, and why."""

    side: str
    failed: str


class Problem(BaseModel):
    """All ways to compute a problem. Bytes and FLOPs are of the forward pass."""

    problem: str
    bytes_forward: float = Field(gt=0)
    flops_forward: float = Field(ge=0)
    ours: Times
    others: list[Times | Failure]


class Ratios(BaseModel):
    """Quotients of whole training steps, of `tests/benchmarks/test_step.py`: by variant."""

    what: str
    ratios: dict[str, float]


class _Benchmark(BaseModel):
    extra_info: Problem | Ratios


class Measurements(BaseModel):
    """A stored file, as pytest-benchmark writes it with the hooks of `tests/benchmarks`."""

    machine_info: Machine
    datetime: str
    benchmarks: list[_Benchmark] = Field(min_length=1)

    def problems(self) -> list[Problem]:
        found = (each.extra_info for each in self.benchmarks)
        return [one for one in found if isinstance(one, Problem)]

    def steps(self) -> str:
        """All ratios, a list item for each `what`."""
        merged: dict[str, dict[str, float]] = {}
        for each in self.benchmarks:
            if isinstance(each.extra_info, Ratios):
                merged.setdefault(each.extra_info.what, {}).update(each.extra_info.ratios)
        return "".join(
            f"- {what}: {', '.join(f'{name} {ratio:.2f}' for name, ratio in ratios.items())}.\n"
            for what, ratios in merged.items()
        )

    def limit(self, problem: Problem) -> float:
        """Seconds that a forward pass must take."""
        return max(
            problem.bytes_forward / self.machine_info.copy_bytes_per_second,
            problem.flops_forward / self.machine_info.matmul_flops_per_second,
        )


def read(path: Path) -> Measurements:
    """A stored file.

    Raises:
        PerformanceError: it is not one that `tests/benchmarks` has written.
    """
    try:
        return Measurements.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = explain(error, Measurements)
        raise PerformanceError(f"{path}: {reason}; tests/benchmarks write such files") from None
    except OSError as error:
        raise PerformanceError(f"{path}: {error.strerror}") from None


def derive(directory: Path, document: Path) -> dict[Path, bytes]:
    """Everything derived from `directory/*.json`, by path: its README.md, where the directory
    exists, and `document`, where that exists, with its block.

    Raises:
        PerformanceError: a file is unreadable.
    """
    measured = [read(path) for path in sorted(directory.glob("*.json"))]
    files = {}
    if directory.exists():
        files[directory / "README.md"] = page(measured).encode()
    if document.exists():
        text = document.read_text(encoding="utf-8")
        block = {"performance": brief(measured)}
        files[document] = embed(text, document, directory, block).encode()
    return files


def report(directory: Path, document: Path) -> None:
    """Write everything derived. Errors as for `derive`."""
    for path, content in derive(directory, document).items():
        path.write_bytes(content)


def stale(directory: Path, document: Path) -> list[Path]:
    """Derived files that are missing or differ from what `report` would write now. Errors as for
    `derive`."""
    return [
        path
        for path, content in derive(directory, document).items()
        if not path.exists() or path.read_bytes() != content
    ]


def heading(measured: Measurements) -> str:
    """The device and its rates, in a line."""
    m = measured.machine_info
    return (
        f"{m.device}{f', {m.threads} threads' if m.kind == 'CPU' else ''}, torch {m.torch}, "
        f"{m.dtype}, {measured.datetime}: {m.copy_bytes_per_second / 1e9:.3g} GB/s in a copy, "
        f"{m.matmul_flops_per_second / 1e12:.3g} TFLOP/s in a product."
    )


def page(measured: Sequence[Measurements]) -> str:
    """Every row of every device."""
    parts = ["# Speed of the sparse operators\n"]
    for one in measured:
        rows = [row for problem in one.problems() for row in side_rows(one, problem)]
        parts += [f"## {one.machine_info.device}\n", heading(one) + "\n", table(COLUMNS, rows)]
        parts += [one.steps()] if one.steps() else []
    return "\n".join([*parts, LEGEND + "\n", _unmeasured(measured)])


def side_rows(measured: Measurements, problem: Problem) -> list[list[str]]:
    """One row a side, ours first."""
    limit, own = measured.limit(problem), problem.ours.step_seconds
    rows = []
    for side in (problem.ours, *problem.others):
        row = [problem.problem, side.side]
        if isinstance(side, Failure):
            rows.append([*row, side.failed, *["-"] * 7])
            continue
        row += [_milliseconds(side.forward_seconds), _milliseconds(side.step_seconds)]
        row.append(f"{side.step_seconds / own:.2f}")
        for passes, time in ((1, side.forward_seconds), (3, side.step_seconds)):
            row.append(_digits(passes * problem.bytes_forward / time / 1e9))
            row.append(_percent(passes * limit / time))
        rows.append([*row, f"{side.peak_bytes / 1e6:.0f}"])
    return rows


def brief(measured: Sequence[Measurements]) -> str:
    """A document's block: one row a problem, our times and what the others take over ours."""
    parts = []
    for one in measured:
        rows = []
        for problem in one.problems():
            limit, ours = one.limit(problem), problem.ours
            forward, step = ours.forward_seconds, ours.step_seconds
            others = (
                f"{other.side}: {other.failed}"
                if isinstance(other, Failure)
                else f"{other.side} {other.step_seconds / step:.2f}x"
                for other in problem.others
            )
            rows.append(
                [
                    problem.problem,
                    f"{_milliseconds(forward)} / {_milliseconds(step)}",
                    f"{_percent(limit / forward)} / {_percent(3 * limit / step)}",
                    f"{ours.peak_bytes / 1e6:.0f}",
                    "; ".join(others),
                ]
            )
        columns = ("problem", "ms, forward / + backward", "% of limit", "peak MB", OTHERS)
        parts += [heading(one) + "\n", table(columns, rows)]
        parts += [one.steps()] if one.steps() else []
    return "\n".join([*parts, _unmeasured(measured)])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, padded so that it can be read as text too."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [name in LEFT for name in columns]
    rule = [
        ":" + "-" * (w - 1) if at else "-" * (w - 1) + ":"
        for w, at in zip(widths, left, strict=True)
    ]
    lines.insert(1, rule)
    padded = (
        [f"{cell:{'<' if at else '>'}{w}}" for cell, w, at in zip(line, widths, left, strict=True)]
        for line in lines
    )
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _unmeasured(measured: Sequence[Measurements]) -> str:
    kinds = {one.machine_info.kind for one in measured}
    return " ".join(text for kind, text in UNMEASURED.items() if kind not in kinds) + "\n"


def _milliseconds(seconds: float) -> str:
    return _digits(seconds * 1e3)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
