"""Is a layer fit to be trained? Runs the checks, and refuses layers that must not be trained."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from isoflop.bench import isolate
from isoflop.bench.checks import CHECKS, ESSENTIAL
from isoflop.bench.layers import (
    LayerFileError,
    complete_options,
    file_of,
    find_layer,
    load_file,
    read_source,
)
from isoflop.bench.plan import Cell
from isoflop.bench.shape_checks import AT_SHAPES, Shape, at_shape, shape_of
from isoflop.bench.subject import Subject
from isoflop.models import Layer
from isoflop.results.errors import IsoflopError


class LintError(IsoflopError):
    """A layer that must not be trained; one line says what to fix."""


class BrokenFileError(LintError):
    """A layer's file that raises or ends the process when it is imported."""


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    check: str
    ok: bool
    fix: str  # one line; empty if ok
    note: str = ""  # what was not asked, or what was found


def lint(
    name: str,
    options: dict[str, Any] | None = None,
    shapes: Iterable[Shape] = (),
    source: str | None = None,
    checks: Iterable[str] = tuple(CHECKS),
) -> list[Finding]:
    """Run checks in a child process: whatever the layer's code does is a finding.

    Args:
        name: a registered layer, or path/to/file.py:Class.
        options: the layer's; its defaults where not given.
        shapes: those of cells, at which causality, batch and flops are asked too.
        source: text of the file, if it is not to be read anew.
        checks: names of checks, `builds` first.
    Returns:
        the findings, in order. They end with the first failure of `builds` or `shape`: the other
        checks need both. They also end where the process ended.
    """
    checks, findings = list(checks), []
    plain = [asdict(shape) for shape in shapes]
    try:
        for item in isolate.stream(_findings, name, options or {}, plain, source, checks):
            if item is not None:
                findings.append(Finding(**item))
    except isolate.ChildError as error:
        path = file_of(name)
        line = f"{path}: {error}" if path else str(error)
        findings.append(Finding(checks[len(findings)], False, line))
    return findings


def refuse(
    name: str,
    options: dict[str, Any] | None = None,
    shapes: Iterable[Shape] = (),
    source: str | None = None,
) -> str:
    """Raise unless the layer passes the checks that must pass before any training (`ESSENTIAL`).

    Args:
        name, options, shapes, source: as for `lint`.
    Returns:
        a note on what was not asked, if anything.
    Raises:
        LintError: one line says which check failed and what to fix.
    """
    findings = lint(name, options, shapes, source, ESSENTIAL)
    for finding in findings:
        if not finding.ok:
            same = " with these options" if options else ""
            hint = f"`isoflop lint {name}`{same} shows all"
            raise LintError(f"{name}: {finding.check}: {finding.fix}; {hint}")
    return next((finding.note for finding in findings if finding.note), "")


def refuse_files(cells: Iterable[Cell]) -> list[str]:
    """`refuse` every layer of these cells that comes from a user's file, at the cells' own shapes.

    Returns:
        a note on every layer that was not asked at some shape.
    Raises:
        LintError: see `refuse`.
    """
    shapes: dict[str, set[Shape]] = {}
    first: dict[str, Cell] = {}
    for cell in cells:
        if cell.source is not None:
            key = repr((cell.layer, cell.source, cell.options))
            first.setdefault(key, cell)
            shapes.setdefault(key, set()).add(shape_of(cell))
    notes = []
    for key, cell in first.items():
        note = refuse(cell.layer, cell.options, sorted(shapes[key]), cell.source)
        notes += [f"{cell.layer}: {note}"] if note else []
    return notes


def check_options(name: str, options: dict[str, Any]) -> None:
    """Check that a layer takes these options.

    Raises:
        LintError: it does not.
    """
    if not options:
        return
    if file_of(name):
        plain = json.loads(json.dumps(options, default=str))  # TOML has dates
        problem = isolate.call(_options_problem, name, plain)
    else:
        problem = _options_problem(name, options)
    if problem:
        raise LintError(f"{name}: --option {problem}")


def _options_problem(name: str, options: dict[str, Any]) -> str:
    try:
        layer = find_layer(name)
    except ValueError:
        return ""  # the check `builds` says what is wrong with it
    try:
        complete_options(layer, options)
    except ValueError as error:
        return str(error)
    return ""


def with_class(name: str) -> str:
    """`name` with its class: path/to/file.py becomes path/to/file.py:Class if it defines one layer.

    Raises:
        LintError: the file cannot be read, or it defines no layer, or several.
        BrokenFileError: it cannot be imported.
    """
    if not name.endswith(".py"):
        return name
    if not Path(name).exists():
        raise LintError(f"{name}: No such file or directory")
    try:
        module = load_file(name, read_source(name))
    except LayerFileError as error:
        raise BrokenFileError(str(error)) from None
    except ValueError as error:
        raise LintError(str(error)) from None
    layers = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Layer)
        and value.__module__ == module.__name__
        and value.__name__ == key
        and not key.startswith("_")
    ]
    if len(layers) != 1:
        reason = "no public class derived from isoflop.Layer"
        if layers:
            reason = f"which layer: {', '.join(layers)}? Add it as {name}:Class"
        raise LintError(f"{name}: {reason}")
    return f"{name}:{layers[0]}"


def _findings(
    name: str,
    options: dict[str, Any],
    shapes: list[dict[str, int]],
    source: str | None,
    checks: list[str],
) -> Iterator[dict[str, Any] | None]:
    """Body of the child: the findings, and None where a check goes on at another shape."""
    subject = Subject(name, options, source)
    notes: list[str] = []
    for check in checks:
        fix = _run(name, CHECKS[check], subject)
        if check in AT_SHAPES and not fix:
            for shape in shapes:
                yield None
                fix = _run(name, at_shape, check, subject, Shape(**shape), notes)
                if fix:
                    break
        note = "; ".join(notes) if check in AT_SHAPES else subject.note
        subject.note = ""
        yield asdict(Finding(check, not fix, fix, note))
        if check in ("builds", "shape") and fix:
            return


def _run(name: str, check: Callable[..., str], *arguments: Any) -> str:
    """The line of a check. Whatever a user's file raises is a line too."""
    state = torch.get_rng_state()
    try:
        return isolate.one_line(check(*arguments), 1000)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not isolate.inside():
            raise  # the user's own Ctrl-C
        return _describe(error, file_of(name))
    finally:
        torch.set_rng_state(state)


def _describe(error: BaseException, path: str) -> str:
    """One line: the exception, and the last line of the user's file it passed through."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if path and Path(frame.filename).resolve() == Path(path).resolve()
    ]
    where = f"{path}:{lines[-1]}: " if lines else ""
    return f"{where}{isolate.describe(error)}"
