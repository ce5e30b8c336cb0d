"""The suite `h100-lunch` from end to end on a CPU, at budgets divided by ten thousand, in pieces.

The variants, budgets and steps of the work are the suite's own; widths, context and tables are
smaller in proportion, so that a step of a divided budget is still one of many, and every budget has
one size and one seed. It takes minutes: `pytest --trials tests/bench/test_h100_lunch.py`.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from isoflop.bench.cost import DEVICES, predict_bytes
from isoflop.bench.plan import plan
from isoflop.bench.policy import schedule
from isoflop.bench.suite import load_suite
from isoflop.results.record import load_records

DIVISOR = 1e4
WORDS = "the a sailor whale sea saw sang of in under old green quick river stone and".split()


def small() -> dict[str, Any]:
    """The suite, for a CPU."""
    suite = load_suite("h100-lunch").model_dump(exclude_none=True, exclude={"name"})
    suite["corpus"] |= {"source": "text", "vocabulary": 300, "validation": 0.2}
    suite["training"] |= {"context": 32, "batch": 8, "validation_tokens": 2048}
    for shape in suite["sizes"].values():
        shape |= {"width": shape["width"] // 4, "heads": 1}
    for budget in suite["budgets"]:
        budget["flops"] /= DIVISOR
    for variant in suite["variants"].values():
        options = variant["options"]
        for name in ("n_experts", "n_slots"):
            if name in options:
                options[name] = round(options[name] ** 0.5 / 8) ** 2
        if "top_k" in options:
            options |= {"heads": 2, "top_k": 4, "d_key": 8}
    for budget in suite["budgets"]:
        budget["sizes"] = budget["sizes"][1:2]
    return suite


def prepare(folder: Path) -> Path:
    """Write the suite and its text, one file of a folder of them."""
    words = np.random.default_rng(0)
    lines = [" ".join(words.choice(WORDS, 60)) + "\n<|endoftext|>\n" for _ in range(3000)]
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "words.txt").write_text("".join(lines), encoding="utf-8")
    path = folder / "lunch.toml"
    path.write_text(tomli_w.dumps(small()), encoding="utf-8")
    return path


def isoflop(folder: Path, *arguments: str) -> str:
    """The output of a command run in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "isoflop", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_it_takes_about_twenty_five_minutes_of_an_h100() -> None:
    cells, device = plan(load_suite("h100-lunch"), "h100-lunch"), DEVICES["h100"]
    assert {cell.variant for cell in cells} == {
        "dense", "moe-g1", "moe-g4", "moe-g8", "pkm", "peer-n128", "peer-n256", "peer-n512",
    }  # fmt: skip
    layers = [cell for cell in cells if cell.variant != "dense"]
    assert {cell.budget for cell in layers} == {1e14, 3.2e14, 1e15}
    assert max(cell.options.get("n_experts", 0) for cell in cells) == 512**2
    assert 18 < schedule(cells, device).seconds / 60 < 30
    assert max(map(predict_bytes, cells)) < 0.2 * device.memory


def test_it_runs_from_end_to_end_in_pieces(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--trials"):
        pytest.skip("takes minutes; --trials asks for it")
    first, second = tmp_path / "first", tmp_path / "second"
    suite = prepare(first)
    cells = plan(load_suite(str(suite)), str(suite))
    assert "min on h100" in isoflop(first, "plan", suite.name, "--device", "h100")
    output = isoflop(first, "run", suite.name, "--time-limit", "12s")
    assert "the same command goes on" in output
    assert len(load_records(first / "runs" / "lunch" / "records")) < len(cells)
    shutil.copytree(first, second)  # to another machine
    isoflop(second, "run", suite.name, "--time-limit", "2h")
    results = second / "runs" / "lunch"
    records = load_records(results / "records")
    assert {record.cell for record in records} == {cell.id for cell in cells}
    assert {record.status for record in records} == {"finished"}
    for name in ("LEADERBOARD.md", "index.html", "figures/isoflop.png", "figures/resources.png"):
        assert (results / name).stat().st_size > 1000, name
