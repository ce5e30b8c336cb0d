import json
import os
import re
from pathlib import Path

import pytest

from isoflop.results.record import (
    Record,
    RecordError,
    load_records,
    read_record,
    write_record,
    write_whole,
)
from tests.bench.cells import make_record


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    record = make_record()
    path = write_record(tmp_path, record)
    assert path == tmp_path / f"{record.cell}.json"
    assert read_record(path) == record
    assert load_records(tmp_path) == [record]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_whole(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 1, not 2"),
        ({"surprise": 1}, "surprise: unknown key; known here: schema_version, cell, "),
        ({"loss": "low"}, "loss: "),
    ],
)
def test_a_record_that_is_none_is_refused_in_one_line(
    tmp_path: Path, change: dict, message: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(make_record().model_dump(mode="json") | change))
    with pytest.raises(RecordError, match=re.escape(message)) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.json"
    path.write_text(make_record().model_dump_json()[:100])
    with pytest.raises(RecordError, match=r"half\.json"):
        read_record(path)


def test_counts() -> None:
    record: Record = make_record()
    p, f = record.parameters, record.flops_per_token
    assert p.active == p.head + p.backbone + p.layer_active
    assert p.total == p.embedding + p.head + p.backbone + p.layer_total
    assert f.training == 3 * (f.attention + f.ffn + f.routing + f.head)
