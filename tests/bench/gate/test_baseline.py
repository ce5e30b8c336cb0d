"""The gate lets unchanged code pass and catches planted regressions.

Time is planted in `tests/benchmarks/test_gate.py`, with real clocks; here it is simulated.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isoflop.models.decoder
from isoflop.bench.counts import counts as counts_of_models
from isoflop.bench.data import prepare
from isoflop.bench.gate import baseline as gate
from isoflop.bench.gate.baseline import Baseline, Check, GateError, read_baseline, write_baseline
from isoflop.bench.gate.noise import departures
from isoflop.bench.gate.same_seed import capability
from isoflop.bench.gate.stopwatch import Ratio
from isoflop.bench.plan import Cell, plan
from isoflop.bench.suite import load_suite
from isoflop.bench.train import train_cell
from isoflop.models import Dense
from tests.bench.cells import make_record

STORED = Path(__file__).parents[3] / "results" / "ci" / "baseline.json"
VARIANTS = [f"v{index}" for index in range(7)]
SIGMA = {"xs": 0.1, "s": 0.1, "m": 0.05, "l": 0.01}  # nats between seeds, about those of `ci`
GROUPS: list[tuple[str, object]] = [
    (variant, (size, budget)) for variant in VARIANTS for size in SIGMA for budget in range(3)
]
SCALE = np.array([SIGMA[setting[0]] for _, setting in GROUPS])  # type: ignore[index]


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return plan(load_suite("ci"), "ci")


def simulated(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """Losses (cells, seeds) of seeds that share some of their noise over cells."""
    shared = generator.normal(size=seeds)
    return 5 + SCALE[:, None] * (generator.normal(size=(len(GROUPS), seeds)) + 0.3 * shared)


def passes(stored: Any, new: Any) -> bool:
    of_variant, of_cell = departures(stored, new, GROUPS)
    return all(departure.ok for departure in (*of_variant.values(), *of_cell))


def test_losses_of_unchanged_code_pass() -> None:
    generator = np.random.default_rng(0)
    outcomes = [passes(simulated(generator, 8), simulated(generator, 1)[:, 0]) for _ in range(100)]
    assert np.mean(outcomes) >= 0.9  # by design 0.99


@pytest.mark.parametrize(
    ("variants", "sizes", "shift"), [(VARIANTS[:1], list(SIGMA), 3), (VARIANTS[:1], ["l"], 6)]
)
def test_worse_losses_of_one_variant_or_size_fail(
    variants: list[str], sizes: list[str], shift: float
) -> None:
    generator = np.random.default_rng(1)
    worse = np.array([name in variants and setting[0] in sizes for name, setting in GROUPS])  # type: ignore[index]
    outcomes = [
        passes(simulated(generator, 8), simulated(generator, 1)[:, 0] + shift * SCALE * worse)
        for _ in range(40)
    ]
    assert np.mean(outcomes) <= 0.1


def test_each_stored_seed_passes_against_the_others() -> None:
    """An A/A test on real losses: the stored code, with a seed that the baseline then lacks."""
    stored = read_baseline(STORED)
    losses = np.array([cell.losses for cell in stored.cells])
    groups: list[tuple[str, object]] = [(c.variant, (c.size, c.budget)) for c in stored.cells]
    assert len(stored.seeds) >= 5
    for index in range(len(stored.seeds)):
        of_variant, of_cell = departures(np.delete(losses, index, axis=1), losses[:, index], groups)
        beyond = [d for d in (*of_variant.values(), *of_cell) if not d.ok]
        assert not beyond, stored.seeds[index]


def trained(cells: list[Cell], folder: Path, capability: str = "") -> Check:
    tokens = prepare(cells[0].corpus)
    records = [train_cell(cell, tokens, torch.device("cpu"), folder) for cell in cells]
    return gate.losses(read_baseline(STORED), records, capability)


def test_a_planted_worse_initialisation_fails(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [cell for cell in cells if cell.variant == "dense" and cell.budget == 1e10]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert trained(some, tmp_path).ok
        whole = isoflop.models.decoder.Decoder.__init__

        def worse(self: Any, *arguments: Any) -> None:
            whole(self, *arguments)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.mul_(4)

        monkeypatch.setattr(isoflop.models.decoder.Decoder, "__init__", worse)
        check = trained(some, tmp_path)
    finally:
        torch.set_num_threads(before)
    assert not check.ok
    assert any(line.startswith("dense: worse than stored by ") for line in check.details)


@pytest.mark.skipif(
    capability() != read_baseline(STORED).capability, reason="losses stored on another CPU"
)
def test_this_code_gives_the_stored_losses_and_a_small_change_does_not(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Initial weights larger by 2%: far within the spread between seeds."""
    some = [cell for cell in cells if cell.variant == "dense" and cell.budget == 1e10]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        same = trained(some, tmp_path, capability())
        whole = isoflop.models.decoder.Decoder.__init__

        def changed(self: Any, *arguments: Any) -> None:
            whole(self, *arguments)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.mul_(1.02)

        monkeypatch.setattr(isoflop.models.decoder.Decoder, "__init__", changed)
        check = trained(some, tmp_path, capability())
    finally:
        torch.set_num_threads(before)
    assert (same.ok, same.details) == (True, [])
    assert "equal those of the same stored seed" in same.text
    assert not check.ok
    assert "none is beyond the spread between seeds" in check.text


def test_counts_of_this_code_are_the_stored_ones(cells: list[Cell]) -> None:
    check = gate.counts(read_baseline(STORED), cells)
    assert (check.ok, check.details) == (True, [])


@pytest.fixture
def _models_counted_anew() -> Iterator[None]:
    counts_of_models.cache_clear()
    yield
    counts_of_models.cache_clear()


@pytest.mark.usefixtures("_models_counted_anew")
def test_planted_flops_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    formula = Dense.flops_per_token
    monkeypatch.setattr(Dense, "flops_per_token", lambda self: round(1.02 * formula(self)))
    check = gate.counts(read_baseline(STORED), plan(load_suite("ci"), "ci"))
    assert not check.ok
    assert "dense m 1e+10 FLOPs: ffn 49152 is stored, 50136 counted" in check.details


def test_cells_that_only_one_side_has_fail(cells: list[Cell]) -> None:
    stored = read_baseline(STORED)
    check = gate.counts(stored, [cell for cell in cells if cell.variant != "peer"])
    assert "peer m 1e+10 FLOPs: stored, but no longer in the suite" in check.details
    fewer = stored.model_copy(update={"cells": [c for c in stored.cells if c.variant != "pkm"]})
    check = gate.counts(fewer, cells)
    assert "pkm m 1e+10 FLOPs: not stored; --accept stores it" in check.details


def of_seed(seed: int, **changes: Any) -> Any:
    return make_record(seed=seed, loss=4.5 + 0.01 * (-1) ** seed, **changes)


def test_a_baseline_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "tiny" / "baseline.json"
    written = write_baseline(path, [of_seed(seed) for seed in (2, 0, 1)])
    assert read_baseline(path) == written
    assert written.seeds == [0, 1, 2]
    assert written.cells[0].losses == [4.51, 4.49, 4.51]
    bad = make_record(status="diverged", loss=None, message="too high")
    with pytest.raises(GateError, match="diverged: too high"):
        write_baseline(path, [bad])
    assert read_baseline(path) == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"baseline.json: No such file or directory; `isoflop check --accept` makes it"),
        ("{", r"baseline.json: Invalid JSON"),
        ('{"suite": "ci"}', r"baseline.json: device: missing"),
    ],
)
def test_no_baseline_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "baseline.json"
    if text:
        path.write_text(text)
    with pytest.raises(GateError, match=message):
        read_baseline(path)


@pytest.fixture
def tiny(tmp_path: Path) -> Baseline:
    return write_baseline(tmp_path / "baseline.json", [of_seed(seed) for seed in range(4)])


def test_losses_that_cannot_be_judged_fail(tiny: Baseline) -> None:
    assert gate.losses(tiny, [of_seed(4)]).ok
    for record, said in (
        (make_record(status="failed", loss=None, message="out of memory"), "failed: out of memory"),
        (of_seed(0, validation_hash="0"), "scored on other text than the stored losses"),
        (of_seed(0, variant="other"), "no stored losses; --accept stores them"),
        (make_record(loss=4.6), "loss 4.6000, 4.5000 is stored: z = +"),
        (make_record(loss=4.4), "better than stored by 0.1000 nats on average: z = -"),
    ):
        check = gate.losses(tiny, [record])
        assert not check.ok
        assert any(said in line for line in check.details), check.details


def test_a_ratio_beyond_its_threshold_fails() -> None:
    slow = gate.ratios(
        "step time",
        "ms",
        1e3,
        [Ratio("dense", 0.01, 0.0101, 1.01, 1.03), Ratio("peer", 0.02, 0.022, 1.1, 1.03)],
        ["mine"],
    )
    assert slow.text == (
        "peer 1.100x of the baseline at most; a regression above 1.030x; not in the baseline: mine"
    )
    assert not slow.ok
    assert slow.details == ["peer: 1.100x, beyond 1.030x"]
    many = Check("counts", False, "many", [f"line {index}" for index in range(30)])
    assert gate.shown(many)[-1] == "and 11 more"
    assert len(gate.shown(many)) == 20
    assert json.loads(json.dumps(gate.as_json([slow])))[0]["ok"] is False
