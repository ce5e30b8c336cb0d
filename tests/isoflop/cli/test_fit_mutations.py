"""Damaged and odd run tables, by seed: a sane result, or one line and exit code 2."""

import bz2
import gzip
import json
import random
import sys

import numpy as np
import pytest

from isoflop.cli.main import main
from tests.isoflop.cli.test_fit import BUDGETS, TRUTH, grid, text

MUTATIONS = 300
ROWS = grid(BUDGETS)
PLAIN = text(ROWS)
BASES = {
    "comma": PLAIN.encode(),
    "semicolon": PLAIN.replace(",", ";").replace(".", ",").encode(),
    "tab": PLAIN.replace(",", "\t").encode(),
    "names": PLAIN.replace("C,N,D,L", "flops,params,tokens,val_loss").encode(),
    "lines": "\n".join(map(json.dumps, ROWS)).encode(),
    "json": json.dumps(ROWS, indent=1).encode(),
    "gzip": gzip.compress(PLAIN.encode(), mtime=0),
    "bz2": bz2.compress(PLAIN.encode()),
    "UTF-16": PLAIN.encode("utf-16"),
}
CELLS = (
    *("", "nan", "inf", "-1", "0", "1e400", "1e-400", "abc", "1_000", "1,5", "1.5B", "3\u0665"),
    *("\u00bd", "true", "null", "{}", "[", '"', "'", "#", "1e", "0x10", "=1+1", "\x00", "\x1b[31m"),
    *("9" * 5000, "1.2.3", "--", "N", "1e308", "5e-324", "\u22125", "12%", "1/3", "tensor(2.5)"),
)
HEADERS = ("N", "D", "L", "C", "loss", "params", "N (M)", "ppl", "", "E", "seed", "run", "n", "x")
OPTIONS = (
    *[[]] * 8,
    *(["--law", "chinchilla-isoflop"], ["--law", "frontier"], ["--law", "frontier", "--best"]),
    *(["--law", "chinchilla-envelope"], ["--best"], ["--at", "1e23"], ["--holdout", "1e20"]),
    *(["--fix", "E=1.9"], ["--delta", "1e-3"], ["--bootstrap", "5"], ["--tie", "A=B"]),
    *(["--law", "joint-moe"], ["--column", "seed=L"], ["--column", "L=N"], ["--fix", "alpha=9"]),
    *(["--at", "x"], ["--holdout", "1e30"]),
)


def of_bytes(rng, data):
    """A byte changed, some lost, some added, or the end lost."""
    data, at = bytearray(data), rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        data[at] = rng.randrange(256)
    elif kind == 1:
        del data[at : at + rng.choice([1, 5, 50])]
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.choice([1, 3]))
    else:
        del data[at:]
    return bytes(data)


def of_cells(rng, data):
    """A cell replaced, a row doubled or moved, a column lost, renamed, added or in another unit."""
    separator = next((mark for mark in "\t;," if mark.encode() in data.split(b"\n")[0]), ",")
    lines = [line.split(separator) for line in data.decode("latin-1").split("\n")]
    row = rng.choice(lines[1:-1])
    column = rng.randrange(len(row))
    kind = rng.randrange(11)
    if kind <= 1:
        row[column] = rng.choice(CELLS).encode("utf-8").decode("latin-1")
    elif kind == 2:
        lines.insert(rng.randrange(len(lines)), row)
    elif kind == 3:
        del row[column]
    elif kind == 4:
        lines[0][column % len(lines[0])] = rng.choice(HEADERS)
    elif kind == 5:
        rescale(lines[1:], column, rng.choice([1e-9, 1e-6, 1e3, 1e6, -1]))
    elif kind == 6:
        rescale([row], column, rng.choice([0.99, 1.02, 10, 0.1]))
    elif kind == 7:
        lines[1:] = rng.sample(lines[1:], len(lines) - 1)
    elif kind == 8:
        lines.insert(rng.randrange(len(lines)), rng.choice([["# a comment"], [""], [" "]]))
    elif kind == 9:
        lines.remove(row)
    else:
        for line in lines[:-1]:
            line.append(rng.choice(CELLS[:6]) if line is not lines[0] else "wandb_id")
    return "\n".join(separator.join(line) for line in lines).encode("latin-1")


def rescale(lines, column, factor):
    for line in lines:
        try:
            line[column] = repr(float(line[column]) * factor)
        except (ValueError, IndexError):
            continue


def mutated(seed):
    rng = random.Random(seed)
    form = rng.choice(sorted(BASES))
    packed = form in ("gzip", "bz2", "UTF-16")
    mutate = of_bytes if packed or rng.random() < 0.2 else of_cells
    return mutate(rng, BASES[form]), rng.choice(OPTIONS)


def is_sane(out, data, options):
    """A fit that says it converged is known, and a single odd row did not make another law."""
    result = json.loads(out)
    intervals = [*result["intervals"].values(), *result["derived_intervals"].values()]
    if result["status"] != "converged":
        return True
    if not np.isfinite(np.array(intervals, dtype=float)).all():
        return False
    if result["law"] != "chinchilla" or result["n_points"] < 30 or "--tie" in options:
        return True
    return all(abs(result["params"][name] - TRUTH[name]) < 0.03 for name in ("alpha", "beta"))


@pytest.mark.parametrize("start", range(0, MUTATIONS, 50))
def test_a_damaged_table_gives_a_sane_law_or_one_line(start, tmp_path, monkeypatch, capsys):
    path = tmp_path / "runs"
    outcomes = {0: 0, 2: 0}
    for seed in range(start, start + 50):
        data, options = mutated(seed)
        path.write_bytes(data)
        monkeypatch.setattr(sys, "argv", ["isoflop", "fit", str(path), "--json", *options])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            pytest.fail(f"seed {seed}, {options}: {error!r}")
        out, err = capsys.readouterr()
        assert code in outcomes, (seed, options, code)
        outcomes[code] += 1
        if code == 2:
            assert (out, err.count("\n")) == ("", 1), (seed, options, err)
        else:
            assert is_sane(out, data, options), (seed, options, out)
    assert min(outcomes.values()) > 3  # mutations are neither all harmless nor all fatal
