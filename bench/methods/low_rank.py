"""Matrices of experts, or of a dense FFN, as products of low rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.bench.methods.experts import Experts, Rebuilt
from isoflop.bench.methods.matrices import Factored, Matrices, factors
from isoflop.bench.methods.method import Calibration, Method, rebuilt, register, with_layers
from isoflop.models import Decoder


@register("low-rank")
class LowRank(Method):
    """W ~ A B of rank r by SVD, for both matrices of every expert, or of a dense FFN.

    A matrix of I x O becomes r (I + O) numbers, and as many multiply-adds per token: it saves if
    r < I O / (I + O). `keep` states the share of the numbers that may stay: r is the largest whole
    number that keeps to it. Whitened, the product is the best for the outputs on the calibration
    text rather than for the matrix (SVD-LLM, arXiv 2403.07378): an expert's inputs are those of the
    tokens routed to it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Method.Options):
        keep: float = 0.5  # share of the numbers of a matrix that stay, at most
        whiten: bool = True  # weigh errors by the inputs on the calibration text

        def __post_init__(self) -> None:
            if not 0 < self.keep < 1:
                raise ValueError(
                    f"keep: a rank saves nothing unless keep is above 0 and below 1: {self.keep}"
                )

    @torch.no_grad()
    def apply(self, model: Decoder, calibration: Calibration) -> Decoder:
        layers = rebuilt(model)
        inputs = calibration.inputs(model) if self.options.whiten else [None] * len(layers)
        for layer, x_MD in zip(layers, inputs, strict=True):
            ranks = [
                rank_within(matrices, self.options.keep) for matrices in (layer.up, layer.down)
            ]
            factorise(layer, [ranks] * len(layer.up), x_MD)
        return with_layers(model, layers)


def rank_within(matrices: Matrices, keep: float) -> int:
    """The largest rank whose factors have at most this share of a matrix's numbers.

    Raises:
        ValueError: there is none.
    """
    inputs, outputs = matrices.shape
    rank = int(keep * inputs * outputs / (inputs + outputs))
    if rank < 1:
        raise ValueError(f"keep: {keep:g} leaves a matrix of {inputs} x {outputs} no rank")
    return rank


def factorise(layer: Rebuilt, ranks: list[list[int]], x_MD: Tensor | None) -> None:
    """Replace the matrices of a layer by factors.

    Args:
        ranks: of the first and the second matrix of every expert.
        x_MD: the layer's inputs, for whitened factors.
    """
    index_MK = layer.route(x_MD)[1] if isinstance(layer, Experts) and x_MD is not None else None
    ups, downs = [], []
    for expert, (first, second) in enumerate(ranks):
        gram = hidden_gram = None
        if x_MD is not None:
            rows = x_MD if index_MK is None else x_MD[(index_MK == expert).any(1)]
            # With fewer tokens than inputs most directions would count as unused.
            rows = rows if len(rows) >= layer.d_model else x_MD
            hidden = layer.hidden(expert, rows)
            gram, hidden_gram = rows.T @ rows, hidden.T @ hidden
        ups.append(factors(layer.up.of(expert), first, gram))
        downs.append(factors(layer.down.of(expert), second, hidden_gram))
    layer.up, layer.down = Factored(ups), Factored(downs)
