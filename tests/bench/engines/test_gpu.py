"""The whole of a run on a GPU: processes that share it, records, the same losses again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from isoflop.bench.engines.contract import Limits
from isoflop.bench.engines.local import Local
from isoflop.results.record import Record, load_records
from tests.bench.cells import TINY, tiny_cells

ROUTED = {"granularity": 2, "expansion": 4}
VARIANTS = TINY["variants"] | {
    "moe": {"layer": "moe", "learning_rate": 1e-2, "options": ROUTED},
    "moe-ec": {"layer": "moe_ec", "learning_rate": 1e-2, "options": ROUTED},
    "pkm": {
        "layer": "pkm",
        "learning_rate": 1e-2,
        "options": {"n_slots": 64, "heads": 2, "top_k": 4, "d_key": 8},
    },
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cells_share_a_gpu_and_all_finish(tmp_path: Path) -> None:
    def train(folder: Path) -> dict[str, Record]:
        cells = tiny_cells(variants=VARIANTS)
        for _ in Local().train(cells, folder, Limits()):
            pass
        return {record.variant: record for record in load_records(folder)}

    first = train(tmp_path / "first")
    assert set(first) == set(VARIANTS)
    for record in first.values():
        assert record.status == "finished", record.message
        assert record.loss is not None
        assert 0 < record.loss < 6  # ln 300 is 5.7
        assert record.measured.peak_memory_bytes
    again = train(tmp_path / "again")
    for variant, record in first.items():
        assert again[variant].loss == pytest.approx(record.loss, rel=1e-2)
