"""The plan: the cells of a suite, with what each will spend, before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from isoflop.bench.flops import build_on_meta
from isoflop.bench.isolate import describe
from isoflop.bench.layers import complete_options, file_of, find_layer, read_source, source_hash
from isoflop.bench.suite import Corpus, Suite, SuiteError, Training
from isoflop.bench.user_layers import problems
from isoflop.models import Config, Layer
from isoflop.results.errors import IsoflopError
from isoflop.results.record import CellKey, Flops, Parameters, Size

RESULTS_VERSION = 1  # part of every cell id: raise it when a change to the code changes results


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
    steps: int
    parameters: Parameters
    flops_per_token: Flops
    layer_bytes_per_token: int
    row_bytes_per_token: int  # of which rows of tables, gathered for each token anew
    # Text of a user's layer file as it was planned: an edit while cells train changes none of them.
    source: str | None = field(default=None, repr=False)

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
                for seed in suite.seeds:
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
    _refuse_twins(cells, where)
    return sorted(cells, key=lambda cell: cell.budget)


def sweep_cells(suite: Suite, where: str) -> list[Cell]:
    """The learning-rate sweep: every variant at the [tune] cell, at each factor of its rate.

    Raises:
        SuiteError: the suite has no [tune], or a cell does not fit.
    """
    tune = suite.tune
    if tune is None:
        raise SuiteError(f"{where}: tune: missing; add a [tune] table with size and budget")
    cells = [
        make_cell(
            suite,
            name,
            tune.size,
            tune.budget,
            seed,
            f"{where}: variants.{name}",
            f"{where}: tune.budget",
            factor,
        )
        for name in suite.variants
        for factor in tune.factors
        for seed in tune.seeds
    ]
    _refuse_twins(cells, where)
    return cells


def _refuse_twins(cells: Iterable[Cell], where: str) -> None:
    """Cells of equal id would be trained twice and share a record.

    Raises:
        SuiteError: naming the two.
    """
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.id, cell)
        if twin is not cell:
            first, second = (
                f"{c.variant} at size {c.size.name}, {c.budget:g} FLOPs, seed {c.seed}, learning "
                f"rate {c.learning_rate:g}"
                for c in (twin, cell)
            )
            raise SuiteError(
                f"{where}: {first}, is the same cell as {second}: remove what stands twice, of "
                "seeds, budgets, sizes or variants"
            )


def distinct_models(cells: Iterable[Cell]) -> list[Cell]:
    """A cell for each variant and size: what is true of the model need be checked once."""
    return list({(cell.variant, cell.size.name): cell for cell in cells}.values())


@lru_cache(maxsize=1024)
def _counts(
    layer: type[Layer],
    options: str,
    placement: str | tuple[int, ...],
    vocabulary: int,
    context: int,
    backbone: tuple[tuple[str, int], ...],
) -> tuple[Flops, Parameters, int]:
    """FLOPs, parameters and rows of tables of a model; it is built once for all its cells."""
    model = build_on_meta(
        Config(
            layer=layer,
            options=json.loads(options),
            placement=placement,
            vocabulary=vocabulary,
            context=context,
            **dict(backbone),
        )
    )
    tables = sum(table.numel() for tested in model.tested for table in tested.tables())
    return Flops(**model.flops_per_token()), Parameters(**model.parameter_counts()), tables


def make_cell(
    suite: Suite,
    name: str,
    size: str,
    budget: float,
    seed: int,
    variant_key: str,
    budget_key: str,
    factor: float = 1.0,
) -> Cell:
    """The cell of a variant, size, budget and seed.

    Args:
        name, size: of the variant and the size, as the suite has them.
        budget: FLOPs.
        variant_key, budget_key: where the suite's file states them, for messages.
        factor: multiplies the learning rate, for a sweep.
    Raises:
        SuiteError: the variant cannot be built, or no whole number of steps meets the budget.
    """
    variant, shape = suite.variants[name], suite.sizes[size]
    training = suite.training.model_copy(update={"batch": shape.batch or suite.training.batch})
    backbone = shape.model_dump(exclude={"batch"})
    try:
        source = read_source(file_of(variant.layer)) if file_of(variant.layer) else None
        if source is not None:
            _refuse_what_cannot_be_built(suite, name, size, source, variant_key)
        layer = find_layer(variant.layer, source)
    except ValueError as error:
        raise SuiteError(f"{variant_key}.layer: {error}") from None
    try:
        options = complete_options(layer, variant.options)
        placement = suite.placement
        flops, parameters, tables = _counts(
            layer,  # type: ignore[arg-type]  # mypy takes the class for an instance
            json.dumps(options, sort_keys=True),
            placement if isinstance(placement, str) else tuple(placement),
            suite.corpus.vocabulary,
            training.context,
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
    decides = {
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
        steps=steps,
        parameters=parameters,
        flops_per_token=flops,
        layer_bytes_per_token=2 * parameters.layer_active,
        row_bytes_per_token=2 * (parameters.layer_active - parameters.layer_total + tables),
        source=source,
    )


def _refuse_what_cannot_be_built(
    suite: Suite, name: str, size: str, source: str, variant_key: str
) -> None:
    """Ask for all sizes of the suite at a time, since that takes a process.

    Raises:
        SuiteError: this size cannot be built with this variant's layer.
    """
    used = {size for budget in suite.budgets for size in budget.sizes or suite.sizes} | {size}
    sizes = [key for key in suite.sizes if key in used]
    shapes = [
        {
            "placement": suite.placement,
            "vocabulary": suite.corpus.vocabulary,
            "context": suite.training.context,
            **suite.sizes[key].model_dump(exclude={"batch"}),
        }
        for key in sizes
    ]
    variant = suite.variants[name]
    problem = problems(variant.layer, source, variant.options, shapes)[sizes.index(size)]
    if problem:
        key, line = problem
        where = "" if key == "options" or line.startswith(file_of(variant.layer)) else variant.layer
        raise SuiteError(f"{variant_key}.{key}: {where}{': ' if where else ''}{line}")
