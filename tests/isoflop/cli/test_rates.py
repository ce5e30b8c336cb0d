"""What `isoflop tune` ends with, and what `isoflop compare` says of its learning rate."""

import pytest

from isoflop.analysis.simulate import rate_sweep
from isoflop.cli.rates import best_rates, rate_check

THREE = (5e-4, 1e-3, 2e-3)


def test_a_line_per_variant_with_its_interpolated_rate() -> None:
    records = [
        *rate_sweep("dense", THREE, 1.3e-3, noise=0),
        *rate_sweep("peer", THREE, 8e-3, noise=0),
    ]
    width = records[0].size.width
    assert best_rates(records, width, 1.0) == [
        f"dense: best rate 0.0013 at width {width}, interpolated",
        f"peer: best rate 0.002 at width {width}, interpolated; at the edge of a sweep: a better "
        "one may lie beyond",
    ]
    assert best_rates(records, 2 * width, 1.0)[0].startswith("dense: best rate 0.00065 at width")
    assert best_rates([], width, 1.0) == []


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (1.1e-3, "learning rate 0.001 is near the best of three (0.0005, 0.001, 0.002 at size "),
        (1.7e-3, "learning rate 0.001 is not the best of three (0.0005, 0.001, 0.002 at size "),
    ],
)
def test_a_rate_that_is_not_the_best_is_said(best: float, said: str) -> None:
    records = rate_sweep("peer", THREE, best, noise=0)
    check = rate_check(records, 1e-3, records[0].size.width, 1.0)
    assert str(check["sentence"]).startswith(said)
    assert check["best"] == pytest.approx(best, rel=0.01)
    if best > 1.5e-3:
        assert str(check["sentence"]).endswith("1e14 FLOPs): try --learning-rate 0.0017")


def test_a_best_rate_beyond_the_three_is_said() -> None:
    records = rate_sweep("peer", THREE, 8e-3, noise=0)
    said = str(rate_check(records, 1e-3, records[0].size.width, 1.0)["sentence"])
    assert said.endswith("try --learning-rate 0.002, beyond which a better one may lie")


def test_a_rate_that_diverged_is_not_checked() -> None:
    records = rate_sweep("peer", THREE, 1e-3)
    records[1] = records[1].model_copy(update={"status": "diverged", "loss": None})
    check = rate_check(records, 1e-3, records[0].size.width, 1.0)
    assert "learning rate 0.001 did not finish at size" in str(check["sentence"])
    assert check["best"] is None
