"""Numbers as people and programs write them: 1.5B, 1,000,000, 3,14, tensor(2.9)."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

EMPTY = {"", "-", "na", "n/a", "nan", "null", "none", "inf", "-inf", "+inf", "infinity"}
SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
TENSOR = re.compile(r"tensor\(\s*([^,)]+).*\)", re.DOTALL)
GROUPED = re.compile(
    r"[+-]?\d{1,3}(?:([,_ '\u00a0\u2009\u202f])\d{3})(?:\1\d{3})*(?:\.\d+)?", re.ASCII
)
PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", re.ASCII)


def is_empty(text: str) -> bool:
    """Whether a field says that there is no value."""
    return text.lower() in EMPTY


def decimal_comma(fields: Iterable[str]) -> bool | None:
    """Whether a comma is the decimal mark of a column; None if its numbers can be read both ways.

    3,14 has one; 1,000,000 and 1,234.5 have not. A column of nothing but 1,234 may be either.
    """
    either = False
    for field in fields:
        text = field.strip()
        if "," not in text:
            either = either and "." not in text
            continue
        if COMMA.fullmatch(text) and not GROUPED.fullmatch(text):
            return True
        if text.count(",") > 1 or "." in text:
            return False
        either = True
    return None if either else False


def read_number(field: str, comma: bool = False) -> float:
    """The value of a field.

    Args:
        comma: whether a comma is the decimal mark.
    Raises:
        ValueError: it is none; the message says why, to follow "is".
    """
    text = field.strip()
    wrapped = TENSOR.fullmatch(text)
    text = (wrapped.group(1) if wrapped else text).strip()
    scale = 1.0
    if len(text) > 1 and text[-1].lower() in SUFFIXES and text[-2] in "0123456789. ":
        scale, text = SUFFIXES[text[-1].lower()], text[:-1].rstrip()
    if comma:
        text = text.replace(".", "").replace(",", ".")
    elif GROUPED.fullmatch(text):
        text = re.sub(r"[,_ '\u00a0\u2009\u202f]", "", text)
    if not PLAIN.fullmatch(text):
        raise ValueError(_why(field))
    value = float(text) * scale
    if not math.isfinite(value):
        raise ValueError(f"{field!r}, too large for a number")
    return value


def _why(field: str) -> str:
    strange = next((c for c in field if ord(c) > 127), None)
    if strange:
        name = unicodedata.name(strange, f"U+{ord(strange):04X}")
        return f"{field!r}, not a number: it holds the character {name}"
    if "%" in field:
        return f"{field!r}, a percentage, not a number"
    shown = field if len(field) <= 40 else field[:37] + "..."
    return f"{shown!r}, not a number"
