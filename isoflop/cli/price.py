"""Devices by name; `plan --workers`: the hours of a suite on many of them, and their cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.console import show
from isoflop.cli.engines import check_engine
from isoflop.results.errors import IsoflopError, did_you_mean

if TYPE_CHECKING:
    from isoflop.bench.cost import Device
    from isoflop.bench.plan import Cell

DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu (this one), or a GPU: a100, h100, h200, rtx4090.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10_000,
        help="Show instead the hours and the cost on this many devices: GPUs, or cores.",
    ),
]
Price = Annotated[
    float | None,
    typer.Option(min=0, max=1e6, help="Of --workers: what an hour of a device costs."),
]


def find_device(name: str) -> Device:
    """A device by name, as predictions know it.

    Raises:
        IsoflopError: there is none of that name.
    """
    from isoflop.bench.cost import DEVICES, local_cpu

    known = ["cpu", *DEVICES]
    if name not in known:
        raise IsoflopError(
            f"--device: no device {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
        )
    return local_cpu() if name == "cpu" else DEVICES[name]


def check_price(on: str, workers: int | None, price: float | None) -> None:
    """Check the options before any work.

    Raises:
        IsoflopError: there is no such engine, the price is no number, or workers are not given.
    """
    check_engine(on)
    if price is not None and math.isnan(price):
        raise IsoflopError("--price: nan is no price of an hour")
    if workers is None and (on != "local" or price is not None):
        option = "--price" if price is not None else f"--on {on}"
        raise IsoflopError(f"{option}: give --workers too, the number of GPUs or cores")


def price_row(
    cells: list[Cell], device: Device, on: str, workers: int, price: float | None
) -> dict[str, Any]:
    """Hours and cost of cells on devices that an engine fills, the longest cells first.

    A SLURM task ends, and is paid, when no cell is left for it; with `ray` and `local` all
    devices are there until the last cell ends. On `ray` a cell has its GPU alone.

    Raises:
        IsoflopError: a cell takes more devices than there are.
    """
    from isoflop.bench.policy import CORES, need, schedule

    ranks = cells[0].training.gpus_per_cell  # of all, as the text
    if ranks > workers:
        raise IsoflopError(
            f"--workers: {workers} are fewer than the {ranks} of training.gpus_per_cell that train "
            "a cell together"
        )
    how = schedule(cells, device, workers, cores=1 if on == "ray" else CORES)
    hours = (how.held if on == "slurm" else workers * how.seconds) / 3600
    return {
        "cells": len(cells),
        "on": on,
        "device": device.name,
        "workers": workers,
        "gpus_per_cell": ranks,
        "cells_at_a_time": how.at_a_time,
        "makespan_hours": how.seconds / 3600,
        "longest_cell_hours": max(need(cell, device).seconds for cell in cells) / 3600,
        "core_hours" if device.name == "cpu" else "gpu_hours": hours,
        "cost": None if price is None else hours * price,
    }


def show_price(
    name: str,
    phases: dict[str, list[Cell]],
    device: Device,
    on: str,
    workers: int,
    price: float | None,
    as_json: bool,
) -> None:
    """Print hours and cost.

    Args:
        name: of the suite.
        phases: the cells that each verb trains.
        price: of an hour of a device.
    """
    rows = [
        {"verb": verb} | price_row(cells, device, on, workers, price)
        for verb, cells in phases.items()
        if cells
    ]
    show(rows, f"{name} on {workers} x {device.name}; a rough figure, if no node is lost", as_json)
