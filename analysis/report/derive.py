"""From a directory of records to all files generated from them, without torch.

`generate` returns the bytes of every generated file, `report` writes them, and `stale` compares
them with the files on disk. A document shows a result between markers,

    <!-- isoflop:leaderboard results/quick --> ... <!-- /isoflop -->

where the path is relative to the document; the text between the markers is generated too.

A directory with a `comparison.json` is a comparison of a new layer with the others and is reported
as such. That file keeps what was asked; the result in it is generated. A directory with compressed
models gets their table and figure beside the leaderboard, and a REPORT.md on the papers behind the
methods. A directory whose records
have choices of an ablation gets their differences instead of a leaderboard.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL

from isoflop.analysis.ablation import Ablation, ablation
from isoflop.analysis.analyse import MARGIN, analyse
from isoflop.analysis.curves import AnalysisError
from isoflop.analysis.post_training import Row as MethodRow
from isoflop.analysis.post_training import post_training as after_training
from isoflop.analysis.report import ablations, leaderboard, papers, post_training
from isoflop.analysis.report.claims import claims, predictions
from isoflop.analysis.report.figures import draw
from isoflop.analysis.report.leaderboard import Row
from isoflop.analysis.report.markdown import escape
from isoflop.analysis.report.page import page
from isoflop.analysis.report.sections import markdown
from isoflop.analysis.report.verdict import result
from isoflop.results.baseline import find_baseline
from isoflop.results.compressed import FOLDER, Compressed, load_compressed
from isoflop.results.errors import printable
from isoflop.results.files import write_whole
from isoflop.results.record import Record
from isoflop.results.scored import FILE as SCORED
from isoflop.results.scored import load_scored
from isoflop.results.sources import sources, submissions_to

# Another CPU may differ in the last digit of a sum, and so by a pixel.
_SIMD: Any = np.show_config(mode="dicts")["SIMD Extensions"]
DRAWN_BY = (
    f"matplotlib {matplotlib.__version__}, numpy {np.__version__}, pillow {PIL.__version__} on "
    f"{platform.system()} {platform.machine()} " + [*_SIMD["baseline"], *_SIMD["found"]][-1]
)
COMPARISON = "comparison.json"
DECODED = "decode.json"  # what `isoflop decode --json` printed
DOCUMENT = "REPORT.md"  # beside results directories, with blocks of any of them
ABLATIONS = "robustness"  # the directory beside others whose choices their boards show
BLOCK = re.compile(r"(<!-- isoflop:(\S+) (\S+) -->\n)(.*?)(<!-- /isoflop -->)", re.DOTALL)


def generate(
    directory: Path,
    document: Path | None = None,
    failed: dict[str, str] | None = None,
    margin: float = MARGIN,
) -> tuple[list[Row], dict[Path, bytes]]:
    """Analyse the records behind `directory`; the rows of its main table, and all generated files.

    Args:
        directory: a results directory; see `sources`.
        document: a Markdown file whose blocks for this directory are generated too, if it exists,
            like those of a REPORT.md beside the directory.
        failed: takes the charts that cannot be drawn, and why; if None, they raise.
        margin: within which a multiplier counts as equivalent to 1.

    Raises:
        AnalysisError: there are no records, they may not be compared, or the comparison file is
            broken.
        RecordError: a record is unreadable.
    """
    records, tune = sources(directory)
    if not records:
        if submissions_to(directory) is not None:
            raise AnalysisError(
                f"{directory}: no submission to a suite {directory.name}, and only submissions "
                "count here; `isoflop submit` makes one from records in runs/"
            )
        raise AnalysisError(f"{directory / 'records'}: no records here; run a suite first")
    if any(record.ablation for record in records):
        study = _ablation(directory, records)
        digest = f"records {_digest(records)}, {DRAWN_BY}"
        made = ablations.files(study, digest)
        return ablations.as_rows(study), {directory / name: made[name] for name in made}
    comparison = read_comparison(directory / COMPARISON)
    choices = _choices(directory, records)
    try:
        analysis = analyse(
            records, tune, highlight=comparison.get("variant"), margin=margin, choices=choices
        )
    except AnalysisError as error:
        raise AnalysisError(f"{directory}: {error}") from None
    rows = leaderboard.rows(analysis)
    scored = load_scored(directory / SCORED, [s.variant for s in analysis.standings])
    files = {
        directory / "LEADERBOARD.md": markdown(analysis, scored).encode(),
        directory / "leaderboard.csv": leaderboard.as_csv(rows).encode(),
        directory / "leaderboard.tex": leaderboard.as_latex(rows).encode(),
    }
    suite = "\n".join(
        f"# {_readable(file.parent.name)}/{file.name}\n{file.read_text(encoding='utf-8')}"
        for file in _suite_files(directory)
    )
    smaller = load_compressed(directory / FOLDER)
    try:
        methods = after_training(records, smaller)
    except AnalysisError as error:
        raise AnalysisError(f"{directory}: {error}") from None
    text = page(analysis, suite, comparison.get("command"), failed, methods, scored)
    files[directory / "index.html"] = text.encode()
    inputs = (*records, *tune)
    if comparison:
        text = json.dumps(comparison | result(analysis), indent=1)
        files[directory / COMPARISON] = f"{text}\n".encode()
    digest = f"records {_digest(inputs, comparison.get('variant', ''))}, {DRAWN_BY}"
    for name, content in draw(analysis, digest, failed).items():
        files[directory / "figures" / name] = content
    if smaller:
        digest = f"records {_digest((*records, *smaller))}, {DRAWN_BY}"
        made = post_training.files(methods, records, digest, failed)
        files |= {directory / name: content for name, content in made.items()}
        files[directory / DOCUMENT] = _study(directory, methods, smaller).encode()
    for shown in filter(None, (document, directory.parent / DOCUMENT)):
        if shown.exists():
            blocks = {
                "headline": escape(leaderboard.headline(analysis)) + "\n",
                "leaderboard": leaderboard.table(analysis),
                "claims": claims(analysis),
                "predictions": predictions(analysis),
            }
            text = shown.read_text(encoding="utf-8")
            files[shown] = embed(text, shown, directory, blocks).encode()
    return rows, files


def _study(directory: Path, rows: Sequence[MethodRow], smaller: Sequence[Compressed]) -> str:
    """REPORT.md of methods after training, with what decoding and routing said, if they ran."""
    decoded, routed = directory / DECODED, directory / "locality" / "locality.csv"
    return papers.report(
        rows,
        smaller,
        json.loads(decoded.read_text(encoding="utf-8")) if decoded.exists() else [],
        routed.read_text(encoding="utf-8") if routed.exists() else "",
    )


def _digest(records: Iterable[Record | Compressed], more: str = "") -> str:
    text = "".join(record.model_dump_json() for record in records)
    return hashlib.sha256((text + more).encode()).hexdigest()


def _ablation(directory: Path, records: Sequence[Record]) -> Ablation:
    """
    Raises:
        AnalysisError: there is no baseline, or the choices are at several budgets.
    """
    plain = {record.variant: record.layer for record in records if not record.ablation}
    try:
        baseline = find_baseline(plain)
        if baseline is None:
            raise AnalysisError("no dense variant; an ablation needs one to be compared with")
        return replace(ablation(records, baseline), paper=_paper(directory))
    except (AnalysisError, ValueError) as error:
        raise AnalysisError(f"{directory}: {error}") from None


def _suite_files(directory: Path) -> list[Path]:
    """The suites that a run, or the submissions behind a leaderboard, were trained by."""
    folders = [directory, *(submissions_to(directory) or [])]
    return [file for folder in folders if (file := folder / "suite.toml").exists()]


def _readable(name: str) -> str:
    """A file's name as UTF-8: in an ASCII locale, other letters are surrogates."""
    return os.fsencode(name).decode("utf-8", "replace")


def _paper(directory: Path) -> dict[tuple[str, str], str]:
    """What a paper reports, by axis and choice, from the suite's file beside the records.

    Raises:
        AnalysisError: that file is not TOML.
    """
    axes: dict[str, Any] = {}
    for file in _suite_files(directory):
        try:
            suite = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise AnalysisError(f"{file}: not TOML: {error}") from None
        axes |= suite.get("axes", {})
    return {
        (axis, choice): changes["paper"]
        for axis, choices in axes.items()
        for choice, changes in choices.items()
        if changes.get("paper")
    }


def _choices(directory: Path, records: Sequence[Record]) -> Ablation | None:
    """The ablation beside a directory, if it starts from the same cells in all shared variants."""
    other = directory.resolve().parent / ABLATIONS
    changed, _ = sources(other)
    as_it_is = [record for record in changed if not record.ablation]
    cells, variants = ({getattr(r, key) for r in records} for key in ("cell", "variant"))
    shared = {record.variant for record in as_it_is} & variants
    same = {record.variant for record in as_it_is if record.cell in cells}
    return _ablation(other, changed) if shared and shared <= same else None


def read_comparison(path: Path) -> dict[str, Any]:
    """The contents of a directory's `comparison.json`; empty if there is no such file.

    Raises:
        AnalysisError: it is not JSON, or does not name the variant and the command.
    """
    if not path.exists():
        return {}
    try:
        comparison = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: not JSON: {error}") from None
    for key in ("variant", "command"):
        if not isinstance(comparison, dict) or not isinstance(comparison.get(key), str):
            raise AnalysisError(f"{path}: {key}: missing; `isoflop compare` writes this file anew")
    return comparison


def embed(text: str, document: Path, directory: Path, blocks: Mapping[str, str]) -> str:
    """Replace the blocks that show `directory` in `text`, the contents of `document`.

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


def report(directory: Path, document: Path | None = None, margin: float = MARGIN) -> list[Row]:
    """Write all generated files of `directory` and return the rows of its main table.

    Args:
        document, margin: see `generate`. Files written with another margin than the default are
            stale for `stale`.

    Raises:
        AnalysisError, RecordError: see `generate`.
        OSError: the directory is not writable.
    """
    failed: dict[str, str] = {}
    rows, files = generate(directory, document, failed, margin)
    for name, why in failed.items():
        line = printable(f"{directory}: chart {name} could not be drawn: {why}")
        print(line, file=sys.stderr)
    for path, content in files.items():
        if not path.exists() or path.read_bytes() != content:
            write_whole(path.resolve() if path.is_symlink() else path, content)
    for path in _leftover(directory, files):
        path.unlink(missing_ok=True)  # two machines may report at the same time
    return rows


def stale(directory: Path, document: Path | None = None) -> list[Path]:
    """Generated files that are missing or differ from what `report` would write now, and figures
    that it would remove.

    Raises:
        AnalysisError, RecordError: see `generate`.
    """
    _, files = generate(directory, document, {})
    changed = [path for path, content in files.items() if not _current(path, content)]
    return changed + _leftover(directory, files)


def _leftover(directory: Path, files: Mapping[Path, bytes]) -> list[Path]:
    """Figures that the present records no longer give."""
    return [path for path in sorted((directory / "figures").glob("*.*")) if path not in files]


def _current(path: Path, content: bytes) -> bool:
    """Whether a file has this content.

    Figures drawn by other library versions, or on a CPU of other instructions, differ in bytes;
    they are current if they were drawn from the same records.
    """
    if not path.exists():
        return False
    stored = path.read_bytes()
    if path.suffix in (".png", ".svg") and DRAWN_BY.encode() not in stored:
        drawn_from = re.search(rb"records [0-9a-f]{64}", content)
        return drawn_from is not None and drawn_from.group() in stored
    return stored == content
