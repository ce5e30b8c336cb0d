"""The stored score of the mutation tests, and the block of docs/reliability.md that shows it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from tests.mutation.targets import ROOT, find_tests, targets

STORED = ROOT / "docs" / "mutation.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
BLOCK = re.compile(r"(<!-- isoflop:mutation -->\n)(.*?)(<!-- /isoflop -->)", re.DOTALL)
FIELDS = ("tried", "killed", "equivalent", "survived")

Counts = dict[str, dict[str, int]]  # by file


def code() -> str:
    """A hash of the files that are mutated and of their tests."""
    digest = hashlib.sha256()
    for name in sorted({name for path in targets() for name in (path, *find_tests(path))}):
        digest.update(f"{name}\n".encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def total(counts: Counts) -> dict[str, int]:
    return {field: sum(count[field] for count in counts.values()) for field in FIELDS}


def share(count: dict[str, int]) -> float:
    """Killed ones of those that change anything."""
    return count["killed"] / max(1, count["tried"] - count["equivalent"])


def store(code: str, seed: int, counts: Counts, survivors: list[str]) -> None:
    """Write the counts of the code with a hash, and the document."""
    stored = {
        "code": code,
        "seed": seed,
        "score": round(share(total(counts)), 4),
        "counts": dict(sorted(counts.items())),
        "survivors": sorted(survivors),
    }
    STORED.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(embedded(text, stored), encoding="utf-8")


def shown(stored: dict[str, Any]) -> str:
    """The counts as a Markdown table, by folder."""
    from isoflop.analysis.report.markdown import table  # loaded late: mutants are of a copy

    folders: dict[str, Counts] = {}
    for path, count in stored["counts"].items():
        folders.setdefault(path.rpartition("/")[0], {})[path] = count
    rows = [(name, total(counts)) for name, counts in sorted(folders.items())]
    rows.append(("all", total(stored["counts"])))
    cells = [
        (name, *(str(count[field]) for field in FIELDS), f"{100 * share(count):.0f}%")
        for name, count in rows
    ]
    return (
        table(("folder", *FIELDS, "score"), cells, left=("folder",))
        + f"\nCounted with seed {stored['seed']} on the code with hash {stored['code']}. The score "
        "leaves equivalent mutants out. The survivors are listed in `docs/mutation.json`.\n"
    )


def embedded(text: str, stored: dict[str, Any]) -> str:
    """The document with its block made anew."""
    return BLOCK.sub(lambda match: match[1] + shown(stored) + match[3], text)
