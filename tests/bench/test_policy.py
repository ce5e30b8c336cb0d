"""How cells run on a device, from plan and device alone."""

from dataclasses import replace

import pytest

from isoflop.bench.cost import DEVICES, Device
from isoflop.bench.plan import Cell, plan
from isoflop.bench.policy import (
    COMPILE_SECONDS,
    MEMORY_SHARE,
    Need,
    card,
    fits,
    longest_first,
    need,
    schedule,
)
from isoflop.bench.suite import load_suite

H100 = DEVICES["h100"]
CORE = Device("cpu", 100e9, 8e9, float("inf"), 2e-3)


@pytest.fixture(scope="module")
def quick() -> list[Cell]:
    return plan(load_suite("quick"), "quick")


@pytest.fixture(scope="module")
def large() -> list[Cell]:
    return plan(load_suite("h100"), "h100")


def test_quick_on_one_gpu_takes_less_than_on_two_cores(quick: list[Cell]) -> None:
    """Mostly uncompiled, since seconds of training do not repay it, and several at a time."""
    gpu, cpu = schedule(quick, H100), schedule(quick, CORE, devices=2)
    assert gpu.seconds < 0.5 * cpu.seconds
    assert gpu.compiled < len(quick) / 4
    assert gpu.at_a_time > 2
    alone = schedule(quick, H100, cores=1)
    assert alone.at_a_time == 1
    assert alone.seconds == pytest.approx(sum(need(cell, H100).seconds for cell in quick))
    assert gpu.seconds < 0.5 * alone.seconds


def test_long_cells_are_compiled_and_have_the_gpu_to_themselves(large: list[Cell]) -> None:
    result = schedule(large, H100)
    assert result.compiled > 0.8 * len(large)
    assert result.at_a_time == 1


def test_a_cell_is_compiled_exactly_where_that_saves_time(quick: list[Cell]) -> None:
    for cell in quick[:8]:
        eager = need(cell, H100)
        longer = need(replace(cell, steps=100 * cell.steps), H100)
        assert not eager.compiled
        assert longer.compiled
        assert longer.seconds < 100 * eager.seconds
        assert longer.seconds > COMPILE_SECONDS


def test_cells_share_a_gpu_within_its_memory_its_time_and_the_cores() -> None:
    small = Need(seconds=1, bytes=1e9, load=0.2, compiled=False)
    assert fits(small, [], H100)
    assert fits(small, [small] * 4, H100)
    assert not fits(small, [small] * 5, H100)
    assert not fits(small, [small] * 4, H100, cores=4)
    room = replace(H100, memory=2 * 1.6e9 / MEMORY_SHARE + 1)
    assert fits(small, [small], room)
    assert not fits(small, [small] * 2, room)
    huge = replace(small, bytes=1e12)
    assert fits(huge, [], H100)  # it is tried, alone: the prediction is rough
    assert not fits(huge, [small], H100)
    busy = replace(small, load=1.0)
    assert not fits(busy, [busy], CORE)


def test_the_longest_cell_starts_first(quick: list[Cell]) -> None:
    order = longest_first(quick, CORE)
    seconds = [need(cell, CORE).seconds for cell in order]
    assert seconds == sorted(seconds, reverse=True)
    assert {cell.id for cell in order} == {cell.id for cell in quick}
    result = schedule(quick, CORE, devices=2)
    assert sum(seconds) / 2 <= result.seconds <= sum(seconds) / 2 + seconds[-1]
    many = schedule(quick, CORE, devices=1000)
    assert many.seconds == seconds[0]
    assert many.held == pytest.approx(sum(seconds)) == schedule(quick, CORE).held


def test_a_limited_run_trains_budget_by_budget(quick: list[Cell]) -> None:
    order = longest_first(quick, CORE, limited=True)
    assert {cell.id for cell in order} == {cell.id for cell in quick}
    keys = [(cell.budget, -need(cell, CORE).seconds) for cell in order]
    assert keys == sorted(keys)
    assert order[0].budget < order[-1].budget


def test_a_gpu_is_known_by_the_name_that_its_driver_states() -> None:
    assert card("NVIDIA H100 80GB HBM3", 85e9) == replace(
        H100, name="NVIDIA H100 80GB HBM3", memory=85e9
    )
    assert card("NVIDIA GeForce RTX 4090", 24e9).flops == DEVICES["rtx4090"].flops
    assert card("Some GPU", 8e9).flops == DEVICES["a100"].flops
