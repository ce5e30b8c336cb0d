import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from isoflop.results.files import write_whole
from isoflop.results.record import (
    Record,
    RecordError,
    add_record,
    load_records,
    read_record,
    write_record,
)
from tests.bench.cells import make_record


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    record = make_record()
    path = write_record(tmp_path, record)
    assert path == tmp_path / f"{record.cell}.json"
    assert read_record(path) == record
    assert load_records(tmp_path) == [record]


def test_the_first_record_of_a_cell_wins(tmp_path: Path) -> None:
    failed = make_record(status="failed", loss=None, bits_per_byte=None)
    first, second = make_record(), make_record(loss=1.0)
    assert add_record(tmp_path, failed)
    assert not add_record(tmp_path, failed.model_copy(update={"message": "again"}))
    assert add_record(tmp_path, first)  # in place of the failed one
    assert not add_record(tmp_path, second)
    assert not add_record(tmp_path, failed)
    assert load_records(tmp_path) == [first]
    assert len(list(tmp_path.iterdir())) == 1  # no temporary file


def test_two_processes_that_end_together_leave_one_record(tmp_path: Path) -> None:
    record = make_record()
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda _: add_record(tmp_path, record), range(8)))
    assert sum(written) == 1


@pytest.mark.skipif(os.name != "posix", reason="Windows has no umask of this kind")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_has_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        path = write_record(tmp_path, make_record())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_record_holds_no_number_that_json_lacks(number: float) -> None:
    fields = make_record().model_dump()
    with pytest.raises(ValidationError):
        Record.model_validate(fields | {"learning_rate": number})


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
