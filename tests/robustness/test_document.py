"""docs/reliability.md shows the stored counts, and says if they are of other code."""

import json
import warnings
from pathlib import Path

import pytest

from tests.robustness.counts import DOCUMENT, STORED, code, embedded, store


def test_the_document_shows_the_stored_counts(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--robustness-store"):
        pytest.skip("this run counts anew")
    text = DOCUMENT.read_text(encoding="utf-8")
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    assert "<!-- isoflop:robustness -->" in text
    assert embedded(text, stored) == text, "made anew by `tox run -e robustness`"
    assert all(count["faults"] == 0 for count in stored["counts"].values())
    if stored["code"] != code():
        warnings.warn(
            "docs/reliability.md counts the faults of older code; `tox run -e robustness` counts "
            "anew",
            stacklevel=1,
        )


def test_counts_of_other_code_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    store(path, {"a": {"tried": 1, "faults": 0}})
    store(path, {"b": {"tried": 2, "faults": 0}})
    assert set(json.loads(path.read_text())["counts"]) == {"a", "b"}
    path.write_text(path.read_text().replace(code(), "0" * 16))
    store(path, {"b": {"tried": 3, "faults": 0}})
    assert json.loads(path.read_text()) == {
        "code": code(),
        "counts": {"b": {"tried": 3, "faults": 0}},
    }
