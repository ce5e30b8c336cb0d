"""Layers by name, by entry point or from a file, and their options."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from isoflop.models import LAYERS, Layer
from isoflop.results.errors import did_you_mean, explain


def plugins() -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points `isoflop.layers` of installed packages, by name."""
    points = importlib.metadata.entry_points(group="isoflop.layers")
    return {point.name: point for point in points}


def find_layer(name: str) -> type[Layer]:
    """A layer by registered name, by entry point `isoflop.layers`, or as path/to/file.py:Class.

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
    if not Path(path).is_file():
        raise ValueError(f"no file {path}")
    # A private module name: a user's own `models` or `bench` must not shadow ours. An edited file
    # is another module.
    source = Path(path).read_bytes()
    module_name = f"_isoflop_layer_{hashlib.sha256(path.encode() + source).hexdigest()[:12]}"
    if module_name not in sys.modules:
        module = ModuleType(module_name)
        module.__file__ = path
        sys.modules[module_name] = module
        try:
            # From the source, never from bytecode lying beside it: the source is what is hashed.
            exec(compile(source, path, "exec"), vars(module))
        except Exception as error:
            del sys.modules[module_name]
            hint = _beside(error, Path(path).parent)
            raise ValueError(f"{path} cannot be imported: {error!r}{hint}") from None
    names = vars(sys.modules[module_name])
    if attribute not in names:
        layers = [key for key, value in names.items() if _is_layer(value) and value is not Layer]
        raise ValueError(
            f"{path}: no class {attribute!r}{did_you_mean(attribute, layers)}; "
            f"layers there: {', '.join(layers) or 'none'}"
        )
    return _checked(names[attribute], f"{Path(path).name}:{attribute}")  # wherever the file lies


def _beside(error: Exception, folder: Path) -> str:
    """The remedy where a layer's file imports a module that lies beside it."""
    if isinstance(error, ModuleNotFoundError) and error.name:
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
    except Exception as error:  # whatever another package raises
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


def complete_options(layer: type[Layer], options: dict[str, Any]) -> dict[str, Any]:
    """The options with the layer's defaults.

    Raises:
        ValueError: one line, for an unknown option or a value it cannot take.
    """
    known = [field.name for field in fields(layer.Options)]
    for key in options:
        if key not in known:
            raise ValueError(
                f"{key}: unknown option of layer {layer.name}{did_you_mean(key, known)}; "
                f"known: {', '.join(known) or 'none'}"
            )
    try:
        # As JSON, since strict mode there takes a table for a dataclass, yet no "4" for a number.
        text = json.dumps(options, default=str)
        return asdict(TypeAdapter(layer.Options).validate_json(text, strict=True))
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def source_hash(layer: str) -> str | None:
    """The content of a user's layer file, so that an edited layer is trained anew."""
    path = layer.rpartition(":")[0]
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else None
