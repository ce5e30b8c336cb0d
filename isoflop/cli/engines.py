"""The options `--on` and `--engine-options` of the verbs that train."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.results.errors import did_you_mean

if TYPE_CHECKING:
    from isoflop.bench.engines.contract import Engine

ENGINES = ("local", "slurm", "ray")
On = Annotated[
    str, typer.Option("--on", metavar="ENGINE", help="Where cells run: local, slurm or ray.")
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-options",
        metavar="KEY=VALUE",
        help="Of slurm or ray, may be repeated: see docs/run-on-a-cluster.md.",
    ),
]


def check_engine(name: str) -> None:
    """
    Raises:
        EngineError: there is no engine of that name.
    """
    if name not in ENGINES:
        from isoflop.bench.engines.contract import EngineError

        hint = did_you_mean(name, list(ENGINES))
        raise EngineError(f"--on: no engine {name!r}{hint}; known: {', '.join(ENGINES)}")


def find_engine(name: str, options: list[str] | None) -> Engine:
    """An engine by name.

    Raises:
        EngineError: there is none of that name, it is not installed, or it has no such option.
    """
    check_engine(name)
    given = options or []
    if name == "slurm":
        from isoflop.bench.engines.slurm import Slurm

        return Slurm(given)
    if name == "ray":
        from isoflop.bench.engines.ray import Ray

        return Ray(given)
    from isoflop.bench.engines.contract import read_options
    from isoflop.bench.engines.local import Local

    read_options(name, given, {})
    if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun
        from isoflop.bench.engines.torchrun import Torchrun

        return Torchrun()
    return Local()
