"""Rows, table, and the flags that warn a reader."""

import csv
import io
from dataclasses import replace

import pytest

from isoflop.analysis.analyse import analyse
from isoflop.analysis.estimate import Estimate
from isoflop.analysis.ranking import Crossing
from isoflop.analysis.report.leaderboard import as_csv, brief, headline, legend, rows, table
from isoflop.analysis.report.sections import crossings, markdown
from isoflop.analysis.simulate import rate_sweep, simulate
from isoflop.results.record import Record
from tests.analysis.devices import moved

BUDGETS = (1e14, 4e14, 1.6e15, 6.4e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)
TRUTH = {"dense": 1.0, "peer": 1.5, "pkm": 0.7}
RATES = (5e-4, 1e-3, 2e-3)


@pytest.fixture
def records() -> list[Record]:
    return simulate(TRUTH, BUDGETS, octaves=OCTAVES)


def flags(records: list[Record], variant: str, tune: list[Record] | None = None) -> str:
    by_variant = {row["variant"]: row for row in rows(analyse(records, tune or [], samples=200))}
    return "; ".join(by_variant[variant]["flags"])


def test_rows_hold_what_the_records_hold(records: list[Record]) -> None:
    analysis = analyse(records, samples=200)
    peer, dense, pkm = rows(analysis)
    assert [row["variant"] for row in (peer, dense, pkm)] == ["peer", "dense", "pkm"]
    assert [row["rank"] for row in (peer, dense, pkm)] == [1, 2, 3]
    assert peer["multiplier_low"] <= peer["multiplier"] <= peer["multiplier_high"]
    assert dense["multiplier"] == 1
    assert dense["trend_per_decade"] is None
    standing = analysis.standings[0]
    (nearest,) = standing.nearest
    loss = standing.loss(6.4e15)
    assert loss
    assert peer["size"] == nearest.size.name
    assert peer["active_parameters"] == nearest.parameters.active
    assert peer["total_parameters"] == nearest.parameters.total
    assert peer["layer_bytes_per_token"] == nearest.layer_bytes_per_token
    assert peer["bits_per_byte"] == pytest.approx(nearest.bits_per_byte, rel=1e-4)
    assert peer["tokens_per_second"] == pytest.approx(nearest.measured.tokens_per_second, rel=1e-4)
    assert peer["loss_6.4e15"] == pytest.approx(loss.value, rel=1e-4)
    assert peer["seeds"] == 1
    assert (peer["rank_low"], peer["rank_high"]) == (1, 1)
    assert [row["verdict"] for row in (peer, dense, pkm)] == ["better", None, "worse"]
    assert peer["source"] == "surface"
    low, high = (peer[f"parabola_multiplier_{end}"] for end in ("low", "high"))
    assert low < 1.5 < high
    # three times dense's seconds per FLOP
    assert peer["time_multiplier"] == pytest.approx(peer["multiplier"] / 3, rel=1e-3)


def test_times_are_shown_of_one_device_alone(records: list[Record]) -> None:
    elsewhere = [
        moved(record, "another") if record.variant == "pkm" else record for record in records
    ]
    plain, analysis = analyse(records, samples=20), analyse(elsewhere, samples=20)
    speeds = {row["variant"]: row["tokens_per_second"] for row in rows(analysis)}
    before = {row["variant"]: row["tokens_per_second"] for row in rows(plain)}
    assert speeds == before | {"pkm": None}
    device = records[0].measured.device
    assert f"of the runs on {device} alone" in legend(analysis)
    assert "of the runs on" not in legend(plain)


def test_seeds_of_the_nearest_cell_are_averaged() -> None:
    records = simulate(TRUTH, BUDGETS, octaves=OCTAVES, seeds=2, noise=0.01)
    analysis = analyse(records, samples=50)
    row, cell = rows(analysis)[0], analysis.standings[0].nearest
    bits = [record.bits_per_byte or 0 for record in cell]
    assert row["seeds"] == 2
    assert row["bits_per_byte"] == pytest.approx(sum(bits) / 2, rel=1e-4)
    assert bits[0] != bits[1]


def test_the_table_shows_them(records: list[Record]) -> None:
    text = table(analyse(records, samples=200))
    lines = text.splitlines()
    assert "compute multiplier at 6.4e15 FLOPs" in lines[0]
    assert lines[2].startswith("|    1 | peer    |")
    assert " 1.5" in lines[2]
    assert "1 (baseline)" in lines[3]
    assert " 0.50x [0." in lines[2]  # the time multiplier, in the same row
    assert "| better " in lines[2]
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_the_headline_is_the_result_in_words(records: list[Record]) -> None:
    def said(truth: dict[str, float], trend: float = 0.0, noise: float = 0.003) -> str:
        made = simulate(truth, BUDGETS, octaves=OCTAVES, trend=trend, noise=noise)
        return headline(analyse(made, samples=200))

    assert said(TRUTH, trend=0.1).startswith("At 6.4e15 FLOPs, dense needs 1.")
    assert said(TRUTH, trend=0.1).endswith(
        ": it wins on FLOPs and loses on time. The gain grows with compute."
    )
    assert " the compute of peer to reach the same loss. The time mult" in said(TRUTH, trend=0.1)
    assert said(TRUTH, trend=-0.1).endswith("The gain fades with compute.")
    both = said({"dense": 1.0, "peer": 1.5, "pkm": 1.2}, noise=0.001)
    assert "it wins on FLOPs and loses on time. pkm wins on FLOPs and loses on time." in both
    assert "compute is inconclusive" in said(TRUTH, noise=0.02)
    short = simulate(TRUTH, (1e14, 3e14, 9e14), octaves=OCTAVES)
    assert "less than a decade: no trend with compute" in headline(analyse(short, samples=200))
    assert " moe is not significantly different from peer." in said(TRUTH | {"moe": 1.495})
    tied = said(TRUTH | {"moe": 1.495, "pkm": 1.494})
    assert " pkm and moe are not significantly different from peer." in tied
    assert said({"dense": 1.0, "pkm": 0.7}) == ("At 6.4e15 FLOPs, no layer does better than dense.")
    single = simulate(TRUTH, BUDGETS[:1], octaves=OCTAVES)
    assert headline(analyse(single, samples=10)).startswith("No compute multiplier at 1e14 FLOPs")


def test_the_brief_table_is_for_a_terminal(records: list[Record]) -> None:
    first, second, _ = brief(rows(analyse(records, samples=50)))
    assert list(first) == [
        "rank", "variant", "compute multiplier", "time multiplier", "verdict", "loss at 6.4e15",
        "bits per byte", "active", "total", "tokens/s",
    ]  # fmt: skip
    assert first["compute multiplier"].startswith("1.")
    assert first["loss at 6.4e15"].startswith("3.")
    assert second["compute multiplier"] == "1 (baseline)"


def test_the_brief_table_without_a_rank_has_the_largest_budget(records: list[Record]) -> None:
    spoilt = [
        record for record in records if record.variant != "peer" or record.budget < BUDGETS[-1]
    ]
    table_rows = rows(
        analyse([record for record in spoilt if record.variant != "dense"], samples=50)
    )
    assert [(row["rank"], row["variant"]) for row in table_rows] == [(None, "peer"), (None, "pkm")]
    assert "loss at 6.4e15" in brief(table_rows)[0]


def test_the_csv_comes_back(records: list[Record]) -> None:
    spoilt = [
        record for record in records if record.variant != "pkm" or record.budget == BUDGETS[0]
    ]
    table_rows = rows(analyse(spoilt, samples=50))
    read = list(csv.DictReader(io.StringIO(as_csv(table_rows))))
    assert float(read[0]["multiplier"]) == table_rows[0]["multiplier"]
    assert read[2]["multiplier"] == ""
    assert read[2]["flags"].startswith("5 finished cells; a surface needs 6")


def test_a_winner_is_flagged_as_extrapolating_the_dense_frontier(records: list[Record]) -> None:
    assert "its loss is beyond dense's largest budget, 6.4e15 FLOPs: extra" in flags(
        records, "peer"
    )
    assert "extrapolated" not in flags(records, "pkm")


def test_an_interval_that_excludes_one_by_chance_is_flagged() -> None:
    """A true 1.012x among nine layers, see `test_ranking`."""
    truth = {"dense": 1.0, "peer": 1.012} | {f"layer-{number}": 1.0 for number in range(8)}
    records = simulate(truth, BUDGETS[:3], octaves=OCTAVES, random=1)
    assert "its interval excludes 1; among 10 variants that may be chance" in flags(records, "peer")
    assert "chance" not in flags(records, "layer-1")


def test_a_law_that_fails_its_extrapolation_test_is_flagged(records: list[Record]) -> None:
    bent = [
        record.model_copy(update={"loss": (record.loss or 0) - 0.2})
        if (record.variant, record.budget) == ("peer", BUDGETS[-1])
        else record
        for record in records
    ]
    assert "fails to predict the held-out budget: error +0." in flags(bent, "peer")
    assert "fails" not in flags(records, "peer")


def test_unfinished_cells_are_flagged(records: list[Record]) -> None:
    index = next(i for i, record in enumerate(records) if record.variant == "peer")
    wild = records[index].model_copy(
        update={"status": "diverged", "loss": None, "message": "loss is nan at step 9\ntraceback"}
    )
    spoilt = [*records[:index], wild, *records[index + 1 :]]
    assert "1 cell did not finish (diverged)" in flags(spoilt, "peer")
    assert "diverged: loss is nan at step 9\n" in markdown(analyse(spoilt, samples=10))


def measured(record: Record, ratio: float) -> Record:
    """The record of a layer that measured its FLOPs, as multiples of those planned."""
    flops = round(record.flops * ratio)
    return record.model_copy(update={"flops": flops, "planned_flops": record.flops})


def test_cells_that_missed_their_budget_are_flagged(records: list[Record]) -> None:
    peer = [index for index, record in enumerate(records) if record.variant == "peer"]
    spent = list(records)
    for index in peer:
        spent[index] = measured(records[index], 1.002)
    assert "times their budget" not in flags(spent, "peer")
    spent[peer[0]] = measured(records[peer[0]], 1.5)
    assert f"1 of {len(peer)} cells spent 1.50 times their budget" in flags(spent, "peer")
    spent[peer[1]] = measured(records[peer[1]], 0.9)
    assert f"2 of {len(peer)} cells spent 0.90 to 1.50 times" in flags(spent, "peer")


def test_a_multiplier_is_charged_for_what_was_measured(records: list[Record]) -> None:
    spent = [measured(record, 1.25) if record.variant == "peer" else record for record in records]
    before, after = (
        next(row for row in rows(analyse(kind, samples=50)) if row["variant"] == "peer")
        for kind in (records, spent)
    )
    assert after["multiplier"] == pytest.approx(before["multiplier"] / 1.25, rel=0.02)


def test_an_untrusted_lower_budget_is_flagged(records: list[Record]) -> None:
    kept = [
        record
        for index, record in enumerate(records)
        if (record.variant, record.budget) != ("peer", BUDGETS[1]) or index % 5 < 3
    ]
    assert "no parabola at 4e14 FLOPs: fewer than 4 points" in flags(kept, "peer")


def test_learning_rates_are_flagged(records: list[Record]) -> None:
    tune = [*rate_sweep("dense", RATES, 1e-3), *rate_sweep("peer", RATES, 1e-2)]
    assert "best learning rate 0.002 at the edge of its sweep" in flags(records, "peer", tune)
    assert "learning rate not tuned" in flags(records, "pkm", tune)
    assert "rate" not in flags(records, "dense", tune)


def test_sections_appear_where_there_is_something_to_say() -> None:
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    truth = {"dense": 1.0, "moe-g1": 1.2, "moe-g2": 1.5, "moe-g4": 1.6, "moe-g8": 1.4}
    records = simulate(truth, BUDGETS, octaves=OCTAVES, options=options)
    full = markdown(analyse(records, rate_sweep("dense", RATES, 1e-3), samples=100))
    for title in (
        "Compute multiplier by budget", "Held-out budget", "Granularity", "Learning-rate sweeps",
        "Notes",
    ):  # fmt: skip
        assert f"\n## {title}\n" in full
    assert "moe at 6.4e15 FLOPs (G = 1, 2, 4, 8): best G 3." in full
    bare = markdown(analyse(simulate({"dense": 1.0}, BUDGETS[:1]), samples=100))
    for title in ("Held-out budget", "Granularity", "Learning-rate sweeps"):
        assert title not in bare


def test_of_many_inconclusive_crossings_the_number_is_told(records: list[Record]) -> None:
    """Eighteen laws that lie close have over a hundred."""
    analysis = analyse(records, samples=20)
    compute = Estimate(2e14, 1e14, 4e14)
    doubtful = [Crossing("dense", f"moe-g{g}", compute, resolved=False) for g in range(4)]
    sure = Crossing("dense", "peer", compute, resolved=True)
    few = crossings(replace(analysis, crossings=(*doubtful[:3], sure)))
    assert few[0] == "dense has the lower loss below 2e14 [1e14, 4e14] FLOPs, peer above."
    assert [line.endswith(" above (inconclusive at this noise).") for line in few[1:]] == [True] * 3
    many = crossings(replace(analysis, crossings=(*doubtful, sure)))
    assert many == [few[0], "4 other pairs cross inconclusively at this noise."]
