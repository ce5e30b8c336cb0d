"""What decoding with offloaded experts costs: time, reads and loss, of methods on equal memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from isoflop.bench.data import windows_at
from isoflop.bench.decoding.decode import one_thread
from isoflop.bench.decoding.expert_cache import Counts, Policy
from isoflop.bench.decoding.expert_file import ExpertFile, Layout, write_experts
from isoflop.bench.decoding.links import FileLink, SimulatedLink
from isoflop.bench.decoding.offload import OffloadedEngine
from isoflop.bench.decoding.routed import routed_blocks
from isoflop.bench.decoding.trace import Fit, fit_weights, recall_by_depth, record_trace
from isoflop.models import Decoder

METHODS = ("memory", "load-all", "lru", "hobbit")
LINKS = ("cold", "warm", "simulated")
WARM_UP = 1  # windows that fill the cache and are not measured
# Below these a difference in speed is one of the system's caches and of Python, not of reads.
LARGE = 1e9  # bytes of experts
WAITING = 0.2  # share of the time
SINGLE = (
    "each token uses one expert: its score is 0, so that none is read in low precision or left "
    "out, and HOBBIT's mixed precision does nothing"
)


@dataclass(frozen=True)
class Setting:
    """What all methods share, and what HOBBIT adds."""

    cache: float = 2.0  # memory for experts, over that of the experts that a token uses
    high: str = "fp32"
    low: str = "int4"
    low_share: float = 0.25  # of the memory, for copies of low precision (hobbit)
    t1: float = 0.6
    t2: float = 0.9
    depth: int = 1  # layers ahead that are prefetched at most (hobbit)
    bandwidth: float = 1e9  # of the simulated link, bytes per second
    latency: float = 1e-4  # seconds


def policy_of(method: str, setting: Setting, layout: Layout, chosen: int) -> Policy:
    """The cache of a method, without the weights of its eviction score.

    All but `memory` and `load-all` have the same bytes.

    Raises:
        ValueError: an unknown method, or the memory is too small for it.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; known: {', '.join(METHODS)}")
    every = layout.layers * layout.experts
    slots = min(every, round(setting.cache * layout.layers * chosen))
    if method == "memory":
        policy = Policy(high=every)
    elif method == "load-all":
        policy = Policy(high=layout.experts, load_all=True)
    elif method == "lru":
        policy = Policy(high=slots)
    elif chosen == 1:
        policy = Policy(high=slots, depth=setting.depth)
    else:
        for_low = int(slots * setting.low_share)
        ratio = layout.bytes_of(setting.high) / layout.bytes_of(setting.low)
        policy = Policy(
            high=slots - for_low,
            low=int(for_low * ratio),
            t1=setting.t1,
            t2=setting.t2,
            depth=setting.depth,
        )
    policy.check(layout.experts, chosen)
    return policy


def held_out_windows(validation: np.ndarray, context: int, tokens: int) -> np.ndarray:
    """Windows for `measure`, those to warm up on included: fewer where the text is short."""
    wanted = -(-tokens // context) + WARM_UP
    count = min(wanted, (len(validation) - 1) // context)
    return windows_at(validation, np.arange(count) * context, context)


def calibration_windows(train: np.ndarray, context: int, count: int = 8) -> np.ndarray:
    """Windows at even distances over the training text."""
    starts = np.linspace(0, len(train) - context - 1, count).astype(np.int64)
    return windows_at(train, starts, context)


def decode_windows(engine: OffloadedEngine, windows: np.ndarray) -> dict[str, Any]:
    """Decode given text token by token, so that every method decodes the same.

    Args:
        windows: [windows, context + 1] token ids; the first WARM_UP are not measured.
    Returns:
        Tokens per second, milliseconds per token, what the cache did, and the loss in nats per
        token of the very logits that were timed.
    """
    link, seconds, losses = engine.link, [], []
    with one_thread():
        for number, window in enumerate(windows.tolist()):
            if number == WARM_UP:
                engine.cache_of_experts.counts = Counts()
                link.bytes, link.waited = 0, 0.0
            engine.clear()
            for token, target in pairwise(window):
                start = link.now()
                logits = engine.step(token)
                passed = link.now() - start
                link.end_token()
                if number >= WARM_UP:
                    seconds.append(passed)
                    losses.append(float(F.cross_entropy(logits, torch.tensor(target))))
    counts, total = engine.cache_of_experts.counts, sum(seconds)
    return {
        "tokens": len(seconds),
        "tokens_per_second": len(seconds) / total,
        "p50_ms": 1e3 * float(np.quantile(seconds, 0.5)),
        "p95_ms": 1e3 * float(np.quantile(seconds, 0.95)),
        "waiting": link.waited / total,
        "hit_rate": counts.hit_rate,
        "low_precision": counts.low_uses / counts.uses,
        "left_out": counts.skips / counts.uses,
        "evictions": counts.evictions,
        "bytes_per_token": link.bytes / len(seconds),
        "nats_per_token": float(np.mean(losses)),
    }


def measure(
    model: Decoder,
    windows: np.ndarray,
    calibration: np.ndarray,
    folder: Path,
    setting: Setting,
    methods: Sequence[str] = METHODS,
    links: Sequence[str] = LINKS,
) -> list[dict[str, Any]]:
    """Decode with each method over each link. A row for each; `memory` reads nothing and has one.

    Args:
        windows: held-out text, [windows, context + 1]; see `decode_windows`.
        calibration: other text, for the weights of the eviction score.
        folder: for the file of experts, which is not kept; on the disk that is to be measured.
    Raises:
        ValueError: the model or the setting do not fit, or the text is too short.
        OSError: the folder is full or not writable.
    """
    if len(windows) <= WARM_UP:
        raise ValueError(f"{len(windows)} windows of text: {WARM_UP + 1} or more are needed")
    blocks = routed_blocks(model)
    chosen, path = blocks[0].chosen, folder / f".experts-{time.time_ns()}"
    try:
        precisions = tuple(dict.fromkeys((setting.high, setting.low)))
        layout = write_experts(path, blocks, precisions)
        every = layout.layers * layout.experts
        policies = {name: policy_of(name, setting, layout, chosen) for name in methods}
        rows = []
        for name, policy in policies.items():
            fit, recall = None, None
            if name == "hobbit":
                trace = record_trace(model, calibration[:, :-1])
                ratio = layout.bytes_of(setting.low) / layout.bytes_of(setting.high)
                fit = fit_weights(trace, policy, ratio)
                policy = replace(policy, weights=fit.weights)
                recall = recall_by_depth(record_trace(model, windows[:, :-1]))
            for link in links if name != "memory" else ["none"]:
                measured = _decode(model, path, policy, setting, link, windows)
                rows.append(
                    {
                        "experts": layout.experts,
                        "experts_per_token": chosen,
                        "method": name,
                        "link": _label(link, setting),
                        "experts_bytes": every * layout.bytes_of(setting.high),
                        "cache_bytes": policy.high * layout.bytes_of(setting.high)
                        + policy.low * layout.bytes_of(setting.low),
                    }
                    | measured
                    | _of_hobbit(fit, recall)
                )
        return rows
    finally:
        path.unlink(missing_ok=True)


def objection(row: dict[str, Any]) -> str | None:
    """Why a row's speed says nothing of reading from a disk; None if it does."""
    if row["link"] not in ("cold", "warm"):
        return None
    if row["experts_bytes"] < LARGE:
        return f"experts of {row['experts_bytes'] / 1e6:,.3g} MB, not {LARGE / 1e9:g} GB or more"
    if row["resident"] is None or row["resident"] > 0.01:
        return "pages of the file were in memory"
    if row["waiting"] < WAITING:
        return f"{row['waiting']:.0%} of the time waiting on reads, not {WAITING:.0%} or more"
    return None


def _decode(
    model: Decoder,
    path: Path,
    policy: Policy,
    setting: Setting,
    link: str,
    windows: np.ndarray,
) -> dict[str, Any]:
    with closing(ExpertFile(path)) as file:
        if link == "cold":
            file.drop_pages()
        else:
            file.keep_pages()  # a cold run before it has dropped them
        before = file.resident()
        over = (
            SimulatedLink(file, setting.bandwidth, setting.latency)
            if link == "simulated"
            else FileLink(file, cold=link == "cold")
        )
        with closing(over):
            engine = OffloadedEngine(model, file, policy, over, setting.high, setting.low)
            measured = decode_windows(engine, windows)
        after = file.resident()
        # Of a cold run the last token's pages were asked to go, too.
        resident = None if before is None or after is None else max(before, after)
        return measured | {"resident": resident}


def _label(link: str, setting: Setting) -> str:
    if link != "simulated":
        return link
    return f"simulated {setting.bandwidth / 1e9:g} GB/s + {setting.latency * 1e3:g} ms"


def _of_hobbit(fit: Fit | None, recall: list[float | None] | None) -> dict[str, Any]:
    return {
        "prefetch_recall": recall,
        "eviction_weights": list(fit.weights) if fit else None,
        "cost_over_lru": fit.cost / fit.lru_cost if fit and fit.lru_cost else None,
    }
