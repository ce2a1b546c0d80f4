"""Accurate solves of batches of symmetric systems that may be ill-conditioned or singular.

Ruiz scaling S equilibrates the matrix to E = S K S; a static regularisation +-EPS on its diagonal makes the
factorisation exist; solutions are refined against the unregularised E, so that residuals do not depend on the scaling
of the rows of K. Refinement also solves singular consistent systems; ``condition`` and ``null_direction`` tell whether
the solution is unique. ``minimum_norm`` gives the least-squares solution of minimum norm.

There are two implementations for stored matrices, equal to rounding: ``portable``, in NumPy with a backend, and
``laned``, by kernels. ``matrix_free`` is for matrices given by products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, final

import numpy as np

from convexlayer.linalg.null_space import NullSpace, find_null_spaces, group_by_dimension
from convexlayer.program import Array, IndexArray, Pattern, max_norm

__all__ = [
    "RESIDUAL_TOL",
    "SINGULAR",
    "AbstractFactoriser",
    "RefinedFactor",
    "StoredFactor",
    "equilibrated_product",
    "power_iteration",
    "power_start",
    "refined_row_by_row",
]

EPS = 1e-7
"""Static regularisation of E. If E is singular, pivots reach 1 / EPS, and their rounding, about 1e-16 / EPS, must stay
well below EPS; larger values slow refinement down."""

RESIDUAL_TOL = 1e-10
"""Relative residual up to which a refined solution is accepted without further checks."""

REFINEMENT_TOL = 1e-14
"""Relative residual at which refinement stops: some tens of rounding errors."""

MIN_REDUCTION = 0.5
"""Refinement of an element stops when a step reduces the residual by less than a factor of 2."""

SINGULAR = 0.5 / EPS
"""Condition estimate from which E is treated as singular; the regularisation bounds the estimate by norm(E) / EPS."""

POWER_STEPS = 3
"""Power iterations of a norm estimate: enough for its order of magnitude."""

MAX_REFINEMENTS = 12
"""Maximum number of refinement steps."""

ROW_ACCEPTED, ROW_STEPS = 1e-11, 2
"""Row-wise refinement: residual of a row relative to its terms at which it ends, and maximum number of rounds."""

TERMS_FLOOR = 1e-18
"""Lower bound of the terms of a row, relative to the largest row: smaller terms are rounding residues of zeros."""

SWEEPS = 3
"""Number of corrections along the slow directions in ``minimum_norm``, each followed by refinement."""

TINY = 1e-300
"""Lower bound of norms that are divided by."""


class RefinedFactor(ABC):
    """A batch of B symmetric matrices K (N, N), factorised once.

    Residuals are those of the equilibrated system: norm(S (rhs - K z)) / norm(S rhs), in the maximum norm.
    """

    def __init__(self, size: int, *, most: int | None = None) -> None:
        """Matrices of order ``size``; null spaces of dimension above ``most`` are represented by random members."""
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
        """Condition estimates of E, (B,), by power iterations; at most about norm(E) / EPS."""

    @property
    @abstractmethod
    def null_direction(self) -> Array:
        """A random null direction of K, (B, N), largest entry 1; meaningful if ``condition`` exceeds SINGULAR."""

    @abstractmethod
    def refine(self, rhs: Array, *, steps: int = MAX_REFINEMENTS) -> tuple[Array, Array]:
        """Solve K z = rhs by iterative refinement.

        Each element is refined until it makes no progress, independently of the others.

        Returns:
            solutions (B, N) and residuals (B,), the best of all steps; NaN if the right-hand side is not finite.
        """

    @abstractmethod
    def refine_row_by_row(self, rhs: Array) -> tuple[Array, Array]:
        """Solve K z = rhs with a small residual in every row relative to the terms of that row (Skeel 1980).

        Returns:
            solutions (B, N); the largest residual of a row of E relative to the magnitudes of its terms, (B,).
        """

    @abstractmethod
    def product(self, x: Array) -> Array:
        """E x, (B, N)."""

    @abstractmethod
    def terms(self, x: Array) -> Array:
        """Row-wise sums of the magnitudes of the terms of E x, (B, N), or bounds of what is rounded in computing it."""

    @abstractmethod
    def null_iteration(self, x: Array) -> tuple[Array, Array]:
        """The limits of x <- x - F^-1 E x from x (B, count, N), and E times them (see ``null_space``)."""

    @abstractmethod
    def select(self, index: IndexArray) -> RefinedFactor:
        """The factor of the elements at these positions."""

    def residual(self, z: Array, rhs: Array) -> Array:
        """Relative residuals norm(S (rhs - K z)) / norm(S rhs) in the maximum norm, (B,)."""
        target = self.scale * rhs
        return max_norm(target - self.product(z / self.scale)) / np.maximum(max_norm(target), TINY)

    def null_part(self, z: Array) -> Array:
        """The projections of z (B, N) onto the null spaces of E.

        F^-1 is not accurate enough to separate a null space from its orthogonal complement in one step. The limit
        ``null_iteration`` is a null vector, but depends slightly on the component of z in the range. E times a refined
        solution of E x = z is in the range, but depends slightly on the component in the null space. Alternating
        the two converges.
        """
        scale = self.scale
        found, going = np.zeros_like(z), max_norm(z) > 0.0
        for _ in range(MAX_REFINEMENTS):
            if not np.any(going):
                break
            rest = z - found
            in_range = self.product(self.refine(rest / scale)[0] / scale)
            part = self.null_iteration((rest - in_range)[:, None])[0][:, 0]
            found[going] += part[going]
            going &= max_norm(part) > RESIDUAL_TOL * max_norm(z)
        return found

    def null_spaces(self, index: IndexArray) -> list[NullSpace]:
        """The null spaces of K of these elements, whose ``condition`` must be finite; computed once."""
        return self._found(index, self._null_spaces, complete=True)

    def null_directions(self, index: IndexArray) -> list[NullSpace]:
        """As ``null_spaces``, but only a few directions of large null spaces if those are certain; much faster."""
        few = self._found(index, self._null_directions, complete=False)
        unsure: IndexArray = np.array(
            [i for i, space in zip(index.tolist(), few, strict=True) if not (space.certain or space.complete)],
            dtype=np.int64,
        )
        if len(unsure):
            self._null_directions.update(zip(unsure.tolist(), self.null_spaces(unsure), strict=True))
        return [self._null_directions[i] for i in index.tolist()]

    def _found(self, index: IndexArray, known: dict[int, NullSpace], *, complete: bool) -> list[NullSpace]:
        missing: IndexArray = np.array([i for i in index.tolist() if i not in known], dtype=np.int64)
        if len(missing):
            found = find_null_spaces(self.select(missing), len(missing), self._size, most=self._most, complete=complete)
            for i, space in zip(missing.tolist(), found, strict=True):
                known[i] = space
                if space.complete:
                    self._null_spaces[i] = self._null_directions[i] = space
        return [known[i] for i in index.tolist()]

    def minimum_norm(self, rhs: Array, index: IndexArray) -> tuple[Array, Array]:
        """Least-squares solutions of minimum norm for these elements, and their residuals.

        Norms are those of the unknowns of K, or of E if the null space is too large to compute
        (``NullSpace.complete``).

        Returns:
            argmin norm(z) over the minimisers of norm(K z - rhs), (len(index), N); the residuals, (len(index),).
        """
        part, spaces = self.select(index), self.null_spaces(index)
        scale = part.scale
        groups = list(group_by_dimension(spaces, scale, part.select))
        target = np.empty_like(scale)
        for members, space in groups:
            target[members] = space.project_to_range(rhs[index[members]])
        z = part.refine(target / scale)[0] / scale
        slow = [row for row, space in enumerate(spaces) if len(space.slow)]
        for _ in range(SWEEPS if slow else 0):
            remainder = target - part.product(z)
            for row in slow:
                z[row] += spaces[row].along_slow(remainder[row])
            remainder = target - part.product(z)
            z += part.refine(remainder / scale)[0] / scale
        for members, space in groups:
            z[members] = space.minimum_norm(z[members])
        z *= scale
        return z, part.residual(z, rhs[index])


class StoredFactor(RefinedFactor):
    """Refined factor of stored matrices of one pattern."""

    def __init__(self, pattern: Pattern) -> None:
        """Pattern is that of the upper triangle of K."""
        super().__init__(pattern.shape[0])
        self._pattern = pattern

    @abstractmethod
    def equilibrated(self, index: IndexArray) -> tuple[Array, Array]:
        """Scales S (elements, N) and upper triangles of E (elements, nnz) of the elements at these positions."""

    @final
    def product(self, x: Array) -> Array:
        """E x, (B, N)."""
        return equilibrated_product(self._pattern, self._whole[0], x)

    @final
    def terms(self, x: Array) -> Array:
        """|E| |x|, (B, N)."""
        return equilibrated_product(self._pattern, self._whole[1], np.abs(x))

    @cached_property
    def _whole(self) -> tuple[Array, Array]:
        """The upper triangles of E of all elements, and their absolute values."""
        E = self.equilibrated(np.arange(len(self.scale)))[1]
        return E, np.abs(E)


class AbstractFactoriser(ABC):
    """Factorises batches of matrices of one pattern; the constructor does the symbolic factorisation.

    Attributes:
        symbolic: the ``ldl.symbolic.Symbolic`` of the kernels; None if another library factorises.
    """

    symbolic: Any = None

    @abstractmethod
    def factor(self, values: Array) -> RefinedFactor:
        """Factorise the matrices K whose upper triangles have values (B, nnz)."""


def refined_row_by_row(factor: RefinedFactor, rhs: Array) -> tuple[Array, Array]:
    """Implement ``RefinedFactor.refine_row_by_row`` with its other methods.

    ``refine`` reduces the norm of the residual; its remainder is refined again for elements that have rows with small
    terms and a relatively large residual.
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
    """rhs - K z, and its largest entry relative to the sum of the magnitudes of the row's terms, (B,)."""
    scale = factor.scale
    x, target = z / scale, scale * rhs
    remainder = target - factor.product(x)
    terms = factor.terms(x) + np.abs(target)
    floor = TERMS_FLOOR * max_norm(terms)[:, None]
    return remainder / scale, max_norm(remainder / np.maximum(terms, np.maximum(floor, TINY)))


def equilibrated_product(pattern: Pattern, E: Array, z: Array) -> Array:
    """E z, (B, N), for E given by upper triangles (B, nnz)."""
    diagonal = pattern.rows == pattern.cols
    return pattern.matvec(E, z) + pattern.rmatvec(E, z) - E[:, diagonal] * z


def power_start(size: int) -> Array:
    """Starting vector of power iterations, (N,): random, with a fixed seed."""
    return np.random.default_rng(0).standard_normal(size)


def power_iteration(apply: Callable[[Array], Array], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Power iteration: lower bounds (B,) of the norms of symmetric operators on (B, N), and unit dominant vectors."""
    z = np.broadcast_to(power_start(shape[1]), shape)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    for _ in range(POWER_STEPS):
        z = apply(z / np.maximum(norm, TINY))
        norm = np.linalg.norm(z, axis=1, keepdims=True)
    return norm[:, 0], z / np.maximum(norm, TINY)
