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
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.linalg.null_space import NullSpace, alike, find_null_spaces
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
    "refined_row_by_row",
]

EPS = 1e-7
"""Static regularisation of E. Where E is singular pivots reach 1 / EPS, whose rounding must stay well below EPS."""

ACCEPTED = 1e-10
"""Relative residual at which a refined solution is accepted without a second thought."""

REFINED = 1e-14
"""Relative residual below which refining further is pointless."""

PROGRESS = 0.5
"""A step that leaves more than this share of the residual is an element's last."""

SINGULAR = 0.5 / EPS
"""Condition of E from which it is treated as singular; the regularisation caps the estimate at norm(E) / EPS."""

RUIZ_PASSES = 4
"""Passes of equilibration."""

POWER_STEPS = 3
"""Power iterations that estimate a norm."""

REFINEMENTS = 12
"""Steps of refinement at most."""

ROW_ACCEPTED, ROW_STEPS = 1e-11, 2
"""Residual of a row, relative to its terms, at which it is not refined further, and how often that is done."""

NOTHING = 1e-18
"""Terms of a row that are no larger than this, relative to the largest row, are leftovers of zeros."""

SWEEPS = 3
"""Corrections along the directions where refinement is slow, each followed by refinement."""

TINY = 1e-300
"""Stands for zero where something is divided by a norm."""


class RefinedFactor(ABC):
    """A batch of B symmetric matrices K (N, N), factorised once.

    Residuals are those of the equilibrated system: norm(S (rhs - K z)) / norm(S rhs), in the maximum norm.
    """

    def __init__(self, size: int, *, most: int | None = None) -> None:
        """Matrices of order ``size``; of null spaces of more than ``most`` dimensions a few members are found."""
        self._size, self._most = size, most
        self._null_spaces: dict[int, NullSpace] = {}
        self._null_directions: dict[int, NullSpace] = {}

    @property
    @abstractmethod
    def scale(self) -> Array:
        """The diagonals of S, (B, N)."""

    @property
    @abstractmethod
    def condition(self) -> Array:
        """Estimate (B,) of the condition of E, by power iterations; at most about norm(E) / EPS."""

    @property
    @abstractmethod
    def null_direction(self) -> Array:
        """A random direction (B, N) of K's null space, largest entry 1; of use where ``condition`` exceeds SINGULAR."""

    @abstractmethod
    def refine(self, rhs: Array, *, steps: int = REFINEMENTS) -> tuple[Array, Array]:
        """Solve K z = rhs by iterative refinement: solutions (B, N) and residuals (B,), the best of all steps.

        An element is refined until it makes no progress, whatever the others do. One whose right-hand side is not
        finite is NaN.
        """

    @abstractmethod
    def refine_row_by_row(self, rhs: Array) -> tuple[Array, Array]:
        """Solve K z = rhs so that residuals are small in every row, relative to its own terms (Skeel 1980).

        Returns:
            solutions (B, N); the largest residual of a row of E relative to the magnitudes of its terms, (B,).
        """

    @abstractmethod
    def product(self, x: Array) -> Array:
        """E x of x (B, N)."""

    @abstractmethod
    def terms(self, x: Array) -> Array:
        """For every row of E x the sum of the magnitudes of its terms, (B, N); of what is rounded with it, at least."""

    @abstractmethod
    def remains(self, x: Array) -> tuple[Array, Array]:
        """What x <- x - F^-1 E x leaves of vectors x (B, count, N), and E times that (see ``null_space``)."""

    @abstractmethod
    def select(self, index: IndexArray) -> RefinedFactor:
        """The factor of the elements at these positions."""

    def residual(self, z: Array, rhs: Array) -> Array:
        """Norm(S (rhs - K z)) / norm(S rhs), in the maximum norm, (B,)."""
        target = self.scale * rhs
        return max_norm(target - self.product(z / self.scale)) / np.maximum(max_norm(target), TINY)

    def null_part(self, z: Array) -> Array:
        """The parts of z (B, N) in the null spaces of E.

        F^-1 is too inexact to tell null spaces from what is orthogonal to them. What ``remains`` is null all the same,
        but for a small part depends on the range's part of z; E times a refined solution of E x = z is in the range,
        but for a small part depends on the null space's part of z. In turn they converge.
        """
        scale = self.scale
        found, going = np.zeros_like(z), max_norm(z) > 0.0
        for _ in range(REFINEMENTS):
            if not np.any(going):
                break
            rest = z - found
            in_range = self.product(self.refine(rest / scale)[0] / scale)
            part = self.remains((rest - in_range)[:, None])[0][:, 0]
            found[going] += part[going]
            going &= max_norm(part) > ACCEPTED * max_norm(z)
        return found

    def null_spaces(self, index: IndexArray) -> list[NullSpace]:
        """The null spaces of K of these elements, whose ``condition`` must be finite; found once."""
        return self._found(index, self._null_spaces, whole=True)

    def null_directions(self, index: IndexArray) -> list[NullSpace]:
        """The same, but no more than a few directions of those that have many, where they tell: much sooner found."""
        few = self._found(index, self._null_directions, whole=False)
        unsure: IndexArray = np.array(
            [i for i, space in zip(index.tolist(), few, strict=True) if not (space.certain or space.whole)],
            dtype=np.int64,
        )
        if len(unsure):
            self._null_directions.update(zip(unsure.tolist(), self.null_spaces(unsure), strict=True))
        return [self._null_directions[i] for i in index.tolist()]

    def _found(self, index: IndexArray, known: dict[int, NullSpace], *, whole: bool) -> list[NullSpace]:
        missing: IndexArray = np.array([i for i in index.tolist() if i not in known], dtype=np.int64)
        if len(missing):
            found = find_null_spaces(self.select(missing), len(missing), self._size, most=self._most, whole=whole)
            for i, space in zip(missing.tolist(), found, strict=True):
                known[i] = space
                if space.whole:
                    self._null_spaces[i] = self._null_directions[i] = space
        return [known[i] for i in index.tolist()]

    def minimum_norm(self, rhs: Array, index: IndexArray) -> tuple[Array, Array]:
        """Least-squares solutions for these elements, in the norms of K, of minimum norm; and their residuals.

        Where a null space is so large that it is not held as a whole (see ``NullSpace``), in the norms of E.

        Returns:
            argmin norm(z) over the minimisers of norm(K z - rhs), (len(index), N); the residuals, (len(index),).
        """
        part, spaces = self.select(index), self.null_spaces(index)
        scale = part.scale
        groups = list(alike(spaces, scale, part.select))
        target = np.empty_like(scale)
        for members, space in groups:
            target[members] = space.in_range(rhs[index[members]])
        z = part.refine(target / scale)[0] / scale
        slow = [row for row, space in enumerate(spaces) if len(space.slow)]
        for _ in range(SWEEPS if slow else 0):
            remainder = target - part.product(z)
            for row in slow:
                z[row] += spaces[row].along_slow(remainder[row])
            remainder = target - part.product(z)
            z += part.refine(remainder / scale)[0] / scale
        for members, space in groups:
            z[members] = space.shortest(z[members])
        z *= scale
        return z, part.residual(z, rhs[index])


class StoredFactor(RefinedFactor):
    """Of matrices that are stored, of one pattern."""

    def __init__(self, pattern: Pattern) -> None:
        """Pattern: the upper triangle of K."""
        super().__init__(pattern.shape[0])
        self._pattern = pattern

    @abstractmethod
    def equilibrated(self, index: IndexArray) -> tuple[Array, Array]:
        """Scales S (elements, N) and upper triangles of E (elements, nnz) of the elements at these positions."""

    @final
    def product(self, x: Array) -> Array:
        """E x of x (B, N)."""
        return equilibrated_product(self._pattern, self._whole[0], x)

    @final
    def terms(self, x: Array) -> Array:
        """Exactly the sums of magnitudes."""
        return equilibrated_product(self._pattern, self._whole[1], np.abs(x))

    @cached_property
    def _whole(self) -> tuple[Array, Array]:
        """The upper triangles of E of all elements, and their magnitudes."""
        E = self.equilibrated(np.arange(len(self.scale)))[1]
        return E, np.abs(E)


class AbstractFactoriser(ABC):
    """Factorises batches of matrices of one pattern; symbolic work is done when it is made."""

    @abstractmethod
    def factor(self, values: Array) -> RefinedFactor:
        """Factorise the matrices K whose upper triangles have values (B, nnz)."""


def refined_row_by_row(factor: RefinedFactor, rhs: Array) -> tuple[Array, Array]:
    """``RefinedFactor.refine_row_by_row`` by its other methods.

    ``refine`` drives down the norm of the residual; what it leaves is refined once more where that is not enough for
    rows of small terms.
    """
    z, _ = factor.refine(rhs)
    remainder, residual = _row_residual(factor, z, rhs)
    for _ in range(ROW_STEPS):
        rough = residual > ROW_ACCEPTED
        if not np.any(rough):
            break
        z = np.where(rough[:, None], z + factor.refine(remainder)[0], z)
        remainder, residual = _row_residual(factor, z, rhs)
    return z, residual


def _row_residual(factor: RefinedFactor, z: Array, rhs: Array) -> tuple[Array, Array]:
    """Rhs - K z, and the largest of each row relative to the sum of the magnitudes of its terms, (B,)."""
    scale = factor.scale
    x, target = z / scale, scale * rhs
    remainder = target - factor.product(x)
    terms = factor.terms(x) + np.abs(target)
    floor = NOTHING * max_norm(terms)[:, None]
    return remainder / scale, max_norm(remainder / np.maximum(terms, np.maximum(floor, TINY)))


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
