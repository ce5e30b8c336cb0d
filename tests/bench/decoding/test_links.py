"""The clock of a simulated link, on a real clock that is moved by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from isoflop.bench.decoding import links
from isoflop.bench.decoding.expert_cache import HIGH, Place


def test_reads_follow_each_other_and_computing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = [100.0]
    monkeypatch.setattr(links, "time", SimpleNamespace(perf_counter=lambda: real[0]))

    def read(*_: Any) -> int:
        real[0] += 5  # seconds that the disk really took: they count for nothing
        return 100

    file: Any = SimpleNamespace(read=read)
    slots: Any = SimpleNamespace(precision="fp32", views=[None] * 3)
    first, second, third = (Place((0, expert), HIGH, expert) for expert in range(3))
    link = links.SimulatedLink(file, bandwidth=100, latency=1)  # 2 seconds each
    start = link.now()

    def passed() -> float:
        return link.now() - start

    link.prefetch(first, slots)
    assert passed() == 0
    real[0] += 0.5  # computing
    link.read(second, slots)  # begins when the first is there
    assert passed() == 4
    assert link.waited == 3.5
    link.wait(first)
    assert passed() == 4
    link.prefetch(third, slots)
    real[0] += 0.5
    link.wait(third)
    assert passed() == 6
    assert link.waited == 5
    link.wait(third)  # it is there
    real[0] += 10
    link.prefetch(first, slots)  # the link has been idle
    link.wait(first)
    assert passed() == 18
    assert link.bytes == 400
