"""The keys that a suite file may have, as its schema describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from isoflop.bench.suite import Suite

LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def suite_fields() -> list[dict[str, str | None]]:
    """A row for every key: its name as in error messages, type, default and meaning.

    The default is `required` where a suite must give the key, and None where nothing is set.
    """
    schema = Suite.model_json_schema()
    return list(_keys_of(schema, "", schema["$defs"]))


def _keys_of(
    table: dict[str, Any], prefix: str, tables: dict[str, Any]
) -> Iterator[dict[str, str | None]]:
    """A row for every key of a table, each followed by those of the tables it holds."""
    required = table.get("required", [])
    for key, field in table["properties"].items():
        default = field.get("default", "required" if key in required else None)
        if "$ref" in field and key not in required:
            default = None  # its keys say theirs
        yield {
            "key": prefix + key,
            "type": type_of(field),
            "default": default if isinstance(default, str | None) else json.dumps(default),
            "meaning": field["description"],
        }
        for name, inner in _tables_in(field, prefix + key):
            yield from _keys_of(tables[inner], f"{name}.", tables)


def _tables_in(schema: Any, name: str) -> Iterator[tuple[str, str]]:
    """The tables that a key holds, itself or by index or name: where they are, and their types."""
    if not isinstance(schema, dict):  # `additionalProperties` may be true
        return
    if "$ref" in schema:
        yield name, schema["$ref"].rpartition("/")[2]
    for part in schema.get("anyOf", []):
        yield from _tables_in(part, name)
    yield from _tables_in(schema.get("items"), f"{name}.N")
    yield from _tables_in(schema.get("additionalProperties"), f"{name}.NAME")


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema's type in words, such as `integer > 0`."""
    if "anyOf" in schema:
        return " or ".join(type_of(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if "$ref" in schema or schema["type"] == "object":
        return "table"
    if schema["type"] == "array":
        return f"list of {type_of(schema['items'])}"
    limits = [f"{sign} {schema[key]}" for key, sign in LIMITS.items() if key in schema]
    return f"{schema['type']} {', '.join(limits)}".rstrip()
