import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isoflop.cli.main import app
from isoflop.results.errors import IsoflopError, did_you_mean
from isoflop.results.record import write_record
from tests.bench.cells import make_record

ROOT = Path(__file__).parents[3]
TINY = """
[corpus]
vocabulary = 300
documents = 40
validation = 0.2
[training]
context = 16
batch = 4
validation_tokens = 512
[sizes]
s = { width = 16, depth = 2, heads = 2 }
[[budgets]]
flops = 3e8
[[budgets]]
flops = 5e8
[transfer]
width = 16
[tune]
sizes = ["s"]
budget = 3e8
factors = [1.0, 4.0]
[variants]
dense = { layer = "dense", learning_rate = 1e-2 }
swiglu = { layer = "dense", learning_rate = 1e-2, options = { activation = "swiglu" } }
"""


def isoflop(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "isoflop", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def rows(*arguments: str) -> list[dict[str, Any]]:
    """The JSON that a verb prints, and nothing else."""
    done = isoflop(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_layers_lists_options() -> None:
    table = {row["layer"]: row for row in rows("layers")}
    assert {"dense", "moe", "moe_ec", "pkm", "peer"} <= set(table)
    assert "n_experts=1048576" in table["peer"]["options"]


def test_flops_prints_the_breakdown_of_a_suite() -> None:
    table = rows("flops", "ci")
    for row in table:
        parts = row["attention"] + row["ffn"] + row["routing"] + row["head"]
        assert row["training"] == 3 * parts
        assert row["counted_backward_ratio"] == pytest.approx(3)
    assert len(table) == 7 * 3


@pytest.mark.parametrize("suite", ["ci", "quick", "h100", "paper"])
def test_plan_prices_every_shipped_suite(suite: str) -> None:
    for row in rows("plan", suite, "--device", "h100"):
        assert row["seconds"] > 0
        assert row["memory_bytes"] > 0
        if suite in ("ci", "quick"):  # the others' corpus is on a hub
            assert 0 < row["epochs"] < 2


def test_more_seeds_than_a_suite_has(tmp_path: Path) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(TINY.replace("[corpus]", "seeds = [4]\n[corpus]", 1), encoding="utf-8")
    planned = rows("plan", str(suite), "--seeds", "3")
    assert sorted(row["seed"] for row in planned) == [0] * 4 + [1] * 4 + [4] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.toml"], "isoflop: nowhere.toml: No such file"),
        (["plan", "ci", "--device", "gpu0"], "isoflop: --device: no device 'gpu0'"),
        (["report", "nowhere"], "isoflop: nowhere/records: no records here"),
        (["run", "ci", "--shard", "3/2"], "isoflop: --shard: '3/2' is not K/N with K from 1 to N"),
        (["tune", "ci", "--shard", "2"], "isoflop: --shard: '2' is not K/N with K from 1 to N"),
        (["run", "ci", "--shard", ""], "isoflop: --shard: '' is not K/N with K from 1 to N"),
        (["fit", "nowhere.csv"], "isoflop: nowhere.csv: no such file"),
        (["fit", "x.csv", "--law", "y"], "isoflop: --law: no law 'y'; known: chinchilla"),
        (["fit", "x.csv", "--column", "N"], "isoflop: --column: 'N' is not NAME=HEADER"),
        (["rn"], "isoflop: no verb 'rn' (did you mean 'run'?)"),
        (["run", "ci", "--sed", "1"], "isoflop: run: no option '--sed' (did you mean '--seeds'?)"),
        (["show"], "isoflop: show: missing argument 'cell'"),
        (
            ["plan", "ci", "--seeds", "0"],
            "isoflop: plan: --seeds: input should be greater than or equal to 1",
        ),
        (
            ["plan", "ci", "--seeds", "10000000"],
            "isoflop: plan: --seeds: input should be less than or equal to 1000",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(arguments: list[str], message: str) -> None:
    done = isoflop(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "quik"], r"^quik: .* \(did you mean 'quick'\?\); .* one of: ci, .*quick"),
        (["plan", "ci", "--device", "H10"], r"'H10' \(did you mean 'h100'\?\); known: cpu, a100"),
        (["fit", "x.csv", "--law", "chincila"], r"\(did you mean 'chinchilla'\?\); known: chinch"),
        (["compare", "peeer"], r"no layer 'peeer' \(did you mean 'peer'\?\); known: .*pkm, "),
        (
            ["compare", "pkm", "--option", "slots=4"],
            r"\(did you mean 'n_slots'\?\); known: n_slots",
        ),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(arguments: list[str], message: str) -> None:
    with pytest.raises(IsoflopError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert did_you_mean("zebra", ["dense", "moe"]) == ""
    assert did_you_mean("PEER", ["dense", "peer"]) == " (did you mean 'peer'?)"


def test_an_unreadable_record_stops_the_run_and_is_not_overwritten(tmp_path: Path) -> None:
    records = tmp_path / "out" / "records"
    suite = tmp_path / "suite.toml"
    suite.write_text((ROOT / "bench/suites/ci.toml").read_text())
    from isoflop.bench.plan import plan
    from isoflop.bench.suite import load_suite

    cell = plan(load_suite(str(suite)), "x")[0]
    records.mkdir(parents=True)
    (records / f"{cell.id}.json").write_text("{")
    done = isoflop("run", str(suite), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert f"{cell.id}.json" in done.stderr
    assert (records / f"{cell.id}.json").read_text() == "{"


def test_two_shards_train_every_cell_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        return done.stderr

    records = Path("runs/tiny/records")
    first = said("run", "tiny.toml", "--shard", "1/2")
    assert "2 of 2 cells to train" in first
    assert first.endswith("2 of 4 cells have no record in runs/tiny/records yet\n")
    before = {path.name: path.read_bytes() for path in records.iterdir()}
    assert len(before) == 2
    second = said("run", "tiny.toml", "--shard", "2/2")
    assert "2 of 2 cells to train" in second
    assert "no record" not in second
    assert "nothing to train: all 4 cells have records" in said("run", "tiny.toml")
    assert all((records / name).read_bytes() == content for name, content in before.items())
    sweep = said("tune", "tiny.toml", "--shard", "2/2")
    assert "2 of 2 cells to train" in sweep
    assert sweep.endswith("2 of 4 cells have no record in runs/tiny/tune yet\n")


def test_check_notices_a_stale_file(tmp_path: Path) -> None:
    for seed in range(3):
        write_record(tmp_path / "records", make_record(cell=f"cell{seed}", seed=seed))
    assert isoflop("report", str(tmp_path), cwd=tmp_path).returncode == 0
    assert isoflop("check", str(tmp_path), cwd=tmp_path).returncode == 0
    (tmp_path / "LEADERBOARD.md").write_text("PEER wins\n")
    done = isoflop("check", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert " stale; run `isoflop report`" in done.stdout
    assert "LEADERBOARD.md" in done.stdout


def test_what_is_published_is_current() -> None:
    done = isoflop("check", "results/quick")
    assert done.returncode == 0, done.stdout


def test_the_readme_s_layer_is_one(tmp_path: Path) -> None:
    from isoflop.bench.flops import verify_flops
    from isoflop.bench.layers import find_layer
    from isoflop.models import Config

    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "my_layer.py").write_text(code)
    layer = find_layer(f"{tmp_path / 'my_layer.py'}:TwoMatrices")
    verify_flops(Config(layer, width=32, depth=2, heads=2, vocabulary=64, context=16), batch=2)
