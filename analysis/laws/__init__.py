"""Scaling laws and their fits, for any table of runs.

`law` defines what a law is, `dense` and `moe` state the laws, `table` reads runs, `fit` fits them.
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
