"""Random symmetric quasi-definite matrices, and their factorisations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexlayer.linalg import AbstractBackend, AbstractFactoriser
from convexlayer.linalg.dense import DenseBackend
from convexlayer.linalg.laned import LaneFactoriser
from convexlayer.linalg.portable import PortableFactoriser
from convexlayer.linalg.refined import StoredFactor
from convexlayer.linalg.sparse import SparseBackend
from convexlayer.program import Array, Pattern

N, M = 12, 9
SIGNS = np.concatenate([np.ones(N), -np.ones(M)])
BACKENDS: dict[str, AbstractBackend] = {"dense": DenseBackend(), "sparse": SparseBackend()}


def portable(backend: AbstractBackend) -> Callable[[Pattern, Array], AbstractFactoriser]:
    return lambda pattern, signs: PortableFactoriser(pattern, signs, backend)


FACTORISERS: dict[str, Callable[[Pattern, Array], AbstractFactoriser]] = {
    **{name: portable(backend) for name, backend in BACKENDS.items()},
    "lanes": LaneFactoriser,
}


def quasi_definite(rng: np.random.Generator, batch: int, *, n: int = N, m: int = M, density: float = 0.5) -> Array:
    """Matrices [P, B'; B, -C] of one pattern, P and C diagonal with every second entry zero: (batch, n + m, n + m)."""
    kept = rng.uniform(size=(m, n)) < density
    K = np.zeros((batch, n + m, n + m))
    K[:, range(n), range(n)] = rng.uniform(0.5, 1.0, size=(batch, n)) * (np.arange(n) % 2)
    K[:, range(n, n + m), range(n, n + m)] = -rng.uniform(0.5, 1.0, size=(batch, m)) * (np.arange(m) % 2)
    K[:, n:, :n] = rng.normal(size=(batch, m, n)) * kept
    K[:, :n, n:] = np.swapaxes(K[:, n:, :n], 1, 2)
    return K


def upper_triangle(K: Array) -> tuple[Pattern, Array]:
    """Pattern and values of the upper triangles of K (B, N, N); zero diagonal entries are stored."""
    occurring = np.triu(np.any(K != 0.0, axis=0)) | np.eye(K.shape[1], dtype=bool)
    cols, rows = np.nonzero(occurring.T)
    return Pattern(occurring.shape, rows, cols), K[:, rows, cols]


def refined(K: Array, make: Callable[[Pattern, Array], AbstractFactoriser], signs: Array = SIGNS) -> StoredFactor:
    """The refined factors of K (B, N, N)."""
    pattern, values = upper_triangle(K)
    factor = make(pattern, signs).factor(values)
    assert isinstance(factor, StoredFactor)
    return factor


def times(K: Array, z: Array) -> Array:
    """K z for a batch."""
    return np.asarray(np.einsum("bij,bj->bi", K, z))
