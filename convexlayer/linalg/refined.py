"""Accurate solves of batches of symmetric systems that may be ill-conditioned or singular.

With scales S (Ruiz) the matrix E = S K S is equilibrated, a static regularisation +-eps is added to its diagonal so
that the factorisation exists, and solutions are refined against the unregularised E, where residuals mean something
however the rows of K are scaled. Refinement finds a solution of a singular but consistent system too; ``condition`` and
``null_direction`` say where there are others. The least-squares solution of minimum norm is there for the rest.

Matrices that are stored have two forms of it, equal to rounding: ``portable`` in NumPy around a backend, and ``laned``,
compiled. ``matrix_free`` is for those that are not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import numpy as np

from convexlayer.linalg.least_squares import PseudoInverse
from convexlayer.program import Array, IndexArray, Pattern, max_norm

__all__ = [
    "ACCEPTED",
    "SINGULAR",
    "AbstractFactoriser",
    "RefinedFactor",
    "StoredFactor",
    "equilibrated_product",
    "equilibration",
    "power_iteration",
    "power_start",
]

EPS = 1e-7
"""Static regularisation of E. Where E is singular pivots reach 1 / EPS, whose rounding must stay well below EPS."""

ACCEPTED = 1e-10
"""Relative residual at which a refined solution is accepted without a second thought."""

TARGET = 1e-14
"""Relative residual below which refining further is pointless."""

PROGRESS = 0.5
"""A step that leaves more than this share of the residual is an element's last."""

SINGULAR = 0.5 / EPS
"""Condition of E from which it is treated as singular; the regularisation caps the estimate at norm(E) / EPS."""

RUIZ_PASSES = 4
"""Passes of equilibration."""

POWER_STEPS = 3
"""Power iterations that estimate a norm."""

TINY = 1e-300
"""Stands for zero where something is divided by a norm."""


class RefinedFactor(ABC):
    """A batch of B symmetric matrices K (N, N), factorised once.

    Residuals are those of the equilibrated system: norm(S (rhs - K z)) / norm(S rhs), in the maximum norm.
    """

    @property
    @abstractmethod
    def condition(self) -> Array:
        """Estimate (B,) of the condition of E, by power iterations; at most about norm(E) / EPS."""

    @property
    @abstractmethod
    def null_direction(self) -> Array:
        """A random direction (B, N) of K's null space, largest entry 1; of use where ``condition`` exceeds SINGULAR."""

    @abstractmethod
    def refine(self, rhs: Array, *, steps: int = 12) -> tuple[Array, Array]:
        """Solve K z = rhs by iterative refinement: solutions (B, N) and residuals (B,), the best of all steps.

        An element is refined until it makes no progress, whatever the others do. One whose right-hand side is not
        finite is NaN.
        """

    @abstractmethod
    def minimum_norm(self, rhs: Array, index: IndexArray) -> tuple[Array, Array]:
        """Least-squares solutions (elements, N) of minimum norm for these elements, and their residuals."""


class StoredFactor(RefinedFactor):
    """Of matrices that are stored, of one pattern."""

    def __init__(self, pattern: Pattern) -> None:
        """Pattern: the upper triangle of K."""
        self._pattern = pattern
        self._pseudo_inverses: dict[int, PseudoInverse] = {}

    @abstractmethod
    def equilibrated(self, index: IndexArray) -> tuple[Array, Array]:
        """Scales S (elements, N) and upper triangles of E (elements, nnz) of the elements at these positions."""

    @final
    def minimum_norm(self, rhs: Array, index: IndexArray) -> tuple[Array, Array]:
        """By pseudo-inverses, which are kept."""
        scale, E = self.equilibrated(index)
        z = np.zeros((len(index), rhs.shape[1]))
        for row, i in enumerate(index.tolist()):
            if i not in self._pseudo_inverses:
                self._pseudo_inverses[i] = PseudoInverse(self._pattern.csc(E[row]), scale[row])
            z[row] = self._pseudo_inverses[i].solve(rhs[i])
        target = scale * rhs[index]
        remainder = target - equilibrated_product(self._pattern, E, z / scale)
        return z, max_norm(remainder) / np.maximum(max_norm(target), TINY)


class AbstractFactoriser(ABC):
    """Factorises batches of matrices of one pattern; symbolic work is done when it is made."""

    @abstractmethod
    def factor(self, values: Array) -> RefinedFactor:
        """Factorise the matrices K whose upper triangles have values (B, nnz)."""


def equilibrated_product(pattern: Pattern, E: Array, z: Array) -> Array:
    """E z (B, N) for upper triangles E (B, nnz)."""
    diagonal = pattern.rows == pattern.cols
    return pattern.matvec(E, z) + pattern.rmatvec(E, z) - E[:, diagonal] * z


def power_start(size: int) -> Array:
    """Where power iterations start: no direction in particular (N,)."""
    return np.random.default_rng(0).standard_normal(size)


def power_iteration(apply: Callable[[Array], Array], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Norms (B,) of symmetric operators on (B, N), from below, and the directions they magnify most, of norm 1."""
    z = np.broadcast_to(power_start(shape[1]), shape)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    for _ in range(POWER_STEPS):
        z = apply(z / np.maximum(norm, TINY))
        norm = np.linalg.norm(z, axis=1, keepdims=True)
    return norm[:, 0], z / np.maximum(norm, TINY)


def equilibration(pattern: Pattern, values: Array) -> Array:
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
