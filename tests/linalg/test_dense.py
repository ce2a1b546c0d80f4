"""Dense backend: when the Schur complement is used, and its accuracy after refinement, on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convexlayer.linalg.dense.batched import DenseBackend
from convexlayer.linalg.dense.schur import SchurFactor, SchurPlaces, trailing_diagonal
from convexlayer.program import Array

from .matrices import SIGNS, M, N, quasi_definite, times, upper_triangle

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def backend(request: pytest.FixtureRequest) -> DenseBackend:
    return DenseBackend(str(request.param))


def solve(backend: DenseBackend, K: Array, rhs: Array) -> Array:
    pattern, values = upper_triangle(K)
    return backend.factor(backend.init(pattern), values).solve(rhs)


def test_the_trailing_diagonal_block_is_found(rng: np.random.Generator) -> None:
    K = quasi_definite(rng, 2, density=1.0)
    assert trailing_diagonal(upper_triangle(K)[0]) == M
    K[:, -1, -2] = K[:, -2, -1] = 1.0
    assert trailing_diagonal(upper_triangle(K)[0]) == 1
    assert trailing_diagonal(upper_triangle(np.eye(4)[None])[0]) == 4


def test_schur_complement_solves_the_system(rng: np.random.Generator) -> None:
    K = quasi_definite(rng, 5) + 0.1 * np.diag(SIGNS)
    pattern, values = upper_triangle(K)
    factor = SchurFactor(SchurPlaces(pattern, N, torch.device("cpu")), torch.from_numpy(values))
    z = rng.normal(size=(5, N + M))
    np.testing.assert_allclose(factor.solve(torch.from_numpy(times(K, z))).numpy(), z, atol=1e-10)
    assert not torch.any(factor.failed)


def test_elements_that_are_not_quasi_definite_use_lu(backend: DenseBackend, rng: np.random.Generator) -> None:
    K = quasi_definite(rng, 3) + 0.1 * np.diag(SIGNS)
    K[1, :N, :N] -= 3.0 * np.eye(N)
    K[1, N:, :N] *= 0.1
    K[1, :N, N:] *= 0.1
    pattern, values = upper_triangle(K)
    places = SchurPlaces(pattern, N, torch.device("cpu"))
    assert SchurFactor(places, torch.from_numpy(values)).failed.tolist() == [False, True, False]
    z = rng.normal(size=(3, N + M))
    np.testing.assert_allclose(solve(backend, K, times(K, z)), z, atol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(12, 2), (12, 12), (12, 40)])
def test_shapes_with_and_without_elimination(backend: DenseBackend, n: int, m: int, rng: np.random.Generator) -> None:
    """Two rows and twelve variables use LU, many rows the Schur complement."""
    K = quasi_definite(rng, 4, n=n, m=m) + 0.1 * np.diag(np.concatenate([np.ones(n), -np.ones(m)]))
    z = rng.normal(size=(4, n + m))
    np.testing.assert_allclose(solve(backend, K, times(K, z)), z, atol=1e-9)


def test_read_only_arrays(backend: DenseBackend, rng: np.random.Generator) -> None:
    K = quasi_definite(rng, 2) + 0.1 * np.diag(SIGNS)
    pattern, values = upper_triangle(K)
    rhs = rng.normal(size=(2, N + M))
    values.flags.writeable = rhs.flags.writeable = False
    solved = backend.factor(backend.init(pattern), values).solve(rhs)
    np.testing.assert_allclose(times(K, solved), rhs, atol=1e-9)
