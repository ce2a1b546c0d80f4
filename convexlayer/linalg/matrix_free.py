"""Accurate matrix-free solves of symmetric systems, by products with the equilibrated E and approximate inverses.

As in ``refined``, which stores the matrices, solutions are refined against E itself. The approximate inverse is that of
the regularised E if its structure makes that cheap, or a Krylov method, which needs only products with E.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from threading import Lock
from typing import TypeVar, final

import numpy as np

from convexlayer.linalg.krylov import minres
from convexlayer.linalg.refined import (
    EPS,
    MAX_REFINEMENTS,
    MIN_REDUCTION,
    REFINEMENT_TOL,
    TINY,
    RefinedFactor,
    power_iteration,
    power_start,
    refined_row_by_row,
)
from convexlayer.program import Array, IndexArray
from convexlayer.runtime.threads import map_ranges

__all__ = [
    "AbstractInverse",
    "AbstractMatrix",
    "FactoredInverse",
    "KrylovInverse",
    "MatrixFree",
    "MatrixFreeFactor",
]

Result = TypeVar("Result")

Multiply = Callable[[Array], Array]
"""v -> E v, (N,)."""

MINRES_TOL, KRYLOV_TOL = 1e-12, 1e-11
"""Relative residuals of a Krylov solve: the tolerance passed to MINRES (2-norm), and the one at which refinement ends
(maximum norm)."""

MAX_NULL_DIMENSION = 64
"""Largest dimension of a null space that is computed completely, at one solve per dimension; of larger ones only some
random members are computed."""

PROBE_TOL = 1e-7
"""Relative residual of the MINRES solve with a random right-hand side that estimates the condition. The component of
such a right-hand side along each null direction is about N^-1/2 of its norm, far above this."""


class AbstractMatrix(ABC):
    """One equilibrated matrix E (N, N), given by its products."""

    @abstractmethod
    def multiply(self, x: Array) -> Array:
        """E x, (N,)."""

    @abstractmethod
    def terms(self, x: Array) -> Array:
        """Row-wise sums of the magnitudes of the terms of E x, (N,), or bounds of what is rounded in computing it."""


class AbstractInverse(ABC):
    """An approximate inverse of one equilibrated E (N, N).

    Attributes:
        target: relative residual, in the maximum norm, at which refinement with this inverse ends.
    """

    target: float

    @abstractmethod
    def solve(self, rhs: Array, size: float) -> tuple[Array, bool]:
        """An approximate solution of E z = rhs, and whether it has this inverse's accuracy (else the next one is used).

        Args:
            rhs: remainder of a right-hand side, (N,).
            size: 2-norm of the original right-hand side.
        """

    @abstractmethod
    def probe(self) -> tuple[float, Array] | None:
        """Condition estimate of E and a unit vector (N,) close to its null space; None if it has no estimate."""


@final
class FactoredInverse(AbstractInverse):
    """The inverse of the regularised E, from a factorisation."""

    target = REFINEMENT_TOL

    def __init__(self, multiply: Multiply, apply: Multiply, size: int) -> None:
        """Store the operators.

        Args:
            multiply: product with E.
            apply: product with the inverse.
            size: N.
        """
        self._multiply, self._apply, self._size = multiply, apply, size

    def solve(self, rhs: Array, size: float) -> tuple[Array, bool]:
        """Apply the inverse."""
        return self._apply(rhs), True

    def probe(self) -> tuple[float, Array]:
        """Estimate by power iterations."""
        shape = (1, self._size)
        norm, _ = power_iteration(lambda z: self._multiply(z[0])[None], shape)
        inverse, direction = power_iteration(lambda z: self._apply(z[0])[None], shape)
        return max(float(norm[0]), 1.0) * float(inverse[0]), direction[0]


@final
class KrylovInverse(AbstractInverse):
    """An approximate inverse by MINRES."""

    target = KRYLOV_TOL

    def __init__(self, multiply: Multiply, size: int, limit: int) -> None:
        """Store the operator.

        Args:
            multiply: product with E.
            size: N.
            limit: maximum number of products with E per solve.
        """
        self._multiply, self._size, self._limit = multiply, size, limit

    def solve(self, rhs: Array, size: float) -> tuple[Array, bool]:
        """Solve to a residual of MINRES_TOL times the norm of the original right-hand side."""
        tol = MINRES_TOL * size / max(float(np.linalg.norm(rhs)), TINY)
        found = minres(self._multiply, rhs, tol=min(tol, 0.1), limit=self._limit)
        return found.z, found.converged

    def probe(self) -> tuple[float, Array] | None:
        """Solve for a random right-hand side: a singular E leaves a null residual, else the solution is nearly null."""
        rhs = power_start(self._size)
        found = minres(self._multiply, rhs, tol=PROBE_TOL, limit=self._limit)
        if not found.converged:
            return None
        largest, smallest = found.extreme_singular_values()
        direction = rhs - self._multiply(found.z) if found.least_squares else found.z
        condition = 1.0 / EPS if found.least_squares else min(largest / max(smallest, TINY), 1.0 / EPS)
        return condition, direction / max(float(np.linalg.norm(direction)), TINY)


@final
class MatrixFree:
    """One symmetric K (N, N) = S^-1 E S^-1, given by products with E.

    Attributes:
        scale: the diagonal of S, (N,).
        matrix: E.
    """

    def __init__(self, scale: Array, matrix: AbstractMatrix, inverses: Sequence[Callable[[], AbstractInverse]]) -> None:
        """Store the operators; nothing is computed yet.

        Args:
            scale: the diagonal of S, (N,).
            matrix: E.
            inverses: constructors of approximate inverses of E, in the order in which they are tried: if one does not
                reach its accuracy, the next one is used from then on.
        """
        self.scale, self.matrix = scale, matrix
        self._inverses, self._position = inverses, 0
        self._made: AbstractInverse | None = None
        self._says_how_singular = True
        self._lock = Lock()

    @cached_property
    def probed(self) -> tuple[float, Array]:
        """Condition estimate of E and a unit vector (N,) near its null space; E counts as singular without one."""
        while True:
            said = self._inverse.probe()
            if said is not None:
                return said
            if not self._next_inverse():
                self._says_how_singular = False
                direction = power_start(len(self.scale))
                return 1.0 / EPS, direction / np.linalg.norm(direction)

    def refine(self, rhs: Array, steps: int) -> tuple[Array, float]:
        """As ``RefinedFactor.refine``, for one right-hand side (N,)."""
        target = self.scale * rhs
        size = float(np.max(np.abs(target), initial=0.0))
        if not np.isfinite(size):
            return np.full_like(rhs, np.nan), np.nan
        z, residual = np.zeros_like(target), 0.0
        if size > 0.0:
            z, residual = self._refined(target, size, steps)
        return self.scale * z, residual

    def _refined(self, target: Array, size: float, steps: int) -> tuple[Array, float]:
        norm = float(np.linalg.norm(target))
        best = z = np.zeros_like(target)
        remainder, least = target, 1.0
        for _ in range(steps):
            step, good = self._inverse.solve(remainder, norm)
            z = z + step
            remainder = target - self.matrix.multiply(z)
            residual = float(np.max(np.abs(remainder))) / size
            progress = residual < MIN_REDUCTION * least
            if residual < least:
                best, least = z, residual
            if least <= self._inverse.target:
                break
            if good and progress:
                continue
            if good or not self._next_inverse():
                break
            z, remainder = best, target - self.matrix.multiply(best)
        return best, least

    def null_iteration(self, x: Array) -> tuple[Array, Array]:
        """As ``RefinedFactor.null_iteration``, for vectors (count, N)."""
        left = [self._remains(vector) for vector in x]
        if not left:
            return x, x
        vectors, images = zip(*left, strict=True)
        return np.stack(vectors), np.stack(images)

    def _remains(self, x: Array) -> tuple[Array, Array]:
        norm = float(np.linalg.norm(x))
        product = self.matrix.multiply(x)
        least = float(np.max(np.abs(product)))
        for _ in range(MAX_REFINEMENTS if self._says_how_singular else 0):
            step, good = self._inverse.solve(product, norm)
            step = x - step
            other = self.matrix.multiply(step)
            size = float(np.max(np.abs(other)))
            progress = size < MIN_REDUCTION * least
            if size < least:
                x, product, least = step, other, size
            if least <= self._inverse.target * norm or not (progress if good else self._next_inverse()):
                break
        return x, product

    @property
    def _inverse(self) -> AbstractInverse:
        """The approximate inverse in use, constructed at the first access."""
        with self._lock:
            if self._made is None:
                self._made = self._inverses[self._position]()
            return self._made

    def _next_inverse(self) -> bool:
        """Switch to the next approximate inverse; False if there is none."""
        with self._lock:
            if self._position + 1 == len(self._inverses):
                return False
            self._made, self._position = None, self._position + 1
            return True


@final
class MatrixFreeFactor(RefinedFactor):
    """A batch of matrix-free systems; elements are None if their data are not finite, and have NaN solutions."""

    def __init__(self, elements: Sequence[MatrixFree | None], size: int) -> None:
        """Store the elements, of order N = size."""
        super().__init__(size, most=MAX_NULL_DIMENSION)
        self._elements = elements

    @cached_property
    def scale(self) -> Array:
        """The diagonals of S, (B, N); 1 for elements whose data are not finite."""
        return self._rows([np.ones(self._size) if element is None else element.scale for element in self._elements])

    @cached_property
    def _probed(self) -> list[tuple[float, Array]]:
        nothing = np.nan, np.full(self._size, np.nan)
        return self._each(lambda _, element: nothing if element is None else element.probed)

    @property
    def condition(self) -> Array:
        """Condition estimates, (B,)."""
        return np.array([condition for condition, _ in self._probed])

    @property
    def null_direction(self) -> Array:
        """Null directions of K, (B, N), largest entry 1."""
        direction = self.scale * self._rows([direction for _, direction in self._probed])
        return direction / np.maximum(np.max(np.abs(direction), axis=1, initial=0.0), TINY)[:, None]

    def refine(self, rhs: Array, *, steps: int = MAX_REFINEMENTS) -> tuple[Array, Array]:
        """Solve element by element, on the thread pool."""
        nothing = np.full(self._size, np.nan), np.nan
        found = self._each(lambda i, element: nothing if element is None else element.refine(rhs[i], steps))
        return self._rows([z for z, _ in found]), np.array([residual for _, residual in found])

    def product(self, x: Array) -> Array:
        """E x, (B, N)."""
        nothing = np.full(self._size, np.nan)
        return self._rows(self._each(lambda i, each: nothing if each is None else each.matrix.multiply(x[i])))

    def terms(self, x: Array) -> Array:
        """Row-wise sums of the magnitudes of the terms of E x, (B, N)."""
        nothing = np.full(self._size, np.nan)
        return self._rows(self._each(lambda i, each: nothing if each is None else each.matrix.terms(x[i])))

    def refine_row_by_row(self, rhs: Array) -> tuple[Array, Array]:
        """Solve with row-wise small residuals, from ``refine``, ``product`` and ``terms``."""
        return refined_row_by_row(self, rhs)

    def null_iteration(self, x: Array) -> tuple[Array, Array]:
        """Iterate element by element, on the thread pool."""
        found = self._each(lambda i, element: (x[i], x[i]) if element is None else element.null_iteration(x[i]))
        left, image = (np.stack([pair[k] for pair in found]) if found else x for k in (0, 1))
        return left, image

    def select(self, index: IndexArray) -> RefinedFactor:
        """The factor of the elements at these positions, which share the results computed so far."""
        return MatrixFreeFactor([self._elements[i] for i in index.tolist()], self._size)

    def _each(self, function: Callable[[int, MatrixFree | None], Result]) -> list[Result]:
        return map_ranges(lambda part: [function(i, self._elements[i]) for i in part], len(self._elements))

    def _rows(self, rows: Sequence[Array]) -> Array:
        return np.stack(rows) if rows else np.zeros((0, self._size))
