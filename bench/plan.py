"""The plan: the cells of a suite, with what each will spend, before anything runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from bench.flops import build_on_meta
from bench.record import Flops, Parameters, Size
from bench.suite import Corpus, Suite, SuiteError, Training
from models import LAYERS, Config, Layer

RESULTS_VERSION = 1  # part of every cell id: raise it when a change to the code changes results


@dataclass(frozen=True)
class Cell:
    """One training run: everything that can change its result, and what it will spend."""

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

    @property
    def tokens(self) -> int:
        return self.steps * self.training.batch * self.training.context

    @property
    def flops(self) -> int:
        return self.tokens * self.flops_per_token.training

    @property
    def config(self) -> Config:
        return Config(
            layer=find_layer(self.layer),
            options=self.options,
            placement=self.placement,
            width=self.size.width,
            depth=self.size.depth,
            heads=self.size.heads,
            vocabulary=self.corpus.vocabulary,
            context=self.training.context,
        )


def find_layer(name: str) -> type[Layer]:
    """A layer by registered name, by entry point `isoflop.layers`, or as path/to/file.py:Class.

    Raises:
        ValueError: there is none, or its file does not give it.
    """
    if name in LAYERS:
        return LAYERS[name]
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        for point in importlib.metadata.entry_points(group="isoflop.layers", name=name):
            return _checked(point.load(), name)
        raise ValueError(
            f"no layer {name!r}; known: {', '.join(sorted(LAYERS))}, or path/to/file.py:Class"
        )
    if not Path(path).is_file():
        raise ValueError(f"no file {path}")
    # A private module name: a user's own `models` or `bench` must not shadow ours. An edited file
    # is another module.
    source = Path(path).read_bytes()
    module_name = f"_isoflop_layer_{hashlib.sha256(path.encode() + source).hexdigest()[:12]}"
    if module_name not in sys.modules:
        module = ModuleType(module_name)
        module.__file__ = path
        sys.modules[module_name] = module
        try:
            # From the source, never from bytecode lying beside it: the source is what is hashed.
            exec(compile(source, path, "exec"), vars(module))
        except Exception as error:
            del sys.modules[module_name]
            raise ValueError(f"{path} cannot be imported: {error!r}") from None
    layer = getattr(sys.modules[module_name], attribute, None)
    return _checked(layer, f"{Path(path).name}:{attribute}")  # wherever the file lies


def _checked(layer: Any, name: str) -> type[Layer]:
    if not (isinstance(layer, type) and issubclass(layer, Layer)):
        raise ValueError(f"{name} is not a class derived from models.Layer")
    # A class derived from one of ours inherits its name, which would file it under that.
    layer.name = vars(layer).get("name") or name
    return layer


def complete_options(layer: type[Layer], options: dict[str, Any]) -> dict[str, Any]:
    """The options with the layer's defaults.

    Raises:
        ValueError: one line, for an unknown option or a value it cannot take.
    """
    known = ", ".join(field.name for field in fields(layer.Options)) or "none"
    unknown = [key for key in options if key not in layer.Options.__dataclass_fields__]
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown option of layer {layer.name}; known: {known}")
    try:
        # As JSON, since strict mode there takes a table for a dataclass, yet no "4" for a number.
        text = json.dumps(options, default=str)
        return asdict(TypeAdapter(layer.Options).validate_json(text, strict=True))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key}: {message}" if key else message) from None


def plan(suite: Suite, where: str) -> list[Cell]:
    """The cells of a suite, in the order they run: cheapest budgets first, large cells first.

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
    return sorted(cells, key=lambda cell: cell.budget)


def bracket(suite: Suite, where: str) -> list[Cell]:
    """The learning-rate bracket: every variant at the [tune] cell, at each factor of its rate.

    Raises:
        SuiteError: the suite has no [tune], or a cell does not fit.
    """
    tune = suite.tune
    if tune is None:
        raise SuiteError(f"{where}: tune: missing; add a [tune] table with size and budget")
    return [
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
    """One cell. `factor` multiplies its learning rate, for a bracket.

    Raises:
        SuiteError: naming `variant_key` or `budget_key`.
    """
    variant, shape = suite.variants[name], suite.sizes[size]
    training = suite.training.model_copy(update={"batch": shape.batch or suite.training.batch})
    backbone = shape.model_dump(exclude={"batch"})
    try:
        layer = find_layer(variant.layer)
    except ValueError as error:
        raise SuiteError(f"{variant_key}.layer: {error}") from None
    try:
        options = complete_options(layer, variant.options)
        model = build_on_meta(
            Config(
                layer=layer,
                options=options,
                placement=suite.placement,
                vocabulary=suite.corpus.vocabulary,
                context=training.context,
                **backbone,
            )
        )
    except ValueError as error:
        raise SuiteError(f"{variant_key}.options: {error}") from None
    flops = Flops(**model.flops_per_token())
    parameters = Parameters(**model.parameter_counts())
    tables = sum(table.numel() for layer in model.tested for table in layer.tables())
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
        "source": _source_hash(variant.layer),
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
    )


def _source_hash(layer: str) -> str | None:
    """The content of a user's layer file, so that an edited layer is trained anew."""
    path = layer.rpartition(":")[0]
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else None


@dataclass(frozen=True)
class Device:
    """What a device can do, for predictions."""

    name: str
    flops: float  # bf16 matrix FLOPs per second
    bandwidth: float  # bytes per second
    memory: float  # bytes
    step_overhead: float  # seconds per step and block that no FLOP explains
    utilisation: float = 0.35  # of `flops`, that a training step reaches


# Public figures of the makers, dense bf16; `plan --device` takes these names.
DEVICES = {
    device.name: device
    for device in (
        Device("a100", 312e12, 2.0e12, 80e9, 2e-4),
        Device("h100", 990e12, 3.35e12, 80e9, 2e-4),
        Device("h200", 990e12, 4.8e12, 141e9, 2e-4),
        Device("rtx4090", 165e12, 1.0e12, 24e9, 2e-4),
    )
}


def predict_seconds(cell: Cell, device: Device) -> float:
    """Training time: compute, the traffic of gathered rows, the optimiser, a cost per step.

    A rough figure, for deciding whether to start: within a factor of two or three.
    """
    compute = cell.flops / (device.flops * device.utilisation)
    # Forward, and both sides of backward; a dense weight is read once for the whole batch.
    rows = 3 * max(0, cell.row_bytes_per_token) * cell.tokens / device.bandwidth
    optimiser = cell.steps * 28 * cell.parameters.total / device.bandwidth
    overhead = cell.steps * cell.size.depth * device.step_overhead
    return compute + rows + optimiser + overhead


def predict_bytes(cell: Cell) -> float:
    """Peak memory: parameters, gradients and two moments in fp32, activations, logits. Rough."""
    sequences = cell.training.micro_batch or cell.training.batch
    tokens = sequences * cell.training.context
    activations = tokens * cell.size.depth * cell.size.width * 34 * 2
    logits = tokens * cell.corpus.vocabulary * 10
    return 16 * cell.parameters.total + activations + logits


def local_cpu() -> Device:
    """One core of this CPU, its matrix rate measured in a moment."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.randn(512, 512, dtype=torch.bfloat16)
    rates = []
    for _ in range(5):
        start = perf_counter()
        for _ in range(10):
            a @ a
        rates.append(10 * 2 * 512**3 / (perf_counter() - start))
    torch.set_num_threads(before)
    return Device("cpu", max(rates), 8e9, math.inf, 2e-3)
