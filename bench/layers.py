"""Layers by name, by entry point or from a file, and their options."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import stat
import sys
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from isoflop.bench import isolate
from isoflop.models import LAYERS, Layer, ParameterGroup
from isoflop.results.errors import did_you_mean, explain

LARGEST = 2**20  # bytes of a layer's file
COUNTS = ("flops_per_token", "routing_flops_per_token", "active_parameters")


def plugins() -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points `isoflop.layers` of installed packages, by name."""
    points = importlib.metadata.entry_points(group="isoflop.layers")
    return {point.name: point for point in points}


def find_layer(name: str, source: str | None = None) -> type[Layer]:
    """A layer by registered name, by entry point `isoflop.layers`, or as path/to/file.py:Class.

    Args:
        source: text of the file, if it is not to be read anew.
    Raises:
        ValueError: there is none, or its package or file cannot be imported or does not give it.
    """
    if name in LAYERS:
        return LAYERS[name]
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        installed = plugins()
        if name in installed:
            return _load_plugin(installed[name])
        known = sorted({*LAYERS, *installed})
        raise ValueError(
            f"no layer {name!r}{did_you_mean(name, known)}; "
            f"known: {', '.join(known)}, or path/to/file.py:Class"
        )
    names = vars(load_file(path, read_source(path) if source is None else source))
    if attribute not in names:
        layers = [key for key, value in names.items() if _is_layer(value) and value is not Layer]
        raise ValueError(
            f"{path}: no class {attribute!r}{did_you_mean(attribute, layers)}; "
            f"layers there: {', '.join(layers) or 'none'}"
        )
    return _checked(names[attribute], f"{Path(path).name}:{attribute}")  # wherever the file lies


class LayerFileError(ValueError):
    """A layer's file can be read, yet not imported."""


def read_source(path: str) -> str:
    """The text of a layer's file.

    Raises:
        ValueError: there is none, or it cannot be one.
    """
    file = Path(path)
    try:
        kind = file.stat()
        if stat.S_ISDIR(kind.st_mode):
            raise ValueError(f"{path}: is a directory, not a layer's file")
        if not stat.S_ISREG(kind.st_mode):  # reading a pipe would wait for ever
            raise ValueError(f"{path}: is not a regular file")
        if kind.st_size > LARGEST:
            raise ValueError(
                f"{path}: has {kind.st_size:,} bytes; a layer's file has {LARGEST:,} at most"
            )
        return file.read_bytes().decode()
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from None


def load_file(path: str, source: str) -> ModuleType:
    """The module of a layer's file, executed in a child process before it is executed here.

    Args:
        source: the text that is executed, whatever the file holds now.
    Raises:
        LayerFileError: it raises, or ends the process.
    """
    # A private module name: a user's own `models` or `bench` must not shadow ours. An edited file
    # is another module.
    content = source.encode()
    name = f"_isoflop_layer_{hashlib.sha256(path.encode() + content).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not isolate.inside() and content not in _executed:
        try:
            problem = isolate.call(_import_problem, name, path, source)
        except isolate.ChildError as error:
            problem = str(error)
        if problem:
            raise LayerFileError(f"{path} cannot be imported: {problem}")
        _executed.add(content)
    problem = _import_problem(name, path, source)
    if problem:
        raise LayerFileError(f"{path} cannot be imported: {problem}")
    return sys.modules[name]


_executed: set[bytes] = set()  # contents that a child process has executed without fault


def _import_problem(name: str, path: str, source: str) -> str:
    """Execute a layer's file as a module: what went wrong, or nothing."""
    module = ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    try:
        # From the source, never from bytecode lying beside it: the source is what is hashed.
        exec(compile(source.encode(), path, "exec"), vars(module))
        return ""
    except SyntaxError as error:
        problem = isolate.one_line(f"not Python: {error}")
    except ModuleNotFoundError as error:
        problem = f"{isolate.one_line(repr(error))}{_beside(error, Path(path).parent)}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not isolate.inside():
            raise  # the user's own Ctrl-C
        problem = isolate.describe(error)
    del sys.modules[name]
    return problem


def _beside(error: ModuleNotFoundError, folder: Path) -> str:
    """The remedy where a layer's file imports a module that lies beside it."""
    if error.name:
        module = error.name.partition(".")[0]
        if (folder / module).is_dir() or (folder / f"{module}.py").is_file():
            return f"; {module} lies beside the file: set PYTHONPATH={folder}"
    return ""


def _load_plugin(point: importlib.metadata.EntryPoint) -> type[Layer]:
    """The layer of an entry point.

    Raises:
        ValueError: it cannot be imported, or is no layer.
    """
    try:
        layer = point.load()
    except (Exception, SystemExit) as error:  # whatever another package raises
        raise ValueError(f"{point.value} cannot be imported: {error!r}") from None
    return _checked(layer, point.name)


def _is_layer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Layer)


def _checked(layer: Any, name: str) -> type[Layer]:
    if not _is_layer(layer):
        raise ValueError(f"{name} is not a class derived from isoflop.Layer")
    # A class derived from one of ours inherits its name, which would file it under that.
    layer.name = vars(layer).get("name") or name
    return layer


def complete_options(
    layer: type[Any], options: dict[str, Any], kind: str = "layer"
) -> dict[str, Any]:
    """The options with the defaults of a layer, or of another class with `name` and `Options`.

    Args:
        kind: what it is, for messages.
    Raises:
        ValueError: one line, for an unknown option or a value it cannot take.
    """
    schema: Any = layer.Options
    if not is_dataclass(schema):
        raise ValueError(f"Options of {kind} {layer.name} must be a dataclass")
    known = [field.name for field in fields(schema)]
    for key in options:
        if key not in known:
            raise ValueError(
                f"{key}: unknown option of {kind} {layer.name}{did_you_mean(key, known)}; "
                f"known: {', '.join(known) or 'none'}"
            )
    try:
        # As JSON, since strict mode there takes a table for a dataclass, yet no "4" for a number.
        text = json.dumps(options, default=str)
        return asdict(TypeAdapter(schema).validate_json(text, strict=True))
    except ValidationError as error:
        raise ValueError(isolate.one_line(explain(error))) from None
    except Exception as error:  # of the user's own class, or a type that no option can have
        raise ValueError(f"Options of {kind} {layer.name}: {isolate.describe(error)}") from None


def counts_problem(layer: Layer) -> str:
    """What is wrong with the counts that a layer states; nothing if they can be used."""
    for count in COUNTS:
        value = getattr(layer, count)()
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            return f"{count}() must return a whole number from 0 to 2^63, not {_shown(value)}"
    if layer.routing_flops_per_token() > layer.flops_per_token():
        return "routing_flops_per_token() is a part of flops_per_token(): it cannot be more"
    total = sum(parameter.numel() for parameter in layer.parameters())
    if layer.active_parameters() > total:
        return f"active_parameters() is {layer.active_parameters()}, yet there are {total}"
    parameters = {id(parameter) for parameter in layer.parameters()}
    if any(id(table) not in parameters for table in layer.tables()):
        return "tables() must list parameters of the layer"
    if any(id(p) not in parameters for p in layer.routing_parameters()):
        return "routing_parameters() must list parameters of the layer"
    grouped: set[int] = set()
    for group in layer.parameter_groups():
        if not isinstance(group, ParameterGroup):
            return f"parameter_groups() must list ParameterGroup, not {_shown(group)}"
        if not all(isinstance(v, int | float) for v in (group.rate, group.decay)) or not (
            0 < group.rate < math.inf and 0 <= group.decay < math.inf
        ):
            return "a ParameterGroup's rate must be positive, its decay 0 or more"
        ids = [id(p) for p in group.parameters]
        if not grouped.isdisjoint(ids) or not parameters.issuperset(ids):
            return "parameter_groups() must list parameters of the layer, each once"
        grouped |= set(ids)
    return ""


def _shown(value: Any) -> str:
    try:
        return isolate.one_line(repr(value), 80)
    except Exception:  # an integer of too many digits, or a class of the user's own
        return f"an object of type {type(value).__name__}"


def file_of(layer: str) -> str:
    """The path of path/to/file.py:Class; nothing for another layer."""
    path = layer.rpartition(":")[0]
    return path if path.endswith(".py") else ""


def source_hash(source: str | None) -> str | None:
    """The content of a user's layer file, so that an edited layer is trained anew."""
    return None if source is None else hashlib.sha256(source.encode()).hexdigest()[:16]
