"""`isoflop compress`: from kept models to records, and what stands against it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from isoflop.bench.data import prepare
from isoflop.bench.evaluate import read_set
from isoflop.bench.kept_models import initial_path, load_model, model_path
from isoflop.bench.methods.further import Continuation
from isoflop.bench.plan import Cell, plan
from isoflop.cli.compress import shares_of
from isoflop.cli.main import app
from isoflop.results.compressed import Compressed, load_compressed
from isoflop.results.errors import IsoflopError
from isoflop.results.record import load_records
from tests.bench.cells import TINY, keep_run, tiny_suite

SUITE: dict[str, Any] = {
    "placement": "all",
    "sizes": {
        "s": {"width": 16, "depth": 2, "heads": 2},
        "m": {"width": 24, "depth": 2, "heads": 2},
    },
    "variants": {
        "dense": TINY["variants"]["dense"],
        "moe": {
            "layer": "moe",
            "learning_rate": 1e-2,
            "options": {"granularity": 2, "expansion": 2},
        },
    },
}
FAST = ["--tokens=256", "--seeds=2"]


def cells() -> list[Cell]:
    return plan(tiny_suite(**SUITE), "tiny.toml")


def numbers(seed: int = 0) -> str:
    """A text that no other shares a run of tokens with, and that is soon learned."""
    digits = np.random.default_rng(seed).integers(0, 10, 20_000)
    return "".join(map(str, digits))


def cells_by_id() -> dict[str, Cell]:
    return {cell.id: cell for cell in cells()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep_run(tmp_path_factory.mktemp("run"), **SUITE)


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def compress(*arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["compress", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def records(folder: Path) -> list[Compressed]:
    return load_compressed(folder / "compressed")


def test_a_record_for_every_source_choice_seed_and_recovery(folder: Path) -> None:
    rows = compress("run", "--method=prune-reap", "--option=drop=0,0.5", "--recover=0,5%", *FAST)
    assert len(rows) == 2 * 2 * 2 * 2  # sizes, choices, seeds, recoveries; dense does not fit
    assert {row["variant"] for row in rows} == {"moe"}
    by_id = {record.cell: record for record in load_records(folder / "records")}
    for item in records(folder):
        source = by_id[item.cell]
        assert item.source_loss == source.loss
        assert item.source_flops == source.flops
        assert item.source_stored_bytes == 2 * source.parameters.total
        assert (item.calibration.tokens, item.measured.device) == (256, source.measured.device)
        same = item.options["drop"] == 0
        assert (item.parameters == source.parameters) == same
        assert (item.stored_bytes == item.source_stored_bytes) == same
        if same and not item.recovery.share:
            assert item.loss == pytest.approx(source.loss, abs=1e-6)
        per_step = item.flops_per_token.training * source.batch * source.context
        assert item.recovery.flops == item.recovery.steps * per_step
        wanted = item.recovery.share * source.flops
        assert abs(item.recovery.flops - wanted) <= (per_step / 2 if wanted else 0)
        assert item.bits_per_byte / item.loss == pytest.approx(
            (source.bits_per_byte or 0) / (source.loss or 1)
        )
    lossy = [item for item in records(folder) if item.options["drop"]]
    plain = {(i.cell, i.calibration.seed): i.loss for i in lossy if not i.recovery.share}
    for item in lossy:
        if item.recovery.share:
            assert item.loss != plain[item.cell, item.calibration.seed]


def test_a_record_is_made_once_and_the_same_anew(folder: Path) -> None:
    arguments = ["run", "--method=prune-random", "--size=s", "--recover=0,5%", *FAST]
    compress(*arguments)
    paths = sorted((folder / "compressed").glob("*.json"))
    assert len(paths) == 4
    before = [path.read_bytes() for path in paths]
    compress(*arguments)
    assert [path.read_bytes() for path in paths] == before
    paths[0].unlink()
    compress(*arguments)
    of_the_day = {"measured": None, "decode_ms": None, "source_decode_ms": None}
    one = json.loads(paths[0].read_bytes())
    assert one["decode_ms"] > 0
    assert one | of_the_day == json.loads(before[0]) | of_the_day
    assert [path.read_bytes() for path in paths[1:]] == before[1:]


def test_without_calibration_one_seed_is_enough(folder: Path) -> None:
    rows = compress("run", "--method=quantise", "--option=bits=8,2", "--variant=dense", *FAST)
    assert len(rows) == 4
    assert {item.calibration.tokens for item in records(folder)} == {0}


def test_the_router_norm_compares_with_the_weights_before_training(folder: Path) -> None:
    compress("run", "--method=prune-router-norm", "--size=s", *FAST)
    (item,) = records(folder)
    assert item.note.startswith("proxy")
    assert math.isfinite(item.loss)


def test_a_source_goes_on_with_a_second_text_before_the_method(folder: Path) -> None:
    """The faithful case of the router's norm: the kept model is the one before."""
    Path("second.txt").write_text(numbers())
    arguments = ["run", "--continue=second.txt", "--continue-share=50%", "--size=s"]
    arguments += ["--variant=moe", *FAST]
    compress("--method=prune-router-norm", "--option=drop=0,0.5", *arguments)
    paths = (folder / "models").glob("*.*.safetensors")
    (kept,) = [path for path in paths if not path.stem.endswith("initial")]
    written = kept.stat().st_mtime_ns
    rows = compress("--method=prune-random", "--option=drop=0.5", *arguments)
    assert kept.stat().st_mtime_ns == written  # trained once, for all methods
    source = {record.cell: record for record in load_records(folder / "records")}
    by_method: dict[str, list[tuple[float, float]]] = {}
    for item in records(folder):
        continued = item.continued
        assert continued is not None
        assert (continued.text, continued.share) == ("second.txt", 0.5)
        per_step = source[item.cell].flops_per_token.training * 16 * 4
        assert continued.flops == continued.steps * per_step
        assert abs(continued.flops - 0.5 * item.source_flops) <= per_step / 2
        assert item.total_flops == item.source_flops + continued.flops
        assert item.scored == (
            item.other_losses["second.txt"],
            item.other_source_losses["second.txt"],
        )
        assert item.source_loss != source[item.cell].loss  # of the model after it
        if item.options["drop"] == 0:
            assert item.loss == pytest.approx(item.source_loss, abs=1e-6)
            assert item.scored[0] == pytest.approx(item.scored[1], abs=1e-6)
            # It has learned the second text: better there than the model before.
            before = load_model(model_path(folder / "models", item.cell), cells_by_id()[item.cell])
            text = read_set("second.txt", "text", prepare(cells()[0].corpus), 16, None)
            end = torch.from_numpy(Continuation(text, 0.5).held_out.windows)
            with torch.no_grad():
                assert item.scored[0] < float(before.loss(end[:, :-1], end[:, 1:])[0]) - 0.1
        by_method.setdefault(item.method, []).append(item.scored)
        assert "proxy" not in item.note
    assert len(by_method["prune-random"]) == len(rows) == 2
    done = CliRunner().invoke(app, ["report", "run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "after 50% on second.txt" in (folder / "POST-TRAINING.md").read_text()


def test_a_further_text_is_scored(folder: Path) -> None:
    Path("text.txt").write_text("The Congress met in the morning. " * 60)
    compress("run", "--method=prune-random", "--size=s", "--data=text.txt", *FAST)
    for item in records(folder):
        assert item.other_losses.keys() == item.other_source_losses.keys() == {"text.txt"}
        assert item.other_losses != item.other_source_losses


def test_the_report_sets_them_beside_smaller_models(folder: Path) -> None:
    compress("run", "--method=prune-reap", "--option=drop=0.25", "--size=m", *FAST)
    done = CliRunner().invoke(app, ["report", "run"], catch_exceptions=False)
    assert done.exit_code == 0
    text = (folder / "POST-TRAINING.md").read_text()
    assert "inconclusive" in text  # of one seed
    assert "prune-reap" in (folder / "post_training.csv").read_text()
    assert "What holds of each paper" in (folder / "REPORT.md").read_text()
    assert (folder / "figures" / "post_training_1.png").stat().st_size > 10_000
    page = (folder / "index.html").read_text()
    assert "After training" in page
    assert "prune-reap drop" in page  # the table, and what the chart shows at a point
    assert 'id="post_training_1-0"' in page


OWN = """
from isoflop.bench.methods import Method

class Bad(Method):
    def apply(self, model, calibration):
        return {}["no such key"]
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method=prune-reep"], "--method: no method 'prune-reep' (did you mean 'prune-reap'?)"),
        (["--method=prune-reap", "--option=drop"], "--option drop: give NAME=VALUE"),
        (["--method=prune-reap", "--option=dropp=1"], "--method: dropp: unknown option of method"),
        (
            ["--method=prune-reap", "--option=drop=0.9", "--size=m"],
            "moe, size m: drop: 0.9 leaves 0 of 4",
        ),
        (["--method=low-rank", "--option=keep=1.0"], "a rank saves nothing"),
        (["--method=prune-reap", "--variant=dense"], "dense: method 'prune-reap' does not fit"),
        (["--method=prune-reap", "--variant=mo"], "--variant: no 'mo' here"),
        (["--method=prune-reap", "--size=xl"], "--size: no 'xl' here"),
        (["--method=prune-reap", "--budget=7"], "--budget: no 7 here; there are: 5e+08"),
        (["--method=prune-reap", "--recover=2x"], "--recover: '2x': give shares such as"),
        (["--method=prune-reap", "--continue=none.txt"], "--continue: no such file none.txt"),
        (
            ["--method=prune-reap", "--continue-share=1%,2%"],
            "--continue-share: 1%,2%: give one share such as 20%",
        ),
        (["--method=prune-reap", "--continue=own.py"], "--continue"),
        (["--method=prune-reap", "--tokens=100000000"], "--tokens: the training text has"),
        (["--method=prune-reap", "--calibration=none.txt"], "--calibration: no such file none.txt"),
        (["--method=own.py:Bad", "--size=s"], "own.py:Bad: raises KeyError"),
    ],
)
def test_bad_input_is_a_line(folder: Path, arguments: list[str], message: str) -> None:
    Path("own.py").write_text(OWN)
    with pytest.raises(IsoflopError) as error:
        CliRunner().invoke(app, ["compress", "run", *arguments], catch_exceptions=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((folder / "compressed").glob("*.json"))


def test_without_a_kept_model_nothing_is_done(folder: Path) -> None:
    for cell in cells():
        initial_path(folder / "models", cell.id).unlink()
    with pytest.raises(IsoflopError, match="no weights before training, which the method needs"):
        CliRunner().invoke(
            app, ["compress", "run", "--method=prune-router-norm"], catch_exceptions=False
        )
    for cell in cells():
        model_path(folder / "models", cell.id).unlink()
    with pytest.raises(IsoflopError, match="--keep-models"):
        CliRunner().invoke(app, ["compress", "run", "--method=quantise"], catch_exceptions=False)


def test_calibration_on_a_text_that_is_evaluated_is_refused(folder: Path) -> None:
    Path("text.txt").write_text("Nobody came, so it closed, and in 1999 it opened again.\n" * 60)
    with pytest.raises(IsoflopError, match=r"--calibration: text.txt: .* overlap"):
        CliRunner().invoke(
            app,
            ["compress", "run", "--method=prune-reap", "--calibration=text.txt",
             "--data=text.txt", *FAST],
            catch_exceptions=False,
        )  # fmt: skip
    rows = compress("run", "--method=prune-reap", "--calibration=text.txt", "--size=s", *FAST)
    assert len(rows) == 2
    assert {item.calibration.text for item in records(folder)} == {"text.txt"}


def test_a_second_text_that_is_evaluated_is_refused(folder: Path) -> None:
    Path("second.txt").write_text(numbers())
    with pytest.raises(IsoflopError, match=r"--continue: second.txt: \d+ of \d+ windows overlap"):
        CliRunner().invoke(
            app,
            ["compress", "run", "--method=prune-random", "--continue=second.txt",
             "--data=second.txt", "--size=s", *FAST],
            catch_exceptions=False,
        )  # fmt: skip
    Path("second.txt").write_text("Too short.")
    with pytest.raises(IsoflopError, match="--continue: second"):
        CliRunner().invoke(
            app,
            ["compress", "run", "--method=prune-random", "--continue=second.txt", *FAST],
            catch_exceptions=False,
        )


def test_shares_are_read() -> None:
    assert shares_of("0,1%,0.05,5%") == [0, 0.01, 0.05]
