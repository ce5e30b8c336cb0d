"""The plan: the cells of a suite, with what each will spend, before anything runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from isoflop.bench.ablation import choices
from isoflop.bench.counts import counts
from isoflop.bench.isolate import describe
from isoflop.bench.layers import complete_options, file_of, find_layer, read_source, source_hash
from isoflop.bench.refusals import refuse_batches, refuse_twins
from isoflop.bench.suite import Corpus, Suite, SuiteError, Training
from isoflop.bench.user_layers import refuse_what_cannot_be_built
from isoflop.models import Config
from isoflop.results.errors import IsoflopError
from isoflop.results.record import Ablation, CellKey, Flops, Parameters, Size

RESULTS_VERSION = 2  # part of every cell id: raise it when a change to the code changes results


@dataclass(frozen=True)
class Cell:
    """A training run: everything that can change its result, and what it will spend."""

    id: str
    suite: str
    variant: str
    layer: str  # as `find_layer` takes it: a class of a user's file cannot be sent to a worker
    options: dict[str, Any]
    placement: str | list[int]
    size: Size
    seed: int
    budget: float  # FLOPs asked for
    corpus: Corpus
    training: Training
    learning_rate: float  # peak
    has_tables: bool  # rows that are read by index
    table_rate: float  # learning rate of tables over that of the rest
    output_norm: bool
    steps: int
    parameters: Parameters
    flops_per_token: Flops
    layer_bytes_per_token: int
    row_bytes_per_token: int  # of which rows of tables, gathered for each token anew
    moved_bytes_per_token: int  # inputs, hidden values and outputs of a token's experts, forward
    # Text of a user's layer file as it was planned: an edit while cells train changes none of them.
    source: str | None = field(default=None, repr=False)
    ablation: Ablation | None = None  # what was changed of the suite

    @property
    def key(self) -> CellKey:
        return CellKey(self.variant, self.size.name, self.budget, self.seed)

    @property
    def tokens(self) -> int:
        return self.steps * self.training.batch * self.training.context

    @property
    def flops(self) -> int:
        return self.tokens * self.flops_per_token.training

    @property
    def config(self) -> Config:
        return Config(
            layer=find_layer(self.layer, self.source),
            options=self.options,
            placement=self.placement,
            width=self.size.width,
            depth=self.size.depth,
            heads=self.size.heads,
            vocabulary=self.corpus.vocabulary,
            context=self.training.context,
            output_norm=self.output_norm,
            initialisation=self.training.initialisation,
        )


def plan(suite: Suite, where: str) -> list[Cell]:
    """The cells of a suite, cheapest budgets first, large cells first.

    Args:
        where: the suite's file, for messages.
    Raises:
        SuiteError: a variant cannot be built, or a budget does not fit a cell.
    """
    cells = []
    for index, budget in enumerate(suite.budgets):
        for name in budget.variants or suite.variants:
            for size in budget.sizes or suite.sizes:
                for seed in suite.seeds_at(budget):
                    cells.append(
                        make_cell(
                            suite,
                            name,
                            size,
                            budget.flops,
                            seed,
                            f"{where}: variants.{name}",
                            f"{where}: budgets.{index}.flops",
                        )
                    )
    cells += _ablation_cells(suite, where)
    refuse_twins(cells, where)
    refuse_batches(distinct_models(cells), where)
    return sorted(cells, key=lambda cell: cell.budget)


def _ablation_cells(suite: Suite, where: str) -> Iterator[Cell]:
    """The cells of the suite's axes, at the first budget.

    Raises:
        SuiteError: see `plan`.
    """
    budget = suite.budgets[0]
    for ablation, changed, key in choices(suite, where):
        for size in budget.sizes or suite.sizes:
            for seed in suite.seeds_at(budget):
                cell = make_cell(
                    changed,
                    ablation.variant,
                    size,
                    budget.flops,
                    seed,
                    key,
                    f"{where}: budgets.0.flops",
                )
                name = f"{ablation.variant} {ablation.axis}={ablation.choice}"
                yield replace(cell, variant=name, ablation=ablation)


def sweep_cells(suite: Suite, where: str) -> list[Cell]:
    """The learning-rate sweep: every variant at the [tune] cells, at each factor of its rate.

    Variants with tables are also trained at each further factor of the tables' rate, at the rate
    of factor 1.

    Raises:
        SuiteError: the suite has no [tune], or a cell does not fit.
    """
    tune = suite.tune
    if tune is None:
        raise SuiteError(f"{where}: tune: missing; add a [tune] table with sizes and budget")
    rates = [(factor, 1.0) for factor in tune.factors]
    rates += [(1.0, factor) for factor in tune.table_factors if factor != 1]
    cells = []
    for name, size, (factor, table_factor), seed in product(
        suite.variants, tune.sizes, rates, tune.seeds
    ):
        cell = make_cell(
            suite,
            name,
            size,
            tune.budget,
            seed,
            f"{where}: variants.{name}",
            f"{where}: tune.budget",
            factor,
            table_factor,
        )
        if table_factor == 1 or cell.has_tables:
            cells.append(cell)
    refuse_twins(cells, where)
    refuse_batches(distinct_models(cells), where)
    return cells


def distinct_models(cells: Iterable[Cell]) -> list[Cell]:
    """A cell for each variant and size: what is true of the model need be checked once."""
    return list({(cell.variant, cell.size.name): cell for cell in cells}.values())


def make_cell(
    suite: Suite,
    name: str,
    size: str,
    budget: float,
    seed: int,
    variant_key: str,
    budget_key: str,
    factor: float = 1.0,
    table_factor: float = 1.0,
) -> Cell:
    """The cell of a variant, size, budget and seed.

    Args:
        name, size: of the variant and the size, as the suite has them.
        budget: FLOPs.
        variant_key, budget_key: where the suite's file states them, for messages.
        factor, table_factor: multiply the learning rate and the tables' rate, for a sweep.
    Raises:
        SuiteError: the variant cannot be built, or no whole number of steps meets the budget.
    """
    variant, shape = suite.variants[name], suite.sizes[size]
    training = suite.training_at(size)
    backbone = shape.model_dump(exclude={"batch"})
    try:
        source = read_source(file_of(variant.layer)) if file_of(variant.layer) else None
        if source is not None:
            refuse_what_cannot_be_built(suite, name, size, source, variant_key)
        layer = find_layer(variant.layer, source)
    except ValueError as error:
        raise SuiteError(f"{variant_key}.layer: {error}") from None
    try:
        options = complete_options(layer, variant.options)
        placement = suite.placement
        flops, parameters, tables, moved = counts(
            layer,  # type: ignore[arg-type]  # mypy takes the class for an instance
            json.dumps(options, sort_keys=True),
            placement if isinstance(placement, str) else tuple(placement),
            suite.corpus.vocabulary,
            training.context,
            suite.output_norm,
            tuple(backbone.items()),
        )
    except ValueError as error:
        raise SuiteError(f"{variant_key}.options: {error}") from None
    except IsoflopError:
        raise
    except Exception as error:  # of a plug-in's code
        raise SuiteError(f"{variant_key}.layer: {variant.layer}: {describe(error)}") from None
    per_step = flops.training * training.batch * training.context
    steps = round(budget / per_step)
    if steps < 1 or abs(steps * per_step / budget - 1) > 0.01:
        raise SuiteError(
            f"{budget_key}: {budget:g} FLOPs cannot be met within 1% by whole steps of "
            f"{per_step:.3g} FLOPs ({name}, size {size}): raise the budget or lower training.batch"
        )
    scale = (suite.transfer.width / shape.width) ** suite.transfer.exponent
    learning_rate = variant.learning_rate * scale * factor
    if not 0 < learning_rate < math.inf:
        raise SuiteError(
            f"{variant_key}.learning_rate: {variant.learning_rate:g} becomes {learning_rate:g} at "
            f"size {size}: check transfer.exponent"
        )
    table_rate = variant.table_rate * table_factor
    decides: dict[str, Any] = {
        "version": RESULTS_VERSION,
        "layer": variant.layer.rpartition(":")[2],  # where a file lies changes nothing
        "source": source_hash(source),
        "options": options,
        "placement": suite.placement,
        "shape": backbone,
        "corpus": suite.corpus.model_dump(),
        "training": training.model_dump(),
        "learning_rate": learning_rate,
        "steps": steps,
        "seed": seed,
    }
    # Fields that came later count where they are not at their default: ids stay.
    if training.gpus_per_cell == 1:
        del decides["training"]["gpus_per_cell"]
    if training.initialisation == "random":
        del decides["training"]["initialisation"]
    if tables and table_rate != 1:
        decides["table_rate"] = table_rate
    if suite.output_norm:
        decides["output_norm"] = True
    return Cell(
        id=hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12],
        suite=suite.name,
        variant=name,
        layer=variant.layer,
        options=options,
        placement=suite.placement,
        size=Size(name=size, **backbone),
        seed=seed,
        budget=budget,
        corpus=suite.corpus,
        training=training,
        learning_rate=learning_rate,
        has_tables=tables > 0,
        table_rate=table_rate if tables else 1.0,
        output_norm=suite.output_norm,
        steps=steps,
        parameters=parameters,
        flops_per_token=flops,
        layer_bytes_per_token=2 * parameters.layer_active,
        row_bytes_per_token=2 * (parameters.layer_active - parameters.layer_total + tables),
        moved_bytes_per_token=2 * moved,
        source=source,
    )
