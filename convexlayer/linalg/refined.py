"""Accurate solves of batches of symmetric systems that may be ill-conditioned or singular.

The matrix K is equilibrated (Ruiz), a static regularisation +-eps is added to its diagonal so that the factorisation
exists, and solutions are refined against the unregularised K. Refinement finds a solution of a singular but consistent
system too; ``condition`` and ``null_direction`` say where there are others. The least-squares solution of minimum norm is there
for the rest.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from convexlayer.linalg.base import AbstractBackend, BackendState
from convexlayer.linalg.least_squares import minimum_norm
from convexlayer.program import Array, IndexArray, Pattern

__all__ = ["ACCEPTED", "SINGULAR", "RefinedFactor"]

EPS = 1e-8
"""Static regularisation of the equilibrated matrix."""

ACCEPTED = 1e-10
"""Relative residual at which a refined solution is accepted without a second thought."""

TARGET = 1e-14
"""Relative residual below which refining further is pointless."""

SINGULAR = 1e7
"""Condition of the equilibrated matrix from which it is treated as singular (regularisation caps it at 1 / EPS)."""


class RefinedFactor:
    """A batch of B symmetric matrices K (N, N) of one pattern, factorised once."""

    def __init__(
        self, backend: AbstractBackend, state: BackendState, pattern: Pattern, values: Array, signs: Array
    ) -> None:
        """Factorise.

        Args:
            backend: who factorises.
            state: what its ``init`` made of the pattern.
            pattern: upper triangle of K, every diagonal entry stored.
            values: (B, nnz).
            signs: (N,), +1 where K is positive (semi)definite, -1 where it is negative.
        """
        self._pattern = pattern
        self._values = values
        self._diagonal = np.flatnonzero(pattern.rows == pattern.cols)
        self._scale = _equilibration(pattern, values)
        scaled = values * self._scale[:, pattern.rows] * self._scale[:, pattern.cols]
        scaled[:, self._diagonal] += EPS * signs
        self._factor = backend.factor(state, scaled)

    @cached_property
    def _inverse_iteration(self) -> tuple[Array, Array]:
        """Norm of the regularised inverse (B,), and the directions (B, N) that it magnifies most, of norm 1."""
        start = np.random.default_rng(0).standard_normal(self._scale.shape[1])
        z = np.broadcast_to(start, self._scale.shape)
        norm = np.ones((len(z), 1))
        for _ in range(3):
            z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-300)
            z = self._factor.solve(z)
            norm = np.linalg.norm(z, axis=1, keepdims=True)
        return norm[:, 0], z / np.maximum(norm, 1e-300)

    @property
    def condition(self) -> Array:
        """Estimate (B,) of the condition of the equilibrated matrices, by inverse iteration; at most about 1 / EPS."""
        return self._inverse_iteration[0]

    @property
    def null_direction(self) -> Array:
        """A random direction (B, N) of K's null space, largest entry 1; meaningful where ``condition`` exceeds SINGULAR."""
        direction = self._scale * self._inverse_iteration[1]
        return direction / np.maximum(np.max(np.abs(direction), axis=1, keepdims=True, initial=0.0), 1e-300)

    def multiply(self, z: Array, index: IndexArray | slice = slice(None)) -> Array:
        """K z for the elements at these positions."""
        upper, values = self._pattern, self._values[index]
        product = upper.matvec(values, z) + upper.rmatvec(values, z)
        product -= values[:, self._diagonal] * z
        return product

    def refine(self, rhs: Array, *, steps: int = 8) -> tuple[Array, Array]:
        """Solve by iterative refinement: solutions (B, N) and relative residuals (B,), the best of all steps."""
        norm = np.maximum(np.max(np.abs(rhs), axis=1, initial=0.0), 1e-300)
        best = np.zeros_like(rhs)
        best_residual = np.where(norm > 1e-300, 1.0, 0.0)
        z, remainder = best, rhs
        for _ in range(steps):
            z = z + self._scale * self._factor.solve(self._scale * remainder)
            remainder = rhs - self.multiply(z)
            residual = np.max(np.abs(remainder), axis=1, initial=0.0) / norm
            better = residual < best_residual
            progress = residual < 0.5 * best_residual
            best = np.where(better[:, None], z, best)
            best_residual = np.where(better, residual, best_residual)
            if not np.any(progress & (residual > TARGET)):
                break
        return best, best_residual

    def minimum_norm(self, rhs: Array, index: IndexArray) -> tuple[Array, Array]:
        """Least-squares solutions of minimum norm for these elements, and their relative residuals."""
        z = np.zeros((len(index), rhs.shape[1]))
        for row, i in enumerate(index.tolist()):
            z[row] = minimum_norm(self._pattern.csc(self._values[i]), rhs[i])
        remainder = rhs[index] - self.multiply(z, index)
        norm = np.maximum(np.max(np.abs(rhs[index]), axis=1, initial=0.0), 1e-300)
        residual = np.max(np.abs(remainder), axis=1, initial=0.0) / norm
        return z, residual


def _equilibration(pattern: Pattern, values: Array, *, passes: int = 4) -> Array:
    """Scales (B, N) that bring the largest entry of every row of the symmetric matrix near 1 (Ruiz 2001)."""
    size = pattern.shape[0]
    scale = np.ones((values.shape[0], size))
    if size == 0:
        return scale
    rows = np.concatenate([pattern.rows, pattern.cols])
    order = np.argsort(rows, kind="stable")
    occurring, starts = np.unique(rows[order], return_index=True)
    source = order % pattern.nnz
    magnitude = np.abs(values)
    for _ in range(passes):
        scaled = magnitude * scale[:, pattern.rows] * scale[:, pattern.cols]
        largest = np.ones_like(scale)
        largest[:, occurring] = np.maximum.reduceat(scaled[:, source], starts, axis=1)
        scale /= np.sqrt(np.where(largest > 0, largest, 1.0))
    return scale
