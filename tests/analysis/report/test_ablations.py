"""What an ablation's directory holds, and what the board beside it shows."""

from pathlib import Path

import pytest

from isoflop.analysis.ablation import ablation
from isoflop.analysis.curves import AnalysisError
from isoflop.analysis.report.ablations import figure, markdown, rows
from isoflop.analysis.report.derive import report, stale
from isoflop.analysis.simulate import simulate
from isoflop.results.record import LayerFigures, Record, write_record
from tests.analysis.test_ablation import simulated

BUDGETS = (1e14, 4e14, 1.6e15)


def write(folder: Path, records: list[Record]) -> None:
    for record in records:
        write_record(folder / "records", record)


@pytest.fixture
def changed() -> list[Record]:
    return [
        record.model_copy(update={"cell": f"{number:012x}"})
        for number, record in enumerate(simulated(0))
    ]


def test_a_directory_of_choices_has_tables_and_a_figure(
    tmp_path: Path, changed: list[Record]
) -> None:
    write(tmp_path, changed)
    rows = report(tmp_path)
    assert {(row["axis"], row["choice"]) for row in rows} == {("batch", "small")}
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("abl*.*")}
    assert made == {"ablation.csv", "ablation.tex", "figures/ablation.png", "figures/ablation.svg"}
    text = (tmp_path / "ABLATION.md").read_text(encoding="utf-8")
    assert "3 paired seeds" in text
    assert "A difference of 0.0" in text
    assert stale(tmp_path) == []


def test_a_choice_of_other_text_has_a_multiplier_and_no_place_in_the_figure(
    changed: list[Record],
) -> None:
    other = [
        r.model_copy(
            update={
                "validation_hash": "other",
                "ablation": r.ablation.model_copy(update={"axis": "vocabulary"}),
            }
        )
        for r in changed
        if r.ablation
    ]
    own, both = (ablation(records, "dense") for records in (changed, [*changed, *other]))
    assert [ax.get_title(loc="left") for ax in figure(own).axes] == ["batch"]
    assert [ax.get_title(loc="left") for ax in figure(both).axes] == ["batch"]
    assert "other text" in markdown(both)
    assert "other text" not in markdown(own)
    shown = {(row[0], row[2]): row for row in rows(both)}
    assert shown["vocabulary", "peer"][3] == "-"
    assert shown["vocabulary", "peer"][4] == shown["batch", "peer"][4]


def test_load_and_what_the_paper_reports_stand_beside(
    tmp_path: Path, changed: list[Record]
) -> None:
    figures = {"block": 1, "output_rms": 1.0, "experts": 64}

    def with_load(record: Record) -> Record:
        kl = 0.5 + record.seed / 10 if record.ablation else 0.25
        layer = LayerFigures(**figures, used=0.75, load_kl=kl)
        return record.model_copy(update={"layers": [layer]})

    write(tmp_path, [with_load(r) if r.layer == "peer" else r for r in changed])
    (tmp_path / "suite.toml").write_text('axes.batch.small.paper = "+0.040 at 16k"')
    report(tmp_path)
    text = (tmp_path / "ABLATION.md").read_text(encoding="utf-8")
    lines = [line.split("|") for line in text.splitlines()]
    rows = [[cell.strip() for cell in line[1:-1]] for line in lines if len(line) > 5]
    assert rows[0][-1] == "in the paper"
    assert {row[-1] for row in rows if row[:2] == ["batch", "small"] and len(row) == 7} == {
        "+0.040 at 16k"
    }
    assert ["as it is", "", "peer", "64", "75.0", "0.25 [0.25, 0.25]"] in rows
    assert ["batch", "small", "peer", "64", "75.0", "0.60 [0.50, 0.70]"] in rows
    (tmp_path / "suite.toml").write_text("axes = [")
    with pytest.raises(AnalysisError, match=r"suite\.toml: not TOML: "):
        report(tmp_path)


@pytest.mark.parametrize("shared", [(), ("dense",), ("dense", "peer")])
def test_the_board_shows_the_range_if_all_its_variants_are_the_same_cells(
    tmp_path: Path, changed: list[Record], shared: tuple[str, ...]
) -> None:
    plain = simulate({"dense": 1.0, "peer": 1.5, "pkm": 1.2}, BUDGETS)
    cells = {r.variant: r.cell for r in changed if not r.ablation}
    for variant in shared:
        first = next(i for i, record in enumerate(plain) if record.variant == variant)
        plain[first] = plain[first].model_copy(update={"cell": cells[variant]})
    changed = [  # a choice may be of other text
        r.model_copy(update={"validation_hash": "other"}) if r.ablation else r for r in changed
    ]
    write(tmp_path / "board", plain)
    write(tmp_path / "robustness", changed)
    rows = {row["variant"]: row for row in report(tmp_path / "board")}
    board = (tmp_path / "board/LEADERBOARD.md").read_text(encoding="utf-8")
    assert ("under other choices" in board) is (len(shared) == 2)
    if len(shared) == 2:
        least, largest = ablation(changed, "dense").sensitivity("peer")
        shown = rows["peer"]["choices_low"], rows["peer"]["choices_high"]
        assert shown == pytest.approx((least, largest), rel=1e-4)
        assert f"{least:.2f} to {largest:.2f}x" in board
        assert rows["pkm"]["choices_low"] is None  # the ablation has no such variant
        assert "and 1e12 FLOPs" in board
    else:
        assert "choices_low" not in rows["peer"]
