"""The starts of a fit, against scipy's solver."""

import numpy as np
import pytest
from scipy.optimize import nnls

from isoflop.analysis.laws.solver import _nnls


@pytest.mark.parametrize("K", [1, 2, 3, 4])
def test_non_negative_least_squares_are_scipy_s(K: int) -> None:
    generator = np.random.default_rng(K)
    X_SKn = np.exp(generator.normal(size=(40, K, 12)))
    signs = generator.choice([-1.0, 0.5, 2.0], size=(40, K))
    y_Sn = (signs[..., None] * X_SKn).sum(axis=1) + 0.1 * generator.normal(size=(40, 12))
    expected = np.stack([nnls(X.T, y)[0] for X, y in zip(X_SKn, y_Sn, strict=True)])
    assert (expected == 0).any()
    assert (expected > 0).any()
    np.testing.assert_allclose(_nnls(X_SKn, y_Sn), expected, atol=1e-6)
