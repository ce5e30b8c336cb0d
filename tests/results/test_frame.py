import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.results import read_records
from isoflop.results.record import RecordError, load_records, write_record
from tests.bench.cells import make_record

PUBLISHED = Path(__file__).parents[2] / "results" / "submissions" / "quick-baselines" / "records"


def test_a_folder_of_records_is_a_table_with_a_row_for_each() -> None:
    records, frame = load_records(PUBLISHED), read_records(PUBLISHED)
    assert frame["cell"].tolist() == [record.cell for record in records]
    assert frame["loss"].tolist() == [record.loss for record in records]
    assert frame["size_width"].tolist() == [record.size.width for record in records]
    assert frame["parameters_head"].tolist() == [r.parameters.head for r in records]
    assert frame["parameters_active"].tolist() == [r.parameters.active for r in records]
    assert frame["parameters_total"].tolist() == [r.parameters.total for r in records]
    forward = [r.flops_per_token.forward for r in records]
    assert frame["flops_per_token_forward"].tolist() == forward
    assert (frame["flops_per_token_training"] == 3 * frame["flops_per_token_forward"]).all()
    assert frame["measured_device"].tolist() == [r.measured.device for r in records]
    versions = [r.measured.versions["torch"] for r in records]
    assert frame["measured_versions_torch"].tolist() == versions
    assert frame["curve"].iloc[0] == records[0].curve
    moe = frame[frame["layer"] == "moe"]
    assert set(moe["options_granularity"]) == {
        r.options["granularity"] for r in records if r.layer == "moe"
    }
    assert frame.loc[frame["layer"] == "dense", "options_granularity"].isna().all()
    assert not any(isinstance(value, dict) for value in frame.iloc[0])


def test_cells_that_did_not_finish_have_no_loss(tmp_path: Path) -> None:
    write_record(tmp_path, make_record(cell="a"))
    write_record(tmp_path, make_record(cell="b", status="diverged", loss=None, message="too high"))
    frame = read_records(str(tmp_path))
    assert frame["loss"].dtype == float
    assert frame["loss"].isna().tolist() == [False, True]
    assert frame["status"].tolist() == ["finished", "diverged"]


def test_a_folder_without_records_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere: no records here; give the folder"):
        read_records(tmp_path / "nowhere")


def test_pandas_is_imported_by_the_call_alone() -> None:
    code = (
        "import sys, isoflop.results, isoflop.cli.main, isoflop.analysis.report.derive; "
        "print('pandas' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
