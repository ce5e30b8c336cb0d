"""Methods that make a trained model smaller: one file, one class each, registered by name."""

from isoflop.bench.methods.experts import Experts, FeedForward
from isoflop.bench.methods.factorise_dense import FactoriseDense
from isoflop.bench.methods.fewer_experts import FewerExperts
from isoflop.bench.methods.low_rank import LowRank
from isoflop.bench.methods.mean_output import MeanOutput
from isoflop.bench.methods.method import (
    METHODS,
    Calibration,
    Method,
    find_method,
    rebuilt,
    register,
    with_layers,
)
from isoflop.bench.methods.moe_i2 import MoEI2
from isoflop.bench.methods.prune_frequency import PruneFrequency
from isoflop.bench.methods.prune_random import PruneRandom
from isoflop.bench.methods.prune_reap import PruneREAP
from isoflop.bench.methods.prune_router_norm import PruneRouterNorm
from isoflop.bench.methods.pruning import experts_of
from isoflop.bench.methods.quantise import Quantise

__all__ = [
    "METHODS",
    "Calibration",
    "Experts",
    "FactoriseDense",
    "FeedForward",
    "FewerExperts",
    "LowRank",
    "MeanOutput",
    "Method",
    "MoEI2",
    "PruneFrequency",
    "PruneREAP",
    "PruneRandom",
    "PruneRouterNorm",
    "Quantise",
    "experts_of",
    "find_method",
    "rebuilt",
    "register",
    "with_layers",
]
