"""Simulated records whose true multipliers are known, to test the analysis.

The losses follow a Chinchilla surface L(N, D) = E + A N^-alpha + B D^-beta (arXiv 2203.15556,
equation 10). For a variant with compute multiplier m, N and D are both multiplied by sqrt(m). FLOPs
are 6 N D, so that its isoFLOP curve at C is the dense curve at m C: the multiplier is exact, at the
optimum and along the whole frontier.

`retrain` gives the cells of a real suite the losses of any other law, with any noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.results.record import Flops, Measured, Parameters, Record, Size

Law = Callable[[Array, Array], Array]
"""Natural logarithms of active parameters and of tokens -> loss without noise, nats per token."""

E, A, B, ALPHA, BETA = 1.8, 120.0, 240.0, 0.32, 0.32
CONTEXT, BATCH, VOCABULARY, DEPTH = 256, 8, 1024, 4


def loss(compute: float, active: float, multiplier: float = 1.0) -> float:
    """The loss without noise (nats per token) of `active` parameters at `compute` FLOPs."""
    scale = multiplier**0.5
    tokens = compute / (6 * active)
    return E + A * (scale * active) ** -ALPHA + B * (scale * tokens) ** -BETA


def optimum(compute: float, multiplier: float = 1.0) -> tuple[float, float]:
    """The compute-optimal active parameters and their loss (2203.15556, equation 4)."""
    ratio = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    active = ratio * (compute * multiplier / 6) ** (BETA / (ALPHA + BETA)) * multiplier**-0.5
    return active, loss(compute, active, multiplier)


def simulate(
    multipliers: Mapping[str, float],
    budgets: Sequence[float] = (1e13, 4e13, 1.6e14, 6.4e14),
    *,
    octaves: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    seeds: int = 1,
    noise: float = 0.003,
    trend: float = 0.0,
    options: Mapping[str, Mapping[str, object]] | None = None,
    random: int = 0,
) -> list[Record]:
    """The records of a suite.

    Args:
        multipliers: the compute multiplier of each variant at the largest budget. The part of a
            name before its first hyphen is the layer, so `dense` is the baseline.
        budgets: training FLOPs.
        octaves: the sizes at each budget, as powers of two times the dense optimum's parameters.
        seeds: number of runs of each cell.
        noise: standard deviation of the loss of a run, nats.
        trend: slope of log10(multiplier) of every layer but `dense`, per decade of compute.
        options: the layer options of a variant, such as {"moe-g4": {"granularity": 4}}.
        random: the seed of the noise.
    """
    generator = np.random.default_rng(random)
    records = []
    for variant, top in multipliers.items():
        layer = variant.partition("-")[0]
        for budget in budgets:
            decades = 0.0 if layer == "dense" else float(np.log10(budget / max(budgets)))
            multiplier = top * 10 ** (trend * decades)
            for octave in octaves:
                for seed in range(seeds):
                    records.append(
                        record(
                            variant,
                            budget,
                            optimum(budget)[0] * 2**octave,
                            seed=seed,
                            multiplier=multiplier,
                            error=noise * generator.standard_normal(),
                            options=dict((options or {}).get(variant, {})),
                        )
                    )
    return records


def rate_sweep(
    variant: str,
    rates: Sequence[float],
    best: float,
    *,
    budget: float = 1e14,
    bend: float = 0.02,
    seeds: int = 1,
    noise: float = 0.003,
    random: int = 0,
) -> list[Record]:
    """The records of a learning-rate sweep at one size.

    The loss at a rate is `bend` (ln(rate / best))^2 nats above the lowest; the other arguments are
    as for `simulate`.
    """
    generator = np.random.default_rng(random)
    return [
        record(
            variant,
            budget,
            optimum(budget)[0],
            seed=seed,
            error=bend * np.log(rate / best) ** 2 + noise * generator.standard_normal(),
            learning_rate=rate,
        )
        for rate in rates
        for seed in range(seeds)
    ]


def record(
    variant: str,
    budget: float,
    active: float,
    *,
    seed: int = 0,
    multiplier: float = 1.0,
    error: float = 0.0,
    learning_rate: float = 1e-3,
    options: dict[str, object] | None = None,
) -> Record:
    """The record of a finished cell: about `active` parameters, the surface's loss plus `error`."""
    layer = variant.partition("-")[0]
    # active = 12 width^2 DEPTH + VOCABULARY width, solved for a width that is a multiple of 8
    half = VOCABULARY / (24 * DEPTH)
    width = 8 * max(1, round((np.sqrt(half**2 + active / (12 * DEPTH)) - half) / 8))
    ffn, attention = 8 * width**2 * DEPTH, 4 * width**2 * DEPTH
    parameters = Parameters(
        embedding=VOCABULARY * width,
        head=VOCABULARY * width,
        backbone=attention,
        layer_active=ffn,
        layer_total=ffn if layer == "dense" else 16 * ffn,
    )
    flops = Flops(attention=2 * attention, ffn=2 * ffn, routing=0, head=2 * VOCABULARY * width)
    steps = max(1, round(budget / (flops.training * CONTEXT * BATCH)))
    tokens = steps * CONTEXT * BATCH
    spent = flops.training * tokens
    # at the FLOPs asked for, not those spent: rounding to whole steps must not change the truth
    nats = loss(budget, parameters.active, multiplier) + error
    name = f"d{width}"
    identity = f"{variant} {name} {budget!r} {seed} {learning_rate!r}"
    seconds = spent / 5e10 * (1 if layer == "dense" else 3)
    return Record(
        cell=hashlib.sha256(identity.encode()).hexdigest()[:16],
        status="finished",
        suite="simulated",
        variant=variant,
        layer=layer,
        options=options or {},
        placement="all",
        size=Size(name=name, width=width, depth=DEPTH, heads=1),
        seed=seed,
        corpus="simulated",
        vocabulary=VOCABULARY,
        context=CONTEXT,
        batch=BATCH,
        budget=budget,
        flops=spent,
        tokens=tokens,
        steps=steps,
        epochs=tokens / 1e8,
        learning_rate=learning_rate,
        parameters=parameters,
        flops_per_token=flops,
        layer_bytes_per_token=2 * parameters.layer_active,
        loss=nats,
        bits_per_byte=nats / np.log(2) / 4,
        validation_hash="simulated",
        curve=[(step, nats + steps / (step + steps)) for step in (steps // 2, steps)],
        measured=Measured(
            device="simulated",
            threads=1,
            started="2000-01-01T00:00:00Z",
            seconds=1.1 * seconds,
            train_seconds=seconds,
            tokens_per_second=tokens / seconds,
            peak_memory_bytes=16 * parameters.total,
            versions={},
            git_revision=None,
        ),
    )


def chinchilla(floor: float, a: float, alpha: float, b: float, beta: float) -> Law:
    """E + A N^-alpha + B D^-beta (2203.15556, equation 10)."""
    return lambda log_n, log_d: floor + a * np.exp(-alpha * log_n) + b * np.exp(-beta * log_d)


def kaplan(
    log_n_c: float, log_d_c: float, alpha_n: float, alpha_d: float, floor: float = 0.0
) -> Law:
    """((N_c / N)^(alpha_n / alpha_d) + D_c / D)^alpha_d (2001.08361, equation 1.5), and a floor."""

    def law(log_n: Array, log_d: Array) -> Array:
        terms = np.exp((log_n_c - log_n) * alpha_n / alpha_d) + np.exp(log_d_c - log_d)
        return floor + terms**alpha_d

    return law


def scaled(
    law: Law,
    log_cost: Callable[[Array], Array],
    log_multiplier: Callable[[Array], Array],
    shift: float = 1.0,
) -> Law:
    """The law of a layer that trains as its baseline would with more compute.

    Args:
        law: of the baseline.
        log_cost: natural logarithm of training FLOPs per token, of log parameters.
        log_multiplier: by which N and D are multiplied, a half each, of the log of FLOPs.
        shift: the factor by which the best size is larger than the baseline's.
    """

    def layer(log_n: Array, log_d: Array) -> Array:
        half = log_multiplier(log_cost(log_n) + log_d) / 2
        return law(log_n + half - np.log(shift), log_d + half + np.log(shift))

    return layer


@dataclass(frozen=True)
class RunNoise:
    """How the losses of runs depart from their law; all in nats or logarithms."""

    deviation: float = 0.024  # standard deviation at the middle budget and size
    by_budget: float = 0.0  # slope of -log(deviation) in log(budget)
    by_size: float = 0.0  # slope of log(deviation) in log(parameters)
    correlation: float = 0.0  # of the variants' runs of the same size, budget and seed
    off_law: float = 0.0  # standard deviation of a cell's own departure, the same for all its seeds
    bad: float = 0.0  # added to all runs of one cell


def retrain(
    records: Sequence[Record],
    laws: Mapping[str, Law],
    noise: RunNoise,
    generator: np.random.Generator,
) -> list[Record]:
    """The same finished cells with simulated losses.

    Args:
        records: the cells; those of one variant, size and budget are seeds of one cell.
        laws: of every variant.
        noise: of the runs.
    """
    log_n = np.log([record.parameters.active for record in records])
    log_d = np.log([record.tokens for record in records])
    log_c = np.log([record.budget for record in records])
    _, shared = np.unique(
        [f"{record.size.name} {record.budget} {record.seed}" for record in records],
        return_inverse=True,
    )
    _, cell = np.unique(
        [f"{record.variant} {record.size.name} {record.budget}" for record in records],
        return_inverse=True,
    )
    cells, common = cell.max() + 1, noise.correlation
    error = np.sqrt(1 - common) * generator.standard_normal(len(records))
    error += np.sqrt(common) * generator.standard_normal(shared.max() + 1)[shared]
    error *= noise.deviation * np.exp(
        noise.by_size * (log_n - log_n.mean()) - noise.by_budget * (log_c - np.median(log_c))
    )
    error += noise.off_law * generator.standard_normal(cells)[cell]
    error += noise.bad * (cell == generator.integers(cells))
    losses = error
    for variant, law in laws.items():
        mine = np.array([record.variant == variant for record in records])
        losses[mine] += law(log_n[mine], log_d[mine])
    return [
        record.model_copy(update={"loss": float(loss)})
        for record, loss in zip(records, losses, strict=True)
    ]
