"""What a submission says, recomputed: its manifest from its files, its records from its suite.

A layer file of a submission is foreign code. It is executed in a child process alone, which gives
lines for its variants; all else is recomputed here, so nothing that the file does can hide it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isoflop.bench.flops import FlopError, verify_flops
from isoflop.bench.isolate import ChildError, stream
from isoflop.bench.lint import refuse
from isoflop.bench.plan import Cell, distinct_models, plan, sweep_cells
from isoflop.bench.submissions.compared import against_others, as_published, only, own_text
from isoflop.bench.submissions.recompute import against_cells, impossible, without_layer
from isoflop.bench.suite import Suite, SuiteError, load_suite
from isoflop.results.errors import IsoflopError
from isoflop.results.manifest import MANIFEST, Entry, Manifest, out_of_place, read_manifest
from isoflop.results.record import Record, RecordError, read_stored


@dataclass(frozen=True)
class Folder:
    """The contents of a submission, its manifest apart."""

    directory: Path
    suite: Suite  # of the submitted variants alone
    records: list[Record]
    tune: list[Record]

    @property
    def foreign(self) -> dict[str, str]:
        """Variant -> layer as the manifest names it, of the variants whose layer is a file here."""
        variants = self.suite.variants.items()
        named = {name: _file_of(variant.layer, self.directory) for name, variant in variants}
        return {name: layer for name, layer in named.items() if layer}

    def only(self, variants: set[str]) -> Folder:
        """The part of some variants."""
        return Folder(
            self.directory,
            only(self.suite, variants),
            [record for record in self.records if record.of_variant in variants],
            [record for record in self.tune if record.variant in variants],
        )

    def cells(self) -> tuple[list[Cell], list[Cell]]:
        """The cells that the records must be of, and those of the learning-rate sweeps.

        Raises:
            SuiteError: a variant cannot be built. Layer files are executed.
        """
        where = str(self.directory / "suite.toml")
        if not self.suite.variants:
            return [], []
        tuned = {record.variant for record in self.tune}
        rates = sweep_cells(self.suite, where) if tuned else []
        return plan(self.suite, where), [cell for cell in rates if cell.variant in tuned]


def read_folder(directory: Path) -> tuple[Folder, list[str]]:
    """The contents of a submission, and a line for each record that cannot be read.

    Raises:
        SuiteError: the suite cannot be used, or names a layer file that is not in the folder.
    """
    suite = load_suite(str(directory / "suite.toml"))
    contents: dict[str, list[Record]] = {"records": [], "tune": []}
    lines = []
    for kind, records in contents.items():
        for path in sorted((directory / kind).glob("[!.]*.json")):
            try:
                # By its schema alone: what contradicts itself is told beside the right value.
                record = read_stored(path, Record)
            except RecordError as error:
                lines.append(str(error))
                continue
            records.append(record)
            if path.stem != record.cell:
                lines.append(f"{path}: cell: says {record.cell}, unlike the file's name")
            if (name := record.of_variant) not in suite.variants:
                lines.append(f"{path}: of no cell of suite.toml: no variant {name!r}")
    folder = Folder(directory, suite, **contents)
    _ = folder.foreign  # raises for a file from elsewhere
    return folder, lines


def problems(directory: Path, beside: Path | None = None, *, execute: bool = True) -> list[str]:
    """What does not agree in a submission: a line each, none if all does.

    Args:
        directory: the submission.
        beside: the folder of the submissions it is to be compared with; its own if not given.
        execute: whether to execute its layer files, in a child process; if not, what they would
            decide of a record is not recomputed (see `not_executed`).
    """
    try:
        lines = list(out_of_place(directory))
        if lines:
            return lines  # nothing is read through a link
        manifest = read_manifest(directory)
        lines += _files(directory, manifest)
        folder, unreadable = read_folder(directory)
        lines += unreadable
        foreign = set(folder.foreign)
    except (IsoflopError, OSError) as error:
        return [*lines, _said(directory, error)]
    parts: list[Callable[[], list[str]]] = [
        lambda: _impossible(folder),
        lambda: recomputed(folder.only(folder.suite.variants.keys() - foreign)),
        lambda: list(without_layer(folder.only(foreign))),
        lambda: as_published(folder),
        lambda: list(_manifest(folder, manifest)),
        lambda: list(against_others(folder, manifest, beside or directory.parent)),
    ]
    if foreign and execute:
        parts.append(lambda: _executed(folder, manifest))
    for part in parts:
        try:
            lines += part()
        except (IsoflopError, OSError) as error:
            lines.append(_said(directory, error))
    return list(dict.fromkeys(lines))


def not_executed(directory: Path) -> list[str]:
    """The layer files that `problems(..., execute=False)` leaves alone, by variant.

    Raises:
        IsoflopError: see `read_folder`.
    """
    foreign = read_folder(directory)[0].foreign
    return [f"{directory}: {layer}, variant {name}" for name, layer in foreign.items()]


def recomputed(folder: Folder) -> list[str]:
    """What in the records does not follow from the suite and its layers, which are built."""
    cells, rates = folder.cells()
    lines: list[str] = []
    for kind, records, of, by_rate in (
        ("records", folder.records, cells, False),
        ("tune", folder.tune, rates, True),
    ):
        lines += against_cells(folder.directory / kind, records, of, by_rate=by_rate)
    for cell in distinct_models(cells):
        try:
            verify_flops(cell.config, cell.training.micro_batch or cell.training.batch)
        except FlopError as error:
            line = f"{folder.directory}: {cell.variant}, size {cell.size.name}: {error}"
            lines.append(line)
    return lines


def _executed(folder: Folder, manifest: Manifest) -> list[str]:
    """What the layer files of a submission decide, from a child process."""
    lines: list[str] = []
    for variant, layer in folder.foreign.items():
        options = manifest.variants[variant].options if variant in manifest.variants else {}
        try:
            for line in stream(foreign, str(folder.directory), variant, options):
                if line is not None:
                    lines.append(str(line))
        except ChildError as error:
            lines.append(f"{folder.directory}: {layer}: {error}")
    return lines


def foreign(directory: str, variant: str, options: dict[str, object]) -> Iterator[str | None]:
    """Body of the child: lines for a variant of a submission, whose layer file it executes."""
    folder = read_folder(Path(directory))[0].only({variant})
    described = folder.suite.variants[variant]
    try:
        refuse(described.layer, described.options)
        yield None
        said = Entry.model_validate({**_entry(folder, variant), "options": options})
        again = Entry.model_validate_json(
            said.model_copy(update={"options": folder.cells()[0][0].options}).model_dump_json()
        )
        if said != again:
            yield (
                f"{Path(directory) / MANIFEST}: variants: says {said.options} of {variant}, "
                f"recomputed {again.options}"
            )
        yield None
        yield from recomputed(folder)
    except IsoflopError as error:
        yield _said(Path(directory), error)


def manifest_of(folder: Folder, options: dict[str, dict[str, object]]) -> Manifest:
    """The manifest that a submission must have.

    Args:
        options: of each variant, defaults included.
    """
    directory, records = folder.directory, [*folder.records, *folder.tune]
    versions: dict[str, set[str]] = {}
    for record in records:
        for package, version in record.measured.versions.items():
            versions.setdefault(package, set()).add(version)
    manifest = Manifest(
        name=directory.name,
        suite=folder.suite.name,
        variants={
            name: Entry.model_validate({**_entry(folder, name), "options": options[name]})
            for name in folder.suite.variants
            if name in options
        },
        versions={package: sorted(known) for package, known in sorted(versions.items())},
        devices=sorted({record.measured.device for record in records}),
        validation_hash=next((r.validation_hash for r in own_text(folder.suite, records)), None),
        flop_convention=next((record.flop_convention for record in records), ""),
        files=hashes(directory),
    )
    return Manifest.model_validate_json(manifest.model_dump_json())  # options as JSON has them


def options_of(folder: Folder) -> dict[str, dict[str, object]]:
    """The options of every variant, defaults included. Layer files are executed."""
    return {cell.variant: cell.options for cell in folder.cells()[0] if not cell.ablation}


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, by path in the folder."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }


def _entry(folder: Folder, name: str) -> dict[str, object]:
    variant = folder.suite.variants[name]
    layer = _file_of(variant.layer, folder.directory) or variant.layer
    return {"layer": layer, "learning_rate": variant.learning_rate}


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


def _said(directory: Path, error: IsoflopError | OSError) -> str:
    """An error as a line that begins with the folder."""
    line = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return line if str(directory) in line else f"{directory}: {line}"


def _impossible(folder: Folder) -> list[str]:
    return [
        f"{folder.directory / kind / record.cell}.json: {line}"
        for kind, records in (("records", folder.records), ("tune", folder.tune))
        for record in records
        for line in impossible(record)
    ]


def _files(directory: Path, manifest: Manifest) -> Iterator[str]:
    present = hashes(directory)
    for name in sorted({*present, *manifest.files}):
        if name not in present:
            yield f"{directory / name}: missing, yet {MANIFEST} lists it"
        elif name not in manifest.files:
            yield f"{directory / name}: {MANIFEST} does not list it"
        elif present[name] != manifest.files[name]:
            yield (
                f"{directory / name}: changed: its SHA-256 is {present[name][:12]}..., not "
                f"{manifest.files[name][:12]}... as {MANIFEST} says"
            )


def _manifest(folder: Folder, manifest: Manifest) -> Iterator[str]:
    """What the manifest says beside the hashes of files follows from the files.

    The options of a layer of a file are compared where it is executed.
    """
    names = set(folder.suite.variants)
    options = options_of(folder.only(names - set(folder.foreign)))
    for name in folder.foreign:
        if name in manifest.variants:
            options[name] = manifest.variants[name].options
    path, again = folder.directory / MANIFEST, manifest_of(folder, options)
    for field in Manifest.model_fields:
        said, right = getattr(manifest, field), getattr(again, field)
        if field != "files" and said != right:
            yield f"{path}: {field}: says {said}, recomputed {right}"
