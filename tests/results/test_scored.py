"""What `isoflop eval --json` prints, read again."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from isoflop.results.record import RecordError
from isoflop.results.scored import Scored, load_scored


def as_json(rows: Sequence[Scored]) -> str:
    return json.dumps([row.model_dump(mode="json") for row in rows])


def row(variant: str = "dense", data: str = "news") -> Scored:
    return Scored(
        variant=variant, size="s", budget=1e12, optimum="ok", seeds=1, data=data, data_hash="0",
        tokens=128, losses=(2.0,), nats_per_token=2.0, perplexity_per_token=math.exp(2),
        bits_per_byte=1.0,
    )  # fmt: skip


def test_rows_come_back_and_no_file_has_none(tmp_path: Path) -> None:
    rows = [row(), row(data="novels"), row("moe"), row("moe", "novels")]
    path = tmp_path / "eval.json"
    assert load_scored(path, ["dense", "moe"]) == ()
    path.write_text(as_json(rows))
    assert load_scored(path, ["dense", "moe", "pkm"]) == tuple(rows)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Invalid JSON"),
        ('{"variant": "dense"}', "valid array"),
        ('[{"variant": "dense"}]', r"0\.size: missing"),
        (as_json([row()]).replace('"size"', '"sise"'), r"sise: unknown key \(did you mean 'size'"),
        (as_json([row("pkm")]), "no records of pkm"),
        (as_json([row(), row(data="novels"), row("moe")]), "not every variant has one row"),
        (as_json([row(), row()]), "not every variant has one row"),
        (as_json([row().model_copy(update={"losses": ()})]), "not every row has one loss"),
    ],
)
def test_what_is_something_else_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "eval.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=rf"eval\.json: .*{why}.*isoflop eval FOLDER") as caught:
        load_scored(path, ["dense", "moe"])
    assert "\n" not in str(caught.value)
