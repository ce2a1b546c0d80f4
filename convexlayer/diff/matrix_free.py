"""K of structures with large semidefinite blocks: what is sparse is stored, the blocks' products are applied.

With V the eigenvectors of a block's w, L'A x is a product with A and two with V, O(k^3) where L'A has k^4 / 4 entries.
What solves a system is chosen for each element by its cost: the elimination of ``block_elimination`` where little
remains of it, else MINRES, and the elimination where MINRES does not arrive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np
import scipy.sparse as sp

from convexlayer.cones import Group, KroneckerBasis
from convexlayer.diff.block_elimination import BlockElimination, CoupledBlocks, EntryVariables
from convexlayer.diff.rows import entries_of
from convexlayer.linalg import (
    AbstractInverse,
    AbstractMatrix,
    FactoredInverse,
    KrylovInverse,
    MatrixFree,
    MatrixFreeFactor,
    RefinedFactor,
    equilibration,
)
from convexlayer.program import Array, IndexArray, Pattern, Structure
from convexlayer.rays import BoolArray
from convexlayer.runtime.threads import map_ranges

__all__ = ["MatrixFreeSystem"]

FIRST = 400
"""Products with K that an elimination may cost, to be tried before MINRES; which else may take as many as that costs,
so that both together take twice what the better one does ..."""

LIMIT = 5000
"""... but no more than this."""

LARGEST_REST, LARGEST_STORED = 3000, 3 * 10**7
"""Unknowns that may remain of an elimination, and numbers that it may keep."""

EFFICIENCY = 0.4
"""Time of a multiply-add in the large matrices of an elimination, by that in a product with K; measured."""

SAME = 1e-9
"""Relative difference of numbers that count as one."""


class _Cost(NamedTuple):
    """Of an elimination: unknowns that remain, numbers that are kept, and time, in products with K."""

    rest: int
    stored: int
    products: float

    @property
    def bearable(self) -> bool:
        return self.rest <= LARGEST_REST and self.stored <= LARGEST_STORED


@final
class MatrixFreeSystem:
    """The symbolic part; once a layer."""

    def __init__(self, structure: Structure, groups: Sequence[Group], pattern: Pattern, signs: Array) -> None:
        """Analyse.

        Args:
            structure: of the programs.
            groups: the large blocks.
            pattern: upper triangle of what is stored of K, every diagonal entry in it: all but the products with the
                large blocks.
            signs: of K's diagonal, (N,).
        """
        self._pattern, self._signs, self._n = pattern, signs, structure.n
        self._groups = [_Symbolic(group, structure) for group in groups]
        taken = _in_several_rows(structure, self._groups)
        self._variables = [group.entry_variables(taken) for group in self._groups]
        self._stored = _Symmetric(pattern)
        self._diagonal = np.flatnonzero(pattern.rows == pattern.cols)
        self._beyond = self._rows_of_other_cones()
        # the large blocks' unknowns share a scale in each block, so that their coordinates keep it
        index = np.arange(pattern.shape[0])
        for group in self._groups:
            index[group.own] = group.own.start + np.repeat(np.arange(group.shape[0]), group.shape[1]) * group.shape[1]
        used, self._class = np.unique(index, return_inverse=True)
        rows = [self._class[pattern.rows], *(self._class[group.cols] for group in self._groups)]
        cols = [self._class[pattern.cols], *(self._class[group.unknown] for group in self._groups)]
        self._classes = Pattern((len(used), len(used)), np.concatenate(rows), np.concatenate(cols))

    def factor(self, K: Array, A: Array, bases: Sequence[KroneckerBasis]) -> RefinedFactor:
        """Ready to solve; factorises where that is worth it when it is first asked.

        Args:
            K: values of what is stored, (B, nnz).
            A: values of A, (B, nnz).
            bases: the derivatives of the large blocks, with axes (B, blocks, ...).
        """
        entries = np.concatenate([K, *(A[:, group.source] for group in self._groups)], axis=1)
        finite = np.all(np.isfinite(entries), axis=1)
        scale = equilibration(self._classes, np.where(finite[:, None], entries, 0.0))[:, self._class]

        def element(i: int) -> MatrixFree | None:
            own = [replace(b, vectors=b.vectors[i], d=b.d[i], complement=b.complement[i]) for b in bases]
            return self._element(scale[i], K[i], A[i], own) if finite[i] else None

        elements = map_ranges(lambda part: [element(i) for i in part], len(K))
        return MatrixFreeFactor(elements, self._pattern.shape[0])

    def _element(self, scale: Array, K: Array, A: Array, bases: Sequence[KroneckerBasis]) -> MatrixFree:
        """One element, scaled as the elimination wants it where that comes first."""
        idle = self._idle(K)
        variables, cost = self._cheapest(K, A, len(idle))
        of_entries = self._scale_of_entries(scale, A, variables)
        first = cost.bearable and cost.products <= FIRST
        scale = of_entries if first else scale
        system = self._scaled(scale, K, A, bases)

        def eliminate() -> AbstractInverse:
            made = system if first else self._scaled(of_entries, K, A, bases)
            elimination = BlockElimination(made.stored, made.blocks, variables, idle, self._signs)
            ratio = of_entries / scale
            return FactoredInverse(system.multiply, lambda rhs: ratio * elimination.apply(ratio * rhs), len(scale))

        limit = int(min(LIMIT, cost.products)) if cost.bearable else LIMIT

        def iterate() -> AbstractInverse:
            return KrylovInverse(system.multiply, len(scale), limit)

        after = [iterate, eliminate] if cost.bearable else [iterate]
        return MatrixFree(scale, system, [eliminate] if first else after)

    def _scaled(self, scale: Array, K: Array, A: Array, bases: Sequence[KroneckerBasis]) -> _Equilibrated:
        """E = S K S of one element."""
        pattern = self._pattern
        stored = self._stored.matrix(K * scale[pattern.rows] * scale[pattern.cols])
        blocks = [
            CoupledBlocks(group.own, basis, group.matrix(A[group.source] * scale[group.unknown] * scale[group.cols]))
            for group, basis in zip(self._groups, bases, strict=True)
        ]
        return _Equilibrated(stored, blocks)

    def _idle(self, K: Array) -> IndexArray:
        """Unknowns of inactive rows of other cones: they meet no other."""
        pattern, size = self._pattern, len(self._signs)
        weight = np.where(pattern.rows == pattern.cols, 0.0, np.abs(K))
        met = np.bincount(pattern.rows, weight, size) + np.bincount(pattern.cols, weight, size)
        return np.flatnonzero(self._beyond & (met == 0.0))

    def _cheapest(self, K: Array, A: Array, idle: int) -> tuple[list[EntryVariables | None], _Cost]:
        """The variables to eliminate with each group, and what that costs."""
        diagonal = K[self._diagonal]
        fitting = [
            variable if variable is not None and group.alike(variable, diagonal, A) else None
            for group, variable in zip(self._groups, self._variables, strict=True)
        ]
        without: list[EntryVariables | None] = [None] * len(fitting)
        costs = [(choice, self._cost(choice, idle)) for choice in (fitting, without)]
        return min(costs, key=lambda pair: pair[1].products)

    def _cost(self, variables: Sequence[EntryVariables | None], idle: int) -> _Cost:
        """What an elimination with these variables costs."""
        chosen = [variable for variable in variables if variable is not None]
        active = int(np.count_nonzero(self._beyond)) - idle
        rest = self._n + active + sum(len(v.others) - len(v.column) for v in chosen)
        stored, flops = 0, rest**3 / 3.0
        for group, variable in zip(self._groups, variables, strict=True):
            with_u = group.met - (0 if variable is None else len(variable.column))
            with_z = 0 if variable is None else len(variable.others) + active
            stored += (with_u + with_z) * group.entries
            flops += (with_u + with_z) * group.product_flops / 2.0 + (with_u + with_z) ** 2 * group.entries
        return _Cost(rest, stored, EFFICIENCY * flops / sum(group.product_flops for group in self._groups))

    def _scale_of_entries(self, scale: Array, A: Array, variables: Sequence[EntryVariables | None]) -> Array:
        """With scales that make the coefficients of variables that are entries +-1."""
        scale = scale.copy()
        for group, variable in zip(self._groups, variables, strict=True):
            if variable is not None:
                coefficient = np.abs(A[group.source[variable.source]])
                scale[variable.column] = 1.0 / (coefficient * scale[group.unknown[variable.source]])
        return scale

    def _rows_of_other_cones(self) -> BoolArray:
        beyond = np.arange(len(self._signs)) >= self._n
        for group in self._groups:
            beyond[group.own] = False
        return beyond


@final
class _Equilibrated(AbstractMatrix):
    """E: what is stored of it, and the large blocks."""

    def __init__(self, stored: sp.csr_matrix, blocks: Sequence[CoupledBlocks]) -> None:
        self.stored, self.blocks = stored, blocks

    def multiply(self, x: Array) -> Array:
        out: Array = self.stored @ x
        for group in self.blocks:
            group.add_product(x, out)
        return out

    def terms(self, x: Array) -> Array:
        """The rotation of a block rounds all of its entries alike: they count as its largest."""
        out: Array = abs(self.stored) @ np.abs(x)
        for group in self.blocks:
            group.add_terms(x, out)
        return out


@final
class _Symbolic:
    """A group of large blocks: where its rows of A stand.

    Attributes:
        order: of the matrices.
        shape: blocks and entries of each.
        own: its unknowns.
        source: its entries among those of A, row by row.
        cols: their columns.
        unknown: their rows, as unknowns of K.
        met: number of columns that occur.
    """

    def __init__(self, group: Group, structure: Structure) -> None:
        A, n = structure.A, structure.n
        self.shape = (group.blocks, group.size)
        self.own = slice(n + group.rows.start, n + group.rows.stop)
        self.order = (math.isqrt(8 * group.size + 1) - 1) // 2
        mine = entries_of(structure, group.rows)
        self.source = mine[np.argsort(A.rows[mine], kind="stable")]
        self.cols, self.unknown = A.cols[self.source], n + A.rows[self.source]
        self.met = len(np.unique(self.cols))
        self._entry = A.rows[self.source] - group.rows.start
        self._indptr = np.searchsorted(self._entry, np.arange(self.entries + 1))
        self._width = n

    @property
    def entries(self) -> int:
        """Rows of all blocks."""
        return self.shape[0] * self.shape[1]

    @property
    def product_flops(self) -> float:
        """Multiply-adds of a product with A'L and L'A: four products of matrices a block."""
        return 4.0 * self.shape[0] * self.order**3

    def matrix(self, values: Array) -> sp.csr_matrix:
        """The rows of A with these values in place of its entries."""
        return sp.csr_matrix((values, self.cols, self._indptr), shape=(self.entries, self._width))

    def entry_variables(self, taken: BoolArray) -> EntryVariables | None:
        """Variables that are entries of the matrices, unless too few are; none of those that are ``taken``."""
        free = np.flatnonzero(~taken[self.cols])
        entry, first = np.unique(self._entry[free], return_index=True)
        source = free[first]
        others = np.setdiff1d(np.arange(self.entries), entry)
        return EntryVariables(entry, self.cols[source], source, others) if len(others) < len(entry) else None

    def alike(self, variable: EntryVariables, diagonal: Array, A: Array) -> bool:
        """Whether the coefficients can be scaled to 1, and P is one number on their diagonal in each block then."""
        coefficient = A[self.source[variable.source]]
        if not np.all(coefficient):
            return False
        curvature = diagonal[variable.column] / coefficient**2
        block = variable.entry // self.shape[1]
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        most, least = (ufunc.reduceat(curvature, starts) for ufunc in (np.maximum, np.minimum))
        return bool(np.all(most - least <= SAME * most))


@final
class _Symmetric:
    """Symmetric matrices of one pattern, made of their upper triangles."""

    def __init__(self, pattern: Pattern) -> None:
        off = np.flatnonzero(pattern.rows != pattern.cols)
        rows, cols = (
            np.concatenate([pattern.rows, pattern.cols[off]]),
            np.concatenate([pattern.cols, pattern.rows[off]]),
        )
        order = np.lexsort((cols, rows))
        self._source = np.concatenate([np.arange(pattern.nnz), off])[order]
        self._cols = cols[order]
        self._indptr = np.searchsorted(rows[order], np.arange(pattern.shape[0] + 1))
        self._shape = pattern.shape

    def matrix(self, values: Array) -> sp.csr_matrix:
        """Of the values (nnz,) of an upper triangle."""
        return sp.csr_matrix((values[self._source], self._cols, self._indptr), shape=self._shape)


def _in_several_rows(structure: Structure, groups: Sequence[_Symbolic]) -> BoolArray:
    """Variables with more than one entry in the large blocks, or off-diagonal ones in P, (n,)."""
    count = np.bincount(np.concatenate([group.cols for group in groups]), minlength=structure.n)
    several: BoolArray = count > 1
    P = structure.P
    several[P.rows[P.rows != P.cols]] = True
    return several
