"""Damaged suites and arguments: planned as they say, or refused in one line and exit code 2.

What is planned is asked for sense without the code under test, and one step of it is trained: what
`plan` accepts, `run` can do. Ten times as many cases as of the other kinds: each is quick.
"""

from __future__ import annotations

import json
import math
import random
import tomllib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import tomli_w
import torch

from isoflop.bench.cost import predict_bytes
from isoflop.bench.data import prepare
from isoflop.bench.plan import distinct_models, plan
from isoflop.bench.suite import load_suite
from isoflop.bench.train import train_cell
from tests.robustness.mutate import mutate
from tests.robustness.program import Outcome, run
from tests.robustness.test_mutations import SUITE, corpus

TIMES = 10
EXPERT_CHOICE = """ec = { layer = "moe_ec", learning_rate = 1e-2, options = { expansion = 4 } }
"""
VALUES = (
    "8", "", "sotu", "nowhere.jsonl", "text.txt", "docs.jsonl.gz", ".", "*.txt", "a/b", "moe_ec",
    True, False, 0, 1, 3, 8, 17, -1, 64, 1000, 10**6, 10**40, 0.5, 8.0, 1e-9, 1e9, 4e10, 1e30,
    1e308, math.inf, -math.inf, math.nan, [], [0], [0, 0], [1, 2], ["a"], ["a", "a"], {}, {"a": 1},
    [[1]],
)  # fmt: skip
KEYS = (
    ("corpus", "documents"), ("corpus", "text"), ("corpus", "config"), ("training", "micro_batch"),
    ("training", "schedule"), ("training", "warmup"), ("training", "decay"), ("training", "clip"),
    ("training", "beta2"), ("transfer", "exponent"), ("tune", "seeds"), ("seeds",), ("placement",),
    ("name",), ("variants", "dense", "options"), ("sizes", "a", "batch"), ("else",),
)  # fmt: skip
ARGUMENTS = ("--seeds", "--seeds", "--device", "--device", "--shard", "--json", "--x")
WORDS = ("0", "1", "2", "-1", "x", "", "1/2", "3/2", "h100", "cpu", "9" * 30, "1e3", "nan", "٣")


def one_value(table: dict, r: random.Random) -> None:
    """Replace, remove or add a value, or take that of another key."""
    places = list(paths(table))
    if r.random() < 0.3:
        path: tuple = r.choice(KEYS)
        target = table
        for key in path[:-1]:
            target = target.get(key, {}) if isinstance(target, dict) else {}
        if isinstance(target, dict):
            target[path[-1]] = r.choice(VALUES)
        return
    target, key = r.choice(places)
    if r.random() < 0.5:  # a number that may well do
        target, key = r.choice([(t, k) for t, k in places if type(t[k]) in (int, float)])
        target[key] = r.choice([2, 3, 4, 8, 0.5]) * target[key]
        if r.random() < 0.8 and abs(target[key]) < 2**40 and target[key] == int(target[key]):
            target[key] = int(target[key])
    elif r.random() < 0.15:
        del target[key]
    elif r.random() < 0.3:
        other, name = r.choice(places)
        target[key] = json.loads(json.dumps(other[name]))
    else:
        target[key] = r.choice(VALUES)


def paths(table: dict | list) -> list[tuple]:
    """Every place in a table where a value is."""
    keys = table.keys() if isinstance(table, dict) else range(len(table))
    places = [(table, key) for key in keys]
    for key in keys:
        if isinstance(table[key], dict | list):
            places += paths(table[key])
    return places


def damaged(r: random.Random) -> bytes:
    """A suite with one to three faults, most of them in its values."""
    text = SUITE + (EXPERT_CHOICE if r.random() < 0.5 else "")
    if r.random() < 0.3:
        return mutate(text, r)
    table = tomllib.loads(text)
    for _ in range(r.choice([1, 1, 2, 3])):
        one_value(table, r)
    return tomli_w.dumps(table).encode()


def options(r: random.Random) -> list[str]:
    chosen = []
    for name in r.sample(ARGUMENTS, r.choice([0, 0, 0, 0, 1, 2])):
        chosen += [name] if name == "--json" else [name, r.choice(WORDS)]
    return chosen


def senseless(outcome: Outcome, text: bytes) -> str:
    """What cannot be in a plan of this suite, counted anew from the file."""
    if outcome.code:
        return ""
    table = tomllib.loads(text.decode("utf-8-sig"))
    rows = json.loads(outcome.out, parse_constant=lambda name: 1 / 0)
    number = sum(
        len(list(product(b.get("variants") or table["variants"], b.get("sizes") or table["sizes"])))
        for b in table["budgets"]
    )
    if len(rows) % number:
        return f"{len(rows)} cells of {number} without seeds"
    keys = [(row["variant"], row["size"], row["budget"], row["seed"]) for row in rows]
    if len(set(keys)) < len(keys):
        return "a cell stands twice"
    for row in rows:
        size = table["sizes"][row["size"]]
        batch = size.get("batch", table["training"]["batch"])
        if row["tokens"] != row["steps"] * batch * table["training"]["context"]:
            return f"tokens are not steps x batch x context: {row}"
        if not all(0 < row[key] < 1e40 for key in ("tokens", "steps", "seconds", "memory_bytes")):
            return f"a figure that cannot be: {row}"
    return ""


def untrainable(folder: Path) -> str:
    """Why a step of a cell of an accepted suite cannot be trained."""
    suite = load_suite(str(folder / "suite.toml"))
    for cell in distinct_models(plan(suite, "suite.toml")):
        if predict_bytes(cell) > 2e8 or cell.training.validation_tokens > 1e5:
            continue
        tokens = prepare(suite.corpus)
        record = train_cell(replace(cell, steps=1), tokens, torch.device("cpu"), folder / "scratch")
        if record.status == "failed":
            return f"accepted, yet {cell.variant} at {cell.size.name} fails: {record.message}"
    return ""


@pytest.mark.timeout(7200)
def test_a_damaged_suite_is_planned_as_it_says_or_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    robustness: int,
    counted: Callable[..., None],
) -> None:
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(corpus())
    faults, accepted = [], 0
    for seed in range(TIMES * robustness):
        r = random.Random(f"suite value {seed}")
        text, arguments = damaged(r), options(r)
        (tmp_path / "suite.toml").write_bytes(text)
        call = ["plan", "suite.toml", "--json", *(a for a in arguments if a != "--json")]
        outcome = run(tmp_path, *call)
        fault = outcome.fault
        if not fault and not outcome.code:
            accepted += 1
            fault = senseless(outcome, text)
            if not fault and not arguments and "a/b" not in text.decode():
                fault = untrainable(tmp_path)
        if fault:
            faults.append(f"seed {seed}: isoflop {' '.join(call)[:200]}: {fault}")
    tried = TIMES * robustness
    counted("damaged suite values", tried=tried, accepted=accepted, faults=len(faults))
    assert 0 < accepted < tried
    assert not faults, f"{len(faults)} of {tried}:\n" + "\n".join(faults)
