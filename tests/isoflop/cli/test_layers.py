import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop.bench.compare import CompareError, prepare
from isoflop.bench.layers import find_layer
from isoflop.bench.lint import LintError
from isoflop.bench.plan import Cell
from isoflop.bench.train import describe
from isoflop.cli.main import app
from isoflop.results.record import Record, load_records, write_record
from tests.bench.cells import make_record

ROOT = Path(__file__).parents[3]
TINY = """
[corpus]
source = "sotu"
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
[transfer]
width = 16
[variants]
dense = { layer = "dense", learning_rate = 1e-2 }
moe = { layer = "moe", learning_rate = 1e-2, options = { expansion = 2 } }
"""
# Enough sizes and budgets for a multiplier; nothing is trained at these.
LARGE = TINY.replace("flops = 3e8", "flops = 1e10\n[[budgets]]\nflops = 3e10").replace(
    "[sizes]",
    "[sizes]\na = { width = 8, depth = 2, heads = 2 }\nb = { width = 24, depth = 2, heads = 2 }\n"
    "c = { width = 32, depth = 2, heads = 2 }\nd = { width = 48, depth = 2, heads = 2 }",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def isoflop(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "isoflop", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_new_writes_a_layer_that_lints_clean_and_never_overwrites(folder: Path) -> None:
    assert "class GatedThing" in invoke("new", "gated_thing.py")
    text = Path("gated_thing.py").read_text()
    assert "class GatedThing(Layer):" in text
    assert "MyLayer" not in text
    findings = json.loads(invoke("lint", "gated_thing.py", "--json"))
    assert len(findings) == 12
    assert all(finding["ok"] for finding in findings)
    assert "fit to be trained" in invoke("lint", "gated_thing.py:GatedThing")
    with pytest.raises(LintError, match="exists already"):
        invoke("new", "gated_thing.py")
    assert Path("gated_thing.py").read_text() == text


@pytest.mark.parametrize("name", ["my_layer", "1.py", "nowhere/x.py"])
def test_new_refuses_what_is_no_module(folder: Path, name: str) -> None:
    with pytest.raises(LintError, match=f"{name}: "):
        invoke("new", name)


def test_lint_of_a_bad_layer_ends_with_one_and_bad_input_with_two(folder: Path) -> None:
    invoke("new", "mine.py")
    path = Path("mine.py")
    path.write_text(path.read_text().replace("self.neurons * 3", "self.neurons * 2"))
    done = isoflop(folder, "lint", "mine.py")
    assert done.returncode == 1
    assert "FAIL flops" in done.stdout
    assert "to fix: flops" in done.stdout
    done = isoflop(folder, "lint", "absent.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "isoflop: absent.py: No such file or directory\n"


def test_compare_refuses_before_any_training(folder: Path) -> None:
    invoke("new", "mine.py")
    path = Path("mine.py")
    leak = "self.down(F.silu(gate_BTF) * value_BTF.mean(1, keepdim=True))"
    path.write_text(path.read_text().replace("self.down(F.silu(gate_BTF) * value_BTF)", leak))
    Path("tiny.toml").write_text(TINY)
    done = isoflop(folder, "compare", "mine.py", "--suite", "tiny.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("isoflop: mine.py:Mine: causality: ")
    assert done.stderr.count("\n") == 1
    assert not Path("runs").exists()


def test_compare_trains_only_the_new_cells_beside_the_stored_records(folder: Path) -> None:
    invoke("new", "mine.py")
    Path("tiny.toml").write_text(TINY)
    with pytest.raises(CompareError, match=r"no finished records .* `isoflop run tiny` makes them"):
        prepare("mine.py:Mine", "tiny.toml", None, 1)
    done = isoflop(folder, "run", "tiny.toml")
    assert done.returncode == 0, done.stderr
    done = isoflop(folder, "compare", "mine.py", "--suite", "tiny.toml", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["variant"] == "Mine"
    assert result["baseline_records"] == "runs/tiny/records"
    assert (result["learning_rate"], result["learning_rate_given"]) == (0.01, False)
    assert result["verdict"] == "no multiplier"  # one size is no curve
    assert "1 of 1 cells to train" in done.stderr
    assert "2 of 3 cells to train" in done.stderr  # at half and at double the rate
    check = result["rate_check"]
    assert check["rates"] == [0.005, 0.01, 0.02]
    assert len([loss for loss in check["losses"] if loss]) == 3
    assert "learning rate 0.01 is " in check["sentence"]
    records = load_records(Path("runs/compare-Mine/records"))
    assert sorted(record.variant for record in records) == ["Mine", "dense", "moe"]
    mine = next(record for record in records if record.variant == "Mine")
    assert mine.status == "finished"
    assert mine.layer == "mine.py:Mine"
    assert mine.learning_rate == 0.01
    assert Path("runs/compare-Mine/LEADERBOARD.md").exists()
    stored = json.loads(Path("runs/compare-Mine/comparison.json").read_text())
    assert stored == result
    assert stored["command"] == "isoflop compare mine.py:Mine --suite tiny.toml --seeds 1"
    again = CliRunner().invoke(app, ["compare", "mine.py", "--suite", "tiny.toml", "--json"])
    assert "nothing to train: all 1 cells" in again.stderr
    assert again.stdout == done.stdout
    assert "is current" in invoke("check", "runs/compare-Mine")
    assert len(load_records(Path("runs/tiny/records"))) == 2  # the stored ones are left alone


def test_records_of_other_text_are_refused_before_any_training(folder: Path) -> None:
    invoke("new", "mine.py")
    prepare_with_records(TINY)
    with pytest.raises(CompareError, match=r"scored on other text \(0123456789abcdef\)"):
        invoke("compare", "mine.py", "--suite", "tiny.toml")
    copied = Path("runs/compare-Mine/records").glob("*")
    assert not [path for path in copied if "Mine" in path.read_text()]


def prepare_with_records(
    suite: str,
    losses: Any = lambda cell: 5.0,
    seeds: int = 1,
    layer: str = "mine.py:Mine",
    options: dict[str, Any] | None = None,
) -> Any:
    """A comparison whose stored and own records exist, with made-up losses."""
    Path("tiny.toml").write_text(suite)
    records = Path("runs/tiny/records")
    everything = []

    def capture(name: str, baseline: list[Cell]) -> Path:
        return records

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.bench.compare._records_of", capture)
        plan = prepare(layer, "tiny.toml", None, seeds, options)
    for cell in plan.stored:
        everything.append((records, cell))
    if suite is LARGE:
        everything += [(plan.records, cell) for cell in plan.cells]
    for folder, cell in everything:
        write_record(folder, made_up(cell, losses(cell)))
    return plan


def made_up(cell: Cell, loss: float) -> Record:
    record = make_record()
    return describe(
        cell,
        {"status": "finished", "loss": loss, "bits_per_byte": loss / 2},
        tokens_in_corpus=100_000,
        validation_hash=record.validation_hash,
        curve=record.curve,
        measured=record.measured,
    )


@pytest.mark.parametrize(
    ("gain", "noise", "verdict"),
    [(1.5, 0.0005, "better"), (0.6, 0.0005, "worse"), (1.02, 0.04, "inconclusive")],
)
def test_the_verdict_follows_from_the_records(
    folder: Path, gain: float, noise: float, verdict: str
) -> None:
    """Losses of a known law; the new layer does with C what dense does with gain * C."""
    invoke("new", "mine.py")
    generator = np.random.default_rng(0)

    def loss(cell: Cell) -> float:
        compute = cell.budget * (gain if cell.variant == "Mine" else 1)
        distance = math.log(cell.parameters.active) - math.log(18_000)
        return 4 * (compute / 1e10) ** -0.1 + 0.1 * distance**2 + noise * generator.normal()

    prepare_with_records(LARGE, loss)
    asked = ("compare", "mine.py", "--suite", "tiny.toml", "--no-rate-check")
    result = json.loads(invoke(*asked, "--json"))
    assert result["verdict"] == verdict, result
    assert "rate_check" not in result
    assert result["low"] < result["multiplier"] < result["high"]
    text = invoke(*asked)
    if verdict == "inconclusive":
        assert result["low"] < 1 < result["high"]
        more = {"dense": result["more_seeds_dense"], "Mine": result["more_seeds_layer"]}
        # Each more seed of a variant: two budgets, five sizes, within 1% of the FLOPs asked for.
        per_seed = result["more_flops"] / sum(more.values())
        assert per_seed == pytest.approx(5 * 4e10, rel=0.01)
        for name, count in more.items():
            assert not count or f"{count} more seed{'s' * (count > 1)} of {name}" in text
    else:
        assert result["multiplier"] == pytest.approx(gain, rel=0.1)
        assert f"significantly {verdict} than dense." in text
        assert result["more_seeds_dense"] is None
    assert "not tuned for this layer" in text
    assert result["sentence"] in text
    assert result["sentence"] in Path("runs/compare-Mine/LEADERBOARD.md").read_text()


def test_an_edited_layer_is_another_and_its_records_come_back_with_it(folder: Path) -> None:
    invoke("new", "mine.py")
    path = Path("mine.py")
    plan = prepare_with_records(LARGE)
    plan.collect()
    before = {p.name for p in plan.records.glob("*.json")}
    assert len(before) == 10 * 3
    original = path.read_text()
    path.write_text(original + "\n# another\n")
    prepare("mine.py:Mine", "tiny.toml", None, 1).collect()
    assert {record.variant for record in load_records(plan.records)} == {"dense", "moe"}
    path.write_text(original)
    prepare("mine.py:Mine", "tiny.toml", None, 1).collect()
    assert {p.name for p in plan.records.glob("*.json")} == before


def test_seeds_and_learning_rate_are_the_user_s(folder: Path) -> None:
    invoke("new", "mine.py")
    prepare_with_records(TINY)
    plan = prepare("mine.py:Mine", "tiny.toml", 0.02, 3)
    assert [cell.seed for cell in plan.cells] == [0, 1, 2]
    assert {cell.learning_rate for cell in plan.cells} == {0.02}


def test_options_and_a_registered_name_make_a_variant_of_their_own(folder: Path) -> None:
    invoke("new", "mine.py")
    prepare_with_records(TINY)
    given = {"granularity": 2, "expansion": 8}
    plan = prepare("moe", "tiny.toml", None, 1, given)
    assert plan.variant == "moe-granularity2"  # 8 is the default
    assert plan.directory == Path("runs/compare-moe-granularity2")
    (cell,) = plan.cells
    assert given.items() <= cell.options.items()
    assert prepare("moe", "tiny.toml", None, 1, given, "fine").variant == "fine"
    plan = prepare("dense", "tiny.toml", None, 1, {"activation": "swiglu"})
    assert plan.variant == "dense-activation-swiglu"
    assert {cell.variant for cell in plan.baseline} == {"dense"}
    plan = prepare("mine.py:Mine", "tiny.toml", None, 1, {"ratio": 3.5})
    assert plan.variant == "Mine-ratio3.5"


@pytest.mark.parametrize(
    ("options", "name", "text"),
    [
        ({}, None, r"variants\.moe exists already; give another --name"),
        ({"granularity": 2}, "dense", r"variants\.dense exists already"),
        ({"granularity": 2}, "../x", r"--name: use letters, digits.* not '../x'"),
        ({"expansion": 2}, None, r"variants\.moe is moe with the same options and rate"),
    ],
)
def test_what_the_suite_has_already_is_refused(
    folder: Path, options: dict[str, Any], name: str | None, text: str
) -> None:
    prepare_with_records(TINY, layer="moe", options={"granularity": 4})
    with pytest.raises(CompareError, match=text):
        prepare("moe", "tiny.toml", None, 1, options, name)


def test_bad_options_are_refused_before_any_training(folder: Path) -> None:
    invoke("new", "mine.py")
    Path("tiny.toml").write_text(TINY)
    for arguments in (("compare", "mine.py", "--suite", "tiny.toml"), ("lint", "mine.py")):
        done = isoflop(folder, *arguments, "--option", "grain=4")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("isoflop: mine.py:Mine: --option grain: unknown option")
        assert done.stderr.count("\n") == 1
    assert not Path("runs").exists()
    assert "fit to be trained" in invoke("lint", "dense", "--option", "ratio=2")


def test_a_suite_without_a_baseline_or_with_the_name_taken_is_refused(folder: Path) -> None:
    invoke("new", "mine.py")
    Path("tiny.toml").write_text(TINY.replace("dense = {", "Mine = {"))
    with pytest.raises(CompareError, match=r"variants.Mine exists already"):
        prepare("mine.py:Mine", "tiny.toml", None, 1)
    Path("tiny.toml").write_text(TINY.replace('dense = { layer = "dense"', 'x = { layer = "moe"'))
    with pytest.raises(CompareError, match="name one `dense`"):
        prepare("mine.py:Mine", "tiny.toml", None, 1)


@pytest.mark.parametrize("suite", ["quick", "ci"])
@pytest.mark.parametrize(
    "name",
    ["xmoe.py:XMoE", "mumoe.py:MuMoE", "moec.py:MoEC", "mpoe.py:MPOE", "memory_plus.py:MemoryPlus"],
)
def test_each_example_fits_the_shipped_suites(
    suite: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoflop.bench.compare._records_of", lambda name, baseline: Path("nowhere"))
    plan = prepare(str(ROOT / "examples" / name), suite, None, 1)
    # Dense variants alone may have further budgets.
    wanted = {(c.size.name, c.budget) for c in plan.stored if c.layer != "dense"}
    assert {(cell.size.name, cell.budget) for cell in plan.cells} == wanted


def test_another_dense_variant_leaves_the_baseline_known(folder: Path) -> None:
    prepare_with_records(TINY, layer="moe", options={"granularity": 4})
    Path("tiny.toml").write_text(TINY.replace("dense = {", "plain = {"))
    with pytest.raises(CompareError, match=r"variants\.plain: call it `dense`"):
        prepare("dense", "tiny.toml", None, 1, {"activation": "swiglu"})


PLUGINS = {
    "good": """
from isoflop import Layer
class Good(Layer):
    def flops_per_token(self):
        return 0
""",
    "broken": "raise RuntimeError('needs a [gpu]\\nand more')",
    "wrong": "Wrong = 3",
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with three entry points, as pip would have installed it."""
    for name, code in PLUGINS.items():
        (tmp_path / f"plugin_{name}.py").write_text(code)
    metadata = tmp_path / "some_layers-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: some-layers\nVersion: 1.5\n")
    points = [f"{name} = plugin_{name}:{name.title()}" for name in PLUGINS]
    (metadata / "entry_points.txt").write_text("[isoflop.layers]\n" + "\n".join(points) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in PLUGINS:
        sys.modules.pop(f"plugin_{name}", None)


def test_installed_layers_are_listed_and_a_broken_one_is_one_line(plugins: None) -> None:
    table = {row["layer"]: row for row in json.loads(invoke("layers", "--json"))}
    assert table["dense"]["from"] == "isoflop"
    assert table["dense"]["options"] == "activation='gelu', ratio=4.0"
    assert {table[name]["from"] for name in PLUGINS} == {"some-layers 1.5"}
    assert table["good"]["what"] == ""
    message = "plugin_broken:Broken cannot be imported: RuntimeError('needs a [gpu]\\nand more')"
    assert table["broken"]["what"] == message
    assert table["wrong"]["what"] == "wrong is not a class derived from isoflop.Layer"
    assert "RuntimeError('needs a [gpu]" in invoke("layers")


def test_a_misspelt_plugin_is_recognised(plugins: None) -> None:
    assert find_layer("good").name == "good"
    with pytest.raises(
        ValueError, match=r"no layer 'god' \(did you mean 'good'\?\); known: .*good"
    ):
        find_layer("god")


OWN_ERROR = """
from isoflop import Layer
from isoflop.results.errors import IsoflopError

class LicenceError(IsoflopError):
    pass

class Mine(Layer):
    def __init__(self, d_model, **options):
        raise LicenceError("no licence for this width:\\n  ask for one")
"""


def test_a_layer_s_own_error_is_one_line(folder: Path) -> None:
    Path("mine.py").write_text(OWN_ERROR)
    Path("tiny.toml").write_text(TINY.replace('layer = "dense"', 'layer = "mine.py:Mine"'))
    done = isoflop(folder, "plan", "tiny.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "isoflop: tiny.toml: variants.dense.layer: mine.py:Mine: no licence for this width: "
        "ask for one\n"
    )
