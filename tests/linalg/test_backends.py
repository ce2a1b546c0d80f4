"""Requirements of all backends, and the choice of the backend."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer.linalg import AbstractBackend
from convexlayer.linalg.choice import choose_backend
from convexlayer.linalg.dense.batched import DenseBackend
from convexlayer.linalg.ldl.qdldl_ import SparseBackend
from convexlayer.program import Pattern

from .matrices import BACKENDS, SIGNS, M, N, quasi_definite, times, upper_triangle


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> AbstractBackend:
    return BACKENDS[request.param]


def test_solves_every_element(backend: AbstractBackend, rng: np.random.Generator) -> None:
    K = quasi_definite(rng, 5) + 0.1 * np.diag(SIGNS)
    pattern, values = upper_triangle(K)
    factor = backend.factor(backend.init(pattern), values)
    for _ in range(2):  # a factor can solve for several right-hand sides
        z = rng.normal(size=(5, N + M))
        np.testing.assert_allclose(factor.solve(times(K, z)), z, atol=1e-10)


def test_one_state_factorises_different_values(backend: AbstractBackend, rng: np.random.Generator) -> None:
    K = quasi_definite(rng, 3) + 0.1 * np.diag(SIGNS)
    pattern, values = upper_triangle(K)
    state, rhs = backend.init(pattern), rng.normal(size=(3, N + M))
    before = backend.factor(state, values)
    after = backend.factor(state, 2.0 * values)
    np.testing.assert_allclose(before.solve(rhs), 2.0 * after.solve(rhs), rtol=1e-12)


def test_arguments_are_not_modified(backend: AbstractBackend, rng: np.random.Generator) -> None:
    pattern, values = upper_triangle(quasi_definite(rng, 2) + 0.1 * np.diag(SIGNS))
    rhs = rng.normal(size=(2, N + M))
    kept_values, kept_rhs = values.copy(), rhs.copy()
    backend.factor(backend.init(pattern), values).solve(rhs)
    np.testing.assert_array_equal(values, kept_values)
    np.testing.assert_array_equal(rhs, kept_rhs)


def test_empty_batch(backend: AbstractBackend) -> None:
    diagonal = Pattern((3, 3), np.arange(3), np.arange(3))
    factor = backend.factor(backend.init(diagonal), np.zeros((0, 3)))
    assert factor.solve(np.zeros((0, 3))).shape == (0, 3)


def test_nan_does_not_spread_to_other_elements(backend: AbstractBackend, rng: np.random.Generator) -> None:
    K = quasi_definite(rng, 3) + 0.1 * np.diag(SIGNS)
    pattern, values = upper_triangle(K)
    values[1] = np.nan
    z = rng.normal(size=(3, N + M))
    solved = backend.factor(backend.init(pattern), values).solve(times(K, z))
    np.testing.assert_allclose(solved[[0, 2]], z[[0, 2]], atol=1e-10)
    assert np.all(np.isnan(solved[1]))


def test_sparse_backend_perturbs_a_zero_pivot() -> None:
    pattern = Pattern((2, 2), np.array([0, 0, 1]), np.array([0, 1, 1]))
    values = np.array([[1.0, 1.0, 1.0], [2.0, 1.0, -1.0]])  # the first is singular
    solved = SparseBackend().factor(pattern, values).solve(np.ones((2, 2)))
    np.testing.assert_allclose(solved[0], [0.5, 0.5], rtol=1e-5)
    np.testing.assert_allclose(solved[1], [2.0 / 3.0, -1.0 / 3.0], rtol=1e-12)


def test_sparse_backend_fails_for_one_element_only() -> None:
    pattern = Pattern((2, 2), np.array([0, 0, 1]), np.array([0, 1, 1]))
    values = np.array([[0.0, 0.0, 0.0], [2.0, 1.0, -1.0]])
    solved = SparseBackend().factor(pattern, values).solve(np.ones((2, 2)))
    assert np.all(np.isnan(solved[0]))
    np.testing.assert_allclose(solved[1], [2.0 / 3.0, -1.0 / 3.0], rtol=1e-12)


def test_backend_is_dense_if_small_or_full_else_sparse() -> None:
    def full(size: int) -> Pattern:
        cols, rows = np.nonzero(np.tril(np.ones((size, size))))
        return Pattern((size, size), rows, cols)

    def diagonal(size: int) -> Pattern:
        return Pattern((size, size), np.arange(size), np.arange(size))

    assert isinstance(choose_backend(diagonal(20)), DenseBackend)
    assert isinstance(choose_backend(full(200)), DenseBackend)
    assert isinstance(choose_backend(diagonal(200)), SparseBackend)
    assert isinstance(choose_backend(full(2000)), SparseBackend)
