"""The options `--on` and `--engine-options` of the verbs that train."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from isoflop.bench.engines.contract import Engine

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


def find_engine(name: str, options: list[str] | None) -> Engine:
    """An engine by name.

    Raises:
        EngineError: there is none of that name, it is not installed, or it has no such option.
    """
    from isoflop.bench.engines.contract import EngineError, read_options
    from isoflop.results.errors import did_you_mean

    given = options or []
    if name == "local":
        from isoflop.bench.engines.local import Local

        read_options(name, given, {})
        if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun
            from isoflop.bench.engines.torchrun import Torchrun

            return Torchrun()
        return Local()
    if name == "slurm":
        from isoflop.bench.engines.slurm import Slurm

        return Slurm(given)
    if name == "ray":
        from isoflop.bench.engines.ray import Ray

        return Ray(given)
    known = ["local", "slurm", "ray"]
    raise EngineError(
        f"--on: no engine {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
    )
