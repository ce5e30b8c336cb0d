"""From a directory of records to everything derived from them; torch is never imported.

`derive` is the one path: it returns every derived file's bytes, `report` writes them, and `stale`
compares them with what is there. A document shows a result between markers,

    <!-- isoflop:leaderboard results/quick --> ... <!-- /isoflop -->

with the path relative to the document; the text between them is derived too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from analysis import leaderboard
from analysis.figures import draw
from analysis.isoflop import AnalysisError
from analysis.leaderboard import Row
from analysis.ranking import Analysis, analyse
from bench.record import read_records

BLOCK = re.compile(r"(<!-- isoflop:(\S+) (\S+) -->\n)(.*?)(<!-- /isoflop -->)", re.DOTALL)


def derive(directory: Path, document: Path | None = None) -> tuple[Analysis, dict[Path, bytes]]:
    """Analyse `directory/records` and return what is derived from it, by path.

    Args:
        directory: a results directory.
        document: a Markdown file whose blocks for this directory are derived too, if it exists.

    Raises:
        AnalysisError: no records, or records that must not be compared.
        RecordError: a record is unreadable.
    """
    paths = sorted((directory / "records").glob("[!.]*.json"))
    if not paths:
        raise AnalysisError(f"{directory / 'records'}: no records here; run a suite first")
    try:
        analysis = analyse(read_records(directory / "records"))
    except AnalysisError as error:
        raise AnalysisError(f"{directory}: {error}") from None
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    files = {
        directory / "LEADERBOARD.md": leaderboard.markdown(analysis).encode(),
        directory / "leaderboard.csv": leaderboard.as_csv(leaderboard.rows(analysis)).encode(),
    }
    for name, content in draw(analysis, f"records {digest}").items():
        files[directory / "figures" / name] = content
    if document and document.exists():
        blocks = {"leaderboard": leaderboard.table(analysis)}
        text = document.read_text(encoding="utf-8")
        files[document] = embed(text, document, directory, blocks).encode()
    return analysis, files


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
    return leaderboard.rows(analysis)


def stale(directory: Path, document: Path | None = None) -> list[Path]:
    """Derived files that are missing or differ from what `report` would write now.

    Raises:
        AnalysisError, RecordError: see `derive`.
    """
    _, files = derive(directory, document)
    return [
        path for path, content in files.items() if not path.exists() or path.read_bytes() != content
    ]
