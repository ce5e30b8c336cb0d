"""Compressed models beside smaller ones, on records made up so that the answer is known."""

import csv
import io
import math
from typing import Any

import numpy as np
import pytest

from isoflop.analysis.curves import AnalysisError
from isoflop.analysis.post_training import (
    SIBLING_SIZES,
    SIZES,
    mean_interval,
    post_training,
    sentence,
    sibling,
)
from isoflop.analysis.report.method_charts import method_charts, method_looks
from isoflop.analysis.report.post_training import COLUMNS, as_csv, files, notes
from isoflop.results.compressed import Calibration, Compressed, Recovery
from isoflop.results.record import Parameters, Record, Size
from tests.bench.cells import make_record

BUDGETS = (1e9, 1.1e9)
WIDTHS = {"s": 1000, "m": 2000, "l": 4000}  # total parameters
NOISE = (0.0, 0.02, -0.02)  # by seed


def law(parameters: float, budget: float, seed: int) -> float:
    """Linear in both logarithms, so that interpolation is exact."""
    return 5 - 0.1 * math.log(parameters) - 0.5 * math.log(budget / 1e9) + NOISE[seed]


def parameters(total: int) -> Parameters:
    return Parameters(
        embedding=0, head=0, backbone=total // 2, layer_active=total // 4,
        layer_total=total - total // 2,
    )  # fmt: skip


def siblings() -> list[Record]:
    return [
        make_record(
            cell=f"{name}{budget:g}{seed}",
            size=Size(name=name, width=16, depth=2, heads=2),
            budget=budget,
            flops=int(budget),
            seed=seed,
            parameters=parameters(total),
            loss=law(total, budget, seed),
        )
        for name, total in WIDTHS.items()
        for budget in BUDGETS
        for seed in range(3)
    ]


def compressed(better: float = 0.0, **changes: Any) -> list[Compressed]:
    """The source l of the first budget at half of its bytes, `better` nats below the law."""
    record = make_record()
    calibrations = changes.pop("calibrations", 3)
    seeds = changes.pop("seeds", 3)
    stored, share = changes.pop("stored_bytes", 4000), changes.pop("share", 0.0)
    recovered = int(share * 1e9)
    return [
        Compressed(
            id=f"{changes.get('method', 'prune')}{seed}{calibration}",
            cell=f"l{seed}",
            suite="tiny",
            variant="dense",
            layer="dense",
            size=Size(name="l", width=16, depth=2, heads=2),
            seed=seed,
            budget=1e9,
            source_flops=10**9,
            source_loss=law(4000, 1e9, seed),
            source_parameters=parameters(4000),
            source_stored_bytes=8000,
            options=changes.get("options", {"drop": 0.5}),
            method=changes.get("method", "prune"),
            note=changes.get("note", ""),
            calibration=Calibration(text="sotu", tokens=64, seed=calibration, hash="x"),
            recovery=Recovery(
                share=share, steps=1 if share else 0, flops=recovered, learning_rate=share
            ),
            loss=law(stored / 2, 1e9 + recovered, seed) - better + 0.001 * (calibration - 1)
            + 0.001 * (seed - 1),
            bits_per_byte=2.0,
            validation_hash=changes.get("validation_hash", "0123456789abcdef"),
            parameters=parameters(2000),
            flops_per_token=record.flops_per_token,
            measured_flops_per_token=record.flops_per_token.forward,
            stored_bytes=stored,
            read_bytes=changes.get("read_bytes", stored),
            decode_ms=changes.get("decode_ms"),
            source_decode_ms=2.0 if "decode_ms" in changes else None,
            measured=record.measured,
        )
        for seed in range(seeds)
        for calibration in range(calibrations)
    ]  # fmt: skip


@pytest.mark.parametrize("stored", [2000, 3000, 4000, 8000])
def test_a_sibling_is_interpolated_between_trained_sizes(stored: int) -> None:
    for item in compressed(stored_bytes=stored):
        loss = sibling(siblings(), item, "stored bytes")
        assert loss == pytest.approx(law(stored / 2, 1e9, item.seed))


@pytest.mark.parametrize("stored", [1990, 8010])
def test_outside_of_trained_sizes_there_is_none(stored: int) -> None:
    (row,) = post_training(siblings(), compressed(stored_bytes=stored))
    assert row.verdict == "no sibling"
    assert np.isnan(row.against.value)


def test_recovery_is_matched_by_a_larger_budget() -> None:
    for item in compressed(share=0.05):
        loss = sibling(siblings(), item, "stored bytes")
        assert loss == pytest.approx(law(2000, 1.05e9, item.seed), abs=2e-6)


def test_recovery_beyond_the_largest_budget_has_no_sibling() -> None:
    (row,) = post_training(siblings(), compressed(share=0.2))
    assert row.verdict == "no sibling"


def test_other_variants_and_seeds_are_no_siblings() -> None:
    others = [record.model_copy(update={"variant": "moe"}) for record in siblings()]
    (row,) = post_training(others, compressed())
    assert row.verdict == "no sibling"
    first = [record for record in siblings() if record.seed == 0]
    (row,) = post_training(first, compressed(better=1.0))
    assert row.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        (0.1, "significantly better"),
        (-0.1, "significantly worse"),
        (0.0, "not significantly different"),
    ],
)
def test_the_verdict_is_paired_by_seed(better: float, verdict: str) -> None:
    """The noise of a seed, ten times what is left, is in both."""
    (row,) = post_training(siblings(), compressed(better))
    assert row.verdict == verdict
    assert row.against.value == pytest.approx(-better, abs=1e-9)
    assert row.change.value == pytest.approx(0.1 * math.log(2) - better)
    assert row.seeds == (3, 3)


@pytest.mark.parametrize("few", [{"seeds": 2}, {"calibrations": 2}])
def test_too_few_seeds_are_inconclusive(few: dict[str, int]) -> None:
    (row,) = post_training(siblings(), compressed(1.0, **few))
    assert row.verdict == "inconclusive"


def test_rows_differ_by_method_options_and_recovery() -> None:
    items = [
        *compressed(),
        *compressed(method="other"),
        *compressed(options={"drop": 0.25}),
        *compressed(share=0.05),
    ]
    assert len(post_training(siblings(), items)) == 4


def test_the_sentence_names_what_beats_training_smaller() -> None:
    rows = post_training(siblings(), [*compressed(0.1), *compressed(method="other")])
    assert sentence(rows) == (
        "Better than training a smaller model of equal stored bytes and equal total FLOPs: prune "
        "(dense l at 50% of its bytes). Other comparisons: 1 not significantly different."
    )
    rows = post_training(siblings(), compressed(-0.1))
    assert sentence(rows).startswith("No method is significantly better than training a smaller")


def test_a_source_above_the_best_size_is_named() -> None:
    rows = post_training(siblings(), compressed())
    assert "larger than the best of the trained sizes" not in str(notes(rows, siblings()))
    worse = [r.model_copy(update={"loss": 9.0}) if r.size.name == "l" else r for r in siblings()]
    assert "dense l at 1e9 FLOPs: larger than the best" in notes(rows, worse)[-1]


def test_other_text_is_not_compared() -> None:
    with pytest.raises(AnalysisError, match="different text"):
        post_training(siblings(), compressed(validation_hash="other"))


def test_an_interval_is_student_s() -> None:
    value = mean_interval([1.0, 2.0, 3.0])
    assert value.value == 2
    assert value.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert np.isnan(mean_interval([1.0]).low)


def test_the_files_hold_every_row_and_are_the_same_twice() -> None:
    items = [*compressed(0.1, note="a proxy"), *compressed(method="other", share=0.05)]
    rows = post_training(siblings(), items)
    made = files(rows, siblings(), "test")
    assert made == files(rows, siblings(), "test")
    assert set(made) == {
        "POST-TRAINING.md", "post_training.csv", "figures/post_training_1.png",
        "figures/post_training_1.svg",
    }  # fmt: skip
    table = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert tuple(table[0]) == COLUMNS
    assert [line["method"] for line in table] == [row.first.method for row in rows]
    assert float(table[0]["against_sibling"]) == pytest.approx(rows[0].against.value)
    text = made["POST-TRAINING.md"].decode()
    assert "- prune: a proxy." in text
    assert "significantly better" in text
    assert "(figures/post_training_1.png)" in text


def test_a_chart_has_a_panel_per_cost_with_every_row_and_the_siblings() -> None:
    items = [
        *compressed(0.1, decode_ms=1.0, read_bytes=3000),
        *compressed(method="other", share=0.05, decode_ms=4.0),
    ]
    rows = post_training(siblings(), items)
    (chart,) = method_charts(rows, siblings())
    titles = [panel.title for panel in chart.panels]
    assert titles == [*SIZES, "decode ms per token"]
    assert {"method prune", "method other"} <= method_looks(rows).keys()
    by_title = {panel.title: panel for panel in chart.panels}
    for title, panel in by_title.items():
        trained = [series for series in panel.series if series.variant is None]
        (diamonds,) = [series for series in trained if series.kind == "points"]
        # Decoding was timed for the source alone, and FLOPs are made up equal.
        assert len(diamonds.x) == (1 if title in titles[2::2] else len(WIDTHS))
        mine = {series.variant: series for series in panel.series if series.variant}
        assert mine["method prune"].x == pytest.approx([rows[0].loss.value])
        assert mine["method prune"].strength < mine["method other"].strength
    heights = {
        title: {s.variant: s.y for s in panel.series}["method prune"]
        for title, panel in by_title.items()
    }
    assert heights["bytes read per token"] == (3000.0,)
    assert heights["stored bytes"] == (4000.0,)
    assert heights["decode ms per token"] == (1.0,)


def test_a_chart_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIBLING_SIZES, "parameters", lambda record: 1 / 0)
    rows, failed = post_training(siblings(), compressed()), dict[str, str]()
    made = files(rows, siblings(), "test", failed)
    assert "ZeroDivisionError" in failed["post_training_1"]
    assert set(made) == {"POST-TRAINING.md", "post_training.csv"}


def test_without_times_there_is_no_panel_of_them() -> None:
    records = [record for record in siblings() if record.size.name == "l"]
    (chart,) = method_charts(post_training(records, compressed()), records)
    assert [panel.title for panel in chart.panels] == [*SIZES]
