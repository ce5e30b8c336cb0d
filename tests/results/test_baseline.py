"""The rule that finds the baseline."""

import pytest

from isoflop.results.baseline import find_baseline


@pytest.mark.parametrize(
    ("layers", "baseline"),
    [
        ({}, None),
        ({"peer": "peer"}, None),
        ({"dense": "peer"}, None),  # the layer decides, not the name
        ({"peer": "peer", "swiglu": "dense"}, "swiglu"),
        ({"a": "dense", "dense": "dense", "peer": "peer"}, "dense"),
    ],
)
def test_the_baseline_is_the_dense_variant(layers: dict[str, str], baseline: str | None) -> None:
    assert find_baseline(layers) == baseline


def test_several_dense_variants_need_a_name() -> None:
    with pytest.raises(ValueError, match="which of gelu, swiglu is the baseline"):
        find_baseline({"swiglu": "dense", "gelu": "dense", "peer": "peer"})
