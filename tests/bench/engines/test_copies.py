"""Cells and their second copies, without a cluster."""

import pytest

from isoflop.bench.engines.copies import Copies
from isoflop.bench.plan import Cell
from tests.bench.cells import tiny_cells


@pytest.fixture
def cells() -> list[Cell]:
    return tiny_cells(seeds=[0, 1])[:3]


def start(copies: Copies, tasks: int) -> None:
    """Idle workers, by number."""
    for number in range(len(copies.running), len(copies.running) + tasks):
        cell = copies.take()
        assert cell is not None
        copies.begin(number, cell)


def test_an_idle_worker_copies_the_cell_that_has_run_longest(cells: list[Cell]) -> None:
    copies = Copies(cells, backups=True)
    start(copies, 3)
    assert copies.record(1)
    copies.end(1)
    copies.begin(3, copies.take() or cells[2])
    assert copies.running[3] == cells[0]
    copies.begin(4, copies.take() or cells[0])
    assert copies.running[4] == cells[2]
    assert copies.take() is None  # no third
    assert Copies([], backups=True).take() is None
    plain = Copies(cells, backups=False)
    start(plain, 3)
    assert plain.take() is None


def test_the_first_record_counts_and_the_second_is_refused(cells: list[Cell]) -> None:
    copies = Copies(cells[:1], backups=True)
    start(copies, 2)
    assert copies.speaks(0)
    assert not copies.speaks(1)
    assert copies.record(1)
    assert not copies.speaks(0)  # nothing more is told of it
    assert copies.goes_on()  # weights may come
    copies.end(1)
    assert not copies.goes_on()  # nobody waits for the slower copy
    assert not copies.record(0)
    assert copies.refused == 1


def test_a_lost_copy_leaves_the_other_and_a_lost_cell_waits_again(cells: list[Cell]) -> None:
    copies = Copies(cells[:1], backups=True)
    start(copies, 2)
    assert not copies.lose(0, unneeded=True)
    assert copies.speaks(1)
    assert copies.lose(1, unneeded=True)
    assert copies.waiting == cells[:1]
    start(copies, 2)
    copies.record(0)
    assert not copies.lose(0, unneeded=False)  # its weights come with the second record
    assert copies.goes_on()
    assert copies.lose(1, unneeded=False)
    assert copies.waiting == cells[:1]
    start(copies, 1)
    assert not copies.lose(0, unneeded=True)
    assert not copies.goes_on()


def test_a_cell_that_crashes_gets_no_copies(cells: list[Cell]) -> None:
    copies = Copies(cells[:1], backups=True)
    start(copies, 2)
    assert [copies.fail(1, counts=False), copies.fail(1, counts=True)] == [0, 1]
    copies.lose(1, unneeded=True)
    assert copies.take() is None
    assert copies.goes_on()


def test_a_cell_is_stopped_when_both_copies_are(cells: list[Cell]) -> None:
    copies = Copies(cells[:2], backups=True)
    start(copies, 3)
    copies.stop()
    assert copies.take() is None
    assert [copies.stop_one(task) for task in (2, 0, 1)] == [False, True, True]
    for task in range(3):
        copies.end(task)
    assert not copies.goes_on()
