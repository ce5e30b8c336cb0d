"""results/REPORT.md: what of a paper's claims a suite bears out, and its predictions."""

from pathlib import Path

import pytest

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.report.claims import claims, predictions
from isoflop.analysis.report.derive import report, stale
from isoflop.analysis.simulate import simulate
from isoflop.results.record import Record, write_record

BUDGETS = (1e14, 4e14, 1.6e15)
TRUTH = {"dense": 1.0, "moe-g1": 1.5, "moe-g4": 2.5, "peer": 2.0, "pkm": 1.5}


def records(noise: float = 0.003) -> list[Record]:
    options = {"moe-g1": {"granularity": 1}, "moe-g4": {"granularity": 4}}
    return simulate(TRUTH, BUDGETS, options=options, noise=noise)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(records(), samples=200)


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_papers_order_is_judged_by_the_noise_of_each_ratio(analysis: Analysis) -> None:
    table = rows(claims(analysis))
    assert table["PEER better than PKM"][-1] == "holds"
    assert table["PEER better than MoE"][1:2] == ["peer, moe-g1"]  # as coarse as the paper's
    assert table["PEER better than MoE"][2].startswith("1.3")
    assert float(table["PEER better than MoE"][3]) > 2
    assert table["MoE better than PKM"][-1] == "inconclusive"
    assert abs(float(table["MoE better than PKM"][3])) < 2.5
    assert table["PKM better than dense"][-1] == "holds"


def test_an_order_the_other_way_round_is_contradicted() -> None:
    turned = simulate({"dense": 1.5, "peer": 1.0}, BUDGETS)
    table = rows(claims(analyse(turned, samples=200)))
    assert table["PEER better than dense"][-1] == "contradicted"
    assert float(table["PEER better than dense"][3]) < -2


def test_layers_stand_beside_their_controls() -> None:
    truth = {"dense": 1.0, "engram": 2.0, "engram-control": 1.2, "omnimoe": 1.0, "dense-b": 1.0}
    options = {"engram": {"table_size": 64}, "engram-control": {"table_size": 1}}
    options["dense-b"] = {"activation": "swiglu"}
    made = simulate(truth, BUDGETS, options=options, noise=0.003)
    lines = [x for x in claims(analyse(made, samples=200)).splitlines() if "Control: " in x]
    assert len(lines) == 2
    first, second = lines
    assert first.startswith("- Control: engram-control needs 1.6")
    assert " the compute of engram for equal loss; distance +" in first
    assert first.endswith("that it gains over the control: holds.")
    assert second.startswith("- Control: dense-b needs ")
    assert second.endswith("over the control: inconclusive.")


def test_predictions_stand_beside_what_was_measured(analysis: Analysis) -> None:
    text = predictions(analysis)
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(TRUTH) * 5
    inside = [line.rstrip("| ").endswith("yes") for line in lines]
    assert sum(inside) > 0.6 * len(inside)
    for line in lines:
        predicted, measured = (line.split("|")[at].split()[0] for at in (4, 5))
        assert float(predicted) == pytest.approx(float(measured), abs=0.05)


def test_a_report_beside_results_is_generated_and_goes_stale(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    for record in records():
        write_record(folder / "records", record)
    document = tmp_path / "REPORT.md"
    blocks = "".join(f"<!-- isoflop:{b} suite -->\n<!-- /isoflop -->\n" for b in ("claims",))
    document.write_text(f"# Words\n\n{blocks}", encoding="utf-8")
    report(folder)
    text = document.read_text(encoding="utf-8")
    assert text.startswith("# Words\n")
    assert "PEER better than MoE" in text
    assert stale(folder) == []
    document.write_text(text.replace("holds", "fails"), encoding="utf-8")
    assert stale(folder) == [document]
