"""The stored counts of the long robustness tests, and the document that shows them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from isoflop.analysis.report.markdown import table

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "docs" / "reliability.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
TESTED = ("analysis", "bench", "isoflop", "models", "results", "tests/robustness")
BLOCK = re.compile(r"(<!-- isoflop:robustness -->\n)(.*?)(<!-- /isoflop -->)", re.DOTALL)


def code() -> str:
    """A hash of the code that the counts are of, these tests included."""
    digest = hashlib.sha256()
    paths = {path.resolve() for folder in TESTED for path in (ROOT / folder).rglob("*.py")}
    for path in sorted(paths):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def store(path: Path, counts: dict[str, dict[str, int]]) -> None:
    """Write counts; those of other kinds stay if they are of the same code."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = before["counts"] if before.get("code") == code() else {}
    stored = {"code": code(), "counts": dict(sorted((kept | counts).items()))}
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def shown(stored: dict[str, Any]) -> str:
    """The counts as a Markdown table."""
    rows = [
        (kind, *(str(count.get(key, "-")) for key in ("tried", "accepted", "early", "faults")))
        for kind, count in stored["counts"].items()
    ]
    header = ("kind", "tried", "still right", "ended before the signal", "faults")
    return (
        table(header, rows, left=("kind",)) + f"\nCounted on the code with hash {stored['code']}. "
        "The seed of a case is its kind and number.\n"
    )


def embedded(text: str, stored: dict[str, Any]) -> str:
    """The document with its block made anew."""
    return BLOCK.sub(lambda match: match[1] + shown(stored) + match[3], text)


def write_document() -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(embedded(text, stored), encoding="utf-8")
