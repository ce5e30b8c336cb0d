"""The lines that `isoflop tune` ends with."""

from isoflop.analysis.simulate import rate_sweep
from isoflop.cli.rates import best_rates

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
