"""Wrong arguments of every verb end well, or in one line and exit code 2.

Verbs and options are asked of the command line itself, so a new one is tried too.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from isoflop.bench import template
from isoflop.cli.main import app
from isoflop.results.record import write_record
from tests.bench.cells import make_record
from tests.robustness.mutate import WORDS
from tests.robustness.program import run
from tests.robustness.test_mutations import SUITE, corpus, table

TRAINS = ("run", "tune", "compare")  # long: tried less often, like what starts a process
LONG = (*TRAINS, "lint", "check", "submit")
RIGHT = {  # of arguments that have no default, or a default that trains for an hour
    "run": ["suite.toml"],
    "tune": ["suite.toml"],
    "plan": ["suite.toml"],
    "flops": ["suite.toml"],
    "compare": ["mine.py", "--suite", "suite.toml"],
    "lint": ["mine.py"],
    "fit": ["table.csv"],
    "show": ["record.json"],
    "report": ["folder"],
    "check": ["folder"],
    "eval": ["folder", "--data", "text.txt"],
    "submit": ["mine", "--from", "folder"],
    "new": ["new.py"],
}
VALUES = (
    *WORDS, "suite.toml", "table.csv", "record.json", "folder", "mine.py", "text.txt", ".", "..",
    "new.py", "x=1", "ratio=2", "ratio=nan", "C=L", "1/2", "2/1", "0/0", "cpu", "cuda", "h100",
    "local", "chinchilla", "frontier", "moe", "0.5", "1e-2", "1e18", "5", "-0.1", "--json", "--",
    "\u202e", "caf\udce9", "'", "~", "*", "%s", "{}",
)  # fmt: skip


def prepare(folder: Path) -> None:
    """What the verbs read."""
    (folder / "text.txt").write_text(corpus())
    (folder / "suite.toml").write_text(SUITE)
    (folder / "table.csv").write_text(table())
    shutil.copy(template.__file__, folder / "mine.py")
    write_record(folder, make_record()).rename(folder / "record.json")
    for seed in range(3):
        write_record(folder / "folder" / "records", make_record(cell=f"cell{seed}", seed=seed))


def arguments(r: random.Random) -> list[str]:
    """A verb with right arguments, and one to three wrong or odd ones among them."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    verbs = list(commands)
    verb = r.choices(verbs, [0.2 if verb in LONG else 1.0 for verb in verbs])[0]
    flags, options = [], []
    for parameter in commands[verb].params:
        if parameter.param_type_name == "option":
            names = [*parameter.opts, *parameter.secondary_opts]
            (flags if parameter.is_flag else options).extend(names)
    words = list(RIGHT.get(verb, []))
    for _ in range(r.choice([1, 1, 2, 3])):
        value = r.choice(VALUES).replace("\0", "")
        kind = r.randrange(6)
        if kind == 0 and words and verb not in TRAINS:
            words[r.randrange(len(words))] = value
        elif kind == 1:
            words.append(value)
        elif kind == 2 and flags:
            words.append(r.choice(flags))
        elif kind == 3 and options:
            words.append(f"{r.choice(options)}={value}")
        elif options:
            words += [r.choice(options), value]
    return [verb, *words]


@pytest.mark.timeout(7200)
def test_wrong_arguments_end_well_or_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    robustness: int,
    counted: Callable[..., None],
) -> None:
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    faults, accepted = [], 0
    for seed in range(robustness):
        folder = tmp_path / "cases" / str(seed)
        folder.mkdir(parents=True)
        prepare(folder)
        call = arguments(random.Random(f"arguments {seed}"))
        outcome = run(folder, *call)
        accepted += outcome.code == 0 and not outcome.fault
        if outcome.fault:
            faults.append(f"seed {seed}: isoflop {ascii(call)[:300]}: {outcome.fault}")
        shutil.rmtree(folder)
    counted("wrong arguments", tried=robustness, accepted=accepted, faults=len(faults))
    assert not faults, f"{len(faults)} of {robustness}:\n" + "\n".join(faults)
