"""How copies of experts come into memory: from a file, or over a link that is simulated."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from isoflop.bench.decoding.expert_cache import Place
from isoflop.bench.decoding.expert_file import ExpertFile, Slots


class FileLink:
    """Reads a file: at once what a layer waits for, in a thread of its own what is prefetched.

    Args:
        cold: after each token the system is asked to forget the file's pages, outside of the
            measured time; else it keeps what it likes, which is all of a small file.
    """

    def __init__(self, file: ExpertFile, cold: bool) -> None:
        self.file, self.cold = file, cold
        self.waited = 0.0  # seconds in which nothing was computed
        self.bytes = 0
        self.thread = ThreadPoolExecutor(1)
        self.pending: dict[tuple[int, int], Future[int]] = {}  # by cache and slot

    def now(self) -> float:
        """Seconds, since some moment."""
        return time.perf_counter()

    def read(self, place: Place, slots: Slots) -> None:
        """Read an expert into its slot, and wait for it."""
        self.wait(place)  # a prefetch may still be writing there
        start = time.perf_counter()
        self.bytes += self.file.read(*place.key, slots.precision, slots.views[place.slot])
        self.waited += time.perf_counter() - start

    def prefetch(self, place: Place, slots: Slots) -> None:
        """Begin to read an expert into its slot."""
        self.wait(place)
        self.bytes += self.file.layout.bytes_of(slots.precision)
        self.pending[place.level, place.slot] = self.thread.submit(
            self.file.read, *place.key, slots.precision, slots.views[place.slot]
        )

    def wait(self, place: Place) -> None:
        """Wait until what is being read into a slot is there."""
        future = self.pending.pop((place.level, place.slot), None)
        if future is not None:
            start = time.perf_counter()
            future.result()
            self.waited += time.perf_counter() - start

    def end_token(self) -> None:
        """Nothing more is read for this token."""
        if self.cold:
            self.file.drop_pages()

    def close(self) -> None:
        """Wait for what is being read, and end the thread."""
        self.thread.shutdown()


class SimulatedLink(FileLink):
    """A link of a given speed, in the time of a clock that leaves out the reads themselves.

    A read takes latency + bytes / bandwidth and begins when the one before it has ended; what is
    computed meanwhile takes the time that it really takes.

    Args:
        bandwidth: bytes per second.
        latency: seconds of each read.
    """

    def __init__(self, file: ExpertFile, bandwidth: float, latency: float) -> None:
        super().__init__(file, cold=False)
        self.bandwidth, self.latency = bandwidth, latency
        self.shift = 0.0  # of this clock from the real one
        self.free = 0.0  # when the link will have read all that was asked for
        self.ready: dict[tuple[int, int], float] = {}

    def now(self) -> float:
        return time.perf_counter() + self.shift

    def read(self, place: Place, slots: Slots) -> None:
        self._until(self._read(place, slots))

    def prefetch(self, place: Place, slots: Slots) -> None:
        self.ready[place.level, place.slot] = self._read(place, slots)

    def wait(self, place: Place) -> None:
        self._until(self.ready.pop((place.level, place.slot), 0.0))

    def _read(self, place: Place, slots: Slots) -> float:
        """Read, without that time passes. Returns when the link will have done it."""
        self.wait(place)
        start = time.perf_counter()
        size = self.file.read(*place.key, slots.precision, slots.views[place.slot])
        self.shift -= time.perf_counter() - start
        self.bytes += size
        self.free = max(self.now(), self.free) + self.latency + size / self.bandwidth
        return self.free

    def _until(self, moment: float) -> None:
        gap = moment - self.now()
        if gap > 0:
            self.shift += gap
            self.waited += gap
