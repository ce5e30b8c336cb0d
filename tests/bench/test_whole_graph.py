"""torch.compile takes the loss of every variant of every shipped suite as one graph.

On tensors without data, so on any machine: on CUDA ones where torch is built with CUDA, which take
the operators that a GPU runs, else on the meta device, which takes their definitions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from isoflop.bench.flops import build_on_meta
from isoflop.bench.plan import plan
from isoflop.bench.suite import load_suite, shipped_suites
from isoflop.models.decoder import Config

CUDA = torch.version.cuda is not None


def configs() -> Iterator[tuple[str, Config]]:
    """One for each variant, in its smallest size; those that suites share once."""
    seen = []
    for suite in shipped_suites():
        cells = sorted(plan(load_suite(suite), suite), key=lambda cell: cell.config.width)
        for cell in cells:
            # two blocks: as deep as it takes to have both kinds of FFN
            config = dataclasses.replace(cell.config, depth=2, placement=[1], vocabulary=512)
            kind = cell.config.layer, config.options
            if kind not in seen:
                seen.append(kind)
                yield f"{suite}-{cell.variant}", config


CONFIGS = dict(configs())


@pytest.fixture
def autocast() -> Iterator[None]:
    """On for CUDA, as in training; `torch.autocast` would ask for a GPU."""
    torch._dynamo.reset()
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.usefixtures("autocast")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_one_graph(name: str) -> None:
    config = CONFIGS[name]
    model = build_on_meta(config)
    graphs = []

    def collect(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode(allow_non_fake_inputs=True) if CUDA else nullcontext():
        device = "cuda" if CUDA else "meta"
        model.to_empty(device=device)
        tokens = torch.empty(16, config.context, dtype=torch.int64, device=device)
        loss, _ = torch.compile(model.loss, fullgraph=True, backend=collect)(tokens, tokens)
    assert loss.device.type == device
    assert len(graphs) == 1


def test_every_layer_of_the_shipped_suites_is_among_them() -> None:
    layers = {variant.layer for suite in shipped_suites() for variant in variants(suite)}
    assert layers == {config.layer for config in CONFIGS.values()}


def variants(suite: str) -> list[Config]:
    return [cell.config for cell in plan(load_suite(suite), suite)]
