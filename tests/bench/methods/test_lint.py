"""`isoflop lint` of a method: what is wrong with it is found."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from isoflop.bench.methods import METHODS
from isoflop.bench.methods.lint import CHECKS, lint, names_method
from isoflop.cli.main import app

ROOT = Path(__file__).resolve().parents[3]
START = """
import copy
import torch
from isoflop.bench.methods import Method, rebuilt, with_layers

class Own(Method):
"""
FAULTS = {
    "fits": "def apply(self, model, calibration):\n        raise KeyError('x')",
    "source": (
        "def apply(self, model, calibration):\n"
        "        model.head.weight.data += 1\n"
        "        return copy.deepcopy(model)"
    ),
    "counts": (
        "def apply(self, model, calibration):\n"
        "        layers = rebuilt(model)\n"
        "        for layer in layers:\n"
        "            layer.more = torch.nn.Parameter(torch.zeros(3))\n"
        "        return with_layers(model, layers)"
    ),
    "deterministic": (
        "def apply(self, model, calibration):\n"
        "        layers = rebuilt(model)\n"
        "        for layer in layers:\n"
        "            layer.up.weight.data += torch.randn(())\n"
        "        return with_layers(model, layers)"
    ),
    "identity": (
        "identity = {}\n"
        "    def apply(self, model, calibration):\n"
        "        layers = rebuilt(model)\n"
        "        for layer in layers:\n"
        "            layer.up.weight.data += 1\n"
        "        return with_layers(model, layers)"
    ),
}


@pytest.mark.parametrize("name", ["quantise", "prune-router-norm", "factorise-dense"])
def test_a_registered_method_is_clean(name: str) -> None:
    findings = lint(name, {})
    assert [finding.check for finding in findings] == list(CHECKS)
    assert [finding for finding in findings if not finding.ok] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(f"{START}    {FAULTS[fault]}\n")
    done = CliRunner().invoke(app, ["lint", f"{path}:Own"])
    assert done.exit_code == 1
    assert f"to fix: {fault}" in done.output.replace("\n", " ")


def test_a_layer_is_no_method(tmp_path: Path) -> None:
    assert all(names_method(name) for name in METHODS)
    assert not names_method("moe")
    assert not names_method(str(ROOT / "examples" / "xmoe.py:XMoE"))
    assert not names_method(f"{tmp_path}/none.py:Own")


def test_the_page_lists_every_method_and_its_example_is_clean(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "after-training.md").read_text()
    assert all(f"| `{name}` |" in text for name in METHODS)
    path = tmp_path / "first.py"
    path.write_text(text.partition("```python\n")[2].partition("```")[0])
    assert [finding for finding in lint(f"{path}:KeepFirst", {}) if not finding.ok] == []
    rows = CliRunner().invoke(app, ["methods", "--json"]).stdout
    assert all(f'"{name}"' in rows for name in METHODS)
