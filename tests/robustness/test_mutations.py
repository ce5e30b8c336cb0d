"""Damaged input of every kind ends well, or in one line and exit code 2.

A few dozen of each kind run with the tests; `tox -e robustness` runs a thousand and more.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isoflop.results.record import write_record
from tests.bench.cells import make_record
from tests.robustness.mutate import mutate, mutate_json
from tests.robustness.program import Outcome, run

SUITE = """description = "tiny"
[corpus]
source = "text.txt"
vocabulary = 300
validation = 0.2
[training]
context = 16
batch = 4
validation_tokens = 256
[sizes]
a = { width = 8, depth = 1, heads = 1 }
b = { width = 16, depth = 1, heads = 1 }
[[budgets]]
flops = 4e8
sizes = ["a", "b"]
[transfer]
width = 8
[tune]
sizes = ["a"]
budget = 4e8
factors = [0.5, 1.0]
[variants]
dense = { layer = "dense", learning_rate = 1e-2 }
moe = { layer = "moe", learning_rate = 1e-2, options = { granularity = 2, expansion = 2 } }
"""


FIT_OPTIONS: tuple[tuple[str, ...], ...] = (
    (), (), (), (), ("--best",), ("--at", "1e21"), ("--holdout", "1e20"), ("--fix", "E=1.7"),
    ("--tie", "alpha=beta"), ("--bootstrap", "5"), ("--delta", "1e-3"), ("--column", "L=C"),
)  # fmt: skip


def corpus() -> str:
    generator = np.random.default_rng(0)
    words = "the of a model loss scale data token layer width expert key value".split()
    texts = [" ".join(generator.choice(words, 60)) for _ in range(60)]
    return "".join(f"{text}.\n<|endoftext|>\n" for text in texts)


def table() -> str:
    lines = ["C,N,D,L"]
    for C in (1e18, 1e19, 1e20):
        for N in C**0.5 / 10 * 2.0 ** np.arange(-2, 3):
            D = C / 6 / N
            lines.append(f"{C:g},{N:.6g},{D:.6g},{1.9 + 520 * N**-0.345 + 1900 * D**-0.36:.6g}")
    return "\n".join(lines) + "\n"


def with_separator(separator: str, point: str = ".") -> Callable[[str], tuple[str, str]]:
    return lambda text: ("table.csv", text.replace(",", separator).replace(".", point))


def as_json(text: str) -> tuple[str, str]:
    return "table.json", json.dumps(rows_of(text))


def as_json_lines(text: str) -> tuple[str, str]:
    return "table.jsonl", "".join(json.dumps(row) + "\n" for row in rows_of(text))


def in_millions(text: str) -> tuple[str, str]:
    lines = [f"{row['C']:g},{row['N'] / 1e6:.6g},{row['D']},{row['L']}" for row in rows_of(text)]
    return "table.csv", "\n".join(["flops,params (M),tokens,loss", *lines, ""])


def rows_of(text: str) -> list[dict[str, float]]:
    rows = csv.DictReader(io.StringIO(text))
    return [{key: float(value) for key, value in row.items()} for row in rows]


TABLES: tuple[Callable[[str], tuple[str, str]], ...] = (
    with_separator(","), with_separator("\t"), with_separator(" "), with_separator(";", ","),
    with_separator("|"), as_json, as_json_lines, in_millions,
)  # fmt: skip


def a_suite(folder: Path, r: random.Random) -> tuple[str, ...]:
    (folder / "suite.toml").write_bytes(mutate(SUITE, r))
    return ("plan", "suite.toml", "--json")


def a_table(folder: Path, r: random.Random) -> tuple[str, ...]:
    name, text = r.choice(TABLES)(table())
    (folder / name).write_bytes(mutate(text, r))
    law = r.choice(["chinchilla", "chinchilla-isoflop", "frontier"])
    return ("fit", name, "--law", law, *r.choice(FIT_OPTIONS), "--json")


def a_record(folder: Path, r: random.Random) -> tuple[str, ...]:
    path = write_record(folder / "run" / "records", make_record())
    path.write_bytes(mutate_json(path.read_text(), r))
    return r.choice([("show", str(path)), ("report", "run")])


def an_option(folder: Path, r: random.Random) -> tuple[str, ...]:
    text = r.choice(["granularity=2", "expansion=4", "ratio=2.5", "output_norm=false"])
    return ("lint", "moe", "--option", mutate(text, r).decode("utf-8", "replace").replace("\0", ""))


KINDS: dict[str, Callable[[Path, random.Random], tuple[str, ...]]] = {
    "suite": a_suite,
    "table": a_table,
    "record": a_record,
    "option": an_option,
}


def insane(outcome: Outcome) -> str:
    """What cannot be in the JSON that a verb prints: no JSON, or numbers that are none."""
    if outcome.code:
        return ""
    try:
        json.loads(outcome.out, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError) as error:
        return f"not JSON as everybody reads it: {error!r}"
    return ""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_ends_well_or_in_one_line(
    kind: str, tmp_path: Path, robustness: int, counted: Callable[..., None]
) -> None:
    faults, accepted = [], 0
    for seed in range(robustness):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "text.txt").write_text(corpus())
        call = KINDS[kind](folder, random.Random(f"{kind} {seed}"))
        outcome = run(folder, *call)
        fault = outcome.fault or ("--json" in call and insane(outcome))
        accepted += outcome.code == 0 and not fault
        if fault:
            faults.append(f"seed {seed}: isoflop {' '.join(call)[:200]}: {fault}")
    counted(f"damaged {kind}", tried=robustness, accepted=accepted, faults=len(faults))
    assert not faults, f"{len(faults)} of {robustness}:\n" + "\n".join(faults)
