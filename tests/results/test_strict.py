"""Records and manifests come from strangers: each is read whole and as meant, or is one line."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.results.files import write_whole
from isoflop.results.manifest import MANIFEST, read_manifest
from isoflop.results.record import RecordError, read_record

FOLDER = Path(__file__).parents[2] / "results/submissions/quick-baselines"
RECORD = next(p for p in sorted((FOLDER / "records").iterdir()) if '"seed": 0' in p.read_text())
VALUES = ["8", True, None, [], {}, 1.5, -1, 10**50, [[]], "x\x1b[2J", {"a": 1}]


def leaves(table: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = table.items() if isinstance(table, dict) else enumerate(table)
    return [
        leaf
        for key, value in items
        for leaf in [
            (*path, key),
            *(leaves(value, (*path, key)) if isinstance(value, dict | list) else []),
        ]
    ]


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """The line of the error; empty if it is read."""
    try:
        read(path)
    except RecordError as error:
        return str(error)
    return ""


def test_200_seeded_mutations_are_read_as_meant_or_are_one_line(tmp_path: Path) -> None:
    generator = random.Random(11)
    refused = 0
    for number in range(200):
        source, read = [(RECORD, read_record), (FOLDER, read_manifest)][number % 2]
        content = json.loads(read(source).model_dump_json())
        *path, last = generator.choice(leaves(content))
        table = content
        for key in path:
            table = table[key]
        if number % 5:
            table[last] = generator.choice(VALUES)
        else:
            del table[last]
        file = tmp_path / ("record.json" if read is read_record else MANIFEST)
        file.write_text(json.dumps(content))
        where = tmp_path if read is read_manifest else file
        line = refusal(read, where)
        if line:
            assert line.startswith(f"{file}: ")
            assert "\n" not in line
            refused += 1
        else:  # then nothing was taken for something else
            got = json.loads(read(where).model_dump_json())
            kept = number % 5 == 0 or all(got[key] == value for key, value in content.items())
            assert kept, (path, last)
    assert refused > 120


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "NaN", '{"cell": 1, "cell": 2}', "[" * 100_000, "1" * 5000,
        '{"loss": NaN}', '{"loss": 1e999}', '{"loss": Infinity}', "\ufeff{}",
    ],
)  # fmt: skip
def test_what_is_no_record_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_pipes_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe.json", "folder.json"):
        with pytest.raises(RecordError, match="no plain file"):
            read_record(tmp_path / name)


def test_types_are_strict(tmp_path: Path) -> None:
    text = RECORD.read_text()
    for wrong in ('"seed": "0"', '"seed": true', '"seed": 0, "seed": 0', '"seed": 0.0'):
        (tmp_path / "x.json").write_text(text.replace('"seed": 0', wrong, 1))
        with pytest.raises(RecordError, match="seed"):
            read_record(tmp_path / "x.json")


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "x", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
