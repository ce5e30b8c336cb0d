"""`plan --workers`: hours and cost follow from the schedule and the engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from isoflop.bench.cost import DEVICES, local_cpu
from isoflop.bench.plan import Cell, plan, sweep_cells
from isoflop.bench.policy import need, schedule
from isoflop.bench.suite import load_suite
from isoflop.cli.main import app
from isoflop.cli.price import check_price, price_row
from isoflop.cli.suites import load_cells
from isoflop.results.errors import IsoflopError
from tests.bench.cells import TINY
from tests.robustness.program import run

H100 = DEVICES["h100"]


def rows(*options: str) -> list[dict[str, Any]]:
    arguments = ["plan", "quick", "--device", "h100", *options, "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_hours_and_cost_are_those_of_the_schedule() -> None:
    cells = load_cells("quick")[1]
    sweep = sweep_cells(load_suite("quick"), "quick")
    table = rows("--on", "slurm", "--workers", "4", "--price", "2.5")
    assert [(row["verb"], row["cells"]) for row in table] == [("tune", 168), ("run", 108)]
    for row, trained in zip(table, (sweep, cells), strict=True):
        how = schedule(trained, H100, 4)
        assert row["makespan_hours"] == how.seconds / 3600
        assert row["gpu_hours"] == how.held / 3600
        assert row["cost"] == pytest.approx(2.5 * row["gpu_hours"])
        longest = max(need(cell, H100).seconds for cell in trained) / 3600
        assert row["longest_cell_hours"] == longest <= row["makespan_hours"]
        assert row["gpu_hours"] <= 4 * row["makespan_hours"]


def test_engines_hold_gpus_in_their_own_ways() -> None:
    """SLURM gives a GPU back when nothing is left for it; on Ray a cell has a GPU alone."""
    cells = load_cells("h100")[1]
    slurm, ray, local = (price_row(cells, H100, on, 16, None) for on in ("slurm", "ray", "local"))
    assert slurm["makespan_hours"] == local["makespan_hours"]
    assert slurm["gpu_hours"] < local["gpu_hours"] == pytest.approx(16 * local["makespan_hours"])
    assert slurm["cost"] is None
    quick = load_cells("quick")[1]
    alone, shared = (price_row(quick, H100, on, 4, 1.0) for on in ("ray", "local"))
    assert (alone["cells_at_a_time"], shared["cells_at_a_time"] > 4) == (4, True)
    assert alone["makespan_hours"] > shared["makespan_hours"]
    assert ray["cells"] == len(cells)


def test_more_workers_take_less_time_until_the_longest_cell_rules() -> None:
    cells = load_cells("h100")[1]
    found = [price_row(cells, H100, "slurm", workers, None) for workers in (1, 8, 16, 64, 1000)]
    hours = [row["makespan_hours"] for row in found]
    assert hours == sorted(hours, reverse=True)
    assert hours[0] == pytest.approx(found[0]["gpu_hours"])
    assert hours[-1] == found[-1]["longest_cell_hours"]


def test_it_is_a_table_for_people(tmp_path: Path) -> None:
    outcome = run(tmp_path, "plan", "quick", "--device", "h100", "--workers", "4", "--price", "2")
    assert (outcome.code, outcome.err) == (0, "")
    assert "quick on 4 x h100; a rough figure, if no node is lost" in outcome.out
    assert "makespan hours" in outcome.out
    plain = run(tmp_path, "plan", "quick", "--workers", "2")
    assert "core hours" in plain.out


def test_a_cell_beyond_the_memory_is_said_once(tmp_path: Path) -> None:
    outcome = run(tmp_path, "plan", "h100", "--device", "rtx4090", "--workers", "2", "--json")
    assert "more than the 24 GB there: set training.micro_batch" in outcome.err
    assert json.loads(outcome.out)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--on", "slrum", "--workers", "2"), "--on: no engine 'slrum' (did you mean 'slurm'?)"),
        (("--on", "ray"), "--on ray: give --workers too, the number of GPUs or cores"),
        (("--price", "2"), "--price: give --workers too, the number of GPUs or cores"),
        (("--workers", "0"), "plan: --workers: "),
        (("--workers", "2.5"), "plan: --workers: "),
        (("--workers", "100000"), "plan: --workers: "),
        (("--workers", "2", "--price", "-1"), "plan: --price: "),
        (("--workers", "2", "--price", "nan"), "--price: "),
        (("--workers", "2", "--price", "inf"), "plan: --price: "),
        (("--workers", "2", "--device", "h1000"), "--device: no device 'h1000' (did you mean"),
    ],
)
def test_bad_values_are_one_line(tmp_path: Path, options: tuple[str, ...], line: str) -> None:
    outcome = run(tmp_path, "plan", "quick", *options)
    assert not outcome.fault, outcome
    assert (outcome.code, outcome.out) == (2, "")
    assert line in outcome.err


def test_a_price_that_is_no_number_is_refused_whatever_parses_it() -> None:
    with pytest.raises(IsoflopError, match="--price: nan is no price"):
        check_price("local", 2, float("nan"))


def shared(batch: int, gpus: int) -> list[Cell]:
    """The suite `h100` with micro-batches of 4 sequences, and so many GPUs for a cell."""
    suite = load_suite("h100")
    training = {"batch": batch, "micro_batch": 4, "gpus_per_cell": gpus}
    return plan(
        suite.model_copy(update={"training": suite.training.model_copy(update=training)}), "h100"
    )


def test_several_gpus_for_a_cell_are_all_counted() -> None:
    """Four cells at a time on 16 GPUs, each in less than the time of one GPU."""
    alone, together = (price_row(shared(32, gpus), H100, "slurm", 16, 2.0) for gpus in (1, 4))
    assert (alone["gpus_per_cell"], together["gpus_per_cell"]) == (1, 4)
    assert (alone["cells_at_a_time"], together["cells_at_a_time"]) == (16, 4)
    longest = together["longest_cell_hours"]
    assert 0.25 * alone["longest_cell_hours"] < longest < 0.6 * alone["longest_cell_hours"]
    seconds = [need(cell, H100).seconds for cell in shared(32, 4)]
    assert together["gpu_hours"] == pytest.approx(4 * sum(seconds) / 3600)
    assert together["cost"] == pytest.approx(2 * together["gpu_hours"])
    assert together["makespan_hours"] >= sum(seconds) / 3600 / 4
    rest = price_row(shared(32, 4), H100, "slurm", 19, 2.0)  # three GPUs train nothing
    assert rest["makespan_hours"] == together["makespan_hours"]
    cores = schedule(shared(32, 4), local_cpu(), devices=2)  # two of the four processes at a time
    assert cores.at_a_time == 1
    assert cores.held == pytest.approx(2 * cores.seconds)


def write_suite(folder: Path, **training: int) -> None:
    """The tiny suite's dense variant with these training fields, as `shared.toml`."""
    suite = TINY | {
        "training": TINY["training"] | {"batch": 8} | training,
        "budgets": [{"flops": 1e9}],
        "variants": {"dense": TINY["variants"]["dense"]},
    }
    (folder / "shared.toml").write_text(tomli_w.dumps(suite))


@pytest.mark.parametrize(
    ("training", "line"),
    [
        (
            {"micro_batch": 2, "gpus_per_cell": 4},
            "--workers: 2 are fewer than the 4 of training.gpus_per_cell that train a cell",
        ),
        (
            {"micro_batch": 2, "gpus_per_cell": 3},
            "training.gpus_per_cell: 3 processes cannot share the 4 micro-batches of size s evenly",
        ),
        ({"gpus_per_cell": 0}, "training.gpus_per_cell"),
    ],
)
def test_processes_that_cannot_be_are_one_line(
    tmp_path: Path, training: dict[str, int], line: str
) -> None:
    write_suite(tmp_path, **training)
    outcome = run(tmp_path, "plan", "shared.toml", "--workers", "2", "--device", "h100")
    assert not outcome.fault, outcome
    assert (outcome.code, outcome.out) == (2, "")
    assert line in outcome.err


def test_a_plan_of_shared_cells_names_their_gpus(tmp_path: Path) -> None:
    write_suite(tmp_path, micro_batch=2, gpus_per_cell=4)
    outcome = run(tmp_path, "plan", "shared.toml", "--device", "h100")
    assert outcome.code == 0
    assert "min on 4 x h100 with 1 at a time" in outcome.out
