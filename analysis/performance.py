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

from analysis.report import embed

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


class PerformanceError(Exception):
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


class Side(BaseModel):
    """One way to compute a problem: median seconds, or why there are none."""

    side: str
    forward_seconds: float | None = Field(None, gt=0)
    step_seconds: float | None = Field(None, gt=0)  # forward + backward
    peak_bytes: float | None = None
    failed: str | None = None


class Problem(BaseModel):
    """All sides of a problem, the first of them ours. Bytes and FLOPs are of the forward pass."""

    problem: str
    bytes_forward: float = Field(gt=0)
    flops_forward: float = Field(ge=0)
    sides: list[Side] = Field(min_length=1)


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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise PerformanceError(
            f"{path}: {where}: {first['msg']}; tests/benchmarks write such files"
        ) from None
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
    """One row a side."""
    limit, own = measured.limit(problem), problem.sides[0].step_seconds
    rows = []
    for side in problem.sides:
        forward, step = side.forward_seconds, side.step_seconds
        cells = [side.failed or "-"] + ["-"] * 7
        if forward and step:
            cells = [_digits(forward * 1e3), _digits(step * 1e3)]
            cells.append(f"{step / own:.2f}" if own else "-")
            cells += [
                _digits(problem.bytes_forward / forward / 1e9),
                f"{100 * limit / forward:.0f}",
            ]
            cells += [_digits(3 * problem.bytes_forward / step / 1e9), f"{300 * limit / step:.0f}"]
            cells.append("-" if side.peak_bytes is None else f"{side.peak_bytes / 1e6:.0f}")
        rows.append([problem.problem, side.side, *cells])
    return rows


def brief(measured: Sequence[Measurements]) -> str:
    """A document's block: one row a problem, our times and what the others take over ours."""
    parts = []
    for one in measured:
        rows = []
        for problem in one.problems():
            (_, _, forward, step, _, _, share_forward, _, share_step, peak), *others = side_rows(
                one, problem
            )
            rivals = [
                f"{side} {ratio + 'x' if ratio != '-' else reason}"
                for _, side, reason, _, ratio, *_ in others
            ]
            share = f"{share_forward} / {share_step}"
            times = f"{forward} / {step}"
            rows.append([problem.problem, times, share, peak, "; ".join(rivals)])
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


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
