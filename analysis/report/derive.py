"""From a directory of records to everything derived from them; torch is never imported.

`derive` is the one path: it returns every derived file's bytes, `report` writes them, and `stale`
compares them with what is there. A document shows a result between markers,

    <!-- isoflop:leaderboard results/quick --> ... <!-- /isoflop -->

with the path relative to the document; the text between them is derived too.

A directory with a `comparison.json` is a comparison of one new layer with the others, and is
reported as one. What was asked in that file is kept; what was found is derived.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.curves import AnalysisError
from isoflop.analysis.report import leaderboard
from isoflop.analysis.report.figures import draw
from isoflop.analysis.report.leaderboard import Row
from isoflop.analysis.report.page import page
from isoflop.analysis.report.sections import markdown
from isoflop.analysis.report.verdict import result
from isoflop.results.sources import sources

DRAWN_BY = (
    f"matplotlib {matplotlib.__version__}, numpy {np.__version__}, pillow {PIL.__version__} on "
    f"{platform.system()} {platform.machine()}"
)
COMPARISON = "comparison.json"
BLOCK = re.compile(r"(<!-- isoflop:(\S+) (\S+) -->\n)(.*?)(<!-- /isoflop -->)", re.DOTALL)


def derive(directory: Path, document: Path | None = None) -> tuple[Analysis, dict[Path, bytes]]:
    """Analyse the records behind `directory` and return what is derived from them, by path.

    Args:
        directory: a results directory; see `sources`.
        document: a Markdown file whose blocks for this directory are derived too, if it exists.

    Raises:
        AnalysisError: no records, records that must not be compared, or a broken comparison file.
        RecordError: a record is unreadable.
    """
    records, tune = sources(directory)
    if not records:
        raise AnalysisError(f"{directory / 'records'}: no records here; run a suite first")
    comparison = read_comparison(directory / COMPARISON)
    try:
        analysis = analyse(records, tune, highlight=comparison.get("variant"))
    except AnalysisError as error:
        raise AnalysisError(f"{directory}: {error}") from None
    files = {
        directory / "LEADERBOARD.md": markdown(analysis).encode(),
        directory / "leaderboard.csv": leaderboard.as_csv(leaderboard.rows(analysis)).encode(),
    }
    settings = directory / "suite.toml"
    suite = settings.read_text(encoding="utf-8") if settings.exists() else None
    files[directory / "index.html"] = page(analysis, suite, comparison.get("command")).encode()
    content_of = "".join(one.model_dump_json() for one in (*records, *tune))
    if comparison:
        content_of += comparison["variant"]
        found = json.dumps(comparison | result(analysis), indent=1)
        files[directory / COMPARISON] = f"{found}\n".encode()
    digest = f"records {hashlib.sha256(content_of.encode()).hexdigest()}"
    for name, content in draw(analysis, f"{digest}, {DRAWN_BY}").items():
        files[directory / "figures" / name] = content
    if document and document.exists():
        blocks = {
            "headline": leaderboard.headline(analysis) + "\n",
            "leaderboard": leaderboard.table(analysis),
        }
        text = document.read_text(encoding="utf-8")
        files[document] = embed(text, document, directory, blocks).encode()
    return analysis, files


def read_comparison(path: Path) -> dict[str, Any]:
    """What a directory's `comparison.json` holds; nothing if there is no such file.

    Raises:
        AnalysisError: it is not JSON, or does not say which variant was compared by which command.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: not JSON: {error}") from None
    for key in ("variant", "command"):
        if not isinstance(found, dict) or not isinstance(found.get(key), str):
            raise AnalysisError(f"{path}: {key}: missing; `isoflop compare` writes this file anew")
    return dict(found)


def embed(text: str, document: Path, directory: Path, blocks: Mapping[str, str]) -> str:
    """Replace the blocks of `text` (the contents of `document`) that show `directory`.

    Raises:
        AnalysisError: a marker names a block that does not exist.
    """

    def replace(match: re.Match[str]) -> str:
        opening, name, where, _, closing = match.groups()
        if (document.parent / where).resolve() != directory.resolve():
            return match.group()
        if name not in blocks:
            raise AnalysisError(
                f"{document}: isoflop:{name}: no such block; there are {', '.join(blocks)}"
            )
        return f"{opening}{blocks[name]}{closing}"

    return BLOCK.sub(replace, text)


def report(directory: Path, document: Path | None = None) -> list[Row]:
    """Write everything derived from `directory`; return the leaderboard's rows, best first.

    Raises:
        AnalysisError, RecordError: see `derive`.
        OSError: the directory is not writable.
    """
    analysis, files = derive(directory, document)
    for path, content in files.items():
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in _leftover(directory, files):
        path.unlink(missing_ok=True)  # two machines may report at a time
    return leaderboard.rows(analysis)


def stale(directory: Path, document: Path | None = None) -> list[Path]:
    """Derived files that are missing, differ from what `report` would write now, or are figures
    that it no longer samples.

    Raises:
        AnalysisError, RecordError: see `derive`.
    """
    _, files = derive(directory, document)
    changed = [path for path, content in files.items() if not _current(path, content)]
    return changed + _leftover(directory, files)


def _leftover(directory: Path, files: Mapping[Path, bytes]) -> list[Path]:
    """Figures drawn from records that are no longer there."""
    return [path for path in sorted((directory / "figures").glob("*.*")) if path not in files]


def _current(path: Path, content: bytes) -> bool:
    """Whether a file says what it should. Figures drawn by other library versions differ in bytes;
    those are current if they were drawn from the same records."""
    if not path.exists():
        return False
    found = path.read_bytes()
    if path.suffix in (".png", ".svg") and DRAWN_BY.encode() not in found:
        drawn_from = re.search(rb"records [0-9a-f]{64}", content)
        return drawn_from is not None and drawn_from.group() in found
    return found == content
