"""MINRES: solutions, least-squares solutions, and singular value estimates."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer.linalg.krylov import LEAST_SQUARES, minres
from convexlayer.program import Array

SIZE = 60


def with_eigenvalues(rng: np.random.Generator, eigenvalues: Array) -> tuple[Array, Array]:
    """A symmetric matrix and its eigenvectors."""
    Q = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))[0]
    return (Q * eigenvalues) @ Q.T, Q


def indefinite(rng: np.random.Generator, smallest: float = 0.05) -> Array:
    """Eigenvalues of both signs, their magnitudes between the smallest and 1."""
    return np.geomspace(smallest, 1.0, SIZE) * rng.choice([-1.0, 1.0], SIZE)


@pytest.mark.parametrize("tol", [1e-3, 1e-8, 1e-12])
def test_minres_reaches_the_tolerance(rng: np.random.Generator, tol: float) -> None:
    E, _ = with_eigenvalues(rng, indefinite(rng))
    rhs = rng.normal(size=SIZE)
    found = minres(lambda z: E @ z, rhs, tol=tol, limit=500)
    assert found.converged
    assert not found.least_squares
    left = np.linalg.norm(rhs - E @ found.z) / np.linalg.norm(rhs)
    assert left <= 2.0 * tol
    np.testing.assert_allclose(found.residual, left, atol=1e-13)


def test_number_of_products_equals_number_of_distinct_eigenvalues(rng: np.random.Generator) -> None:
    E, _ = with_eigenvalues(rng, rng.choice([-1.0, 0.5, 2.0], SIZE))
    found = minres(lambda z: E @ z, rng.normal(size=SIZE), tol=1e-12, limit=500)
    assert found.converged
    assert found.iterations == 3


def test_consistent_singular_system_gives_the_minimum_norm_solution(rng: np.random.Generator) -> None:
    eigenvalues = indefinite(rng)
    eigenvalues[:3] = 0.0
    E, Q = with_eigenvalues(rng, eigenvalues)
    rhs = E @ rng.normal(size=SIZE)
    found = minres(lambda z: E @ z, rhs, tol=1e-12, limit=500)
    assert found.converged
    np.testing.assert_allclose(found.z, np.linalg.pinv(E) @ rhs, atol=1e-9)
    np.testing.assert_allclose(Q[:, :3].T @ found.z, 0.0, atol=1e-10)


def test_inconsistent_system_gives_a_least_squares_solution_and_a_null_direction(rng: np.random.Generator) -> None:
    eigenvalues = indefinite(rng)
    eigenvalues[:2] = 0.0
    E, Q = with_eigenvalues(rng, eigenvalues)
    rhs = rng.normal(size=SIZE)
    found = minres(lambda z: E @ z, rhs, tol=1e-12, limit=500)
    assert found.converged
    assert found.least_squares
    remainder = rhs - E @ found.z
    np.testing.assert_allclose(remainder, Q[:, :2] @ (Q[:, :2].T @ rhs), atol=1e-6)
    assert np.linalg.norm(E @ remainder) <= 2.0 * LEAST_SQUARES * np.linalg.norm(remainder)


def test_right_hand_side_in_the_null_space(rng: np.random.Generator) -> None:
    eigenvalues = indefinite(rng)
    eigenvalues[0] = 0.0
    E, Q = with_eigenvalues(rng, eigenvalues)
    found = minres(lambda z: E @ z, Q[:, 0].copy(), tol=1e-12, limit=500)
    assert found.least_squares
    np.testing.assert_array_equal(found.z, 0.0)


@pytest.mark.parametrize("smallest", [0.1, 1e-3, 1e-5])
def test_extreme_singular_values(rng: np.random.Generator, smallest: float) -> None:
    eigenvalues = indefinite(rng)
    eigenvalues[0] = smallest
    E, _ = with_eigenvalues(rng, eigenvalues)
    found = minres(lambda z: E @ z, rng.normal(size=SIZE), tol=1e-9, limit=1000)
    largest, least = found.extreme_singular_values()
    np.testing.assert_allclose(largest, 1.0, rtol=1e-6)
    np.testing.assert_allclose(least, min(smallest, 0.05), rtol=0.1)


def test_limit_on_the_number_of_products(rng: np.random.Generator) -> None:
    E, _ = with_eigenvalues(rng, indefinite(rng))
    for limit in (1, 2, 3):
        found = minres(lambda z: E @ z, rng.normal(size=SIZE), tol=1e-9, limit=limit)
        assert not found.converged
        assert found.iterations == limit
        largest, least = found.extreme_singular_values()
        assert 0.05 <= least <= largest <= 1.0 + 1e-12


def test_zero_and_nan_right_hand_sides() -> None:
    nothing = minres(lambda z: z, np.zeros(3), tol=1e-9, limit=10)
    assert nothing.converged
    np.testing.assert_array_equal(nothing.z, 0.0)
    assert nothing.extreme_singular_values() == (0.0, 0.0)
    broken = minres(lambda z: np.nan * z, np.ones(3), tol=1e-9, limit=10)
    assert not broken.converged
    assert broken.iterations == 1
