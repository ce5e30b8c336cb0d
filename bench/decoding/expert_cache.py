"""Which experts are in memory, in which precision, and which has to go: HOBBIT's cache.

After HOBBIT (arXiv 2411.01433). Only the bookkeeping is here, so that a trace of routers can be
run through it without weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

HIGH, LOW = 0, 1  # the two caches
Key = tuple[int, int]  # layer, counted among those with experts, and expert


@dataclass(frozen=True)
class Policy:
    """How a cache is run. The defaults are LRU with one precision."""

    high: int  # slots for copies of high precision, shared by all layers
    low: int = 0  # of low precision
    # An expert whose larger gates have a share of at most t1 is wanted in high precision, up to t2
    # in low, and above it not at all. What is in memory already is used as it is.
    t1: float = 1.0
    t2: float = 1.0
    # w1 to w4: of last use, uses, uses in high precision, and nearness of the layer. None: LRU
    weights: tuple[float, float, float, float] | None = None
    depth: int = 0  # layers ahead that are prefetched at most
    load_all: bool = False  # reads every expert of each layer when it is reached, and keeps none

    def check(self, experts: int, chosen: int) -> None:
        """Check that it can serve a layer.

        Raises:
            ValueError: a cache is too small for what a token needs at once, or the thresholds are
                not 0 <= t1 <= t2 <= 1.
        """
        if not 0 <= self.t1 <= self.t2 <= 1:
            raise ValueError(f"thresholds must be 0 <= t1 <= t2 <= 1, not {self.t1}, {self.t2}")
        needed = experts if self.load_all else chosen
        if self.high < needed:
            raise ValueError(
                f"{self.high} slots of high precision are too few: a layer needs {needed} at once"
            )
        if self.t1 < self.t2 and self.low < chosen - 1:
            raise ValueError(
                f"{self.low} slots of low precision are too few: a layer may need {chosen - 1} at "
                "once"
            )


@dataclass
class Counts:
    """What happened so far."""

    uses: int = 0  # experts that tokens chose
    hits: int = 0  # of which were in memory, or on their way, when their layer was reached
    high_misses: int = 0
    low_misses: int = 0
    skips: int = 0  # of score above t2 and not in memory: left out
    low_uses: int = 0  # computed from a copy of low precision
    evictions: int = 0
    prefetches: int = 0
    prefetches_used: int = 0

    @property
    def hit_rate(self) -> float:
        """The share of hits among what tokens chose."""
        return self.hits / max(1, self.uses)


@dataclass(frozen=True)
class Place:
    """An expert in a slot of a cache."""

    key: Key
    level: int  # HIGH or LOW
    slot: int


@dataclass
class _Uses:
    """How an expert was used in this sequence."""

    last: int = 0  # token, counted from 1
    count: int = 0
    high: int = 0  # uses for which high precision was wanted


@dataclass
class _Level:
    """A cache of one precision; `slots` is in the order of last use."""

    slots: dict[Key, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    pinned: set[Key] = field(default_factory=set)  # of the layer that is being computed
    prefetched: set[Key] = field(default_factory=set)  # and not yet used


class ExpertCache:
    """High and low caches of fixed slots, with HOBBIT's eviction or LRU.

    The expert of least w1 R/T + w2 F/T + w3 H/T + w4 (1 - ((l_e - l_now + L) mod L) / L) goes: R is
    the token that used it last, F and H count its uses and those for which high precision was
    wanted, T is the current token, and L the number of layers. Among equals the least recently used
    goes. R, F and H begin anew with each sequence; the contents stay.
    """

    def __init__(self, policy: Policy, layers: int, experts: int, chosen: int) -> None:
        policy.check(experts, chosen)
        self.policy, self.layers, self.experts = policy, layers, experts
        self.levels = tuple(
            _Level(free=list(range(count))[::-1]) for count in (policy.high, policy.low)
        )
        self.used: dict[Key, _Uses] = {}
        self.token = 0
        self.counts = Counts()

    def fill(self) -> list[Place]:
        """Put in all experts, where all have room: what is to be read before the first token."""
        if self.policy.load_all or self.policy.high < self.layers * self.experts:
            return []
        keys = [(layer, e) for layer in range(self.layers) for e in range(self.experts)]
        return [self._place(key, HIGH, 0) for key in keys if key not in self.levels[HIGH].slots]

    def begin_sequence(self) -> None:
        """Forget uses; keep the contents."""
        self.used.clear()
        self.token = 0

    def begin_token(self) -> None:
        """Count a token."""
        self.token += 1
        for level in self.levels:
            level.prefetched.clear()

    def use(
        self, layer: int, experts: Sequence[int], scores: Sequence[float]
    ) -> tuple[list[Place], list[Place | None]]:
        """A token reaches a layer.

        Args:
            experts: that it chose.
            scores: the share of the gates that larger ones have.
        Returns:
            What must be read first, and where each expert then is; None if it is left out.
        """
        self.counts.uses += len(experts)
        if self.policy.load_all:
            self.counts.high_misses += len(experts)
            reads = [Place((layer, expert), HIGH, expert) for expert in range(self.experts)]
            return reads, [reads[expert] for expert in experts]
        keys = [(layer, expert) for expert in experts]
        levels = [self._level(key, score) for key, score in zip(keys, scores, strict=True)]
        for number, level in enumerate(self.levels):
            mine = {key for key, at in zip(keys, levels, strict=True) if at == number}
            level.pinned = mine  # what is read for one of them must not push out another
            self.counts.prefetches_used += len(level.prefetched & mine)
            level.prefetched = {key for key in level.prefetched if key[0] != layer}
        reads: list[Place] = []  # type: ignore[no-redef]
        places: list[Place | None] = []
        for key, at, score in zip(keys, levels, scores, strict=True):
            if at is None:
                self.counts.skips += 1
                places.append(None)
                continue
            place = self._touch(key, at)
            if place is None:
                place = self._place(key, at, layer)
                reads.append(place)
                self.counts.high_misses += at == HIGH
                self.counts.low_misses += at == LOW
            else:
                self.counts.hits += 1
            self.counts.low_uses += at == LOW
            uses = self.used.setdefault(key, _Uses())
            uses.last, uses.count = self.token, uses.count + 1
            uses.high += score <= self.policy.t1
            places.append(place)
        return reads, places

    def prefetch(
        self, layer: int, guesses: Sequence[tuple[Sequence[int], Sequence[float]]]
    ) -> list[Place]:
        """What to read ahead, in a layer whose experts are in memory.

        The guesses of the nearest of the next layers that lacks one are read, and cannot be evicted
        before they are used or their token ends. Nothing that the current layer uses makes room.

        Args:
            guesses: experts and scores that each of the next layers is expected to choose.
        """
        for ahead, (experts, scores) in enumerate(guesses[: self.policy.depth], 1):
            reads = []
            for expert, score in zip(experts, scores, strict=True):
                key = (layer + ahead, expert)
                at = self._level(key, score)
                if at is None or key in self.levels[at].slots or not self._has_room(at):
                    continue
                reads.append(self._place(key, at, layer))
                self.levels[at].prefetched.add(key)
                self.counts.prefetches += 1
            if reads:
                return reads
        return []

    def _level(self, key: Key, score: float) -> int | None:
        """The cache that serves an expert, from its contents or by a read; None: left out."""
        if score <= self.policy.t1 or key in self.levels[HIGH].slots:
            return HIGH
        if score <= self.policy.t2 or key in self.levels[LOW].slots:
            return LOW
        return None

    def _touch(self, key: Key, at: int) -> Place | None:
        slots = self.levels[at].slots
        if key not in slots:
            return None
        slots[key] = slots.pop(key)  # now the most recently used
        return Place(key, at, slots[key])

    def _has_room(self, at: int) -> bool:
        level = self.levels[at]
        return bool(level.free or level.slots.keys() - level.pinned - level.prefetched)

    def _place(self, key: Key, at: int, layer: int) -> Place:
        """Give an expert a slot, a free one or that of the one that goes."""
        level = self.levels[at]
        if not level.free:
            kept = level.pinned | level.prefetched
            rest = [k for k in level.slots if k not in kept]
            # What a layer needs now comes before what a later one may need.
            rest = rest or [k for k in level.slots if k not in level.pinned]
            gone = min(rest, key=lambda k: self._priority(k, layer))
            level.prefetched.discard(gone)
            level.free.append(level.slots.pop(gone))
            self.counts.evictions += 1
        level.slots[key] = level.free.pop()
        return Place(key, at, level.slots[key])

    def _priority(self, key: Key, layer: int) -> float:
        if self.policy.weights is None:
            return 0.0  # all equal: the order of last use decides
        last, count, high, near = self.policy.weights
        uses, token = self.used.get(key, _Uses()), max(1, self.token)
        distance = (key[0] - layer) % self.layers
        of_uses = last * uses.last + count * uses.count + high * uses.high
        return of_uses / token + near * (1 - distance / self.layers)
