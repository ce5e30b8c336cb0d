"""Weights & Biases: a run for each cell, online or offline as its own settings say."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.scalars import run_name
from isoflop.results.errors import IsoflopError

if TYPE_CHECKING:
    from isoflop.bench.plan import Cell


class WandbError(IsoflopError):
    """No run can be logged, for want of the package, of a login or of the network."""


def require_wandb(project: str | None) -> str | None:
    """Callback of the option: is the package there?

    Raises:
        WandbError: it is missing, or the project has no name.
    """
    if project is None:
        return None
    if not project.strip() or not project.isprintable() or set(project) & set("/\\#?%:"):
        raise WandbError(f"--wandb: {project!r} is no name of a project")
    if importlib.util.find_spec("wandb") is None:
        raise WandbError(
            "--wandb: the wandb package is missing: `python -m pip install wandb`, or isoflop "
            "with its extra: isoflop[wandb]"
        )
    return project


Wandb = Annotated[
    str | None,
    typer.Option(
        metavar="PROJECT",
        callback=require_wandb,
        help="Log each cell to this project of Weights & Biases; WANDB_MODE=offline for later.",
    ),
]


class WandbRun:
    """A run of one cell. A cell that is trained again gets another one of the same name.

    Raises:
        WandbError: it cannot be begun.
    """

    def __init__(self, cell: Cell, project: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it reports home by default
        import wandb

        config = {
            "cell": cell.id,
            "suite": cell.suite,
            "variant": cell.variant,
            "size": cell.size.name,
            "budget": cell.budget,
            "learning_rate": cell.learning_rate,
            "seed": cell.seed,
            "steps": cell.steps,
            "tokens": cell.tokens,
            "active_parameters": cell.parameters.active,
            "total_parameters": cell.parameters.total,
        }
        # Statistics would be of the machine that watches, and cells end side by side.
        settings = wandb.Settings(
            silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True
        )
        try:
            self.run = wandb.init(
                project=project,
                name=run_name(cell),
                group=cell.variant,
                config=config,
                reinit="create_new",
                settings=settings,
            )
        except (wandb.Error, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WandbError(f"--wandb: {reason}; finished records are whole") from None
        # Not its own count, which may not go back: a lost cell does.
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    def add(self, tag: str, value: float, step: int) -> None:
        """See `scalars.Writer`."""
        self.run.log({tag: value, "step": step})

    def close(self, ended: bool) -> None:
        """See `scalars.Writer`."""
        self.run.finish(exit_code=0 if ended else 1)
