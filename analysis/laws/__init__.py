"""Scaling laws for any table of runs: what they are, how they are fitted.

`law` says what a law is, `dense` and `moe` state them, `table` reads runs, `fit` fits.
"""

from isoflop.analysis.laws.dense import (
    CHINCHILLA,
    CHINCHILLA_ENVELOPE,
    CHINCHILLA_ISOFLOP,
    FRONTIER,
)
from isoflop.analysis.laws.law import Law
from isoflop.analysis.laws.moe import FINE_GRAINED_MOE, JOINT_MOE, ROUTED

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        CHINCHILLA,
        CHINCHILLA_ENVELOPE,
        CHINCHILLA_ISOFLOP,
        FRONTIER,
        FINE_GRAINED_MOE,
        JOINT_MOE,
        ROUTED,
    )
}
