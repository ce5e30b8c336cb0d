"""Run tables: what is read, and the one line each bad table gets."""

import numpy as np
import pytest

from isoflop.analysis.laws.dense import CHINCHILLA, CHINCHILLA_ISOFLOP, FRONTIER
from isoflop.analysis.laws.moe import FINE_GRAINED_MOE
from isoflop.analysis.laws.table import TableError, read_table

GOOD = "N,D,L\n1e8,2e9,3.4\n2e8,2e9,3.2\n1e8,4e9,3.3\n"


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "runs.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path, law=CHINCHILLA, rename=None):
    with pytest.raises(TableError) as caught:
        read_table(path, law, rename)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "runs.csv")


def test_a_good_table_is_read_by_name(table):
    path = table("seed,L,tokens,N,note\n0,3.4,2e9,1e8,a\n\n1,3.41,2e9,1e8,b\n0,3.2,4e9,2e8,c\n")
    columns = read_table(path, CHINCHILLA, {"D": "tokens"}).columns
    assert set(columns) == {"N", "D", "L"}
    np.testing.assert_array_equal(columns["D"], [2e9, 2e9, 4e9])
    np.testing.assert_array_equal(columns["L"], [3.4, 3.41, 3.2])


def test_flops_are_read_where_the_table_has_them(table):
    path = table("N,D,L,C\n1e8,2e9,3.4,1.5e18\n2e8,3e9,3.2,4e18\n")
    np.testing.assert_array_equal(read_table(path, CHINCHILLA).columns["C"], [1.5e18, 4e18])


def test_tokens_follow_from_flops_where_the_law_counts_six_nd(table):
    path = table("N,C,L\n1e8,6e18,3.4\n2e8,6e18,3.2\n")
    np.testing.assert_allclose(read_table(path, CHINCHILLA).columns["D"], [1e10, 5e9])
    text = "N,C,G,E,L\n1e8,6e18,1,8,3.4\n2e8,6e18,2,8,3.2\n"
    assert "no column D" in refusal(table(text), FINE_GRAINED_MOE)


def test_a_missing_file(tmp_path):
    message = refusal(tmp_path / "none.csv")
    assert message == "runs.csv: no such file; give a table with one run per row"
    assert "not a file" in refusal(tmp_path)


def test_an_empty_table(table):
    assert refusal(table("N,D,L\n")).startswith("runs.csv: no rows")
    assert refusal(table("")).startswith("runs.csv: no rows")


def test_missing_columns_are_named_with_those_there_are(table):
    assert refusal(table("N,text,final\n1,2,3\n")) == (
        "runs.csv: no column D, L, which chinchilla needs; "
        "say which it is (--column D=NAME), of N, text, final"
    )


def test_a_renamed_column_must_exist_and_be_the_laws(table):
    path = table(GOOD)
    assert refusal(path, rename={"N": "params"}) == (
        "runs.csv: no column 'params' for N; it has N, D, L"
    )
    assert refusal(path, rename={"G": "N"}) == (
        "--column G=N: chinchilla reads N, D, L, C, seed, validation_hash, flop_convention, not G"
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("abc", "is 'abc', not a number"),
        ("-3.2", "is -3.2, but must be positive"),
        ("0", "is 0, but must be positive"),
    ],
)
def test_a_value_that_is_no_loss(table, value, reason):
    text = GOOD.replace("3.2", value)
    assert refusal(table(text)) == f"runs.csv line 3: L {reason}"


def test_a_row_longer_than_the_header(table):
    assert refusal(table(GOOD + "1,2,3,4\n")) == (
        "runs.csv line 5: more fields than the header's 3; a number with a comma needs quotes"
    )


def test_lines_are_those_of_the_file(table):
    assert refusal(table("N,D,L\n\n1e8,2e9,3.4\n\n2e8,2e9,x\n")).startswith("runs.csv line 5: L")


def test_one_size_only(table):
    text = "N,D,L\n1e8,2e9,3.4\n1e8,4e9,3.3\n"
    assert refusal(table(text)) == (
        "runs.csv: every row has N = 1e+08; chinchilla needs at least two values of it"
    )
    text = "N,C,L\n1e8,1e18,3.4\n1e8,1e19,3.3\n"
    assert "every row has N = 1e+08" in refusal(table(text), CHINCHILLA_ISOFLOP)
    assert "every row has C = 1e+18" in refusal(table("C,L\n1e18,3.4\n"), FRONTIER)


def test_duplicated_cells(table):
    assert refusal(table(GOOD + "2e8,2e9,3.21\n")) == (
        "runs.csv line 5 repeats line 3: N = 2e+08, D = 2e+09, "
        "and no column seed distinguishes them; --best keeps the lowest loss"
    )
    seeded = "seed,N,D,L\n0,1e8,2e9,3.4\n1,1e8,2e9,3.41\n1,1e8,2e9,3.42\n0,2e8,3e9,3.2\n"
    assert refusal(table(seeded)) == (
        "runs.csv line 4 repeats line 3: N = 1e+08, D = 2e+09, and the same seed"
    )


@pytest.mark.parametrize("column", ["validation_hash", "flop_convention"])
def test_rows_that_cannot_be_compared(table, column):
    text = f"N,D,L,{column}\n1e8,2e9,3.4,one\n2e8,2e9,3.2,one\n1e8,4e9,3.3,two\n"
    assert refusal(table(text)) == (
        f"runs.csv line 4: {column} is 'two' but 'one' before; "
        "such rows cannot be compared: fit them separately"
    )
    assert read_table(table(text.replace("two", "one")), CHINCHILLA)


def test_a_law_at_one_number_of_experts(table):
    text = "N,D,G,E,L\n1e8,2e9,1,8,3.4\n2e8,3e9,2,16,3.2\n"
    assert refusal(table(text), FINE_GRAINED_MOE) == (
        "runs.csv: E takes 2 values; fine-grained-moe is for a single E: fit them separately"
    )
