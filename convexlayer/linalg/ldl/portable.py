"""Refined factors in NumPy, with the factorisations of a backend."""

from __future__ import annotations

from functools import cached_property
from typing import final

import numpy as np

from convexlayer.linalg.base import AbstractBackend, AbstractFactor
from convexlayer.linalg.equilibration.symmetric import equilibration
from convexlayer.linalg.refined import (
    EPS,
    MAX_REFINEMENTS,
    MIN_REDUCTION,
    REFINEMENT_TOL,
    TINY,
    AbstractFactoriser,
    RefinedFactor,
    StoredFactor,
    equilibrated_product,
    power_iteration,
    refined_row_by_row,
)
from convexlayer.program import Array, IndexArray, Pattern, max_norm

__all__ = ["PortableFactoriser"]


@final
class PortableFactoriser(AbstractFactoriser):
    """Factoriser that needs no compiled kernels, for any backend."""

    def __init__(self, pattern: Pattern, signs: Array, backend: AbstractBackend) -> None:
        """Analyse the pattern.

        Args:
            pattern: upper triangle of K, every diagonal entry stored.
            signs: (N,), +1 in the positive (semi)definite block of K, -1 in the negative.
            backend: the backend that factorises.
        """
        self.pattern, self._signs, self._backend = pattern, signs, backend
        self._state = backend.init(pattern)

    def factor(self, values: Array) -> RefinedFactor:
        """Equilibrate, regularise and factorise."""
        pattern = self.pattern
        scale = equilibration(pattern, values)
        E = values * scale[:, pattern.rows] * scale[:, pattern.cols]
        regularised = E.copy()
        regularised[:, pattern.rows == pattern.cols] += EPS * self._signs
        return _PortableFactor(self, values, scale, E, self._backend.factor(self._state, regularised))


@final
class _PortableFactor(StoredFactor):
    def __init__(
        self, system: PortableFactoriser, values: Array, scale: Array, E: Array, factor: AbstractFactor
    ) -> None:
        super().__init__(system.pattern)
        self._system, self._values = system, values
        self._scale, self._E, self._factor = scale, E, factor

    @property
    def scale(self) -> Array:
        return self._scale

    def null_iteration(self, x: Array) -> tuple[Array, Array]:
        left = [self._remains(vectors) for vectors in x.swapaxes(0, 1)]
        whole, image = (np.stack(part, axis=1) for part in zip(*left, strict=True))
        return whole, image

    def _remains(self, x: Array) -> tuple[Array, Array]:
        """As ``null_iteration``, for one vector per element, (B, N)."""
        product = self._multiply(x)
        least, going = max_norm(product), np.ones(len(x), dtype=bool)
        for _ in range(MAX_REFINEMENTS):
            step = x - self._factor.solve(product)
            other = self._multiply(step)
            size = max_norm(other)
            better = going & (size < least)
            x, product = np.where(better[:, None], step, x), np.where(better[:, None], other, product)
            going = going & (size < MIN_REDUCTION * least)
            least = np.where(better, size, least)
            if not np.any(going):
                break
        return x, product

    def select(self, index: IndexArray) -> RefinedFactor:
        return self if np.array_equal(index, np.arange(len(self._values))) else self._system.factor(self._values[index])

    @cached_property
    def _inverse_iteration(self) -> tuple[Array, Array]:
        """Norm of the regularised inverse of E, (B,), and unit vectors (B, N) close to its dominant eigenvectors."""
        return power_iteration(self._factor.solve, self._scale.shape)

    @cached_property
    def _condition(self) -> Array:
        norm, _ = power_iteration(self._multiply, self._scale.shape)
        # The norm of an equilibrated nonzero E is about 1 or more.
        return np.maximum(norm, 1.0) * self._inverse_iteration[0]

    @property
    def condition(self) -> Array:
        return self._condition

    @property
    def null_direction(self) -> Array:
        direction = self._scale * self._inverse_iteration[1]
        return direction / np.maximum(max_norm(direction), TINY)[:, None]

    def refine(self, rhs: Array, *, steps: int = MAX_REFINEMENTS) -> tuple[Array, Array]:
        finite = np.all(np.isfinite(rhs), axis=1)
        target = np.where(finite[:, None], self._scale * rhs, 0.0)
        size = max_norm(target)
        best = z = np.zeros_like(target)
        remainder, going = target, size > 0.0
        least = np.where(going, 1.0, 0.0)
        for _ in range(steps):
            z = z + self._factor.solve(remainder)
            remainder = target - self._multiply(z)
            residual = max_norm(remainder) / np.maximum(size, TINY)
            better = going & (residual < least)
            going = going & (residual < MIN_REDUCTION * least) & (residual > REFINEMENT_TOL)
            best = np.where(better[:, None], z, best)
            least = np.where(better, residual, least)
            if not np.any(going):
                break
        return np.where(finite[:, None], self._scale * best, np.nan), np.where(finite, least, np.nan)

    def equilibrated(self, index: IndexArray) -> tuple[Array, Array]:
        return self._scale[index], self._E[index]

    def refine_row_by_row(self, rhs: Array) -> tuple[Array, Array]:
        return refined_row_by_row(self, rhs)

    def _multiply(self, z: Array) -> Array:
        return equilibrated_product(self._pattern, self._E, z)
