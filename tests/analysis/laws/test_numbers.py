"""Columns of text as numbers: each way of writing them, and what is refused as not sure."""

import numpy as np
import pytest

from isoflop.analysis.laws.numbers import NumberError, has_decimal_comma, to_numbers


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["1e18", "2.5", ".5", "1.", "+3", "4E-2"], [1e18, 2.5, 0.5, 1, 3, 0.04]),
        (
            ["1.5B", "300M", "2e9", "7b", "3k", "1.2 T", "2G"],
            [1.5e9, 3e8, 2e9, 7e9, 3e3, 1.2e12, 2e9],
        ),
        (["13,322,710", "1,234", "12"], [13322710, 1234, 12]),
        (["1,234,567.89", "1,000"], [1234567.89, 1000]),
        (["4,15", "1,2509967e+10", "3"], [4.15, 1.2509967e10, 3]),
        (["1.234.567,8", "2,5"], [1234567.8, 2.5]),
        (["1.234.567", "1.234"], [1234567, 1234]),
        (["1_000", "20_000", "999"], [1000, 20000, 999]),
        (["1 000 000", "12 000"], [1e6, 12000]),
        (["1\u202f000", "2\u00a0500"], [1000, 2500]),
        (["1'000'000"], [1e6]),
        (["1,5B", "2,25B"], [1.5e9, 2.25e9]),
        (["tensor(4.15)", "tensor(3.5, device='cuda:0')", "np.float64(2.5)"], [4.15, 3.5, 2.5]),
        (["1", "", "NA", "null", "-"], [1, np.nan, np.nan, np.nan, np.nan]),
    ],
)
def test_a_column_is_read(cells, numbers):
    np.testing.assert_allclose(to_numbers(cells, suffixes=True, comma=None)[0], numbers)


def test_what_is_not_plain_is_told():
    assert to_numbers(["1e8", "2.5B"], suffixes=True, comma=None)[1] == ()
    assert to_numbers(["1_000"], suffixes=True, comma=None)[1] == (
        "digits in groups by '_' (1_000)",
    )
    assert to_numbers(["4,15"], suffixes=True, comma=None)[1] == ("decimal commas (4,15)",)


@pytest.mark.parametrize(("comma", "number"), [(True, 1.234), (False, 1234)])
def test_one_comma_before_three_digits_needs_a_hint(comma, number):
    assert to_numbers(["1,234"], suffixes=True, comma=comma)[0][0] == number


@pytest.mark.parametrize(
    ("cells", "position", "reason"),
    [
        (["1", "abc"], 1, "is 'abc', not a number"),
        (["1", "1,234"], 1, "is '1,234', which may be a group of digits or decimals"),
        (["4,15", "4.15"], 1, "is '4.15'; some decimals here have a point, some a comma"),
        (["1,000,000", "4,15"], 1, "is '4,15', where a comma parts digits in some rows"),
        (["2000", "1_000"], 1, "is '1_000', digits in groups by '_', where other rows have none"),
        (["1_000", "1 000"], 1, "is '1 000'; digits are in other groups in other rows"),
        (["1_00"], 0, "is '1_00', not a number"),
        (["1,00,000"], 0, "is '1,00,000', not a number"),
        (["1.5X"], 0, "is '1.5X': 'X' is no unit known here; K, M, B (or G) and T are"),
        (["7 GB"], 0, "is '7 GB': 'GB' is no unit known here"),
        (["1e"], 0, "is '1e', not a number"),
        (["0x10"], 0, "is '0x10', not a number"),
        (["10^18"], 0, "is '10^18', not a number"),
        (["3\u0665"], 0, "is '3\u0665' with U+0665 ARABIC-INDIC DIGIT FIVE; write plain digits"),
        (["\uff11"], 0, "is '\uff11' with U+FF11 FULLWIDTH DIGIT ONE; write plain digits"),
        (["nan"], 0, "is nan; leave out runs without a finite value"),
        (["-Infinity"], 0, "is -Infinity; leave out runs without a finite value"),
    ],
)
def test_what_is_not_sure_is_refused_with_its_cause(cells, position, reason):
    with pytest.raises(NumberError) as caught:
        to_numbers(cells, suffixes=True, comma=None)
    assert caught.value.position == position
    assert caught.value.reason.startswith(reason)


def test_a_loss_has_no_suffix():
    with pytest.raises(NumberError, match="not a number"):
        to_numbers(["3.1M"], suffixes=False, comma=None)


def test_a_decimal_comma_in_one_column_speaks_for_the_others():
    assert has_decimal_comma(["4,15", "3"])
    assert not has_decimal_comma(["4.15", "1,234", "1,234,567"])
