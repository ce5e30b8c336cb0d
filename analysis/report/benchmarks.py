"""Stored benchmarks of the operators as tables, without torch.

`tests/benchmarks` stores one JSON file per device in `results/benchmarks`. Two things are generated
from these: that directory's `README.md` with all rows, and in a document the block between

    <!-- isoflop:performance results/benchmarks --> ... <!-- /isoflop -->

with one row per problem. A file holds times, bytes and limits; ratios are computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from isoflop.analysis.report.derive import embed
from isoflop.analysis.report.markdown import table
from isoflop.results.errors import IsoflopError, explain
from isoflop.results.files import write_whole

STORED = Path("results/benchmarks")
UNMEASURED = {
    "CPU": "No CPU has been measured.",
    "GPU": (
        "**No GPU has been measured, and no GPU time is claimed**: the Triton kernels are tested "
        "in Triton's interpreter and compile for Hopper, nothing more."
    ),
}
OTHERS = "time of others / ours"
IN_WORKER = "the same in a suite's worker"
LEFT = ("problem", "implementation", OTHERS, IN_WORKER)  # columns that hold words
COLUMNS = (
    "problem",
    "implementation",
    "forward ms",
    "forward + backward ms",
    "time / ours",
    IN_WORKER,
    "forward GB/s",
    "% of limit",
    "forward + backward GB/s",
    "% of limit",
    "peak MB",
)
LEGEND = (
    "Medians of alternating rounds in one process, and where several processes are named medians "
    "over these, with the range of time / ours. Time / ours: of forward + backward. In a suite's "
    "worker, freed memory stays with the process: what allocates more gains more. GB/s: the "
    "bytes of the rows that must be read and written, over the time; forward + backward counts "
    "three times the bytes of the forward pass. Limit: the time of these bytes at the rate of a "
    "copy or, for MoE's experts and retrieval, of the FLOPs at the rate of a large matrix product, "
    "whichever is longer; data that stays in a cache can be faster. Peak: the memory that a step "
    "needs at most, in addition to its operands."
)


class PerformanceError(IsoflopError):
    """A stored benchmark that cannot be read. The message names the file and what is wrong."""


class Machine(BaseModel):
    """The device that was measured."""

    kind: Literal["CPU", "GPU"]
    device: str
    threads: int
    torch: str
    dtype: str
    allocator: Literal["plain", "worker"] = "plain"  # worker: freed memory stays with the process
    copy_bytes_per_second: float = Field(gt=0)
    matmul_flops_per_second: float = Field(gt=0)


class Times(BaseModel):
    """Median seconds of an implementation, and the most bytes that a step needs."""

    side: str
    forward_seconds: float = Field(gt=0)
    step_seconds: float = Field(gt=0)  # forward + backward
    peak_bytes: float
    # forward + backward over ours, where several processes measured: median, least, largest
    ratio: tuple[float, float, float] | None = None
    # the same in processes with the allocator settings of a suite's workers
    ratio_in_worker: tuple[float, float, float] | None = None


class Failure(BaseModel):
    """An implementation that could not be timed, and why."""

    side: str
    failed: str


class Problem(BaseModel):
    """All implementations of a problem. Bytes and FLOPs are of the forward pass."""

    problem: str
    bytes_forward: float = Field(gt=0)
    flops_forward: float = Field(ge=0)
    ours: Times
    others: list[Times | Failure]


class Ratios(BaseModel):
    """Named numbers of one kind: ratios of training steps by variant, or seconds of commands."""

    what: str
    ratios: dict[str, float]
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)  # over processes


class _Benchmark(BaseModel):
    extra_info: Problem | Ratios


class Measurements(BaseModel):
    """A stored file, as pytest-benchmark writes it with the hooks in `tests/benchmarks`."""

    machine_info: Machine
    datetime: str
    processes: int = 1  # whose medians these are
    benchmarks: list[_Benchmark] = Field(min_length=1)

    def problems(self) -> list[Problem]:
        """All timed problems."""
        contents = (benchmark.extra_info for benchmark in self.benchmarks)
        return [problem for problem in contents if isinstance(problem, Problem)]

    def steps(self) -> str:
        """All ratios as Markdown, a list item for each `what`."""
        merged: dict[str, list[str]] = {}
        for benchmark in self.benchmarks:
            if isinstance(benchmark.extra_info, Ratios):
                info = benchmark.extra_info
                merged.setdefault(info.what, []).extend(
                    f"{name} {ratio:.2f}{_range(info.ranges.get(name))}"
                    for name, ratio in info.ratios.items()
                )
        return "".join(f"- {what}: {', '.join(values)}.\n" for what, values in merged.items())

    def limit(self, problem: Problem) -> float:
        """The shortest possible time of a forward pass, seconds."""
        return max(
            problem.bytes_forward / self.machine_info.copy_bytes_per_second,
            problem.flops_forward / self.machine_info.matmul_flops_per_second,
        )


def read(path: Path) -> Measurements:
    """Read a stored file.

    Raises:
        PerformanceError: it is unreadable or not a file that `tests/benchmarks` writes.
    """
    try:
        return Measurements.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = explain(error, Measurements)
        raise PerformanceError(f"{path}: {reason}; tests/benchmarks writes such files") from None
    except OSError as error:
        raise PerformanceError(f"{path}: {error.strerror}") from None


def generate(directory: Path, document: Path) -> dict[Path, bytes]:
    """The files generated from `directory/*.json`, by path: the directory's README.md and
    `document` with its block, each if it exists.

    Raises:
        PerformanceError: a file is unreadable.
    """
    devices = [read(path) for path in sorted(directory.glob("*.json"))]
    files = {}
    if directory.exists():
        files[directory / "README.md"] = page(devices).encode()
    if document.exists():
        text = document.read_text(encoding="utf-8")
        block = {"performance": brief(devices)}
        files[document] = embed(text, document, directory, block).encode()
    return files


def report(directory: Path, document: Path) -> None:
    """Write the generated files. Errors as for `generate`."""
    for path, content in generate(directory, document).items():
        write_whole(path, content)


def stale(directory: Path, document: Path) -> list[Path]:
    """Generated files that are missing or differ from what `report` would write now. Errors as
    for `generate`."""
    return [
        path
        for path, content in generate(directory, document).items()
        if not path.exists() or path.read_bytes() != content
    ]


def heading(measured: Measurements) -> str:
    """The device and its rates, on a line."""
    machine = measured.machine_info
    threads = f", {machine.threads} threads" if machine.kind == "CPU" else ""
    processes = f", medians of {measured.processes} processes" if measured.processes > 1 else ""
    return (
        f"{machine.device}{threads}, torch {machine.torch}, {machine.dtype}, {measured.datetime}"
        f"{processes}: "
        f"{machine.copy_bytes_per_second / 1e9:.3g} GB/s in a copy, "
        f"{machine.matmul_flops_per_second / 1e12:.3g} TFLOP/s in a matrix product."
    )


def page(devices: Sequence[Measurements]) -> str:
    """The README.md of the directory: every row of every device."""
    parts = ["# Speed of the operators\n"]
    for measured in devices:
        rows = [row for problem in measured.problems() for row in rows_of(measured, problem)]
        parts += [f"## {measured.machine_info.device}\n", heading(measured) + "\n"]
        parts += [table(COLUMNS, rows, LEFT)] if rows else []
        parts += [measured.steps()] if measured.steps() else []
    return "\n".join([*parts, LEGEND + "\n", *_unmeasured(devices)])


def rows_of(measured: Measurements, problem: Problem) -> list[list[str]]:
    """One row per implementation of a problem, ours first, under the titles `COLUMNS`."""
    limit, ours = measured.limit(problem), problem.ours.step_seconds
    rows = []
    for times in (problem.ours, *problem.others):
        row = [problem.problem, times.side]
        if isinstance(times, Failure):
            rows.append([*row, times.failed, *["-"] * 8])
            continue
        row += [_milliseconds(times.forward_seconds), _milliseconds(times.step_seconds)]
        row += [_ratio(times, ours), _spread(times.ratio_in_worker)]
        for passes, time in ((1, times.forward_seconds), (3, times.step_seconds)):
            row.append(_digits(passes * problem.bytes_forward / time / 1e9))
            row.append(_percent(passes * limit / time))
        rows.append([*row, f"{times.peak_bytes / 1e6:.0f}"])
    return rows


def brief(devices: Sequence[Measurements]) -> str:
    """The block in a document: one row per problem, our times and those of others over ours."""
    parts = []
    for measured in devices:
        rows = []
        for problem in measured.problems():
            limit, ours = measured.limit(problem), problem.ours
            forward, step = ours.forward_seconds, ours.step_seconds
            others = (
                f"{times.side}: {times.failed}"
                if isinstance(times, Failure)
                else f"{times.side} {_ratio(times, step, 'x')}"
                for times in problem.others
            )
            in_worker = (
                f"{times.side} {_spread(times.ratio_in_worker, 'x')}"
                for times in problem.others
                if isinstance(times, Times) and times.ratio_in_worker
            )
            rows.append(
                [
                    problem.problem,
                    f"{_milliseconds(forward)} / {_milliseconds(step)}",
                    f"{_percent(limit / forward)} / {_percent(3 * limit / step)}",
                    f"{ours.peak_bytes / 1e6:.0f}",
                    "; ".join(others),
                    "; ".join(in_worker),
                ]
            )
        both = "ms, forward / + backward"
        columns = ("problem", both, "% of limit", "peak MB", OTHERS, IN_WORKER)
        parts += [heading(measured) + "\n", *([table(columns, rows, LEFT)] if rows else [])]
        parts += [measured.steps()] if measured.steps() else []
    return "\n".join([*parts, *_unmeasured(devices)])


def _unmeasured(devices: Sequence[Measurements]) -> list[str]:
    kinds = {measured.machine_info.kind for measured in devices}
    return [f"{text}\n" for kind, text in UNMEASURED.items() if kind not in kinds]


def _ratio(times: Times, ours: float, unit: str = "") -> str:
    """Forward + backward over ours, with its range over processes."""
    if times.ratio is None:
        return f"{times.step_seconds / ours:.2f}{unit}"
    return _spread(times.ratio, unit)


def _spread(ratio: tuple[float, float, float] | None, unit: str = "") -> str:
    """A median and its range."""
    return "" if ratio is None else f"{ratio[0]:.2f}{unit}{_range(ratio[1:])}"


def _range(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]"


def _milliseconds(seconds: float) -> str:
    return _digits(seconds * 1e3)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
