"""FLOPs and parameters of a model, which is built without data, once for all its cells."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from isoflop.bench.flops import build_on_meta
from isoflop.models import Config, Layer
from isoflop.results.record import Flops, Parameters


@lru_cache(maxsize=1024)
def counts(
    layer: type[Layer],
    options: str,
    placement: str | tuple[int, ...],
    vocabulary: int,
    context: int,
    output_norm: bool,
    backbone: tuple[tuple[str, Any], ...],
) -> tuple[Flops, Parameters, int, int]:
    """FLOPs, parameters, those in tables, and the values that a token moves to and from experts, of
    a model; it is built once for all its cells."""
    model = build_on_meta(
        Config(
            layer=layer,
            options=json.loads(options),
            placement=placement,
            vocabulary=vocabulary,
            context=context,
            output_norm=output_norm,
            **dict(backbone),
        )
    )
    tables = sum(table.numel() for tested in model.tested for table in tested.tables())
    moved = sum(tested.moved_per_token() for tested in model.tested)
    flops, parameters = Flops(**model.flops_per_token()), Parameters(**model.parameter_counts())
    return flops, parameters, tables, moved
