"""A record whose numbers cannot be, or whose names would harm what shows them, is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.results.record import RecordError, read_record, write_record
from tests.bench.cells import make_record
from tests.robustness.program import run


def damaged(folder: Path, key: str, value: Any) -> Path:
    """A record with another value at a key such as `size.width`."""
    path = write_record(folder / "run/records", make_record())
    record = json.loads(path.read_text())
    *tables, last = key.split(".")
    table = record
    for name in tables:
        table = table[name]
    assert last in table
    table[last] = value
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("value", [-1, -(10**30)])
@pytest.mark.parametrize(
    "key",
    [
        "size.width", "size.heads", "seed", "vocabulary", "context", "batch", "budget", "flops",
        "tokens", "steps", "epochs", "learning_rate", "parameters.embedding",
        "parameters.layer_active", "parameters.layer_total", "flops_per_token.ffn",
        "flops_per_token.routing", "layer_bytes_per_token", "loss", "bits_per_byte",
        "measured.seconds", "measured.tokens_per_second", "measured.peak_memory_bytes",
        "measured.threads",
    ],
)  # fmt: skip
def test_a_negative_count_is_refused(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(RecordError, match=rf"\.json: {key}: ") as error:
        read_record(damaged(tmp_path, key, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key", ["size.depth", "batch", "budget", "flops", "tokens", "steps", "learning_rate"]
)
def test_nothing_spent_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(RecordError, match=rf"\.json: {key}: "):
        read_record(damaged(tmp_path, key, 0))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("loss", None, "loss: None of a cell that finished"),
        ("status", "diverged", "loss: 4.5 of a cell that diverged"),
        ("flops", 10**15, "more than [0-9]+ for [0-9]+ tokens"),
        ("planned_flops", 7, "planned_flops: 7, not [0-9]+ for [0-9]+ tokens"),
        ("steps", 7, "not steps x batch x context"),
        ("parameters.layer_total", 1, "layer_active: more than layer_total"),
        ("tokens", 10**30, "tokens: "),
        ("curve", [[-1, 2.0]], "curve.0.0: "),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(
    tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    with pytest.raises(RecordError, match=reason):
        read_record(damaged(tmp_path, key, value))


@pytest.mark.parametrize(
    "text", ["a\x1b[2J", "a\n::error::b", "a\x9b", "a\u202eb", "", " ", "a" * 201]
)
@pytest.mark.parametrize("key", ["variant", "cell", "size.name"])
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, key: str, text: str) -> None:
    with pytest.raises(RecordError, match=rf"\.json: {key}: "):
        read_record(damaged(tmp_path, key, text))


@pytest.mark.parametrize("verb", ["show", "report"])
@pytest.mark.parametrize("key", ["suite", "corpus", "layer", "measured.device", "flop_convention"])
def test_other_foreign_text_is_printed_escaped(tmp_path: Path, key: str, verb: str) -> None:
    path = damaged(tmp_path, key, "a\x1b[2J\n::error::b\x9b\u202e")
    outcome = run(tmp_path, *{"show": ("show", str(path)), "report": ("report", "run")}[verb])
    assert outcome.fault == ""
    text = outcome.out + outcome.err
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    assert not any(line.startswith("::") for line in text.splitlines())
