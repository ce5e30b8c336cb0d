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
from isoflop.results.errors import explain


def find_layer(name: str) -> type[Layer]:
    """A layer by registered name, by entry point `isoflop.layers`, or as path/to/file.py:Class.

    Raises:
        ValueError: there is none, or its file does not give it.
    """
    if name in LAYERS:
        return LAYERS[name]
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        for point in importlib.metadata.entry_points(group="isoflop.layers", name=name):
            return _checked(point.load(), name)
        raise ValueError(
            f"no layer {name!r}; known: {', '.join(sorted(LAYERS))}, or path/to/file.py:Class"
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
            raise ValueError(f"{path} cannot be imported: {error!r}") from None
    layer = getattr(sys.modules[module_name], attribute, None)
    return _checked(layer, f"{Path(path).name}:{attribute}")  # wherever the file lies


def _checked(layer: Any, name: str) -> type[Layer]:
    if not (isinstance(layer, type) and issubclass(layer, Layer)):
        raise ValueError(f"{name} is not a class derived from isoflop.Layer")
    # A class derived from one of ours inherits its name, which would file it under that.
    layer.name = vars(layer).get("name") or name
    return layer


def complete_options(layer: type[Layer], options: dict[str, Any]) -> dict[str, Any]:
    """The options with the layer's defaults.

    Raises:
        ValueError: one line, for an unknown option or a value it cannot take.
    """
    known = ", ".join(field.name for field in fields(layer.Options)) or "none"
    unknown = [key for key in options if key not in layer.Options.__dataclass_fields__]
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown option of layer {layer.name}; known: {known}")
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
