"""Refined factors in NumPy, around the factorisations of a backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.linalg.base import AbstractBackend, AbstractFactor
from convexlayer.linalg.refined import (
    EPS,
    POWER_STEPS,
    PROGRESS,
    REFINEMENTS,
    RUIZ_PASSES,
    TARGET,
    TINY,
    AbstractFactoriser,
    RefinedFactor,
    equilibrated_product,
    power_start,
)
from convexlayer.program import Array, IndexArray, Pattern, max_norm

__all__ = ["PortableFactoriser"]


@final
class PortableFactoriser(AbstractFactoriser):
    """Needs no compiled kernels, and runs wherever its backend does."""

    def __init__(self, pattern: Pattern, signs: Array, backend: AbstractBackend) -> None:
        """Analyse.

        Args:
            pattern: upper triangle of K, every diagonal entry stored.
            signs: (N,), +1 where K is positive (semi)definite, -1 where it is negative.
            backend: who factorises.
        """
        self.pattern, self._signs, self._backend = pattern, signs, backend
        self._state = backend.init(pattern)

    def factor(self, values: Array) -> RefinedFactor:
        """Equilibrate, regularise and factorise."""
        pattern = self.pattern
        scale = _equilibration(pattern, values)
        E = values * scale[:, pattern.rows] * scale[:, pattern.cols]
        regularised = E.copy()
        regularised[:, pattern.rows == pattern.cols] += EPS * self._signs
        return _PortableFactor(self, values, scale, E, self._backend.factor(self._state, regularised))


@final
class _PortableFactor(RefinedFactor):
    def __init__(
        self, system: PortableFactoriser, values: Array, scale: Array, E: Array, factor: AbstractFactor
    ) -> None:
        super().__init__(system.pattern)
        self._system, self._values = system, values
        self._scale, self._E, self._factor = scale, E, factor

    def remains(self, x: Array) -> tuple[Array, Array]:
        left = [self._remains(vectors) for vectors in x.swapaxes(0, 1)]
        whole, image = (np.stack(part, axis=1) for part in zip(*left, strict=True))
        return whole, image

    def _remains(self, x: Array) -> tuple[Array, Array]:
        """The same of one vector an element, (B, N)."""
        product = self._multiply(x)
        least, going = max_norm(product), np.ones(len(x), dtype=bool)
        for _ in range(REFINEMENTS):
            step = x - self._factor.solve(product)
            other = self._multiply(step)
            size = max_norm(other)
            better = going & (size < least)
            x, product = np.where(better[:, None], step, x), np.where(better[:, None], other, product)
            going = going & (size < PROGRESS * least)
            least = np.where(better, size, least)
            if not np.any(going):
                break
        return x, product

    def select(self, index: IndexArray) -> RefinedFactor:
        return self if np.array_equal(index, np.arange(len(self._values))) else self._system.factor(self._values[index])

    @cached_property
    def _inverse_iteration(self) -> tuple[Array, Array]:
        """Norm of the regularised inverse of E (B,), and the directions (B, N) that it magnifies most, of norm 1."""
        return _power_iteration(self._factor.solve, self._scale.shape)

    @cached_property
    def _condition(self) -> Array:
        norm, _ = _power_iteration(self._multiply, self._scale.shape)
        return np.maximum(norm, 1.0) * self._inverse_iteration[0]  # the norm of a nonzero E is about 1 at least

    @property
    def condition(self) -> Array:
        return self._condition

    @property
    def null_direction(self) -> Array:
        direction = self._scale * self._inverse_iteration[1]
        return direction / np.maximum(max_norm(direction), TINY)[:, None]

    def refine(self, rhs: Array, *, steps: int = REFINEMENTS) -> tuple[Array, Array]:
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
            going = going & (residual < PROGRESS * least) & (residual > TARGET)
            best = np.where(better[:, None], z, best)
            least = np.where(better, residual, least)
            if not np.any(going):
                break
        return np.where(finite[:, None], self._scale * best, np.nan), np.where(finite, least, np.nan)

    def equilibrated(self, index: IndexArray) -> tuple[Array, Array]:
        return self._scale[index], self._E[index]

    def _multiply(self, z: Array) -> Array:
        return equilibrated_product(self._pattern, self._E, z)


def _power_iteration(apply: Callable[[Array], Array], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Norms (B,) of symmetric operators on (B, N), from below, and the directions they magnify most, of norm 1."""
    z = np.broadcast_to(power_start(shape[1]), shape)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    for _ in range(POWER_STEPS):
        z = apply(z / np.maximum(norm, TINY))
        norm = np.linalg.norm(z, axis=1, keepdims=True)
    return norm[:, 0], z / np.maximum(norm, TINY)


def _equilibration(pattern: Pattern, values: Array) -> Array:
    """Scales (B, N) that bring the largest entry of every row of the symmetric matrix near 1 (Ruiz 2001)."""
    size = pattern.shape[0]
    scale = np.ones((values.shape[0], size))
    if size == 0:
        return scale
    rows = np.concatenate([pattern.rows, pattern.cols])
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(size))
    source = order % pattern.nnz
    magnitude = np.abs(values)
    for _ in range(RUIZ_PASSES):
        scaled = magnitude * scale[:, pattern.rows] * scale[:, pattern.cols]
        largest = np.maximum.reduceat(scaled[:, source], starts, axis=1)
        scale /= np.sqrt(np.where(largest > 0, largest, 1.0))
    return scale
