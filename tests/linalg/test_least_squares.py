"""The pseudo-inverse, by eigendecomposition and by LSMR."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from convexlayer.linalg import least_squares
from convexlayer.linalg.least_squares import PseudoInverse
from convexlayer.program import Array


def singular(rng: np.random.Generator) -> Array:
    """Symmetric, of size 20 and rank 14."""
    F = rng.normal(size=(20, 14))
    return np.asarray(F @ np.diag(rng.choice([-1.0, 1.0], size=14)) @ F.T)


def pseudo_inverse(K: Array, scale: Array) -> PseudoInverse:
    return PseudoInverse(sp.csc_matrix(np.triu(K * scale * scale[:, None])), scale)


@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_equals_the_pseudo_inverse_of_the_unscaled_matrix(rng: np.random.Generator, spread: float) -> None:
    K, scale = singular(rng), np.geomspace(1.0, spread, 20)
    for rhs in (K @ rng.normal(size=20), rng.normal(size=20)):
        expected = np.linalg.pinv(K, rcond=1e-10) @ rhs
        np.testing.assert_allclose(pseudo_inverse(K, scale).solve(rhs), expected, atol=1e-8)


def test_large_systems_by_lsmr(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "DENSE_LIMIT", 0)
    K, scale = singular(rng), np.ones(20)
    for rhs in (K @ rng.normal(size=20), rng.normal(size=20)):
        expected = np.linalg.pinv(K, rcond=1e-10) @ rhs
        np.testing.assert_allclose(pseudo_inverse(K, scale).solve(rhs), expected, atol=1e-7)


def test_zero_matrix(rng: np.random.Generator) -> None:
    np.testing.assert_array_equal(pseudo_inverse(np.zeros((3, 3)), np.ones(3)).solve(rng.normal(size=3)), 0.0)
