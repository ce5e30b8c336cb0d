"""Is a layer fit to be trained? Runs the checks, and refuses layers that must not be trained."""

from __future__ import annotations

import ast
import re
import tomllib
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isoflop.bench.checks import CHECKS, ESSENTIAL, Subject
from isoflop.bench.layers import complete_options, find_layer
from isoflop.bench.plan import Cell
from isoflop.results.errors import IsoflopError


class LintError(IsoflopError):
    """A layer that must not be trained; one line says what to fix."""


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    check: str
    ok: bool
    fix: str  # one line; empty if ok


def lint(name: str, options: dict[str, Any] | None = None) -> list[Finding]:
    """Run every check.

    Args:
        name: a registered layer, or path/to/file.py:Class.
        options: the layer's; its defaults where not given.
    Returns:
        the findings, in order. They end with the first failure of `builds` or `shape`: the other
        checks need both.
    """
    subject = Subject(name, options or {})
    findings = []
    for check in CHECKS:
        findings.append(_run(check, subject))
        if check in ("builds", "shape") and not findings[-1].ok:
            break
    return findings


def refuse(name: str, options: dict[str, Any] | None = None) -> None:
    """Raise unless the layer passes the checks that must pass before any training (`ESSENTIAL`).

    Args:
        name, options: as for `lint`.
    Raises:
        LintError: one line says which check failed and what to fix.
    """
    subject = Subject(name, options or {})
    for check in ESSENTIAL:
        finding = _run(check, subject)
        if not finding.ok:
            same = " with these options" if options else ""
            hint = f"`isoflop lint {name}`{same} shows all"
            raise LintError(f"{name}: {check}: {finding.fix}; {hint}")


def refuse_files(cells: Iterable[Cell]) -> None:
    """`refuse` every layer of these cells that comes from a user's file.

    Raises:
        LintError: see `refuse`.
    """
    seen = []
    for cell in cells:
        if ".py:" in cell.layer and (cell.layer, cell.options) not in seen:
            seen.append((cell.layer, cell.options))
            refuse(cell.layer, cell.options)


def read_options(name: str, given: Iterable[str]) -> dict[str, Any]:
    """A layer's options, each given as NAME=VALUE: a TOML value, or a bare word, which is a string.

    Raises:
        LintError: one has another form, or the layer does not take it.
    """
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals or key in options:
            raise LintError(f"--option {text}: give NAME=VALUE, each name once")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            if not re.fullmatch(r"[A-Za-z][\w.-]*", value):
                raise LintError(f"--option {text}: neither a TOML value nor one word") from None
            options[key] = value
    if not options:
        return options
    try:
        layer = find_layer(name)
    except ValueError:
        return options  # the check `builds` says what is wrong with it
    try:
        complete_options(layer, options)
    except ValueError as error:
        raise LintError(f"{name}: --option {error}") from None
    return options


def with_class(name: str) -> str:
    """`name` with its class: path/to/file.py becomes path/to/file.py:Class if it defines one layer.

    Raises:
        LintError: the file cannot be read or imported, or it defines no layer, or several.
    """
    if not name.endswith(".py"):
        return name
    try:
        tree = ast.parse(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise LintError(f"{name}: {error.strerror}") from None
    except (SyntaxError, UnicodeDecodeError) as error:
        raise LintError(f"{name}: not Python: {error}") from None
    layers, reason = [], "no public class derived from isoflop.Layer"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            try:
                find_layer(f"{name}:{node.name}")
                layers.append(node.name)
            except ValueError as error:
                reason = str(error)
    if len(layers) != 1:
        if layers:
            reason = f"which layer: {', '.join(layers)}? Add it as {name}:Class"
        raise LintError(f"{name}: {reason}")
    return f"{name}:{layers[0]}"


def _run(check: str, subject: Subject) -> Finding:
    state = torch.get_rng_state()
    try:
        fix = CHECKS[check](subject)
    except Exception as error:  # whatever a user's file raises is a finding
        fix = _describe(error, subject.name.rpartition(":")[0])
    finally:
        torch.set_rng_state(state)
    return Finding(check, not fix, fix)


def _describe(error: Exception, path: str) -> str:
    """One line: the exception, and the last line of the user's file it passed through."""
    text = next(iter(str(error).strip().splitlines()), "")
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if path and Path(frame.filename).resolve() == Path(path).resolve()
    ]
    where = f"{path}:{lines[-1]}: " if lines else ""
    return f"{where}raises {type(error).__name__}: {text}".rstrip(": ")
