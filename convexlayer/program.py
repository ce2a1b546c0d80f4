"""The standard form of cone programs, and batches of programs with shared sparsity patterns.

    minimize    1/2 x'Px + q'x + r
    subject to  Ax + s = b,   s in K

    P  symmetric positive semidefinite (n, n), stored full;   A (m, n);   K a product of cones
    dual  y in K*:   Px + q + A'y = 0,   s'y = 0

Rows of A are in the order zero, nonnegative, second-order, positive semidefinite, exponential, power.

- A second-order block (t, u) means norm(u) <= t.
- A positive semidefinite block is the lower triangle of a symmetric matrix in column-major order, with off-diagonal
  entries multiplied by sqrt(2), so that inner products are those of the matrices.
- An exponential block (x, y, z) is the closure of y exp(x / y) <= z, y > 0.
- A power block (x, y, z) with exponent alpha means x^alpha y^(1 - alpha) >= abs(z), x, y >= 0.

By Moreau's decomposition, one vector w = y - s represents y and s of a complementary pair: y = Pi_{K*}(w), s = y - w.

A batch adds a leading axis to all values; its elements share the sparsity patterns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexlayer.sparse import Pattern, Values, entries_of_products, is_finite, max_norm, power_of_two

__all__ = [
    "ROWS_OF_BLOCK",
    "Array",
    "ConeProgram",
    "Cones",
    "IndexArray",
    "Pattern",
    "ProgramCotangent",
    "Structure",
    "is_finite",
    "max_norm",
]

Array = NDArray[np.float64]
IndexArray = NDArray[np.int64]


ROWS_OF_BLOCK: dict[str, Callable[[Any], int]] = {
    "zero": lambda _: 1,
    "nonnegative": lambda _: 1,
    "second_order": lambda size: size,
    "psd": lambda order: order * (order + 1) // 2,
    "exponential": lambda _: 3,
    "power": lambda _: 3,
}
"""The cones in row order, with the number of rows of a block, from its entry in ``Cones``."""


def _row_count(kind: str, size: int | list[Any]) -> int:
    """Number of rows of all blocks of one cone."""
    of_block = ROWS_OF_BLOCK[kind]
    return of_block(1) * size if isinstance(size, int) else sum(map(of_block, size))


@dataclass(frozen=True)
class Cones:
    """Sizes of the blocks of K, in row order: a number of blocks, or a tuple with an entry for each.

    Attributes:
        zero: number of rows of the zero cone (equalities, with free duals).
        nonnegative: number of rows of the nonnegative cone.
        second_order: dimension (1 + length of u) of each second-order block.
        psd: side length k of each positive semidefinite block, which has k (k + 1) / 2 rows.
        exponential: number of exponential blocks, three rows each.
        power: exponent alpha in (0, 1) of each power block, three rows each.
    """

    zero: int = 0
    nonnegative: int = 0
    second_order: tuple[int, ...] = ()
    psd: tuple[int, ...] = ()
    exponential: int = 0
    power: tuple[float, ...] = ()

    @property
    def block_rows(self) -> IndexArray:
        """Number of rows of each block, in row order; each row of the zero and nonnegative cones is a block."""
        rows = [
            np.full(size, ROWS_OF_BLOCK[kind](1)) if isinstance(size, int) else [ROWS_OF_BLOCK[kind](k) for k in size]
            for kind, size in self.as_dict().items()
        ]
        return np.concatenate(rows).astype(np.int64)

    def rows_of(self, kind: str) -> slice:
        """The rows of the blocks of one cone."""
        counts = {each: _row_count(each, size) for each, size in self.as_dict().items()}
        start = sum(counts[each] for each in takewhile(lambda each: each != kind, counts))
        return slice(start, start + counts[kind])

    @cached_property
    def m(self) -> int:
        """Number of rows."""
        return sum(_row_count(kind, size) for kind, size in self.as_dict().items())

    def as_dict(self) -> dict[str, Any]:
        """The sizes as plain JSON values, in row order."""
        sizes = {kind: getattr(self, kind) for kind in ROWS_OF_BLOCK}
        return {kind: list(size) if isinstance(size, tuple) else size for kind, size in sizes.items()}

    def of_blocks(self, kept: NDArray[np.bool_]) -> Cones:
        """Select blocks by a mask in row order, in which each row of the zero and nonnegative cones is a block."""
        sizes = self.as_dict()
        counts = [len(size) if isinstance(size, list) else size for size in sizes.values()]
        for kind, mask in zip(sizes, np.split(kept, np.cumsum(counts)[:-1]), strict=True):
            whole = sizes[kind]
            sizes[kind] = tuple(compress(whole, mask)) if isinstance(whole, list) else int(np.count_nonzero(mask))
        return Cones(**sizes)

    @cached_property
    def kinds(self) -> frozenset[str]:
        """Names of the cones that occur."""
        return frozenset(kind for kind, size in self.as_dict().items() if size)


@dataclass(frozen=True, eq=False)
class Structure:
    """Sparsity patterns and cones shared by all elements of a batch; symbolic work uses these only, once per layer."""

    P: Pattern
    A: Pattern
    cones: Cones

    @cached_property
    def constant_inequalities(self) -> IndexArray:
        """Rows of the nonnegative cone without an entry in A: inequalities between parameters alone."""
        rows = np.arange(self.cones.zero, self.cones.zero + self.cones.nonnegative)
        return np.setdiff1d(rows, self.A.rows)

    @cached_property
    def singleton_rows(self) -> tuple[IndexArray, IndexArray, IndexArray]:
        """Rows with one entry in A, ordered by column; the columns of these entries, and the start of each column."""
        rows, columns = self.A.rows[self.A.row_singletons], self.A.cols[self.A.row_singletons]
        return rows, *np.unique(columns, return_index=True)

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.A.shape[1]

    @property
    def m(self) -> int:
        """Number of rows."""
        return self.A.shape[0]


@dataclass(frozen=True, eq=False)
class ConeProgram:
    """A batch of B cone programs with one structure, or a tangent of such a batch.

    Attributes:
        structure: patterns of P and A, and the cones.
        P: values of P, (B, nnz(P)); symmetric, both triangles stored.
        q: (B, n).
        r: (B,), the constant of the objective.
        A: values of A, (B, nnz(A)).
        b: (B, m).
    """

    structure: Structure
    P: Array
    q: Array
    r: Array
    A: Array
    b: Array

    @property
    def batch(self) -> int:
        """Number of elements."""
        return self.q.shape[0]

    @property
    def values(self) -> Values:
        """P, q, A and b."""
        return Values(self.P, self.q, self.A, self.b)

    def select(self, index: Any) -> ConeProgram:
        """Select elements by a slice, index array or mask."""
        return ConeProgram(self.structure, self.P[index], self.q[index], self.r[index], self.A[index], self.b[index])

    def objective_scale(self) -> Array:
        """Largest coefficient of each objective rounded to a power of two, (B,); 1 for a zero objective."""
        return power_of_two(np.maximum(max_norm(self.P), max_norm(self.q)))

    def with_objective_divided(self, scale: Array) -> ConeProgram:
        """Divide P, q and r by scale (B,); the solution is then (x, y / scale, s)."""
        column = scale[:, None]
        return ConeProgram(self.structure, self.P / column, self.q / column, self.r / scale, self.A, self.b)

    def residuals_at(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Px + q + A'y, (B, n), and Ax - b, (B, m); of a program tangent, the tangents of these at a fixed (x, y)."""
        P, A = self.structure.P, self.structure.A
        return P.matvec(self.P, x) + self.q + A.rmatvec(self.A, y), A.matvec(self.A, x) - self.b

    def objective(self, x: Array) -> Array:
        """Compute the objective values 1/2 x'Px + q'x + r, (B,)."""
        quadratic = np.sum(x * self.structure.P.matvec(self.P, x), axis=1)
        return 0.5 * quadratic + np.sum(self.q * x, axis=1) + self.r


@dataclass(frozen=True, eq=False)
class ProgramCotangent:
    """A cotangent of a batch of B programs, by the vectors that its matrices are products of.

        grad_q = -l,   grad_b = v,   grad_A = -(y l' + v x'),   grad_P = -(l x' + x l') / 2

    Derivatives of solutions have this form with the solution (x, y), and so do those of the optimal value
    (``of_value``). The entries of P and A are computed when they are asked for, on the pattern that is needed.

    Attributes:
        x: (B, n).
        y: (B, m).
        l: (B, n).
        v: (B, m).
        r: grad_r, (B,); None is zero.
    """

    x: Array
    y: Array
    l: Array  # noqa: E741 (the name in the mathematics)
    v: Array
    r: Array | None = None

    @staticmethod
    def of_value(x: Array, y: Array, weight: Array) -> ProgramCotangent:
        """weight (B,) times the derivative of the optimal value: xx'/2 for P, x for q, 1 for r, yx' for A, -y for b.

        By the envelope theorem this is the partial derivative of the Lagrangian at the solution (x, y).
        """
        w = weight[:, None]
        return ProgramCotangent(0.5 * x, 0.5 * y, -w * x, -w * y, weight)

    @property
    def q(self) -> Array:
        """grad_q, (B, n)."""
        return -self.l

    @property
    def b(self) -> Array:
        """grad_b, (B, m)."""
        return self.v

    def P(self, pattern: Pattern) -> Array:
        """Entries (B, nnz) of grad_P on a pattern."""
        half = -0.5 * self.l
        return entries_of_products(pattern.rows, pattern.cols, ((half, self.x), (self.x, half)))

    def A(self, pattern: Pattern) -> Array:
        """Entries (B, nnz) of grad_A on a pattern."""
        return entries_of_products(pattern.rows, pattern.cols, ((self.y, -self.l), (-self.v, self.x)))

    def inner(self, tangent: ConeProgram) -> Array:
        """Inner products (B,) with a program tangent."""
        r1, r2 = tangent.residuals_at(self.x, self.y)
        product = -np.sum(self.l * r1, axis=1) - np.sum(self.v * r2, axis=1)
        return product if self.r is None else product + self.r * tangent.r
