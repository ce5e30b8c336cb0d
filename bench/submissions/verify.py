"""What a submission says, recomputed: its manifest from its files, its records from its suite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from isoflop.bench.flops import FlopError, verify_flops
from isoflop.bench.lint import LintError, refuse
from isoflop.bench.plan import Cell, plan, sweep_cells
from isoflop.bench.submissions.recompute import against_cells, impossible, same
from isoflop.bench.suite import Suite, SuiteError, load_suite
from isoflop.results.manifest import MANIFEST, Entry, Manifest, read_manifest, submissions
from isoflop.results.record import Record, RecordError, load_records, read_record

ALIKE = ("corpus", "training", "placement", "transfer")  # in every submission to a suite


@dataclass(frozen=True)
class Folder:
    """The contents of a submission, its manifest apart."""

    directory: Path
    suite: Suite  # of the submitted variants alone
    records: list[Record]
    tune: list[Record]
    cells: list[Cell]  # that `records` must be of
    rates: list[Cell]  # that `tune` must be of


def read_folder(directory: Path) -> tuple[Folder, list[str]]:
    """The contents of a submission, and a line for each record that cannot be read.

    Raises:
        SuiteError, LintError: the suite or a layer cannot be used. Layer files are executed.
    """
    where = str(directory / "suite.toml")
    suite = load_suite(where)
    for variant in suite.variants.values():
        if _file_of(variant.layer, directory):
            refuse(variant.layer, variant.options)
    found: dict[str, list[Record]] = {"records": [], "tune": []}
    lines = []
    for kind, records in found.items():
        for path in sorted((directory / kind).glob("*.json")):
            try:
                records.append(read_record(path))
                if path.stem != records[-1].cell:
                    lines.append(f"{path}: cell: says {records[-1].cell}, unlike the file's name")
            except RecordError as error:
                lines.append(str(error))
    tuned = {record.variant for record in found["tune"]}
    rates = [cell for cell in sweep_cells(suite, where) if cell.variant in tuned] if tuned else []
    return Folder(directory, suite, **found, cells=plan(suite, where), rates=rates), lines


def problems(directory: Path, beside: Path | None = None) -> list[str]:
    """What does not agree in a submission: a line each, none if all does.

    Args:
        directory: the submission. Its layer files are executed.
        beside: the folder of the submissions it is to be compared with; its own if not given.
    """
    lines: list[str] = []
    try:
        manifest = read_manifest(directory)
        lines += _files(directory, manifest)
        folder, unreadable = read_folder(directory)
    except (RecordError, SuiteError, LintError) as error:
        return [*lines, str(error)]
    lines += unreadable
    for where, records, cells, by_rate in (
        (directory / "records", folder.records, folder.cells, False),
        (directory / "tune", folder.tune, folder.rates, True),
    ):
        lines += against_cells(where, records, cells, by_rate=by_rate)
        for record in records:
            lines += [f"{where / record.cell}.json: {each}" for each in impossible(record)]
    lines += _counts(folder)
    for found in (
        _manifest(folder, manifest),
        _peers(folder, manifest, beside or directory.parent),
    ):
        try:
            lines += found
        except (RecordError, SuiteError) as error:
            lines.append(f"{directory}: {error}")
    return lines


def manifest_of(folder: Folder) -> Manifest:
    """The manifest that a submission must have."""
    directory, records = folder.directory, [*folder.records, *folder.tune]
    options = {cell.variant: cell.options for cell in folder.cells}
    versions: dict[str, set[str]] = {}
    for record in records:
        for package, version in record.measured.versions.items():
            versions.setdefault(package, set()).add(version)
    manifest = Manifest(
        name=directory.name,
        suite=folder.suite.name,
        variants={
            name: Entry(
                layer=_file_of(variant.layer, directory) or variant.layer,
                options=options[name],
                learning_rate=variant.learning_rate,
            )
            for name, variant in folder.suite.variants.items()
            if name in options
        },
        versions={package: sorted(found) for package, found in sorted(versions.items())},
        devices=sorted({record.measured.device for record in records}),
        validation_hash=next((record.validation_hash for record in records), None),
        flop_convention=next((record.flop_convention for record in records), ""),
        files=hashes(directory),
    )
    return Manifest.model_validate_json(manifest.model_dump_json())  # options as JSON has them


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, by path in the folder."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }


def _file_of(layer: str, directory: Path) -> str:
    """A layer of a file as the manifest names it, by its path in the folder; else nothing.

    Raises:
        SuiteError: the file is not in the folder.
    """
    path, _, name = layer.rpartition(":")
    if not path:
        return ""
    if not Path(path).resolve().is_relative_to(directory.resolve()):
        raise SuiteError(f"{directory / 'suite.toml'}: {layer}: not a file of the submission")
    return f"{Path(path).resolve().relative_to(directory.resolve()).as_posix()}:{name}"


def _files(directory: Path, manifest: Manifest) -> Iterator[str]:
    found = hashes(directory)
    for name in sorted({*found, *manifest.files}):
        if name not in found:
            yield f"{directory / name}: missing, yet {MANIFEST} lists it"
        elif name not in manifest.files:
            yield f"{directory / name}: {MANIFEST} does not list it"
        elif found[name] != manifest.files[name]:
            yield (
                f"{directory / name}: changed: its SHA-256 is {found[name][:12]}..., not "
                f"{manifest.files[name][:12]}... as {MANIFEST} says"
            )


def _counts(folder: Folder) -> Iterator[str]:
    """Every FLOP formula is what a trace counts."""
    for cell in {(cell.variant, cell.size.name): cell for cell in folder.cells}.values():
        try:
            verify_flops(cell.config, cell.training.micro_batch or cell.training.batch)
        except FlopError as error:
            yield f"{folder.directory}: {cell.variant}, size {cell.size.name}: {error}"


def _manifest(folder: Folder, manifest: Manifest) -> Iterator[str]:
    """What the manifest says beside the hashes of files follows from the files."""
    path, again = folder.directory / MANIFEST, manifest_of(folder)
    for field in Manifest.model_fields:
        said, found = getattr(manifest, field), getattr(again, field)
        if field != "files" and said != found:
            yield f"{path}: {field}: says {said}, recomputed {found}"


def _peers(folder: Folder, manifest: Manifest, top: Path) -> Iterator[str]:
    """The records share their text with each other and with the other submissions to the suite."""
    directory, own = folder.directory, [*folder.records, *folder.tune]
    reference = list(own)
    for where, other in submissions(top, manifest.suite).items():
        if where.name == directory.name:
            continue
        for name in sorted(manifest.variants.keys() & other.variants.keys()):
            yield f"{directory}: variant {name} is in {where} already"
        for field in ("validation_hash", "flop_convention"):
            said, theirs = getattr(manifest, field), getattr(other, field)
            if said != theirs:
                yield f"{directory}: {field}: {said!r}, yet {theirs!r} in {where}"
        suite = load_suite(str(where / "suite.toml"))
        unlike = [field for field in ALIKE if getattr(suite, field) != getattr(folder.suite, field)]
        shared = suite.sizes.keys() & folder.suite.sizes.keys()
        unlike += [f"sizes.{s}" for s in shared if suite.sizes[s] != folder.suite.sizes[s]]
        if unlike:
            yield f"{directory / 'suite.toml'}: {unlike[0]}: not as in {where / 'suite.toml'}"
        elif manifest.validation_hash == other.validation_hash:
            reference = load_records(where / "records") or reference
    for record in own:
        if record.validation_hash != manifest.validation_hash:
            yield (
                f"{directory}: {record.cell}.json: validation_hash: says {record.validation_hash}, "
                f"the others {manifest.validation_hash}"
            )
    # Bytes and tokens of the held-out text, and tokens of the training text, are the same for all.
    for above, below in (("loss", "bits_per_byte"), ("tokens", "epochs")):
        known = [one for one in (_ratio(record, above, below) for record in reference) if one]
        for record in own:
            value = _ratio(record, above, below)
            if value and known and not same(value, median(known)):
                yield (
                    f"{directory}: {record.cell}.json: {above} over {below} is {value:.6g}, in the "
                    f"other records {median(known):.6g}"
                )


def _ratio(record: Record, above: str, below: str) -> float | None:
    first, second = getattr(record, above), getattr(record, below)
    return first / second if first and second else None
