"""Numbers as text."""

import numpy as np
import pytest

from isoflop.analysis.estimate import Estimate
from isoflop.analysis.report.format import decade, flops, flops_interval, interval, listed, si


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (999, "999"), (999.9, "1k"), (1234, "1.23k"), (5499904, "5.5M"), (2.5e9, "2.5B"),
     (1e12, "1T")],
)  # fmt: skip
def test_counts(value: float, text: str) -> None:
    assert si(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(6.4e14, "6.4e14"), (1e18, "1e18"), (1.2345e9, "1.23e9"), (9.999e9, "1e10"), (0, "0")],
)
def test_flops(value: float, text: str) -> None:
    assert flops(value) == text


def test_intervals() -> None:
    assert interval(Estimate(1.234, 1.1, 1.4), unit="x") == "1.23x [1.10, 1.40]"
    assert interval(Estimate(1.234, np.nan, np.nan)) == "1.23"
    assert flops_interval(Estimate(1e14, 9e13, 2e14)) == "1e14 [9e13, 2e14]"
    assert flops_interval(Estimate(1e14, np.nan, np.nan)) == "1e14"
    assert decade(Estimate(0.1, 0.0, 0.2)) == "1.26x [1.00, 1.58]"


def test_names_in_a_sentence() -> None:
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a", "a and b", "a, b and c",
    ]  # fmt: skip
