import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from isoflop.bench.gate.baseline import GateError
from isoflop.bench.gate.stopwatch import StopwatchError
from isoflop.cli import check as cli_gate
from isoflop.cli.main import app
from tests.isoflop.cli.test_layers import TINY


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def check(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["check", "--suite", "tiny.toml", *arguments], catch_exceptions=False
    )


def test_a_baseline_is_accepted_then_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_gate, "SEEDS", 3)
    done = check("--accept")
    stored = Path("results/tiny/baseline.json")
    assert (done.exit_code, done.stdout) == (0, f"{stored}: 2 cells, 3 seeds\n")
    done = check("--losses", "--summary", "out/gate.md")
    assert done.exit_code == 0, done.output
    assert "ok   counts: FLOPs and parameters of 2 cells equal" in done.stdout
    assert (
        "ok   losses: 2 losses equal those of the same stored seed, but for rounding" in done.stdout
    )
    assert Path("out/gate.md").read_text().startswith("### isoflop check: passed")

    text = json.loads(stored.read_text())
    text["cells"][0]["flops_per_token"]["ffn"] -= 1
    stored.write_text(json.dumps(text))
    done = check("--summary", "out/gate.md")
    assert done.exit_code == 1
    assert "FAIL counts: differences from the stored FLOPs and parameters: 1\n" in done.stdout
    assert "dense s 3e+08 FLOPs: ffn 8191 is stored, 8192 counted" in done.stdout
    assert "**failed**" in Path("out/gate.md").read_text()
    assert json.loads(check("--json").stdout)[1]["ok"] is False


def test_what_cannot_be_judged_is_bad_input(folder: Path) -> None:
    with pytest.raises(GateError, match=r"results/tiny/baseline.json: No such file"):
        check("--losses")
    with pytest.raises(StopwatchError, match="--base: 'nowhere' is neither a checkout nor"):
        check("--base", "nowhere")
    assert check().exit_code == 0
