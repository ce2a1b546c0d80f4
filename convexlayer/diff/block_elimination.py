"""Block elimination of large semidefinite cones from the regularised KKT matrix K.

In the basis of eigenvector pairs, the factor L of a block is diag(sqrt d), and the block's unknowns u couple only to
columns of A. If the entries of the semidefinite matrix are variables themselves (Z = +-l up to scale), z and u are
eliminated together by one 2 x 2 system per direction:

    [ pi + eps     sqrt d                 ]        (pi: diagonal of P at the variables, one number per block)
    [ sqrt d       -(1 - d) sigma^2 - eps ]        (sigma: the scale of the block's unknowns)

Entries of the matrix that are not variables get an auxiliary variable z = 0, enforced by a multiplier. In other blocks
only u is eliminated. The Schur complement is a dense system in the other variables, rows and multipliers. It is small
for the maximum cut, the nearest correlation matrix, or a trace minimised under few equations (entries are variables),
and for the largest eigenvalue or a linear matrix inequality in few variables (only u is eliminated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import scipy.sparse as sp
from scipy.linalg.lapack import dgetrf, dgetrs

from convexlayer.cones import KroneckerBasis
from convexlayer.linalg import EPS
from convexlayer.program import Array, IndexArray

__all__ = ["BlockElimination", "CoupledBlocks", "EntryVariables"]

CHUNK_ENTRIES = 2**21
"""Number of dense entries per chunk while rows are transformed to the eigenbasis of a block (16 MiB)."""


@final
@dataclass(frozen=True, eq=False)
class EntryVariables:
    """Variables that are entries of the semidefinite matrices of a group of blocks.

    Attributes:
        entry: position of each variable among the entries of all blocks, (variables,).
        column: its column of A, (variables,).
        source: position of its single coefficient among the entries of A in the group's rows, (variables,).
        others: the entries that are not variables.
    """

    entry: IndexArray
    column: IndexArray
    source: IndexArray
    others: IndexArray


@final
@dataclass(frozen=True, eq=False)
class CoupledBlocks:
    """A group of large blocks of one element in the equilibrated system.

    Attributes:
        own: positions of their unknowns u.
        basis: eigendecompositions D = Q diag(d) Q' of the blocks, with axes (blocks, ...).
        A: the scaled rows of A, (blocks * size, n).
    """

    own: slice
    basis: KroneckerBasis
    A: sp.csr_matrix

    def add_product(self, z: Array, out: Array) -> None:
        """Add the products of A'L and L'A with z (N,) to out (N,), in place."""
        n, shape = self.A.shape[1], self.basis.d.shape
        out[:n] += self._adjoint @ self.basis.combine(self.basis.root * z[self.own].reshape(shape)).ravel()
        out[self.own] += (self.basis.root * self.basis.coordinates((self.A @ z[:n]).reshape(shape))).ravel()

    def add_terms(self, z: Array, out: Array) -> None:
        """Add the magnitudes of the terms of ``add_product`` to out (N,); rows of a block get the block's largest."""
        n, shape = self.A.shape[1], self.basis.d.shape
        v = self.basis.combine(self.basis.root * z[self.own].reshape(shape))
        out[:n] += abs(self._adjoint) @ _largest(v).ravel()
        Az = self.basis.root * _largest((abs(self.A) @ np.abs(z[:n])).reshape(shape))
        out[self.own] = _largest(out[self.own].reshape(shape) + Az).ravel()

    @cached_property
    def _adjoint(self) -> sp.csr_matrix:
        """A', cached because the transposition takes longer than a product."""
        return self.A.T.tocsr()

    def rotated(self, rows: sp.csr_matrix) -> Array:
        """Transform sparse rows (rows, blocks * size) to the eigenbasis, (rows, blocks * size) dense."""
        count, width = rows.shape
        out = np.empty((count, width))
        step = max(1, CHUNK_ENTRIES // max(2 * width, 1))
        for first in range(0, count, step):
            some = rows[first : first + step].toarray()
            coordinates = self.basis.coordinates(some.reshape(len(some), *self.basis.d.shape))
            out[first : first + step] = coordinates.reshape(len(some), width)
        return out


def _largest(v: Array) -> Array:
    """Maximum norm of each block of v (blocks, size), broadcast to the block's entries."""
    return np.broadcast_to(np.max(np.abs(v), axis=1, keepdims=True), v.shape)


@final
class BlockElimination:
    """The inverse of E + eps diag(signs), for the equilibrated KKT matrix E of one element."""

    def __init__(
        self,
        stored: sp.csr_matrix,
        blocks: Sequence[CoupledBlocks],
        variables: Sequence[EntryVariables | None],
        idle: IndexArray,
        signs: Array,
    ) -> None:
        """Eliminate the blocks and factorise the Schur complement.

        Args:
            stored: E without the products of ``blocks``, (N, N), both triangles.
            blocks: the large blocks.
            variables: variables to eliminate with each group, or None. Each has the coefficient +-1 in the group, no
                coefficient in other large blocks, and no off-diagonal entry in P; the diagonal of P is constant on the
                variables of a block.
            idle: unknowns whose rows of E are diagonal.
            signs: signs of the diagonal of E, (N,).
        """
        size, diagonal = stored.shape[0], stored.diagonal() + EPS * signs
        remains = np.ones(size, dtype=bool)
        remains[idle] = False
        for group, variable in zip(blocks, variables, strict=True):
            remains[group.own] = False
            if variable is not None:
                remains[variable.column] = False
        rest = np.flatnonzero(remains)
        self._idle, self._idle_diagonal, self._rest = idle, diagonal[idle], rest
        extra = sum(len(variable.others) for variable in variables if variable is not None)
        S = np.zeros((len(rest) + extra, len(rest) + extra), order="F")
        S[: len(rest), : len(rest)] = stored[rest][:, rest].toarray()
        S[np.arange(len(rest)), np.arange(len(rest))] += EPS * signs[rest]
        self._eliminated: list[_Eliminated] = []
        first = len(rest)
        for group, variable in zip(blocks, variables, strict=True):
            made = _Eliminated(stored, diagonal, group, variable, rest, first)
            first += 0 if variable is None else len(variable.others)
            made.subtract_from(S)
            self._eliminated.append(made)
        self._lu: Array
        self._pivots: IndexArray
        self._broken: int
        self._lu, self._pivots, self._broken = dgetrf(S, overwrite_a=True) if len(S) else (S, rest, 0)

    def apply(self, rhs: Array) -> Array:
        """Solve for a right-hand side (N,); NaN if the factorisation broke down."""
        z = np.empty_like(rhs)
        z[self._idle] = rhs[self._idle] / self._idle_diagonal
        right = np.zeros(len(self._lu))
        right[: len(self._rest)] = rhs[self._rest]
        parts = [made.forward(rhs, right) for made in self._eliminated]
        if self._broken:
            right = np.full_like(right, np.nan)
        elif len(right):
            right = dgetrs(self._lu, self._pivots, right)[0]
        z[self._rest] = right[: len(self._rest)]
        for made, part in zip(self._eliminated, parts, strict=True):
            made.backward(part, right, z)
        return z


@final
class _Eliminated:
    """One eliminated group: inverses of its 2 x 2 systems, and its coupling to the remaining unknowns.

    F couples z, and G couples u, to the remaining unknowns.
    """

    def __init__(
        self,
        stored: sp.csr_matrix,
        diagonal: Array,
        group: CoupledBlocks,
        variable: EntryVariables | None,
        rest: IndexArray,
        first: int,
    ) -> None:
        """Compute the inverses and the couplings.

        Args:
            stored: E without products of large blocks.
            diagonal: diagonal of the regularised E.
            group: the blocks.
            variable: variables to eliminate with the blocks, or None.
            rest: the remaining unknowns; multipliers are appended to them.
            first: position of this group's first multiplier in the Schur complement.
        """
        self._group, self._variable = group, variable
        shape, root = group.basis.d.shape, group.basis.root.ravel()
        columns = rest[rest < group.A.shape[1]]  # the remaining variables, which come first
        A = group.A[:, columns]
        self._with_u = np.flatnonzero(A.getnnz(axis=0))
        self._G = group.rotated(A[:, self._with_u].T.tocsr()) * root
        lower = -diagonal[group.own]
        if variable is None:
            self._uu = -1.0 / lower
            return
        block = variable.entry // shape[1]
        count = np.bincount(block, minlength=shape[0])
        corner = np.bincount(block, diagonal[variable.column], minlength=shape[0]) / np.maximum(count, 1)
        upper = np.repeat(np.where(count, corner, EPS), shape[1])
        determinant = upper * lower + root * root
        self._ll, self._lu, self._uu = lower / determinant, root / determinant, -upper / determinant
        self._sign = group.A.data[variable.source]
        size, others = len(lower), len(variable.others)
        rows = stored[rest][:, variable.column]
        with_z = np.flatnonzero(rows.getnnz(axis=1))
        placed = sp.csr_matrix(
            (self._sign, (np.arange(len(variable.column)), variable.entry)), shape=(len(variable.column), size)
        )
        pinned = sp.csr_matrix((np.ones(others), (np.arange(others), variable.others)), shape=(others, size))
        self._with_z = np.concatenate([with_z, first + np.arange(others)])
        self._F = group.rotated(sp.vstack([rows[with_z] @ placed, pinned], "csr"))

    def subtract_from(self, S: Array) -> None:
        """Subtract the contribution of the eliminated unknowns from the Schur complement S, in place."""
        u = self._with_u
        S[np.ix_(u, u)] -= (self._G * self._uu) @ self._G.T
        if self._variable is not None:
            z = self._with_z
            S[np.ix_(z, z)] -= (self._F * self._ll) @ self._F.T
            both = (self._F * self._lu) @ self._G.T
            S[np.ix_(z, u)] -= both
            S[np.ix_(u, z)] -= both.T

    def forward(self, rhs: Array, right: Array) -> tuple[Array, Array]:
        """Forward elimination: update ``right``, the right-hand side of the Schur complement, in place.

        Returns:
            The right-hand sides of z and u.
        """
        group, variable = self._group, self._variable
        of_u = rhs[group.own]
        of_z = np.zeros_like(of_u)
        if variable is not None:
            of_z[variable.entry] = self._sign * rhs[variable.column]
            of_z = group.basis.coordinates(of_z.reshape(group.basis.d.shape)).ravel()
        z, u = self._solve(of_z, of_u)
        right[self._with_u] -= self._G @ u
        if variable is not None:
            right[self._with_z] -= self._F @ z
        return of_z, of_u

    def backward(self, part: tuple[Array, Array], right: Array, z: Array) -> None:
        """Back substitution: write the eliminated unknowns into z (N,).

        Args:
            part: the result of ``forward``.
            right: the solution of the Schur complement.
            z: the solution, modified in place.
        """
        group, variable = self._group, self._variable
        of_z, of_u = part
        of_u = of_u - right[self._with_u] @ self._G
        if variable is not None:
            of_z = of_z - right[self._with_z] @ self._F
        solved, z[group.own] = self._solve(of_z, of_u)
        if variable is not None:
            entries = group.basis.combine(solved.reshape(group.basis.d.shape)).ravel()
            z[variable.column] = self._sign * entries[variable.entry]

    def _solve(self, of_z: Array, of_u: Array) -> tuple[Array, Array]:
        """Solve the 2 x 2 systems, or the scalar ones if only u is eliminated."""
        if self._variable is None:
            return of_z, self._uu * of_u
        return self._ll * of_z + self._lu * of_u, self._lu * of_z + self._uu * of_u
