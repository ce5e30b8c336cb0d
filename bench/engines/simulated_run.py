"""A run on a simulated cluster: nodes are lost and come back, and some are slow.

A node is one GPU that trains one cell at a time. What is simulated is the order of the cells and
what a lost node costs: not the disk, the network, or a scheduler that is slow itself.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from isoflop.bench.policy import COMPILE_SECONDS


@dataclass(frozen=True)
class Cluster:
    """Nodes, and what happens to them."""

    nodes: int
    losses: float  # of a node, per hour that it is there
    checkpoint: float  # seconds between states of a cell that other nodes can read; inf: none
    noticed: float  # seconds from a loss until its cell waits again
    away: float = 900.0  # seconds from a loss until the node is back
    unseen: float = 0.1  # share of losses where the node is out of sight but ends its cell
    slow: float = 0.05  # share of nodes
    slowdown: float = 2.0  # of these
    backups: bool = False  # an idle node copies the cell that has run longest, if none waits


@dataclass(frozen=True)
class Outcome:
    """How a run went."""

    makespan: float  # seconds until the last record
    bound: float  # seconds that no order of whole cells beats, even without losses
    lost_work: float  # seconds of nodes that no record needed
    losses: int  # of nodes, until the last record
    begun_again: int  # cells that were begun more than once, copies included
    refused: int  # records of cells that had one
    recorded: tuple[int, ...]  # cells, as their records came


@dataclass
class _Attempt:
    """A cell on a node."""

    cell: int
    node: int
    begun: float  # when its first step began
    done: float  # seconds of the cell's work that an earlier attempt had saved
    alive: bool = True
    seen: bool = True  # by the command


class Run:
    """Plays a run through.

    Args:
        work: seconds of every cell on a node that is not slow.
        queues: cells in the order in which they start: one list for all nodes, or one for each.
        cluster: its nodes.
        seed: fixes which nodes are slow and lost, and when, whatever the queues.
    """

    def __init__(
        self, work: Sequence[float], queues: Sequence[Sequence[int]], cluster: Cluster, seed: str
    ) -> None:
        self.work, self.cluster = work, cluster
        nodes = range(cluster.nodes)
        chance = random.Random(f"{seed} slow")
        self.pace = [cluster.slowdown if chance.random() < cluster.slow else 1.0 for _ in nodes]
        self.chance = [random.Random(f"{seed} node {node}") for node in nodes]
        self.waiting = [list(enumerate(queue)) for queue in queues]  # heaps
        self.rank = [{cell: rank for rank, cell in queue} for queue in self.waiting]
        self.events: list[tuple[float, int, str, int]] = []  # when, tie, what, of which
        self.ties = count()
        self.attempts: list[_Attempt] = []
        self.running: dict[int, int] = {}  # attempts, by node
        self.idle = set(nodes)
        self.saved = [0.0] * len(work)
        self.begun = [0] * len(work)
        self.recorded: list[int] = []
        self.lost_work, self.losses, self.refused = 0.0, 0, 0
        for node in nodes:
            self._lose_later(0.0, node)

    def play(self) -> Outcome:
        """From the first cell to the last record."""
        now = 0.0
        self._start(now)
        while len(self.recorded) < len(self.work):
            now, _, what, which = heapq.heappop(self.events)
            getattr(self, f"_{what}")(now, which)
            self._start(now)
        for which in self.running.values():  # the second of two that train a cell
            self.lost_work += max(0.0, now - self.attempts[which].begun)
        speed = sum(1 / pace for pace in self.pace)
        bound = max(sum(self.work) / speed, max(self.work) * min(self.pace))
        again = sum(times > 1 for times in self.begun)
        recorded = tuple(self.recorded)
        return Outcome(now, bound, self.lost_work, self.losses, again, self.refused, recorded)

    def _later(self, when: float, what: str, which: int) -> None:
        heapq.heappush(self.events, (when, next(self.ties), what, which))

    def _lose_later(self, now: float, node: int) -> None:
        if self.cluster.losses:
            after = self.chance[node].expovariate(self.cluster.losses / 3600)
            self._later(now + after, "lose", node)

    def _queue_of(self, node: int) -> int:
        return node if len(self.waiting) > 1 else 0

    def _start(self, now: float) -> None:
        """Every idle node takes the next cell of its queue, or a copy of one that runs."""
        to_copy: list[int] | None = None
        for node in sorted(self.idle):
            queue = self.waiting[self._queue_of(node)]
            while queue and queue[0][1] in self.recorded:
                heapq.heappop(queue)
            if queue:
                _, cell = heapq.heappop(queue)
            else:
                if to_copy is None:
                    to_copy = self._to_copy()
                if not to_copy:
                    continue
                cell = to_copy.pop(0)
            done = self.saved[cell]
            begun = now + (COMPILE_SECONDS if done else 0.0)  # once it is in the cell's seconds
            self.lost_work += begun - now
            self.idle.remove(node)
            self.running[node] = len(self.attempts)
            left = (self.work[cell] - done) * self.pace[node]
            self._later(begun + left, "end", len(self.attempts))
            self.attempts.append(_Attempt(cell, node, begun, done))
            self.begun[cell] += 1

    def _to_copy(self) -> list[int]:
        """Cells that run without a copy, as the command sees it, the longest since first."""
        if not self.cluster.backups:
            return []
        running = (self.attempts[which] for which in sorted(self.running.values()))
        count = Counter(attempt.cell for attempt in running if attempt.seen)
        recorded = set(self.recorded)
        return [cell for cell, times in count.items() if times == 1 and cell not in recorded]

    def _save(self, now: float, attempt: _Attempt) -> float:
        """Keep the last checkpoint of an attempt; returns the seconds since then."""
        since = max(0.0, now - attempt.begun)
        every = self.cluster.checkpoint
        kept = since // every * every if math.isfinite(every) else 0.0
        reached = attempt.done + kept / self.pace[attempt.node]
        self.saved[attempt.cell] = max(self.saved[attempt.cell], reached)
        return since - kept

    def _end(self, now: float, which: int) -> None:
        """An attempt ends its cell, if its node is still there."""
        attempt = self.attempts[which]
        if not attempt.alive:
            return
        if attempt.cell in self.recorded:
            self.refused += 1
            self.lost_work += now - attempt.begun
        else:
            self.recorded.append(attempt.cell)
        del self.running[attempt.node]
        self.idle.add(attempt.node)

    def _lose(self, now: float, node: int) -> None:
        """A node is lost with its cell, or goes out of sight."""
        self.losses += 1
        unseen = self.chance[node].random() < self.cluster.unseen
        if node in self.running:
            which = self.running[node]
            self._later(now + self.cluster.noticed, "notice", which)
            self.attempts[which].seen = False
            if unseen:  # it takes the next cell when it has ended this one
                self._lose_later(now, node)
                return
            attempt = self.attempts[which]
            attempt.alive = False
            self.lost_work += self._save(now, attempt)
            del self.running[node]
        self.idle.discard(node)
        self._later(now + self.cluster.away, "return", node)

    def _notice(self, now: float, which: int) -> None:
        """The cell of a lost node waits again, in its place, unless a copy runs."""
        attempt = self.attempts[which]
        if attempt.alive:
            if attempt.cell in self.recorded:
                return
            self._save(now, attempt)
        others = (self.attempts[other] for other in self.running.values() if other != which)
        if any(other.seen and other.cell == attempt.cell for other in others):
            return
        queue = self._queue_of(attempt.node)
        heapq.heappush(self.waiting[queue], (self.rank[queue][attempt.cell], attempt.cell))

    def _return(self, now: float, node: int) -> None:
        self.idle.add(node)
        self._lose_later(now, node)
