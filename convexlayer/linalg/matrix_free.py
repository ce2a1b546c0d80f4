"""Accurate solves of symmetric systems that are not stored: products with the equilibrated E, and approximate inverses.

As ``refined`` says of stored matrices, solutions are refined against E itself. What brings them there is an approximate
inverse: that of the regularised E where its structure gives it cheaply, or a Krylov method, which needs no more than
products with E.
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
    PROGRESS,
    REFINED,
    REFINEMENTS,
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

Found = TypeVar("Found")

Multiply = Callable[[Array], Array]
"""E v of v (N,)."""

CYCLE, REACHED = 1e-12, 1e-11
"""Relative residuals that a Krylov method is asked for, in the 2-norm, and that will do, in the maximum norm."""

MOST = 64
"""Dimensions of a null space that are found, each by a solve; beyond, a few members of it must do."""

PROBE = 1e-7
"""The same for a random right-hand side, of which every null direction has a share of about N^-1/2."""


class AbstractMatrix(ABC):
    """One equilibrated E (N, N)."""

    @abstractmethod
    def multiply(self, x: Array) -> Array:
        """E x, (N,)."""

    @abstractmethod
    def terms(self, x: Array) -> Array:
        """For every row of E x the sum of the magnitudes of its terms, (N,); of what is rounded with it, at least."""


class AbstractInverse(ABC):
    """An approximate inverse of one equilibrated E (N, N).

    Attributes:
        target: relative residual, in the maximum norm, below which refining further does not pay.
    """

    target: float

    @abstractmethod
    def solve(self, rhs: Array, size: float) -> tuple[Array, bool]:
        """An approximate solution of E z = rhs, and whether it is as good as this inverse promises.

        Args:
            rhs: what remains of a right-hand side, (N,).
            size: 2-norm of what that was at first.
        """

    @abstractmethod
    def probe(self) -> tuple[float, Array] | None:
        """Estimate of the condition of E, and the unit vector (N,) nearest to its null space; None if it cannot say."""


@final
class FactoredInverse(AbstractInverse):
    """That of the regularised E, which somebody has factorised."""

    target = REFINED

    def __init__(self, multiply: Multiply, apply: Multiply, size: int) -> None:
        """Keep what there is.

        Args:
            multiply: with E.
            apply: with the inverse.
            size: N.
        """
        self._multiply, self._apply, self._size = multiply, apply, size

    def solve(self, rhs: Array, size: float) -> tuple[Array, bool]:
        """As exact as the factorisation."""
        return self._apply(rhs), True

    def probe(self) -> tuple[float, Array]:
        """By power iterations."""
        shape = (1, self._size)
        norm, _ = power_iteration(lambda z: self._multiply(z[0])[None], shape)
        inverse, direction = power_iteration(lambda z: self._apply(z[0])[None], shape)
        return max(float(norm[0]), 1.0) * float(inverse[0]), direction[0]


@final
class KrylovInverse(AbstractInverse):
    """By MINRES."""

    target = REACHED

    def __init__(self, multiply: Multiply, size: int, limit: int) -> None:
        """Keep what there is.

        Args:
            multiply: with E.
            size: N.
            limit: products with E that a solve may take.
        """
        self._multiply, self._size, self._limit = multiply, size, limit

    def solve(self, rhs: Array, size: float) -> tuple[Array, bool]:
        """To CYCLE of the right-hand side that was there at first."""
        tol = CYCLE * size / max(float(np.linalg.norm(rhs)), TINY)
        found = minres(self._multiply, rhs, tol=min(tol, 0.1), limit=self._limit)
        return found.z, found.converged

    def probe(self) -> tuple[float, Array] | None:
        """What a random right-hand side shows: its part in the null space remains, or its solution points there."""
        rhs = power_start(self._size)
        found = minres(self._multiply, rhs, tol=PROBE, limit=self._limit)
        if not found.converged:
            return None
        largest, smallest = found.extreme_singular_values()
        direction = rhs - self._multiply(found.z) if found.least_squares else found.z
        condition = 1.0 / EPS if found.least_squares else min(largest / max(smallest, TINY), 1.0 / EPS)
        return condition, direction / max(float(np.linalg.norm(direction)), TINY)


@final
class MatrixFree:
    """One symmetric K (N, N) = S^-1 E S^-1, which is not stored.

    Attributes:
        scale: the diagonal of S, (N,).
        matrix: E.
    """

    def __init__(self, scale: Array, matrix: AbstractMatrix, inverses: Sequence[Callable[[], AbstractInverse]]) -> None:
        """Nothing is computed yet.

        Args:
            scale: the diagonal of S, (N,).
            matrix: E.
            inverses: make approximate inverses of E; the next one is asked where one does not keep its promise.
        """
        self.scale, self.matrix = scale, matrix
        self._inverses, self._position = inverses, 0
        self._made: AbstractInverse | None = None
        self._says_how_singular = True
        self._lock = Lock()

    @cached_property
    def probed(self) -> tuple[float, Array]:
        """Condition of E, and a unit vector (N,) near its null space; where nobody can say, E passes for singular."""
        while True:
            said = self._inverse.probe()
            if said is not None:
                return said
            if not self._next_inverse():
                self._says_how_singular = False
                direction = power_start(len(self.scale))
                return 1.0 / EPS, direction / np.linalg.norm(direction)

    def refine(self, rhs: Array, steps: int) -> tuple[Array, float]:
        """As ``RefinedFactor.refine``, of one right-hand side (N,)."""
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
            progress = residual < PROGRESS * least
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

    def remains(self, x: Array) -> tuple[Array, Array]:
        """As ``RefinedFactor.remains``, of vectors (count, N)."""
        left = [self._remains(vector) for vector in x]
        if not left:
            return x, x
        vectors, images = zip(*left, strict=True)
        return np.stack(vectors), np.stack(images)

    def _remains(self, x: Array) -> tuple[Array, Array]:
        norm = float(np.linalg.norm(x))
        product = self.matrix.multiply(x)
        least = float(np.max(np.abs(product)))
        for _ in range(REFINEMENTS if self._says_how_singular else 0):
            step, good = self._inverse.solve(product, norm)
            step = x - step
            other = self.matrix.multiply(step)
            size = float(np.max(np.abs(other)))
            progress = size < PROGRESS * least
            if size < least:
                x, product, least = step, other, size
            if least <= self._inverse.target * norm or not (progress if good else self._next_inverse()):
                break
        return x, product

    @property
    def _inverse(self) -> AbstractInverse:
        """The one that is asked now."""
        with self._lock:
            if self._made is None:
                self._made = self._inverses[self._position]()
            return self._made

    def _next_inverse(self) -> bool:
        """Turn to the next approximate inverse; whether there is one."""
        with self._lock:
            if self._position + 1 == len(self._inverses):
                return False
            self._made, self._position = None, self._position + 1
            return True


@final
class MatrixFreeFactor(RefinedFactor):
    """A batch of them; an element that is None, for data that are not finite, has no solution."""

    def __init__(self, elements: Sequence[MatrixFree | None], size: int) -> None:
        """Keep the elements, of N = size."""
        super().__init__(size, most=MOST)
        self._elements = elements

    @cached_property
    def scale(self) -> Array:
        """The diagonals of S (B, N); 1 where the data are not finite."""
        return self._rows([np.ones(self._size) if element is None else element.scale for element in self._elements])

    @cached_property
    def _probed(self) -> list[tuple[float, Array]]:
        nothing = np.nan, np.full(self._size, np.nan)
        return self._each(lambda _, element: nothing if element is None else element.probed)

    @property
    def condition(self) -> Array:
        """Estimates (B,)."""
        return np.array([condition for condition, _ in self._probed])

    @property
    def null_direction(self) -> Array:
        """Directions (B, N)."""
        direction = self.scale * self._rows([direction for _, direction in self._probed])
        return direction / np.maximum(np.max(np.abs(direction), axis=1, initial=0.0), TINY)[:, None]

    def refine(self, rhs: Array, *, steps: int = REFINEMENTS) -> tuple[Array, Array]:
        """Element by element, on the thread pool."""
        nothing = np.full(self._size, np.nan), np.nan
        found = self._each(lambda i, element: nothing if element is None else element.refine(rhs[i], steps))
        return self._rows([z for z, _ in found]), np.array([residual for _, residual in found])

    def product(self, x: Array) -> Array:
        """E x of x (B, N)."""
        nothing = np.full(self._size, np.nan)
        return self._rows(self._each(lambda i, each: nothing if each is None else each.matrix.multiply(x[i])))

    def terms(self, x: Array) -> Array:
        """Sums of magnitudes, (B, N)."""
        nothing = np.full(self._size, np.nan)
        return self._rows(self._each(lambda i, each: nothing if each is None else each.matrix.terms(x[i])))

    def refine_row_by_row(self, rhs: Array) -> tuple[Array, Array]:
        """By the product and the magnitudes of its terms."""
        return refined_row_by_row(self, rhs)

    def remains(self, x: Array) -> tuple[Array, Array]:
        """Element by element, on the thread pool."""
        found = self._each(lambda i, element: (x[i], x[i]) if element is None else element.remains(x[i]))
        left, image = (np.stack([pair[k] for pair in found]) if found else x for k in (0, 1))
        return left, image

    def select(self, index: IndexArray) -> RefinedFactor:
        """The same elements: what they have found is not found again."""
        return MatrixFreeFactor([self._elements[i] for i in index.tolist()], self._size)

    def _each(self, function: Callable[[int, MatrixFree | None], Found]) -> list[Found]:
        return map_ranges(lambda part: [function(i, self._elements[i]) for i in part], len(self._elements))

    def _rows(self, rows: Sequence[Array]) -> Array:
        return np.stack(rows) if rows else np.zeros((0, self._size))
