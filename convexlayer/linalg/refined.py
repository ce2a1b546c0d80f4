"""Accurate solves of batches of symmetric systems that may be ill-conditioned or singular.

With scales S (Ruiz) the matrix E = S K S is equilibrated, a static regularisation +-eps is added to its diagonal so
that the factorisation exists, and solutions are refined against the unregularised E, where residuals mean something
however the rows of K are scaled. Refinement finds a solution of a singular but consistent system too; ``condition`` and
``null_direction`` say where there are others. The least-squares solution of minimum norm is there for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.linalg.base import AbstractBackend, BackendState
from convexlayer.linalg.least_squares import PseudoInverse
from convexlayer.program import Array, IndexArray, Pattern, max_norm

__all__ = ["ACCEPTED", "SINGULAR", "RefinedFactor"]

EPS = 1e-7
"""Static regularisation of E. Where E is singular pivots reach 1 / EPS, whose rounding must stay well below EPS."""

ACCEPTED = 1e-10
"""Relative residual at which a refined solution is accepted without a second thought."""

TARGET = 1e-14
"""Relative residual below which refining further is pointless."""

SINGULAR = 0.5 / EPS
"""Condition of E from which it is treated as singular; the regularisation caps the estimate at norm(E) / EPS."""

TINY = 1e-300
"""Stands for zero where something is divided by a norm."""


@final
class RefinedFactor:
    """A batch of B symmetric matrices K (N, N) of one pattern, factorised once.

    Residuals are those of the equilibrated system: norm(S (rhs - K z)) / norm(S rhs), in the maximum norm.
    """

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
        self._diagonal = np.flatnonzero(pattern.rows == pattern.cols)
        self._scale = _equilibration(pattern, values)
        self._values = values * self._scale[:, pattern.rows] * self._scale[:, pattern.cols]
        regularised = self._values.copy()
        regularised[:, self._diagonal] += EPS * signs
        self._factor = backend.factor(state, regularised)
        self._pseudo_inverses: dict[int, PseudoInverse] = {}

    @cached_property
    def _inverse_iteration(self) -> tuple[Array, Array]:
        """Norm of the regularised inverse of E (B,), and the directions (B, N) that it magnifies most, of norm 1."""
        return _power_iteration(self._factor.solve, self._scale.shape, steps=3)

    @cached_property
    def condition(self) -> Array:
        """Estimate (B,) of the condition of E, by power iterations; at most about norm(E) / EPS."""
        norm, _ = _power_iteration(self._multiply, self._scale.shape, steps=3)
        return np.maximum(norm, 1.0) * self._inverse_iteration[0]  # the norm of a nonzero E is about 1 at least

    @property
    def null_direction(self) -> Array:
        """A random direction (B, N) of K's null space, largest entry 1; of use where ``condition`` exceeds SINGULAR."""
        direction = self._scale * self._inverse_iteration[1]
        return direction / np.maximum(max_norm(direction), TINY)[:, None]

    def refine(self, rhs: Array, *, steps: int = 12) -> tuple[Array, Array]:
        """Solve K z = rhs by iterative refinement: solutions (B, N) and residuals (B,), the best of all steps.

        An element whose right-hand side is not finite is NaN.
        """
        finite = np.all(np.isfinite(rhs), axis=1)
        target = np.where(finite[:, None], self._scale * rhs, 0.0)
        best = z = np.zeros_like(target)
        remainder = target
        least = np.where(max_norm(target) > 0.0, 1.0, 0.0)
        for _ in range(steps):
            z = z + self._factor.solve(remainder)
            remainder, residual = self._residual(z, target)
            better, progress = residual < least, residual < 0.5 * least
            best = np.where(better[:, None], z, best)
            least = np.where(better, residual, least)
            if not np.any(progress & (residual > TARGET)):
                break
        return np.where(finite[:, None], self._scale * best, np.nan), np.where(finite, least, np.nan)

    def minimum_norm(self, rhs: Array, index: IndexArray) -> tuple[Array, Array]:
        """Least-squares solutions of minimum norm for these elements, and their residuals."""
        z = np.zeros((len(index), rhs.shape[1]))
        for row, i in enumerate(index.tolist()):
            if i not in self._pseudo_inverses:
                self._pseudo_inverses[i] = PseudoInverse(self._pattern.csc(self._values[i]), self._scale[i])
            z[row] = self._pseudo_inverses[i].solve(rhs[i])
        scale = self._scale[index]
        return z, self._residual(z / scale, scale * rhs[index], index)[1]

    def _multiply(self, z: Array, index: IndexArray | slice = slice(None)) -> Array:
        """E z for the elements at these positions."""
        upper, values = self._pattern, self._values[index]
        return upper.matvec(values, z) + upper.rmatvec(values, z) - values[:, self._diagonal] * z

    def _residual(self, z: Array, target: Array, index: IndexArray | slice = slice(None)) -> tuple[Array, Array]:
        """Target - E z for the elements at these positions, and its size relative to the target."""
        remainder = target - self._multiply(z, index)
        return remainder, max_norm(remainder) / np.maximum(max_norm(target), TINY)


def _power_iteration(apply: Callable[[Array], Array], shape: tuple[int, ...], *, steps: int) -> tuple[Array, Array]:
    """Norms (B,) of symmetric operators on (B, N), from below, and the directions they magnify most, of norm 1."""
    z = np.broadcast_to(np.random.default_rng(0).standard_normal(shape[1]), shape)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    for _ in range(steps):
        z = apply(z / np.maximum(norm, TINY))
        norm = np.linalg.norm(z, axis=1, keepdims=True)
    return norm[:, 0], z / np.maximum(norm, TINY)


def _equilibration(pattern: Pattern, values: Array, *, passes: int = 4) -> Array:
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
    for _ in range(passes):
        scaled = magnitude * scale[:, pattern.rows] * scale[:, pattern.cols]
        largest = np.maximum.reduceat(scaled[:, source], starts, axis=1)
        scale /= np.sqrt(np.where(largest > 0, largest, 1.0))
    return scale
