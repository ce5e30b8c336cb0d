"""Methods on equal memory, and what their measurements may be used for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.bench.decoding.expert_cache import Policy
from isoflop.bench.decoding.expert_file import Layout
from isoflop.bench.decoding.measure import (
    METHODS,
    Setting,
    calibration_windows,
    held_out_windows,
    measure,
    objection,
    policy_of,
)
from isoflop.bench.decoding.routed import routed_blocks
from tests.models.test_decoder import T, V, build

LAYOUT = Layout(layers=3, experts=32, d_model=64, d_expert=32, precisions=("fp32", "int4"))
WINDOWS = np.random.default_rng(6).integers(V, size=(3, T + 1))


@pytest.mark.parametrize("cache", [1.5, 2, 3])
@pytest.mark.parametrize("low", ["int8", "int4", "int2"])
def test_a_mixed_cache_has_no_more_bytes_and_more_experts(cache: float, low: str) -> None:
    setting = Setting(cache=cache, low=low)
    lru, mixed = (policy_of(name, setting, LAYOUT, 4) for name in ("lru", "hobbit"))
    high_bytes, low_bytes = LAYOUT.bytes_of("fp32"), LAYOUT.bytes_of(low)
    assert lru.high == cache * 3 * 4
    unused = lru.high * high_bytes - mixed.high * high_bytes - mixed.low * low_bytes
    assert 0 <= unused < low_bytes
    assert mixed.high + mixed.low > lru.high
    assert (mixed.t1, mixed.t2, mixed.depth) == (0.6, 0.9, 1)


def test_the_other_methods() -> None:
    assert policy_of("memory", Setting(), LAYOUT, 4) == Policy(high=96)
    assert policy_of("load-all", Setting(), LAYOUT, 4) == Policy(high=32, load_all=True)
    assert policy_of("lru", Setting(cache=99), LAYOUT, 4) == Policy(high=96)  # not more than all
    # With one expert a token nothing is mixed: all of the memory is for exact copies.
    assert policy_of("hobbit", Setting(), LAYOUT, 1) == Policy(high=6, depth=1)


def row(**changes: Any) -> dict[str, Any]:
    good = {"link": "cold", "experts_bytes": 2e9, "resident": 0.0, "waiting": 0.5}
    return good | changes


def test_speed_is_claimed_only_of_large_experts_that_are_read_and_waited_for() -> None:
    assert objection(row()) is None
    assert objection(row(link="simulated 1 GB/s + 0.1 ms", experts_bytes=1)) is None
    assert "experts of 3 MB, not 1 GB" in str(objection(row(experts_bytes=3e6)))
    for resident in (None, 0.5):
        assert "in memory" in str(objection(row(resident=resident)))
    assert "10% of the time waiting" in str(objection(row(waiting=0.1)))


def test_windows_are_of_the_text_in_order(tmp_path: Path) -> None:
    text = np.arange(1000)
    held_out = held_out_windows(text, 16, 40)
    assert held_out.shape == (4, 17)  # 40 tokens take three windows, and one to warm up
    assert held_out[:, 0].tolist() == [0, 16, 32, 48]
    assert len(held_out_windows(text, 16, 10**6)) == 62
    calibration = calibration_windows(text, 16)
    assert calibration.shape == (8, 17)
    assert calibration[0, 0] == 0
    assert calibration[-1, -1] == 999


def test_pages_are_in_memory_where_the_link_says_so(tmp_path: Path) -> None:
    rows = measure(
        build("moe", granularity=4), WINDOWS, WINDOWS, tmp_path, Setting(), ["lru"],
        ["cold", "warm", "simulated"],
    )  # fmt: skip
    cold, warm, simulated = (row["resident"] for row in rows)
    if cold is None:
        pytest.skip("this file system does not say")
    # A request: a file system in memory does not follow it, and a page in use can stay.
    assert cold == 1 or cold < 0.1
    assert warm == simulated == 1


def test_a_chosen_link_and_method_alone(tmp_path: Path) -> None:
    model = build("moe", granularity=4)
    rows = measure(model, WINDOWS, WINDOWS, tmp_path, Setting(), ["lru"], ["cold"])
    assert [(r["method"], r["link"]) for r in rows] == [("lru", "cold")]
    assert rows[0]["tokens"] == 2 * T  # the first window is not measured
    experts = sum(b.up_EDF.numel() + b.down_EFD.numel() for b in routed_blocks(model))
    assert rows[0]["experts_bytes"] == 4 * experts
    assert list(tmp_path.iterdir()) == []
    for name in METHODS[1:]:
        with pytest.raises(ValueError, match="1 windows of text: 2 or more"):
            measure(model, WINDOWS[:1], WINDOWS, tmp_path, Setting(), [name])
    with pytest.raises(ValueError, match="no method 'fifo'"):
        measure(model, WINDOWS, WINDOWS, tmp_path, Setting(), ["fifo"])
    assert list(tmp_path.iterdir()) == []
