"""Seeded damage to text, as people and programs do it: for suites, tables, records, options."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

WORDS = (
    "", "0", "-1", "1e400", "nan", "inf", "-inf", "true", "null", "None", "[]", "{}", "''",
    '"8"', "1_000", "1,5", "1.5B", "9" * 40, "1e-320", "0x10", "٣", "ℵ", "\x00", "\x1b[2J",
    "$\\frac$",
    "[/x]", "<!--<script>", "|", "`a`", "::error::x", "../../etc/passwd", "/dev/null", "a" * 5000,
    "dense", "moe", "peer", "middle", "sotu", "3.0", "1e9", "16", "2", "1e11",
)  # fmt: skip


def _a_number(text: str, r: random.Random) -> str:
    numbers = list(re.finditer(r"(?<![\w.])-?\d[\d_.]*(?:e[+-]?\d+)?", text))
    if not numbers:
        return text
    at = r.choice(numbers)
    return text[: at.start()] + r.choice(WORDS) + text[at.end() :]


def _a_word(text: str, r: random.Random) -> str:
    words = list(re.finditer(r"[A-Za-z_]{2,}", text))
    if not words:
        return text
    at = r.choice(words)
    word = at.group()
    cut = r.randrange(len(word))
    changed = r.choice([word[:cut] + word[cut + 1 :], word.upper(), word + "x", r.choice(WORDS)])
    return text[: at.start()] + changed + text[at.end() :]


def _a_line(text: str, r: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    at = r.randrange(len(lines) or 1)
    kind = r.randrange(4)
    if kind == 0:
        return "".join(lines[:at] + lines[at + 1 :])
    if kind == 1:
        return "".join(lines[: at + 1] + lines[at : at + 1] + lines[at + 1 :])
    if kind == 2:
        r.shuffle(lines)
        return "".join(lines)
    return "".join(lines[:at]) + r.choice(WORDS) + "\n" + "".join(lines[at:])


def _a_character(text: str, r: random.Random) -> str:
    at = r.randrange(len(text) + 1)
    return (
        text[:at] + r.choice(["", *"[]{}=\",'#\n\t;|\\\ufeff\u2028é"]) + text[at + r.randrange(2) :]
    )


def _a_cut(text: str, r: random.Random) -> str:
    return text[: r.randrange(len(text) + 1)]


KINDS: tuple[Callable[[str, random.Random], str], ...] = (
    _a_number, _a_number, _a_word, _a_word, _a_line, _a_character, _a_cut,
)  # fmt: skip


def mutate(text: str, r: random.Random) -> bytes:
    """One to three faults in a text, now and then in its bytes too."""
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        text = r.choice(KINDS)(text, r)
    content = text.encode("utf-8", "surrogatepass")
    if r.random() < 0.05:
        content = r.choice(
            [b"\xef\xbb\xbf" + content, b"\xff\xfe" + content, content + b"\x00\xff"]
        )
    return content


def mutate_json(text: str, r: random.Random) -> bytes:
    """A value of a JSON object replaced by one of another kind; else as `mutate`."""
    if r.random() < 0.4:
        return mutate(text, r)
    table = json.loads(text)
    target = table
    while True:
        key = r.choice(list(target))
        if isinstance(target[key], dict) and target[key] and r.random() < 0.7:
            target = target[key]
            continue
        target[key] = r.choice(
            [None, True, -1, 0, "8", [], {}, 1e308, 10**40, "nan", [[1, 2]], "$x$"]
        )
        return json.dumps(table).encode()
