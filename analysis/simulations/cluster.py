"""The tables of suites on a simulated cluster, from the counts that `bench` has stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isoflop.analysis.report.markdown import table

STORED = "cluster.json"  # beside the counts of simulated suites
RUN = "slurm.json"  # likewise, of a real run
POLICIES = ("longest first", "suite order", "fixed shards")
ENGINES = ("slurm", "ray")
HEADER = ("suite", "cells", "nodes", "losses per node and hour")


def blocks(stored: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, str]:
    """The blocks of a document; none if nothing is stored.

    Args:
        run: a real one.
    """
    if not stored:
        return {}
    return {
        "cluster-run": real(run),
        "cluster-setting": setting(stored),
        "cluster-order": order(stored),
        "cluster-losses": losses(stored),
        "cluster-backups": backups(stored),
    }


def setting(stored: Mapping[str, Any]) -> str:
    """What is assumed, in a paragraph."""
    assumed = stored["assumed"]
    return (
        f"{stored['samples']} runs of each row, seed {stored['seed']}. True seconds differ from "
        f"predicted ones by a log-normal factor of {assumed['spread']:g}; {assumed['slow']:.0%} of "
        f"the nodes take {assumed['slowdown']:g} times as long; a lost node is back after "
        f"{assumed['away'] / 60:g} minutes; in {assumed['unseen']:.0%} of the losses the node is "
        "only out of sight, and ends its cell while another node trains it too. States are saved "
        f"every {assumed['checkpoint'] / 60:g} minutes.\n"
    )


def real(run: Mapping[str, Any]) -> str:
    """What a run on a real SLURM counted, in a paragraph."""
    return (
        f"A SLURM of {run['nodes']} nodes on one machine, {run['workers']} tasks, {run['cells']} "
        f"cells; {len(run['losses'])} nodes were lost while they trained a cell, and the command "
        f"was killed once and started again. {run['records']} records, each once; "
        f"{run['equal']} equal those of a local run but for what was measured; "
        f"{run['begun_again']} cells were begun again. It took {run['makespan']:.0f} s; the "
        f"simulator, with the seconds that its cells took, says {run['simulated']:.0f} s.\n"
    )


def order(stored: Mapping[str, Any]) -> str:
    """Makespan over the lower bound by policy, on the engine `slurm`."""
    rows = []
    for scenario in stored["scenarios"]:
        if scenario["engine"] == "slurm":
            results = [scenario["policies"][policy] for policy in POLICIES]
            numbers = [f"{result['ratio']:.2f} ({result['ratio_95']:.2f})" for result in results]
            rows.append((*_layout(scenario), *numbers))
    return table((*HEADER, *POLICIES), rows, left=("suite",))


def losses(stored: Mapping[str, Any]) -> str:
    """What lost nodes cost, longest first, on both engines as they are."""
    rows = []
    for scenario in stored["scenarios"]:
        if scenario["losses_per_hour"] and scenario["engine"] in ENGINES:
            result = scenario["policies"]["longest first"]
            share = result["lost_work_hours"] / scenario["predicted_hours"]
            rows.append(
                (
                    *_layout(scenario),
                    scenario["engine"],
                    f"{result['losses']:.2f}",
                    f"{result['makespan_hours']:.2f}",
                    f"{result['ratio']:.2f}",
                    f"{result['lost_work_hours']:.2f} ({share:.1%})",
                    f"{result['begun_again']:.2f}",
                    f"{result['refused']:.2f}",
                )
            )
    header = (
        *HEADER,
        "engine",
        "nodes lost",
        "makespan, h",
        "over the bound",
        "lost work, GPU h (of the suite's)",
        "cells begun again",
        "second records refused",
    )
    return table(header, rows, left=("suite", "engine"))


def backups(stored: Mapping[str, Any]) -> str:
    """What second copies at the end of the queue gain on Ray, and what they cost."""
    results = {(*_layout(row), row["engine"]): row["policies"] for row in stored["scenarios"]}
    rows = []
    for *layout, engine in results:
        if engine == "ray":
            without, copied = (
                results[*layout, name]["longest first"] for name in ("ray without backups", "ray")
            )
            gain = 1 - copied["makespan_hours"] / without["makespan_hours"]
            spread = [
                f"{result['ratio']:.2f} ({result['ratio_95']:.2f})" for result in (without, copied)
            ]
            more = copied["lost_work_hours"] - without["lost_work_hours"]
            rows.append(
                (*layout, *spread, f"{gain:.1%}", f"{more:.2f}", f"{copied['refused']:.2f}")
            )
    header = (
        *HEADER,
        "over the bound without copies",
        "with copies",
        "makespan saved",
        "GPU h of copies",
        "second records refused",
    )
    return table(header, rows, left=("suite",))


def _layout(scenario: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (f"{scenario[key]:g}" for key in ("cells", "nodes", "losses_per_hour"))
    return scenario["suite"], *numbers
