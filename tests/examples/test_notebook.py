"""The notebook, executed on a suite that trains in seconds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "examples" / "compare_a_layer.ipynb").read_text(encoding="utf-8"))
TINY = """
[corpus]
vocabulary = 300
documents = 40
validation = 0.2
[training]
context = 16
batch = 8
validation_tokens = 512
[sizes]
xs = { width = 16, depth = 2, heads = 2, batch = 12 }
s = { width = 20, depth = 2, heads = 2, batch = 10 }
m = { width = 24, depth = 2, heads = 2 }
l = { width = 28, depth = 2, heads = 2, batch = 7 }
[[budgets]]
flops = 1e9
[[budgets]]
flops = 1.5e9
[transfer]
width = 16
[variants]
dense = { layer = "dense", learning_rate = 1e-2 }
"""


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]


def shell(command: str) -> None:
    """Run a `!isoflop ...` of this checkout; `isoflop` itself may be that of another one."""
    assert command.startswith("isoflop "), command
    command = f'"{sys.executable}" -m {command}'
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def execute(source: str, names: dict[str, Any]) -> None:
    """A cell as a notebook runs it: Python, with `%%writefile`, `%pip` and `!command`."""
    if source.startswith("%%writefile "):
        first, _, text = source.partition("\n")
        Path(first.split()[1]).write_text(text, encoding="utf-8")
        return
    source = re.sub(r"^( *)!(.*)$", r'\1shell(f"""\2""")', source, flags=re.MULTILINE)
    source = re.sub(r"^( *)%pip .*$", r"\1raise ImportError", source, flags=re.MULTILINE)
    exec(compile(source, "<cell>", "exec"), names)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    Path("tiny.toml").write_text(TINY)
    shell("isoflop run tiny.toml")  # in place of the published records
    names: dict[str, Any] = {"shell": shell}
    for cell in cells("code"):
        execute("".join(cell["source"]).replace('SUITE = "quick"', 'SUITE = "tiny.toml"'), names)
    assert names["SUITE"] == "tiny.toml"
    assert names["comparison"]["suite"] == "tiny"
    assert set(names["records"]["variant"]) == {"dense", "TokenShift"}
    assert len(names["records"]) == 2 * 8
    curves = {line.get_label() for panel in names["panels"] for line in panel.get_lines()}
    assert curves == {"dense", "TokenShift"}


def test_the_notebook_is_stored_without_outputs() -> None:
    """Results in it would be of some day's code."""
    assert [cell["outputs"] for cell in cells("code")] == [[]] * len(cells("code"))
    assert {cell["execution_count"] for cell in cells("code")} == {None}
    assert NOTEBOOK["nbformat"] == 4
