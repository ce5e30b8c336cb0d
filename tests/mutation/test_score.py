"""docs/reliability.md shows the stored score, and each mutated file has its tests."""

import json
import random
import warnings

import pytest

from tests.mutation import score
from tests.mutation.targets import ROOT, find_tests, targets

TEXT = '''
def half(x: float, plus: float = 1.5) -> float:
    """Half of 3."""
    if x < 0:
        raise ValueError(f"below {0}")
    noted.append(x)
    y = x / 2
    return y
'''


def test_the_document_shows_the_stored_score() -> None:
    text = score.DOCUMENT.read_text(encoding="utf-8")
    stored = json.loads(score.STORED.read_text(encoding="utf-8"))
    assert "<!-- isoflop:mutation -->" in text
    assert score.embedded(text, stored) == text, "made anew by `tox run -e mutation`"
    total = score.total(stored["counts"])
    assert total["tried"] == total["killed"] + total["equivalent"] + total["survived"]
    assert len(stored["survivors"]) == total["survived"]
    assert stored["score"] == round(score.share(total), 4)
    if stored["code"] != score.code():
        warnings.warn(
            "docs/reliability.md has the mutation score of older code; `tox run -e mutation` "
            "counts anew",
            stacklevel=1,
        )


@pytest.mark.parametrize("path", targets())
def test_each_mutated_file_has_tests(path: str) -> None:
    tests = find_tests(path)
    assert tests
    assert all((ROOT / test).is_file() for test in tests)


def test_the_hash_is_of_the_code_and_its_tests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = score.code()
    monkeypatch.setattr(score, "targets", lambda: targets()[1:])
    assert score.code() != before


def test_mutants_change_operators_constants_and_statements() -> None:
    pytest.importorskip("cosmic_ray", reason="installed by `tox run -e mutation`")
    from tests.mutation.mutants import mutants, sample

    found = list(mutants("half.py", TEXT, random.Random(0)))
    changes = {(mutant.line, " ".join(mutant.after.split())) for mutant in found}
    assert {
        (2, "def half(x: float, plus: float = 1.35) -> float:"),
        (4, "if x <= 0:"),
        (6, "pass"),
        (7, "y = x * 2"),
        (7, "y = x / 3"),
        (8, "pass"),
    } <= changes
    assert not {line for line, _ in changes} & {3, 5}, "documents and messages are left"
    assert (7, "pass") not in changes
    files = {"a.py": TEXT, "b.py": "x = 1 + 2\n"}
    few, many = ([mutant.name for mutant in sample(files, count, 0)] for count in (4, 8))
    assert many[:4] == few
    assert {name[0] for name in few} == {"a", "b"}
    assert [mutant.name for mutant in sample(files, 4, 1)] != few
