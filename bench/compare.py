"""Comparing a new layer with a suite's stored records: its cells, and where the records are."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from isoflop.bench.data import hash_of_windows
from isoflop.bench.data import prepare as tokens_of
from isoflop.bench.layers import find_layer
from isoflop.bench.plan import Cell, make_cell, plan
from isoflop.bench.run import missing
from isoflop.bench.seeds import first_seeds, with_seeds
from isoflop.bench.suite import Name, Suite, Variant, load_suite, suite_path, to_toml
from isoflop.results.baseline import find_baseline
from isoflop.results.errors import IsoflopError, explain
from isoflop.results.files import write_whole
from isoflop.results.record import read_record

# The same in a checkout and in an installed package.
SHIPPED = Path(__file__).resolve().parents[1] / "results" / "submissions"


class CompareError(IsoflopError):
    """No comparison is possible; one line says why and what to do."""


@dataclass(frozen=True)
class Comparison:
    """The cells of a new variant, and the stored ones to compare them with."""

    variant: str
    suite: Suite  # with the new variant
    learning_rate: float  # peak, at the suite's transfer width
    directory: Path  # of results
    cells: list[Cell]  # of the new layer
    stored: list[Cell]  # of the suite's own variants
    baseline: list[Cell]  # of these, the dense variant's
    source: Path  # with the records of `stored`: a folder of records, or of submissions

    @property
    def records(self) -> Path:
        return self.directory / "records"

    @property
    def rate_cells(self) -> list[Cell]:
        """A small cell of the new layer at half, the same and double its learning rate: at the
        smallest budget, of the size nearest to the suite's transfer width."""
        width = self.suite.transfer.width
        small = min(
            self.cells,
            key=lambda cell: (cell.budget, abs(math.log(cell.size.width / width)), cell.seed),
        )
        return [
            make_cell(
                self.suite, self.variant, small.size.name, small.budget, small.seed,
                f"variants.{self.variant}", "budgets", factor,
            )
            for factor in (0.5, 1.0, 2.0)
        ]  # fmt: skip

    @property
    def suite_file(self) -> Path:
        return self.directory / "suite.toml"

    def collect(self) -> None:
        """Write the suite with the new variant, and fill `records` with copies of the stored ones.

        Records of other cells, as of a layer that was edited since, move to `superseded`; they
        return if the edit is undone.
        """
        superseded = self.directory / "superseded"
        self.records.mkdir(parents=True, exist_ok=True)
        write_whole(self.suite_file, to_toml(self.suite))
        for cell in self.stored:
            path = _record_in(self.source, cell)
            if path is not None:
                shutil.copyfile(path, self.records / path.name)
        current = {f"{cell.id}.json" for cell in (*self.stored, *self.cells)}
        for path in self.records.glob("*.json"):
            if path.name not in current:
                superseded.mkdir(exist_ok=True)
                path.replace(superseded / path.name)
        for path in superseded.glob("*.json"):
            if path.name in current:
                path.replace(self.records / path.name)

    def asked(self) -> dict[str, Any]:
        """What is compared with what, as values for JSON."""
        return {
            "variant": self.variant,
            "layer": self.cells[0].layer,
            "options": self.cells[0].options,
            "suite": self.cells[0].suite,
            "baseline": self.baseline[0].variant,
            "baseline_records": str(self.source),
            "learning_rate": self.learning_rate,
            "seeds": len({cell.seed for cell in self.cells}),
        }

    def check_text(self) -> None:
        """Check that the validation text is that of the stored records, if cells are to be trained.

        Raises:
            CompareError: it is not.
            DataError: the corpus cannot be used.
        """
        if not missing(self.cells, self.records):
            return
        cell = self.baseline[0]
        windows = tokens_of(cell.corpus).validation_windows(
            cell.training.validation_tokens, cell.training.context
        )
        path = _record_in(self.source, cell)
        assert path is not None  # or `_records_of` would not have chosen this source
        current, stored = hash_of_windows(windows), read_record(path).validation_hash
        if current != stored:
            raise CompareError(
                f"{path}: scored on other text ({stored}) than {cell.corpus.source} now gives "
                f"({current}): run suite {cell.suite} anew to compare with it"
            )


def prepare(
    layer: str,
    suite_name: str,
    learning_rate: float | None,
    seeds: int,
    options: dict[str, Any] | None = None,
    name: str | None = None,
    table_rate: float = 1.0,
) -> Comparison:
    """The cells of a layer at the suite's sizes and budgets.

    Args:
        layer: path/to/file.py:Class, or a registered name.
        suite_name: a shipped suite's name, or a TOML file.
        learning_rate: peak, at the suite's transfer width; that of the dense variant if None.
        seeds: how many; those of the suite first.
        options: of the layer; its defaults where not given.
        name: of the variant; see `variant_name` if None.
        table_rate: learning rate of the layer's tables over that of the rest.
    Raises:
        CompareError: the rate is none, or the suite lacks a dense variant, its records or a budget
            for every variant, or has the name or the very cells already.
        SuiteError: the suite cannot be read, or the layer does not fit it.
    """
    if learning_rate is not None and not (math.isfinite(learning_rate) and learning_rate > 0):
        raise CompareError(f"--learning-rate: {learning_rate:g} is no positive number such as 3e-3")
    suite, where = load_suite(suite_name), str(suite_path(suite_name))
    try:
        variant = variant_name(layer, options or {}) if name is None else name
        TypeAdapter(Name).validate_python(variant)
    except ValidationError as error:
        raise CompareError(f"--name: {explain(error)}") from None
    if variant in suite.variants:
        raise CompareError(f"{where}: variants.{variant} exists already; give another --name")
    try:
        dense = find_baseline({key: entry.layer for key, entry in suite.variants.items()})
    except ValueError as error:
        raise CompareError(f"{where}: variants: {error}") from None
    if dense is None:
        raise CompareError(f"{where}: variants: name one `dense`, to compare with")
    if layer == "dense" and dense != "dense":
        raise CompareError(
            f"{where}: variants.{dense}: call it `dense`, to be the baseline beside another"
        )
    budgets = [budget for budget in suite.budgets if not budget.variants]
    if not budgets:
        raise CompareError(
            f"{where}: budgets: each is for named variants alone: leave `variants` out of one, and "
            "a new layer is trained there"
        )
    rate = suite.variants[dense].learning_rate if learning_rate is None else learning_rate
    new = {
        variant: Variant(
            layer=layer, learning_rate=rate, table_rate=table_rate, options=options or {}
        )
    }
    alone = with_seeds(
        suite.model_copy(update={"variants": new, "budgets": budgets}),
        first_seeds(suite.seeds, seeds),
    )
    cells, stored = plan(alone, where), plan(suite, where)
    ids = {cell.id for cell in cells}
    for cell in stored:
        if cell.id in ids:
            raise CompareError(
                f"{where}: variants.{cell.variant} is {layer} with the same options and rate: "
                "its records are there already, see `isoflop report`"
            )
    baseline = [cell for cell in stored if cell.variant == dense]
    source = _records_of(suite.name, baseline)
    known = {cell.id for cell in stored}
    further = [
        cell
        for cell in _of_further_seeds(suite, where, dense, seeds, source)
        if cell.id not in known
    ]
    stored, baseline = stored + further, baseline + further
    return Comparison(
        variant=variant,
        suite=suite.model_copy(update={"variants": suite.variants | new}),
        learning_rate=rate,
        directory=Path("runs") / f"compare-{variant}",
        cells=cells,
        stored=stored,
        baseline=baseline,
        source=source,
    )


def variant_name(layer: str, options: dict[str, Any]) -> str:
    """The layer's own name, and each option that is not at its default: `moe-granularity8`."""
    name = layer.rpartition(":")[2]
    known = fields(find_layer(layer).Options) if options else ()
    defaults = {field.name: field.default for field in known}
    for key, value in options.items():
        if value != defaults.get(key):
            joint = "" if type(value) in (int, float) else "-"
            name += f"-{key}{joint}" + re.sub(r"[^\w.]+", "-", str(value)).strip("-")
    return name


def _records_of(suite: str, baseline: list[Cell]) -> Path:
    """The first folder with all records of the baseline: the user's own run, then submissions."""
    submitted = Path("results/submissions")
    folders = [Path("runs") / suite / "records", submitted, SHIPPED]
    for folder in folders:
        paths = [_record_in(folder, cell) for cell in baseline]
        if all(path is not None and read_record(path).status == "finished" for path in paths):
            return folder
    raise CompareError(
        f"no finished records of all {len(baseline)} cells of {baseline[0].variant} as suite "
        f"{suite} has them now, in {folders[0]} or {folders[1]}: `isoflop run {suite}` makes them"
    )


def _of_further_seeds(suite: Suite, where: str, dense: str, seeds: int, source: Path) -> list[Cell]:
    """The baseline's cells at seeds that only the new layer is asked for, where they are trained.

    `isoflop run SUITE --seeds N` trains them.
    """
    more = [seed for seed in first_seeds(suite.seeds, seeds) if seed not in suite.seeds]
    if not more:
        return []
    budgets = [
        budget.model_copy(update={"variants": []})
        for budget in suite.budgets
        if not budget.variants or dense in budget.variants
    ]
    changes = {"variants": {dense: suite.variants[dense]}, "budgets": budgets}
    alone = with_seeds(suite.model_copy(update=changes), more)
    paths = [(cell, _record_in(source, cell)) for cell in plan(alone, where)]
    return [cell for cell, path in paths if path and read_record(path).status == "finished"]


def _record_in(source: Path, cell: Cell) -> Path | None:
    """A cell's record in a folder of records, or in one of the submissions of a folder."""
    name = f"{cell.id}.json"
    return next((p for pattern in (name, f"*/records/{name}") for p in source.glob(pattern)), None)
