"""A suite of eighteen variants of every family, such as a leaderboard may grow to."""

from isoflop.analysis.simulate import rate_sweep, simulate
from isoflop.results.record import Record

BUDGETS = (5e11, 1.5e12, 5e12, 1.5e13)
MULTIPLIERS = {
    "dense": 1.0, "dense-swiglu": 1.08, "dense-relu2": 1.05, "moe-g1": 1.3, "moe-g4": 1.6,
    "moe-g8": 1.7, "moe-g16": 1.65, "moe-g32": 1.55, "moe_ec": 1.5, "moe_shared": 1.75,
    "moe_latent": 1.8, "remoe": 1.45, "pkm": 1.1, "ultramem": 1.9, "engram": 1.4, "peer": 1.62,
    "omnimoe": 1.58, "monet": 0.9,
}  # fmt: skip


def crowd() -> tuple[list[Record], list[Record]]:
    """The suite's records, and those of its learning-rate sweeps."""
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 4, 8, 16, 32)}
    records = simulate(MULTIPLIERS, BUDGETS, octaves=(-1.5, -0.5, 0.5, 1.5), options=options)
    tune = [
        record
        for number, name in enumerate(MULTIPLIERS)
        for record in rate_sweep(name, (5e-4, 1e-3, 2e-3), 1e-3, random=number)
    ]
    return records, tune
