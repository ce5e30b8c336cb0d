"""The Markdown table, and text that must not become markup."""

import pytest

from isoflop.analysis.report.markdown import escape, table


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("line\n  line", "line line"),
        ("*.json", r"\*.json"),
        ("<b>", r"\<b>"),
        (r"a\|b", r"a\\\|b"),
        ("run `isoflop report *|x`", r"run `isoflop report *\|x`"),
        ("an odd ` tick", r"an odd \` tick"),
        ("moe_ec", "moe_ec"),
        ("__init__", r"\_\_init\_\_"),
        ("1.23x [1.10, 1.36]", "1.23x [1.10, 1.36]"),
    ],
)
def test_text_is_shown_as_it_is(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_a_table_is_aligned_and_padded() -> None:
    rows = [["1", "peer", "1.5x", "a|b"], ["2", "moe-g16", "-", "-"]]
    assert table(["rank", "variant", "multiplier", "flags"], rows, left=("variant", "flags")) == (
        "| rank | variant | multiplier | flags |\n"
        "| ---: | :------ | ---------: | :---- |\n"
        "|    1 | peer    |       1.5x | a\\|b  |\n"
        "|    2 | moe-g16 |          - | -     |\n"
    )


def test_a_long_cell_does_not_widen_the_others() -> None:
    lines = table(["flags"], [["long " * 40], ["-"]], left=("flags",)).splitlines()
    assert len(lines[2]) > 190
    assert {len(lines[index]) for index in (0, 1, 3)} == {64}


def test_every_row_has_the_columns_of_the_header() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(["a", "b"], [["1"]])
