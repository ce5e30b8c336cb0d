"""Which cells are in training, each by one task or, once no cell waits, by two.

An idle worker at the end of the queue takes a second copy of the cell that has run longest: a slow
node, or one that is about to be lost, then no longer decides when the run ends. The first record
counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from isoflop.bench.plan import Cell


class Copies:
    """The cells of a run and their tasks.

    Args:
        waiting: cells, in the order in which they start.
        backups: whether second copies are taken.

    Attributes:
        refused: second records.
    """

    def __init__(self, waiting: Iterable[Cell], backups: bool) -> None:
        self.waiting = list(waiting)
        self.backups = backups
        self.running: dict[Hashable, Cell] = {}  # by task, the oldest first
        self.recorded: set[str] = set()
        self.whole: set[str] = set()  # cells of which nothing more is to come
        self.stopped: set[Hashable] = set()  # tasks
        self.failures: dict[str, int] = {}
        self.refused = 0

    def take(self) -> Cell | None:
        """What an idle worker trains: the next cell, or a copy; None if there is nothing."""
        if self.waiting:
            return self.waiting.pop(0)
        if not self.backups:
            return None
        cells = list(self.running.values())
        ids = [cell.id for cell in cells]
        return next(
            (
                cell
                for cell in cells
                if ids.count(cell.id) == 1
                and cell.id not in self.recorded
                and cell.id not in self.failures
            ),
            None,
        )

    def stop(self) -> None:
        """Begin nothing more."""
        self.waiting.clear()
        self.backups = False

    def begin(self, task: Hashable, cell: Cell) -> None:
        """A task trains a cell."""
        self.running[task] = cell

    def goes_on(self) -> bool:
        """Whether anything is still to come, but for second records."""
        return bool(self.waiting) or any(
            cell.id not in self.whole for cell in self.running.values()
        )

    def speaks(self, task: Hashable) -> bool:
        """Whether the progress of a task is that of its cell: it is the oldest without a record."""
        cell = self.running[task]
        oldest = next(key for key, other in self.running.items() if other.id == cell.id)
        return cell.id not in self.recorded and oldest == task

    def alone(self, task: Hashable) -> bool:
        """Whether no other task trains its cell."""
        cell = self.running[task]
        return not any(o.id == cell.id and key != task for key, o in self.running.items())

    def stop_one(self, task: Hashable) -> bool:
        """A task has stopped; returns whether nothing trains its cell any more."""
        cell = self.running[task]
        self.stopped.add(task)
        return cell.id not in self.recorded and all(
            key in self.stopped for key, other in self.running.items() if other.id == cell.id
        )

    def record(self, task: Hashable) -> bool:
        """Whether the record that a task brings is the first of its cell."""
        cell = self.running[task]
        if cell.id in self.recorded:
            self.refused += 1
            return False
        self.recorded.add(cell.id)
        return True

    def end(self, task: Hashable) -> None:
        """A task has said all."""
        cell = self.running.pop(task)
        if cell.id in self.recorded:
            self.whole.add(cell.id)

    def fail(self, task: Hashable, counts: bool) -> int:
        """A copy has failed, or its process died; returns how often that was so for its cell.

        Args:
            counts: it was no fault of the node.
        """
        cell = self.running[task]
        if counts:
            self.failures[cell.id] = self.failures.get(cell.id, 0) + 1
        return self.failures.get(cell.id, 0)

    def lose(self, task: Hashable, unneeded: bool) -> bool:
        """A task is gone; returns whether its cell waits again.

        Args:
            unneeded: what was still to come after the record.
        """
        alone = self.alone(task)
        cell = self.running.pop(task)
        if cell.id in self.recorded and unneeded:
            self.whole.add(cell.id)
            return False
        if alone and cell.id not in self.whole:
            self.waiting.insert(0, cell)
            return True
        return False
