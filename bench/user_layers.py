"""Models with a layer of a user's file, built in a child process before they are built here.

The constructor and the counts of such a layer are a user's code too: it may end the process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

from isoflop.bench import isolate
from isoflop.bench.flops import build_on_meta
from isoflop.bench.layers import complete_options, counts_problem, file_of, find_layer
from isoflop.bench.suite import Suite, SuiteError, Training
from isoflop.models import Config, Layer
from isoflop.results.errors import IsoflopError

# The suite's key, `layer` or `options` of the variant or one of its training, and one line.
Problem = list[str]

_known: dict[str, list[Problem | None]] = {}  # by layer, source, options and shapes


def problems(
    layer: str, source: str, options: dict[str, Any], shapes: list[dict[str, Any]]
) -> list[Problem | None]:
    """What is wrong with a model of every shape; None if it can be built and states its counts.

    Args:
        layer: path/to/file.py:Class.
        source: text of the file.
        shapes: the other arguments of `Config`, and the `passes` of `Training`.
    """
    text = json.dumps([layer, source, options, shapes], default=str)
    key = hashlib.sha256(text.encode()).hexdigest()
    if key not in _known:
        result: list[Problem | None] = []
        given = json.loads(json.dumps(options, default=str))
        try:
            result.extend(isolate.stream(_problems, layer, source, given, shapes))
        except isolate.ChildError as error:  # at the shape that follows the last result
            left: list[Problem | None] = [["layer", str(error)]]
            result += left * (len(shapes) - len(result))
        _known[key] = result
    return _known[key]


def refuse_what_cannot_be_built(
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
            "passes": suite.training_at(key).passes,
        }
        for key in sizes
    ]
    variant = suite.variants[name]
    problem = problems(variant.layer, source, variant.options, shapes)[sizes.index(size)]
    if problem:
        key, line = problem
        if key in Training.model_fields:
            where = variant_key.partition(": variants.")[0]
            raise SuiteError(f"{where}: training.{key}: variants.{name}, size {size}: {line}")
        where = "" if key == "options" or line.startswith(file_of(variant.layer)) else variant.layer
        raise SuiteError(f"{variant_key}.{key}: {where}{': ' if where else ''}{line}")


def _problems(
    layer: str, source: str, options: dict[str, Any], shapes: list[dict[str, Any]]
) -> Iterator[Problem | None]:
    """Body of the child."""
    for shape in shapes:
        yield _problem(layer, source, options, shape)


def _problem(
    layer: str, source: str, options: dict[str, Any], shape: dict[str, Any]
) -> Problem | None:
    passes = shape.pop("passes")
    try:
        found = find_layer(layer, source)
    except ValueError as error:
        return ["layer", str(error)]
    try:
        config = Config(layer=found, options=complete_options(found, options), **shape)
        model = build_on_meta(config)
        problem = next(filter(None, map(counts_problem, model.tested)), "")
        return ["layer", problem] if problem else passes_problem(config, passes)
    except ValueError as error:
        return ["options", isolate.one_line(str(error))]
    except IsoflopError as error:
        return ["layer", isolate.one_line(str(error))]
    except Exception as error:
        return ["layer", isolate.describe(error)]


def passes_problem(config: Config, passes: dict[str, int]) -> Problem | None:
    """What a layer says to the numbers of sequences it will get; None if it takes them.

    It is asked on the meta device, where only shapes are computed.

    Args:
        passes: sequences by the key of the suite's training that decides them.
    """
    for key, sequences in passes.items():
        try:
            problem = _pass_problem(
                config.layer,  # type: ignore[arg-type]  # mypy takes the class for an instance
                json.dumps(config.options, sort_keys=True, default=str),
                (sequences, config.context, config.width),
            )
        except Exception as error:
            problem = isolate.describe(error)
        if problem:
            return [key, problem]
    return None


@lru_cache(maxsize=1024)
def _pass_problem(layer: type[Layer], options: str, shape: tuple[int, int, int]) -> str:
    with torch.device("meta"), torch.no_grad():
        module = layer(shape[-1], **json.loads(options))
        try:
            module.see_tokens(torch.zeros(shape[:2], dtype=torch.int64))
            module(torch.zeros(shape))
        except ValueError as error:
            return isolate.one_line(str(error))
    return ""
